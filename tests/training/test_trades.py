"""TRADES: loss and gradient in closed form, the attack written out, the passes it makes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_net import BATCH, KEYS, W, X, Y, softmax
from linear_net import run_crafting as run
from small_runs import Net

from advjax import types
from advjax.attacks import PGD
from advjax.balls import Linf
from advjax.losses import kl_divergence
from advjax.training import LinenApply
from advjax.training.objectives.trades import TRADES

RNG = np.random.default_rng(1)
ATTACK = PGD(ball=Linf(eps=0.1), step_size=0.03, steps=3)


def test_divergence_is_the_sum_written_out_and_never_negative():
    a, b = RNG.normal(size=(2, 500, 3)).astype(np.float32)
    p, q = softmax(a.astype(np.float64)), softmax(b.astype(np.float64))
    divergence = lambda *v: np.asarray(jax.jit(kl_divergence)(*v))
    np.testing.assert_allclose(divergence(a, b), (p * np.log(p / q)).sum(-1), atol=1e-5)
    assert (divergence(a, a + 1e-3 * b) > -1e-6).all()
    assert (divergence(a, a) == 0).all()


def test_divergence_of_certain_answers_is_finite_and_so_is_its_gradient():
    a, b = jnp.asarray([[1e4, -1e4]]), jnp.asarray([[-1e4, 1e4]])
    total = lambda a, b: kl_divergence(a, b).sum()
    value, grads = jax.jit(jax.value_and_grad(total, (0, 1)))(a, b)
    assert float(value) == pytest.approx(2e4)
    assert all(np.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("paired", [False, True])
def test_without_room_to_move_it_is_cross_entropy(paired):
    attack = PGD(ball=Linf(eps=0.0), step_size=0.03, steps=3)
    (loss, aux), *_ = run(TRADES(attack, paired=paired), W, KEYS, BATCH)
    p = softmax(np.float64(X).reshape(6, 16) @ np.float64(W))
    assert float(loss) == pytest.approx(-np.log(p[np.arange(6), Y]).mean(), rel=1e-6)
    assert float(aux.metrics["kl"]) == 0
    assert float(aux.metrics["clean_accuracy"]) == float(aux.metrics["robust_accuracy"])


def test_the_neighbour_is_that_of_the_attack_written_out():
    """The gradient of KL(p || softmax(W x')) is W (q - p); the start is x + sigma N(0, 1)."""
    draw = jax.jit(jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 2), (16,))))(KEYS)
    x, w = np.asarray(X, np.float64).reshape(6, 16), np.asarray(W, np.float64)
    moved = x + 0.01 * np.float64(draw)
    for _ in range(3):
        step = 0.03 * np.sign((softmax(moved @ w) - softmax(x @ w)) @ w.T)
        moved = np.clip(np.clip(moved + step, x - 0.1, x + 0.1), 0, 1)
    *_, x_adv = run(TRADES(ATTACK, sigma=0.01), W, KEYS, BATCH)
    np.testing.assert_allclose(np.reshape(x_adv, (6, 16)), moved, atol=1e-5)


def test_the_gradient_is_the_closed_form_through_both_answers():
    objective = TRADES(ATTACK, beta=2.0)
    _, got, x_adv = run(objective, W, KEYS, BATCH)
    x, near = (np.asarray(v, np.float64).reshape(6, 16) for v in (X, x_adv))
    p, q = softmax(x @ np.float64(W)), softmax(near @ np.float64(W))
    kl = (p * np.log(p / q)).sum(-1, keepdims=True)
    to_clean = p - np.eye(4)[Y] + 2 * p * (np.log(p / q) - kl)
    expected = (x.T @ to_clean + near.T @ (2 * (q - p))) / 6
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_crafted_in_evaluation_mode_and_trained_by_a_pass_each():
    apply, calls = LinenApply(Net()), []
    shapes = jax.eval_shape(Net().init, jax.random.key(1), X)
    stats = jax.tree.map(lambda s: RNG.uniform(0.1, 0.5, s.shape).astype(np.float32), shapes)
    params = stats.pop("params")

    def spy(params, stats, x, *, key=None, train=False):
        calls.append((train, x.shape[0]))
        return apply(params, stats, x, key=key, train=train)

    @jax.jit
    def kept_and_expected(params, stats):
        objective = TRADES(ATTACK)
        kept = objective(KEYS, spy, params, stats, BATCH)[1].stats
        near = objective.craft(types.Net(KEYS, apply, params, stats), BATCH)["x_adv"]
        for images in (X, near):
            stats = apply(params, stats, images, key=KEYS[0], train=True)[1]
        return kept, dict(stats)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *kept_and_expected(params, stats)
    )
    assert set(calls[:-2]) == {(False, 6)} and calls[-2:] == [(True, 6)] * 2
    paired = TRADES(ATTACK, paired=True)
    jax.eval_shape(lambda p, s: paired(KEYS, spy, p, s, BATCH), params, stats)
    assert calls[-1] == (True, 12) and calls[-2][0] is False
