"""DDN against its algorithm written in NumPy, and what the published one leaves open."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import L2, Linf, Target, load, replace
from advjax.attacks.core import driver
from advjax.attacks.ddn import DDN


def published(weights, x, y, steps, gamma=0.05):
    """Rony et al. 2019, algorithm 1, on a linear model, one image at a time; distances."""
    out = []
    for image, label in zip(x, y, strict=True):
        delta, radius, best = np.zeros_like(image), 1.0, np.inf
        farthest = np.linalg.norm(np.maximum(image, 1 - image))
        for i in range(steps):
            logits = (image + delta) @ weights
            adversarial = logits.argmax() != label
            if adversarial:
                best = min(best, np.linalg.norm(delta))
            share = np.exp(logits - logits.max())
            share /= share.sum()
            grad = weights @ (share - np.eye(len(share))[label])
            size = 0.01 + 0.99 * (1 + np.cos(np.pi * i / steps)) / 2
            delta = delta + size * grad / np.linalg.norm(grad)
            radius = min(radius * (1 - gamma if adversarial else 1 + gamma), farthest)
            delta = np.clip(image + radius * delta / np.linalg.norm(delta), 0, 1) - image
        out.append(best)
    return np.array(out)


@pytest.mark.parametrize("steps", [1, 30])
def test_is_the_published_algorithm(steps, tiny, key):
    model, weights, x, y = tiny
    model = jax.tree_util.Partial(model.func, 4 * weights)
    record = DDN(steps=steps, levels=None).run(key, model, x, y)
    flat = np.asarray(x, float).reshape(8, -1)
    expected = published(4 * np.asarray(weights, float), flat, np.asarray(y), steps)
    np.testing.assert_array_equal(record.success, np.isfinite(expected))
    if steps > 1:
        assert record.success.all()
        np.testing.assert_allclose(record.distance, expected, rtol=2e-3)
    assert (record.forwards == steps + 1).all() and (record.backwards == steps).all()


def test_other_counts_of_steps_share_the_compiled_step(tiny, key):
    model, _, x, y = tiny
    DDN(steps=3, levels=None).run(key, model, x, y)
    before = driver._step._cache_size()
    DDN(steps=9, levels=None, gamma=0.1).run(key, model, x, y)
    assert driver._step._cache_size() == before


def test_levels_mask_target_and_limit_at_once(tiny, key):
    model, _, x, y = tiny
    mask = np.zeros(x.shape[1:], np.float32)
    mask[:2] = 1
    target = (y + 1) % 5
    ball = L2(mask=mask)
    free = DDN(ball=ball, steps=40, goal=Target(), in_box=True).run(key, model, x, target)
    x_adv = np.asarray(free.x_adv)
    np.testing.assert_array_equal(x_adv[:, 2:], x[:, 2:])
    moved = x_adv[np.asarray(free.success), :2] * 255
    assert moved.size
    np.testing.assert_allclose(moved, moved.round(), atol=1e-3)
    np.testing.assert_array_equal(free.success, jnp.argmax(model(x_adv), axis=1) == target)
    eps = float(np.median(free.distance[free.success]))
    attack = DDN(ball=replace(ball, eps=eps), steps=40, goal=Target(), in_box=True)
    limited = attack.run(key, model, x, target)
    assert (limited.distance <= eps + 1e-6).all()
    near = np.asarray(free.success) & (np.asarray(free.distance) < eps)
    assert near.any() and np.asarray(limited.success)[near].all()


def dead(weights, x):
    return jax.lax.stop_gradient(x).reshape(x.shape[0], -1) @ weights


def test_without_a_gradient_it_tries_noise_of_each_example(tiny, key):
    _, weights, x, y = tiny
    model = jax.tree_util.Partial(dead, weights)
    x, y = jnp.concatenate([x[:1], x]), jnp.concatenate([y[:1], y])
    record = DDN(steps=40, levels=None).run(key, model, x, y)
    assert (record.zero_gradient == record.backwards).all()
    assert record.success.sum() >= 5
    assert (record.x_adv[0] != record.x_adv[1]).any()


def test_an_image_that_is_wrong_already_stays_and_costs_one_step(tiny, key):
    model, _, x, y = tiny
    y = y.at[2].set((y[2] + 1) % 5)
    record = DDN(steps=30, levels=None).run(key, model, x, y)
    np.testing.assert_array_equal(record.x_adv[2], x[2])
    assert record.success[2] and record.distance[2] == 0 and record.first_success[2] == 0
    assert record.forwards[2] == 2 and record.backwards[2] == 1
    assert (record.backwards[jnp.arange(8) != 2] == 30).all()


@pytest.mark.optimised
def test_published_weights_at_the_published_distance(lenet5, shared, key):
    """AdverTorch's clean LeNet5: mean L2 of 1.380 over the whole test set, with 1,000 steps."""
    model = lenet5("cln")
    test = load("mnist", "test", data_dir=shared / "tfds")
    pick = np.random.default_rng(0).permutation(len(test.x))[:60]
    x = np.asarray(test.x)[pick].reshape(-1, 28, 28, 1) / np.float32(255)
    record = DDN(steps=60).run(key, model, x, np.asarray(test.y)[pick])
    found = np.asarray(record.distance)[np.asarray(record.first_success) > 0]
    assert record.success.all() and len(found) >= 58
    # The standard error of 60 images is 0.04, and 60 steps end 2 % above 1,000.
    np.testing.assert_allclose(found.mean(), 1.380, rtol=0.06)


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"ball": Linf(0.3)}, TypeError, "expected an L2 ball"),
        ({"steps": -1}, ValueError, "an integer >= 0"),
        ({"steps": 2.5}, ValueError, "an integer >= 0"),
        ({"gamma": 1.0}, ValueError, "between 0 and 1"),
        ({"init_norm": 0}, ValueError, "numbers > 0"),
        ({"levels": 1}, ValueError, "an integer >= 2 or None"),
    ],
)
def test_refuses(fields, error, says):
    with pytest.raises(error, match=says):
        DDN(**fields)
