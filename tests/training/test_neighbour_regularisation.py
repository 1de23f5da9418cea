"""Adversarial regularisation: NSL's rule for a neighbour, its iterations, the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_net import BATCH, KEYS, W, X, Y, linear, run, softmax

from advjax.training.objectives.neighbours import (
    AdversarialRegularization,
    maximize_within_unit_norm,
)
from advjax.types import Net


@jax.jit
def craft(objective, w, keys, batch):
    return objective.craft(Net(keys, linear, w, {}), batch)["x_adv"]


step_of = jax.jit(maximize_within_unit_norm, static_argnums=1)


@pytest.mark.parametrize(
    "norm, grad, expected",
    [
        ("infinity", [[1, 2, -4], [-1, 5, -3]], [[1, 1, -1], [-1, 1, -1]]),
        ("l1", [[3, -4, -5], [1, 1, 0]], [[0, 0, -1], [0.5, 0.5, 0]]),
        ("l1", [[-4, 4, 4, -4, 3]], [[-0.25, 0.25, 0.25, -0.25, 0]]),
        ("l2", [[3, -4], [-7, 24]], [[0.6, -0.8], [-0.28, 0.96]]),
        ("l2", [[[[1], [2]], [[-2], [0]]]], [[[[1 / 3], [2 / 3]], [[-2 / 3], [0]]]]),
    ],
)
def test_the_step_of_length_one(norm, grad, expected):
    """Item 9. In l2 the length is of all features together, in l1 the largest share the step."""
    got = step_of(np.asarray(grad, np.float32), norm)
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("norm", ["l2", "infinity", "l1"])
def test_no_gradient_is_no_step(norm):
    zero = np.zeros((2, 3, 1), np.float32)
    np.testing.assert_array_equal(step_of(zero, norm), zero)


def test_a_gradient_shorter_than_the_smallest_is_not_lengthened_to_one():
    got = step_of(np.asarray([[3e-8, 4e-8]], np.float32), "l2")
    np.testing.assert_allclose(got, [[0.03, 0.04]], rtol=1e-5)


def test_entries_that_are_not_finite_count_as_zero():
    """At 0 the gradient of sqrt(x) is infinite, that of sqrt(x^2) no number."""

    def broken(params, stats, x, *, key=None, train=False):
        first, second, rest = jnp.sqrt(x[:, :1]), jnp.sqrt(x[:, 1:2] ** 2), x[:, 2:]
        return jnp.concatenate([first, second, rest], axis=1) @ params, stats

    x = np.asarray([[0, 0, 0.5, 0.2]], np.float32)
    params = np.asarray([[1, -1], [1, 2], [3, 1], [0, 1]], np.float32)
    seen = jax.jit(jax.grad(lambda x: broken(params, {}, x)[0][0, 1]))(x)[0]
    assert np.isinf(seen[0]) and np.isnan(seen[1])
    objective = AdversarialRegularization(step=0.1, norm="infinity")
    batch = {"x": x, "y": np.zeros(1, np.int32)}
    crafted = jax.jit(lambda: objective.craft(Net(KEYS[:1], broken, params, {}), batch)["x_adv"])()
    np.testing.assert_allclose(crafted, [[0, 0, 0.4, 0.3]], atol=1e-6)


@pytest.mark.parametrize(
    "norm, eps", [("l2", None), ("l2", 0.15), ("infinity", 0.15), ("l1", None)]
)
def test_the_neighbour_is_the_rule_written_out(norm, eps):
    """Three iterations with a mask and clip values; projected on the ball, then cut."""
    mask = np.ones((4, 4, 1), np.float32)
    mask[0] = 0
    objective = AdversarialRegularization(
        step=0.1, norm=norm, iterations=3, eps=eps, mask=mask, lower=0.25, upper=0.75
    )
    x, w = np.asarray(X, np.float64).reshape(6, 16), np.float64(W)
    moved = x
    for _ in range(3):
        grad = (softmax(moved @ w) - np.eye(4)[Y]) @ w.T * mask.reshape(16)
        if norm == "infinity":
            unit = np.sign(grad)
        elif norm == "l2":
            unit = grad / np.linalg.norm(grad, axis=1, keepdims=True)
        else:
            unit = np.where(np.abs(grad) == np.abs(grad).max(1, keepdims=True), np.sign(grad), 0)
        delta = moved + 0.1 * unit - x
        if eps is not None and norm == "infinity":
            delta = np.clip(delta, -eps, eps)
        elif eps is not None:
            delta *= np.minimum(1, eps / np.linalg.norm(delta, axis=1, keepdims=True))
        moved = np.clip(x + delta, 0.25, 0.75)
    np.testing.assert_allclose(craft(objective, W, KEYS, BATCH).reshape(6, 16), moved, atol=1e-5)


def test_the_random_start_is_in_the_ball_and_belongs_to_the_image():
    objective = AdversarialRegularization(step=0.0, eps=0.3, norm="infinity", random_start=True)
    moved = np.asarray(craft(objective, W, KEYS, BATCH)) - X
    assert 0.25 < np.abs(moved).max() <= 0.3 + 1e-6
    order = np.asarray([3, 0, 5, 1, 4, 2])
    other = craft(objective, W, KEYS[order], {k: v[order] for k, v in BATCH.items()})
    np.testing.assert_array_equal(other - X[order], moved[order])


def test_loss_and_gradient_are_the_closed_form():
    objective = AdversarialRegularization(multiplier=0.4, step=0.05, norm="infinity")
    (loss, aux), grad = run(objective, W, KEYS, BATCH)
    x, near = (
        np.asarray(v, np.float64).reshape(6, 16) for v in (X, craft(objective, W, KEYS, BATCH))
    )
    p, q, rows = softmax(x @ np.float64(W)), softmax(near @ np.float64(W)), np.arange(6)
    expected = -np.log(p[rows, Y]).mean() - 0.4 * np.log(q[rows, Y]).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    hot = np.eye(4)[Y]
    np.testing.assert_allclose(grad, (x.T @ (p - hot) + 0.4 * near.T @ (q - hot)) / 6, atol=1e-5)
    assert float(aux.metrics["robust_accuracy"]) <= float(aux.metrics["clean_accuracy"])
