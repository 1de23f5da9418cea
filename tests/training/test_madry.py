"""Objectives: what they compute, what they refuse, which network the attack sees."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_runs import Net

from advjax.answers import fold_in_each
from advjax.attacks import FGSM, PGD
from advjax.balls import Linf
from advjax.training import LinenApply, Madry, Standard, smoothed_cross_entropy

X = np.random.default_rng(0).uniform(0.2, 0.8, (6, 4, 4, 1)).astype(np.float32)
Y = np.asarray([0, 1, 2, 3, 0, 1], np.int32)
KEYS = jax.random.split(jax.random.key(0), 6)
BATCH = {"x": jnp.asarray(X), "y": jnp.asarray(Y)}


@pytest.fixture(scope="module")
def net():
    """``(apply, params, stats)`` of a network with BatchNorm and dropout."""
    variables = jax.jit(Net().init)(jax.random.key(1), X)
    params = variables.pop("params")
    return LinenApply(Net()), params, variables


def test_label_smoothing_is_cross_entropy_against_the_smoothed_target():
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(6, 4)), jnp.float32)
    target = optax.smooth_labels(jax.nn.one_hot(Y, 4), 0.2)
    np.testing.assert_allclose(
        smoothed_cross_entropy(logits, Y, 0.2),
        optax.softmax_cross_entropy(logits, target),
        rtol=1e-5,
    )


def spy(apply, calls):
    def called(params, stats, x, *, key=None, train=False):
        calls.append((train, key is not None, x.shape[0]))
        return apply(params, stats, x, key=key, train=train)

    return called


@pytest.mark.parametrize("craft_train", [False, True])
def test_madry_crafts_in_the_mode_it_says(net, craft_train):
    apply, params, stats = net
    calls = []
    attack = FGSM(ball=Linf(eps=0.1), best=False)
    objective = Madry(attack=attack, craft_train=craft_train)
    loss, aux = objective(KEYS, spy(apply, calls), params, stats, BATCH)
    assert set(calls[:-1]) == {(craft_train, craft_train, 6)}
    assert calls[-1] == (True, True, 6)
    # The statistics kept are of the training pass alone: one update from the old ones.
    x_adv = craft(net, attack, craft_train)
    logits, expected = apply(params, stats, x_adv, key=fold_in_each(KEYS, 1), train=True)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), aux.stats, dict(expected)
    )
    assert float(loss) == pytest.approx(float(smoothed_cross_entropy(logits, Y, 0).mean()))


def craft(net, attack, train):
    from advjax.training import Bound

    apply, params, stats = net
    key = fold_in_each(KEYS, 1) if train else None
    model = Bound(params=params, stats=stats, key=key, apply=apply, train=train)
    return attack(fold_in_each(KEYS, 0), model, X, Y)


def test_the_mixture_weighs_clean_and_attacked_losses(net):
    apply, params, stats = net
    linear = lambda p, s, x, *, key=None, train=False: (x.reshape(x.shape[0], -1) @ p, s)
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(16, 4)), jnp.float32)
    attack = FGSM(ball=Linf(eps=0.1), best=False)
    losses = {
        alpha: float(Madry(attack=attack, clean_weight=alpha)(KEYS, linear, weights, {}, BATCH)[0])
        for alpha in (None, 0.0, 0.5, 1.0)
    }
    clean = float(Standard()(KEYS, linear, weights, {}, BATCH)[0])
    assert losses[1.0] == pytest.approx(clean, rel=1e-5)
    assert losses[0.0] == pytest.approx(losses[None], rel=1e-5)
    assert losses[0.5] == pytest.approx((clean + losses[None]) / 2, rel=1e-5)
    assert losses[None] > clean


def test_no_gradient_flows_through_the_attack(net):
    """A linear model's loss gradient at fixed attacked images is the objective's gradient."""
    linear = lambda p, s, x, *, key=None, train=False: (x.reshape(x.shape[0], -1) @ p, s)
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(16, 4)), jnp.float32)
    attack = PGD(ball=Linf(eps=0.1), steps=2, best=False)
    objective = Madry(attack=attack)
    got = jax.grad(lambda w: objective(KEYS, linear, w, {}, BATCH)[0])(weights)
    model = jax.tree_util.Partial(lambda w, x: x.reshape(x.shape[0], -1) @ w, weights)
    x_adv = attack(fold_in_each(KEYS, 0), model, X, Y)
    expected = jax.grad(lambda w: smoothed_cross_entropy(x_adv.reshape(6, -1) @ w, Y, 0.0).mean())(
        weights
    )
    np.testing.assert_allclose(got, expected, atol=1e-6)
