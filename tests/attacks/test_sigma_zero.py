"""Sigma-zero against its algorithm written in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import L0, L2, Target, replace
from advjax.attacks.core import driver
from advjax.attacks.sigma_zero import SigmaZero


def published(weights, x, y, steps):
    """Cina et al. 2025, algorithm 1, on a linear model; the smallest counts."""
    out = []
    for image, label in zip(x, y, strict=True):
        delta, threshold, best = np.zeros_like(image), 0.3, np.inf
        mean, square = np.zeros_like(image), np.zeros_like(image)
        rate = lambda i: 0.1 + 0.9 * (1 + np.cos(np.pi * i / steps)) / 2
        for i in range(steps):
            logits = (image + delta) @ weights
            other = np.argmax(np.where(np.arange(len(logits)) == label, -np.inf, logits))
            adversarial = logits[other] > logits[label]
            if adversarial:
                best = min(best, np.count_nonzero(delta))
            grad = 2 * 1e-3 * delta / (delta**2 + 1e-3) ** 2 / len(image)
            if not adversarial:
                grad = grad + weights[:, label] - weights[:, other]
            grad = grad / max(np.abs(grad).max(), 1e-12)
            mean, square = 0.9 * mean + 0.1 * grad, 0.999 * square + 0.001 * grad**2
            corrected = np.sqrt(square / (1 - 0.999 ** (i + 1))) + 1e-8
            delta = delta - rate(i) * mean / (1 - 0.9 ** (i + 1)) / corrected
            delta = np.clip(image + delta, 0, 1) - image
            threshold += (1 if adversarial else -1) * 0.01 * rate(i + 1)
            threshold = np.clip(threshold, 0, 1)
            delta[np.abs(delta) < threshold] = 0
        out.append(best)
    return np.array(out)


def test_is_the_published_algorithm(tiny, key):
    model, weights, x, y = tiny
    record = SigmaZero(steps=60).run(key, model, x, y)
    flat = np.asarray(x, float).reshape(8, -1)
    expected = published(np.asarray(weights, float), flat, np.asarray(y), 60)
    assert record.success.all() and expected.max() > 1
    np.testing.assert_array_equal(record.distance, expected)
    assert (record.forwards == 61).all() and (record.backwards == 60).all()
    before = driver._step._cache_size()
    SigmaZero(steps=7, sigma=1e-2).run(key, model, x, y)
    assert driver._step._cache_size() == before
    # With a limit, success means at most so many features.
    limited = SigmaZero(ball=L0(1), steps=60).run(key, model, x, y)
    assert (limited.distance <= 1).all()
    assert np.asarray(limited.success)[expected <= 1].all()


def test_masked_targets(tiny, key):
    model, _, x, y = tiny
    mask = np.zeros(x.shape[1:], np.float32)
    mask[1:] = 1
    target = (y + 2) % 5
    attack = SigmaZero(ball=replace(L0(), mask=mask), steps=60).with_goal(Target())
    record = attack.run(key, model, x, target)
    np.testing.assert_array_equal(record.x_adv[:, :1], x[:, :1])
    reached = jnp.argmax(model(record.x_adv), axis=1) == target
    np.testing.assert_array_equal(record.success, reached)
    assert reached.sum() >= 4


def test_a_model_without_gradient_leaves_the_image(tiny, key):
    _, weights, x, y = tiny
    record = SigmaZero(steps=5).run(key, jax.tree_util.Partial(constant, weights), x, 0 * y)
    assert not record.success.any() and (record.zero_gradient == 5).all()
    np.testing.assert_array_equal(record.x_adv, x)


def constant(weights, x):
    return jnp.zeros((x.shape[0], weights.shape[1])).at[:, 0].set(2.0)


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"ball": L2()}, TypeError, "expected an L0 ball"),
        ({"steps": -1}, ValueError, "an integer >= 0"),
        ({"sigma": 0}, ValueError, "numbers > 0"),
    ],
)
def test_refuses(fields, error, says):
    with pytest.raises(error, match=says):
        SigmaZero(**fields)
