"""FMN against its algorithm written in NumPy, and its counts in L0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import L0, L1, L2, Linf, Target, create, from_torch, load, load_torch
from advjax.attacks.core import driver
from advjax.attacks.fmn import FMN, _next_count


def published(weights, x, y, steps):
    """Pintor et al. 2021, algorithm 1, in L2 on a linear model that the box does not reach."""
    out = []
    for image, label in zip(x, y, strict=True):
        delta, radius, best = np.zeros_like(image), np.inf, np.inf
        for i in range(steps):
            cosine = (1 + np.cos(np.pi * i / steps)) / 2
            gamma, size = 0.001 + 0.049 * cosine, 0.01 + 0.99 * cosine
            logits = (image + delta) @ weights
            other = np.argmax(np.where(np.arange(len(logits)) == label, -np.inf, logits))
            margin, grad = logits[other] - logits[label], weights[:, other] - weights[:, label]
            length, slope = np.linalg.norm(delta), np.linalg.norm(grad)
            if margin > 0:
                best = min(best, length)
                radius = min(radius * (1 - gamma), best)
            elif np.isfinite(best):
                radius *= 1 + gamma
            else:  # the original stops at the crossing itself and may never cross it
                radius = (length + abs(margin) / slope) * 1.001
            delta = delta + size * grad / slope
            delta *= min(1, radius / np.linalg.norm(delta))
        out.append(best)
    return np.array(out)


def test_is_the_published_algorithm(tiny, key):
    model, weights, x, _ = tiny
    x = 0.5 + 0.1 * (x - 0.5)  # near the middle of the box
    y = jnp.argmax(model(x), axis=1)
    record = FMN(ball=L2(), steps=30).run(key, model, x, y)
    flat = np.asarray(x, float).reshape(8, -1)
    expected = published(np.asarray(weights, float), flat, np.asarray(y), 30)
    assert record.x_adv.min() > 0 and record.x_adv.max() < 1
    assert record.success.all()
    np.testing.assert_allclose(record.distance, expected, rtol=2e-3)
    assert (record.forwards == 31).all() and (record.backwards == 30).all()
    before = driver._step._cache_size()
    FMN(ball=L2(), steps=7, gamma=0.1).run(key, model, x, y)
    assert driver._step._cache_size() == before


def test_counts_in_l0_change_by_at_least_one():
    count = jnp.array([1.0, 1.0, 110.0, 110.0, 10.0, 0.0])
    success = jnp.array([False, True, False, True, True, True])
    smallest = jnp.array([jnp.inf, 1.0, jnp.inf, 109.0, 4.0, 0.0])
    new = _next_count(count, success, smallest, jnp.float32(0.05))
    np.testing.assert_array_equal(new, [2, 0, 115, 104, 4, 0])


def test_masked_targets_in_l1(tiny, key):
    model, _, x, y = tiny
    mask = np.zeros(x.shape[1:], np.float32)
    mask[1:] = 1
    target = (y + 1) % 5
    record = FMN(ball=L1(mask=mask), steps=60, goal=Target()).run(key, model, x, target)
    np.testing.assert_array_equal(record.x_adv[:, :1], x[:, :1])
    np.testing.assert_array_equal(record.success, jnp.argmax(model(record.x_adv), axis=1) == target)
    assert record.success.sum() >= 4


def two_scores(weights, x):
    score = x.reshape(x.shape[0], -1) @ weights
    return jnp.stack([jnp.zeros_like(score), score], axis=1)


def test_a_first_order_estimate_that_lands_on_the_tie_still_crosses(key):
    """Exact arithmetic: the linearised distance is the tie itself, which is not adversarial."""
    model = jax.tree_util.Partial(two_scores, jnp.array([1.0, -1.0]))
    x = jnp.array([[0.75, 0.25], [0.25, 0.75]])
    record = FMN(ball=L0(), steps=10).run(key, model, x, jnp.array([1, 0]))
    assert record.success.all()
    record = FMN(ball=L2(), steps=20).run(key, model, x, jnp.array([1, 0]))
    # At the tie the first class wins, so an image of the second need only reach it.
    assert record.success.all()
    np.testing.assert_allclose(record.distance, 0.5 / np.sqrt(2), rtol=2e-3)


@pytest.mark.parametrize("ball", [Linf(), L2()])
def test_the_first_jump_maximises_the_linear_margin_in_ball_and_box(ball, tiny, key):
    model, weights, x, _ = tiny
    x = x.at[:3].set(jnp.round(x[:3]))  # pixels on the bounds
    y = jnp.argmax(model(x), axis=1)
    attack = FMN(ball=ball, patience=0)
    state = attack.step(0, attack.init(key, model, x, y, jnp.int32(attack.steps)), model, x, y)
    moved = np.asarray(state.x_adv - x).reshape(8, -1)
    logits = np.asarray(model(x))
    other = np.argsort(logits, axis=1)[:, -2]
    grad = np.asarray(weights, float)
    rise = [grad[:, other[n]] - grad[:, y[n]] for n in range(8)]
    flat, radius = np.asarray(x, float).reshape(8, -1), np.asarray(state.radius)
    for n in range(8):
        if isinstance(ball, Linf):
            best = np.clip(flat[n] + radius[n] * np.sign(rise[n]), 0, 1) - flat[n]
        else:
            scales = np.geomspace(1e-3, 1e3, 20_000)
            cut = np.clip(flat[n] + scales[:, None] * rise[n], 0, 1) - flat[n]
            inside = np.linalg.norm(cut, axis=1) <= radius[n]
            best = cut[inside][-1]
        np.testing.assert_allclose(moved[n] @ rise[n], best @ rise[n], rtol=2e-3)


@pytest.mark.optimised
def test_an_adversarially_trained_network_is_fooled(shared, key):
    """Without the jumps, FMN in L2 fools about half of the images of this network."""
    path = shared / "weights" / "mnist_lenet5_adv.pt"
    if not path.is_file():
        pytest.skip(f"needs published weights: no {path}")
    model = from_torch(create("lenet5"), load_torch(path), (28, 28, 1))
    test = load("mnist", "test", data_dir=shared / "tfds")
    pick = np.random.default_rng(0).permutation(len(test))[:64]
    x, y = jnp.asarray(test.x[pick] / np.float32(255)), jnp.asarray(test.y[pick], jnp.int32)
    record = FMN(ball=L2()).run(key, model, x, y)
    assert record.success.all()
    assert jnp.median(record.distance) < 1.79  # adv-lib's FMN; advjax 1.5
    published = FMN(ball=L2(), patience=100).run(key, model, x, y)
    assert published.success.mean() < 0.75


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"ball": 0.3}, TypeError, "expected Linf, L2, L1 or L0"),
        ({"ball": L2(), "steps": -1}, ValueError, "an integer >= 0"),
        ({"ball": L2(), "patience": -1}, ValueError, "patience=-1"),
        ({"ball": L2(), "gamma": 0}, ValueError, "gamma=0"),
        ({"ball": L2(), "gamma_final": 1}, ValueError, "between 0 and 1"),
    ],
)
def test_refuses(fields, error, says):
    with pytest.raises(error, match=says):
        FMN(**fields)
