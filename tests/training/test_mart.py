"""MART: the authors' constants, the loss in closed form, the images that count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_net import BATCH, KEYS, W, X, Y, linear, softmax
from linear_net import run_crafting as run

from advjax.attacks import PGD, Square
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


def test_beta_and_eps_sweep_in_one_trace():
    """Of two classes; without eps and beta the loss is the boosted cross-entropy."""
    traces, weights, batch = [], W[:, :2], {"x": X, "y": Y % 2}

    def loss(objective):
        traces.append(None)
        return objective(KEYS, linear, weights, {}, batch)[0]

    def make(grid, beta):
        grid, beta = np.asarray(grid, np.float32), np.asarray(beta, np.float32)
        attack = PGD(ball=Linf(eps=grid), step_size=grid, steps=2)
        return MART(attack, beta=beta, sigma=np.full(2, 1e-3, np.float32))

    sweep = jax.jit(jax.vmap(loss))
    losses = sweep(make([0, 0.1], [0, 5]))
    sweep(make([0.1, 0.2], [1, 2]))
    assert len(traces) == 1
    q = softmax(np.float64(X).reshape(6, 16) @ np.float64(weights))[np.arange(6), Y % 2]
    assert float(losses[0]) == pytest.approx(-(np.log(q) + np.log(q + 1e-4)).mean(), rel=1e-5)
    assert losses[1] > losses[0]


def test_the_schedule_grows_eps():
    objective = MART(ATTACK, eps_schedule=lambda step: step / 4)
    now = jax.jit(lambda step: objective.at(step))(2)
    assert now.eps_schedule is None and objective.at(2).at(3).eps_schedule is None
    np.testing.assert_allclose([now.attack.ball.eps, now.attack.step_size], [0.05, 0.015])
    *_, near = run(now, W, KEYS, BATCH)
    assert 0.04 < np.abs(near - X).max() < 0.05  # three steps of .015


def test_an_images_part_belongs_to_it_and_its_key():
    """Another order of the batch is the same loss and gradient, whoever holds which images."""
    order = np.asarray([3, 0, 5, 1, 4, 2])
    (loss, _), grad, _ = run(MART(ATTACK), W, KEYS, BATCH)
    moved = {k: v[order] for k, v in BATCH.items()}
    (other, _), other_grad, _ = run(MART(ATTACK), W, KEYS[order], moved)
    assert float(other) == pytest.approx(float(loss), rel=1e-5)
    np.testing.assert_allclose(other_grad, grad, atol=1e-5)


def test_no_gradient_and_certain_answers_stay_finite():
    for weights in (0 * W, 100 * W):
        found = run(MART(ATTACK), weights, KEYS, BATCH)
        assert all(np.isfinite(v).all() for v in jax.tree.leaves(found))


def test_another_attack_is_refused():
    with pytest.raises(TypeError, match="MART: given attack=Square"):
        MART(Square(ball=Linf(eps=0.1)))
