"""MART: the authors' constants, the loss in closed form, the images that count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_net import BATCH, KEYS, W, X, Y, softmax
from linear_net import run_crafting as run

from advjax.attacks import PGD
from advjax.balls import Linf
from advjax.training.objectives.mart import MART, boosted_cross_entropy, weighted_divergence

RNG = np.random.default_rng(1)
ATTACK = PGD(ball=Linf(eps=0.1), step_size=0.03, steps=3)


def authors(w, near, beta=5.0):
    """Their loss in NumPy and float64, the runner-up found by sorting."""
    p, q = (softmax(np.float64(x).reshape(6, 16) @ w) for x in (X, near))
    rows, y = np.arange(6), Y
    order = np.argsort(q, axis=1)
    rival = np.where(order[:, -1] == y, order[:, -2], order[:, -1])
    boosted = -np.log(q[rows, y]) - np.log(1.0001 - q[rows, rival] + 1e-12)
    kl = (p * (np.log(p) - np.log(q + 1e-12))).sum(axis=1)
    return boosted.mean() + beta * (kl * (1.0000001 - p[rows, y])).mean()


def test_the_loss_is_the_authors_and_so_is_its_gradient():
    """Through the weight 1 - p_y as well; by central differences."""
    (loss, aux), grad, near = run(MART(ATTACK), W, KEYS, BATCH)
    assert float(loss) == pytest.approx(authors(np.float64(W), near), rel=1e-5)
    for along in RNG.normal(size=(3, *W.shape)):
        up, down = (authors(W + h * along, near) for h in (1e-5, -1e-5))
        assert np.sum(grad * along) == pytest.approx((up - down) / 2e-5, rel=1e-4)
    q = softmax(np.float64(near).reshape(6, 16) @ np.float64(W))
    assert float(aux.metrics["robust_accuracy"]) == pytest.approx((q.argmax(1) == Y).mean())


def test_the_divergence_is_weighted_by_one_minus_the_labels_probability():
    p = np.asarray([[0.9, 0.06, 0.04], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]], np.float32)
    q = np.roll(p, 1, axis=1)
    kl = (p * np.log(p / q)).sum(axis=1)
    got = jax.jit(weighted_divergence)(np.log(p), np.log(q), np.zeros(3, np.int32)) / kl
    np.testing.assert_allclose(got, [0.1, 0.8, 0.9], rtol=1e-5)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_certain_wrong_answer_costs_what_the_constants_say(classes):
    """1.0001 - p in float32: the logarithm of a lost image is about -log(1e-4)."""
    logits = np.zeros((2, classes), np.float32)
    logits[0, 0] = logits[1, 1] = 60
    y = np.asarray([1, 1])
    total = lambda z: (jnp.sum(loss := boosted_cross_entropy(z, y)), loss)
    (_, (lost, right)), grad = jax.jit(jax.value_and_grad(total, has_aux=True))(logits)
    assert float(lost) == pytest.approx(60 - np.log(1e-4), abs=2e-3)
    assert float(right) == pytest.approx(-np.log(1.0001), abs=1e-5)
    assert np.isfinite(grad).all()


def test_the_attack_is_pgd_on_cross_entropy_from_noise():
    x, w = np.float64(X).reshape(6, 16), np.float64(W)
    draw = jax.jit(jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 2), (16,))))(KEYS)
    moved = x + 1e-3 * np.float64(draw)
    for _ in range(3):
        step = 0.03 * np.sign((softmax(moved @ w) - np.eye(4)[Y]) @ w.T)
        moved = np.clip(np.clip(moved + step, x - 0.1, x + 0.1), 0, 1)
    *_, near = run(MART(ATTACK), W, KEYS, BATCH)
    np.testing.assert_allclose(np.reshape(near, (6, 16)), moved, atol=1e-5)
    growing = MART(ATTACK, eps_schedule=lambda step: step / 4)
    *_, near = run(growing.at(2), W, KEYS, BATCH)
    assert 0.04 < np.abs(near - X).max() < 0.05  # three steps of .015
