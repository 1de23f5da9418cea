"""The contracts on a convolutional network trained on real digits, where float rounding bites."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from advjax import (
    FGSM,
    L2,
    PGD,
    Classifier,
    Linf,
    Madry,
    Restarts,
    Training,
    attack_accuracy,
    create,
    evaluate,
    example_keys,
    fit,
    load,
    replace,
)
from advjax.attacks.core import driver

KEY = jax.random.key(3)
# One process trains the network, once.
pytestmark = [pytest.mark.xdist_group("real_network"), pytest.mark.optimised]


@pytest.fixture(scope="module")
def network():
    """(classifier, test images, labels): a small LeNet, adversarially trained for a few seconds."""
    training = Training(
        module=create("lenet5", filters=(8, 16), width=32),
        objective=Madry(attack=FGSM(ball=Linf(0.1), step_size=0.12, random_start=True)),
        optimizer=optax.adam(3e-3),
        train=load("digits"),
        epochs=20,
    )
    model = fit(training, devices=jax.local_devices()[:1]).last.model
    test = load("digits", "test")
    return model, test, jnp.asarray(test.x / np.float32(255)), jnp.asarray(test.y)


@pytest.fixture(scope="module")
def attacked(network):
    model, test, _, _ = network
    attack = PGD(ball=Linf(0.1), steps=10)
    return attack, evaluate(model, test, {"pgd": attack}, key=KEY, keep_images=True)


def same(found, other, order=None):
    """Equal success; equal pixels but for 1 in 10,000, where a gradient's sign is rounding."""
    order = slice(None) if order is None else order
    a, b = found.attacks["pgd"], other.attacks["pgd"]
    np.testing.assert_array_equal(a.success[order], b.success)
    differing = np.abs(a.x_adv[order] - b.x_adv) > 1e-6
    assert differing.mean() <= 1e-4, differing.sum()


def test_it_learned(attacked):
    assert attacked[1].clean.value > 0.9
    assert attacked[1].worst.value > 0.4


def test_draws_are_bit_identical_for_any_batch(network):
    _, _, x, _ = network
    sample = jax.jit(lambda ball, keys, x: ball.sample(keys, x))
    order = np.random.default_rng(0).permutation(64)
    for ball in (Linf(0.1), L2(1.0)):
        keys = example_keys(KEY, 64)
        whole = np.asarray(sample(ball, keys, x[:64]))
        np.testing.assert_array_equal(whole[order], sample(ball, keys[order], x[order]))
        np.testing.assert_array_equal(whole[10:17], sample(ball, keys[10:17], x[10:17]))


def test_batch_size_and_padding_change_nothing(network, attacked):
    model, test, _, _ = network
    attack, found = attacked
    same(found, evaluate(model, test, {"pgd": attack}, key=KEY, keep_images=True, batch_size=96))


def test_order_changes_nothing(network, attacked):
    model, test, _, _ = network
    attack, found = attacked
    order = np.random.default_rng(1).permutation(len(test))
    permuted = test.take(order)
    same(found, evaluate(model, permuted, {"pgd": attack}, key=KEY, keep_images=True), order)


def test_one_device_equals_eight(network, attacked):
    model, test, _, _ = network
    attack, found = attacked
    assert found.about["devices"] == 8
    one = jax.local_devices()[:1]
    same(found, evaluate(model, test, {"pgd": attack}, key=KEY, keep_images=True, devices=one))


def test_eight_eps_and_four_checkpoints_are_one_trace(network):
    model, _, x, y = network
    attack = PGD(ball=Linf(0.1), steps=4)
    pieces = (driver._init, driver._step, driver._finish)
    before = [piece._cache_size() for piece in pieces]
    for scale in (1.0, 1.1, 0.9, -1.0):
        variables = jax.tree.map(lambda v, s=scale: v * s, model.variables)
        checkpoint = Classifier(create("lenet5", filters=(8, 16), width=32), variables)
        for eps in np.linspace(0.01, 0.3, 8):
            attack.scaled(eps / 0.1).run(KEY, checkpoint, x[:32], y[:32])
    assert [piece._cache_size() - n for piece, n in zip(pieces, before, strict=True)] == [1, 1, 1]


def test_a_grid_of_eps_by_vmap_is_the_loop(network):
    model, _, x, y = network
    x, y = x[:64], y[:64]
    grid = np.linspace(0, 0.3, 8).astype(np.float32)
    make = lambda eps: PGD(ball=Linf(eps=eps), step_size=eps / 4, steps=5)
    curve = jax.jit(jax.vmap(attack_accuracy, in_axes=(0, None, None, None, None)))
    swept = curve(make(grid), KEY, model, x, y)
    loop = [float(attack_accuracy(make(eps), KEY, model, x, y)) for eps in grid]
    np.testing.assert_allclose(swept, loop, atol=1e-6)


def test_accuracy_does_not_rise_with_eps_or_steps_and_ends_at_zero(network):
    model, test, _, _ = network
    error = lambda p: 2 * np.sqrt(2 * max(p * (1 - p), 1 / len(test)) / len(test))
    for attacks in (
        {str(eps): PGD(ball=Linf(eps), steps=20) for eps in (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 1.0)},
        {str(n): PGD(ball=Linf(0.1), step_size=0.02, steps=n) for n in (1, 3, 10, 40)},
    ):
        found = evaluate(model, test, attacks, key=KEY)
        values = [found.robust[name].value for name in attacks]
        for weaker, stronger in zip(values, values[1:], strict=False):
            assert stronger <= weaker + error(weaker), values
        if "1.0" in attacks:
            assert values[0] == found.clean.value
            assert values[-1] == 0


def test_the_worst_of_more_restarts_contains_that_of_fewer(network):
    model, test, _, _ = network
    attack = PGD(ball=Linf(0.1), steps=4)
    before = np.zeros(len(test), bool)
    for n in (1, 2, 4):
        found = evaluate(model, test, {"pgd": Restarts(attack=attack, n=n)}, key=KEY)
        success = found.attacks["pgd"].success
        assert (success >= before).all()
        before = success


def test_the_best_iterate_is_never_weaker_than_the_last(network):
    model, _, x, y = network
    best = PGD(ball=L2(0.8), steps=10).run(KEY, model, x, y)
    last = replace(PGD(ball=L2(0.8), steps=10), best=False).run(KEY, model, x, y)
    assert (best.success >= last.success).all()
