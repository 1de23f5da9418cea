"""Free adversarial training against NumPy, on several devices, and killed in the middle."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_runs import Net, flat_linear, random_data, run_steps, step_training

from advjax.balls import L2, Linf
from advjax.data import Augment, batch_indices, to_float
from advjax.data.streams import _ORDER
from advjax.training import Training, fit
from advjax.training.objectives.free import FreeAT
from advjax.training.spec import root_keys

EPS, RATE = 0.1, 0.5


def linear_training(objective, **changes):
    rng = np.random.default_rng(1)
    params = {
        "w": jnp.asarray(rng.normal(size=(16, 4)), jnp.float32),
        "b": jnp.zeros(4),
    }
    return step_training(
        random_data(), module=None, apply=flat_linear, params=params, objective=objective,
        optimizer=optax.sgd(RATE), **changes,
    )  # fmt: skip


def written_out(training, steps):
    """Algorithm 1 of the paper with the gradients of a linear softmax model."""
    w, b = (np.asarray(training.params[n], np.float64) for n in "wb")
    order = jax.random.fold_in(root_keys(training.seed)[1], _ORDER)
    delta, m, size = np.zeros((16, 16)), training.objective.replays, training.batch_size
    seen = []
    for s in range(steps):
        index = np.asarray(batch_indices(order, s // m, len(training.train), size))
        seen.append(tuple(index))
        x = np.asarray(to_float(training.train.x[index]), np.float64).reshape(size, -1)
        moved = x + delta
        inside = (moved >= 0) & (moved <= 1)
        x_adv = np.clip(moved, 0, 1)
        logits = x_adv @ w + b[None]
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        p[np.arange(size), training.train.y[index]] -= 1
        up = (p @ w.T) * (inside | training.objective.straight_through)
        w, b = w - RATE * x_adv.T @ p / size, b - RATE * p.mean(0)
        delta = np.clip(delta + EPS * np.sign(up), -EPS, EPS)
    return w, b, delta, seen


@pytest.mark.parametrize("through", [False, True])
def test_the_published_algorithm_on_a_linear_model(through):
    training = linear_training(FreeAT(Linf(EPS), replays=3, straight_through=through))
    state, metrics = run_steps(training, jax.local_devices()[:1], n=8)
    w, b, delta, seen = written_out(training, 8)
    assert len(set(seen)) == 3 and seen[0] == seen[1] == seen[2]
    np.testing.assert_allclose(state.params["w"], w, atol=2e-5)
    np.testing.assert_allclose(state.params["b"], b, atol=2e-5)
    np.testing.assert_allclose(np.asarray(state.carry).reshape(16, -1), delta, atol=1e-6)
    assert 0 < float(metrics["robust_accuracy"]) <= 1


def test_the_perturbation_does_not_depend_on_the_number_of_devices():
    """With BatchNorm over all devices, dropout, augmentation, and minibatches that change."""
    training = step_training(
        random_data(), module=Net(), objective=FreeAT(Linf(EPS), replays=2),
        optimizer=optax.sgd(0.1), augment=Augment(crop=1, flip=True),
    )  # fmt: skip
    (one, _), (eight, _) = (run_steps(training, jax.local_devices()[:d], n=3) for d in (1, 8))
    assert one.carry.shape == eight.carry.shape == (16, 4, 4, 1)
    same = np.isclose(one.carry, eight.carry, atol=1e-4)
    assert same.mean() > 0.99  # a sign may turn where the gradient is rounding
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), one.params, eight.params)


def test_straight_through_a_pixel_that_was_cut_has_the_gradient_at_the_image_seen():
    """On black pixels, perturbed downwards, which the network sees as black: they come back up."""
    x, y = np.zeros((2, 4, 4, 1), np.float32), np.asarray([0, 1], np.int32)
    w = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    params, keys = {"w": w, "b": np.zeros(4, np.float32)}, jax.random.split(jax.random.key(0), 2)
    objective = FreeAT(Linf(EPS), straight_through=True)

    @jax.jit
    def value_and_slope(objective, carry):
        batch = {"x": x, "y": y}
        loss = lambda c: objective(keys, flat_linear, params, {}, {**batch, "carry": c})[0]
        return jax.value_and_grad(loss)(carry)

    carry = jnp.full(x.shape, -EPS)
    value, slope = value_and_slope(objective, carry)
    same, none = value_and_slope(FreeAT(Linf(EPS)), carry)
    assert same == value and not none.any()
    assert float(value) == pytest.approx(np.log(4), rel=1e-6)  # all black: logits of zero
    expected = (0.25 - np.eye(4)[y]) @ w.T / 2
    np.testing.assert_allclose(slope.reshape(2, 16), expected, atol=1e-6)
    up = objective.advance(carry, slope)
    np.testing.assert_allclose(up, np.where(slope > 0, 0, -EPS), atol=1e-7)
    seen = []
    spy = lambda p, s, v, **_: (seen.append(v), flat_linear(p, s, v))[1]
    for far in (-0.3, 1.7):  # inside the box to the bit
        objective(keys, spy, params, {}, {"x": x, "y": y, "carry": jnp.full(x.shape, far)})
        np.testing.assert_array_equal(seen[-1], np.clip(far, 0, 1) * np.ones_like(x))


def test_in_another_norm_the_step_is_the_steepest_and_the_end_the_ball():
    objective = FreeAT(L2(1.0), step_size=0.4)
    gradient = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    gradient[2] = 0
    unit = gradient / np.maximum(np.linalg.norm(gradient, axis=1, keepdims=True), 1e-9)
    carry = objective.start((3, 5))
    for size in (0.4, 0.8, 1.0):
        carry = objective.advance(carry, jnp.asarray(gradient))
        np.testing.assert_allclose(carry, size * unit, atol=1e-6)


def test_a_killed_run_goes_on_with_its_perturbation_to_the_bit(tmp_path):
    class Kill(Exception):
        pass

    def training(steps=9):
        return Training(
            module=Net(), objective=FreeAT(Linf(EPS), replays=2), optimizer=optax.adam(1e-2),
            train=random_data(), test=random_data(seed=1), steps=steps, batch_size=16,
            evaluate_every=3,
        )  # fmt: skip

    def kill(event):
        if event.kind == "step" and event.step == 5:
            raise Kill

    devices = jax.local_devices()[:2]
    whole = fit(training(), tmp_path / "whole", devices=devices)
    with pytest.raises(Kill):
        fit(training(), tmp_path / "killed", devices=devices, progress=kill)
    # From step 3 on, the second of a minibatch's two.
    resumed = fit(training(), tmp_path / "killed", devices=devices)
    leaves = lambda result: [np.asarray(v).tobytes() for v in jax.tree.leaves(result.last.model)]
    assert leaves(resumed) == leaves(whole)
    # The carry is kept by place in the batch, so that other devices can take over.
    from advjax.runs.checkpoint import read

    arrays, record = read(tmp_path / "whole" / "checkpoints", 9)
    assert arrays["carry"].shape == (16, 4, 4, 1) and np.abs(arrays["carry"]).max() > EPS / 2
    assert (record["position"]["epoch"], record["position"]["offset"]) == (2, 0)
