"""Logit squeezing and the gradient penalty: closed forms, and what they are composed with."""

import jax
import numpy as np
import pytest
from linear_net import BATCH, KEYS, W, X, Y, linear, run, softmax

from advjax.attacks import FGSM
from advjax.balls import Linf
from advjax.training import Madry, Standard
from advjax.training.objectives.controls import GradientPenalty, LogitSqueezing
from advjax.types import Net

RNG = np.random.default_rng(1)
MADRY = Madry(FGSM(ball=Linf(eps=0.1)))


@pytest.mark.parametrize("objective", [Standard(), MADRY], ids=["standard", "madry"])
def test_the_gradient_penalty_is_that_of_a_linear_softmax(objective):
    """The gradient of the cross-entropy at x is W (p - one_hot(y))."""
    (plain, inner), _ = run(objective, W, KEYS, BATCH)
    (loss, aux), _ = run(GradientPenalty(objective, weight=0.3), W, KEYS, BATCH)
    w = np.float64(W)
    grads = (softmax(np.asarray(X, np.float64).reshape(6, 16) @ w) - np.eye(4)[Y]) @ w.T
    penalty = (grads**2).sum(axis=1).mean()
    assert float(aux.metrics["gradient_penalty"]) == pytest.approx(penalty, rel=1e-5)
    assert float(loss) == pytest.approx(float(plain) + 0.3 * penalty, rel=1e-5)
    assert aux.metrics.keys() == inner.metrics.keys() | {"gradient_penalty"}


def test_the_gradient_penalty_is_differentiated():
    """Central differences along a direction, of the penalty alone."""
    objective = GradientPenalty(weight=1.0)
    _, with_penalty = run(objective, W, KEYS, BATCH)
    _, without = run(GradientPenalty(weight=0.0), W, KEYS, BATCH)
    along = RNG.normal(size=W.shape).astype(np.float32)
    value = lambda w: float(run(objective, w, KEYS, BATCH)[0][1].metrics["gradient_penalty"])
    slope = (value(W + 1e-2 * along) - value(W - 1e-2 * along)) / 2e-2
    assert np.sum((with_penalty - without) * along) == pytest.approx(slope, rel=5e-3)


def test_a_wrapped_objective_keeps_its_crafting():
    x_adv = jax.jit(
        lambda: GradientPenalty(MADRY).craft(Net(KEYS, linear, W, {}), BATCH)["x_adv"]
    )()
    assert np.abs(x_adv - X).max() == pytest.approx(0.1, rel=1e-5)
    assert GradientPenalty().craft(Net(KEYS, linear, W, {}), BATCH).keys() == BATCH.keys()


def test_logit_squeezing_is_the_loss_of_noisy_images_written_out():
    (loss, aux), grad = run(LogitSqueezing(weight=0.2, sigma=0.1), W, KEYS, BATCH)
    draw = jax.jit(jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 2), (16,))))(KEYS)
    x = np.float64(X).reshape(6, 16) + 0.1 * np.float64(draw)
    logits = x @ np.float64(W)
    squared = (logits**2).sum(axis=1).mean()
    p = softmax(logits)
    assert float(aux.metrics["squared_logits"]) == pytest.approx(squared, rel=1e-5)
    expected = -np.log(p[np.arange(6), Y]).mean() + 0.2 * squared
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(grad, x.T @ (p - np.eye(4)[Y] + 0.4 * logits) / 6, atol=1e-5)
