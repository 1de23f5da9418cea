"""Patches: where they lie, how large they are, and that training makes them work."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import L2, Target, evaluate, example_keys, load, replace
from advjax.attacks.patch import Patch, train_patch

RNG = np.random.default_rng(0)
apply = jax.jit(Patch.apply)
WHITE = np.ones((4, 4, 1))


@pytest.mark.parametrize(("circle", "share"), [(False, 1.0), (True, np.pi / 4)])
def test_it_covers_its_area_wherever_it_is_and_keeps_inside(circle, share, key):
    dark = jnp.zeros((40, 30, 24, 1))
    placed = apply(Patch(pixels=WHITE, scale=(0.4, 0.4), circle=circle), key, dark)
    area = np.asarray(placed.sum(axis=(1, 2, 3)))
    np.testing.assert_allclose(area, share * (0.4 * 24) ** 2, rtol=0.03)  # nothing is cut off
    middle = np.einsum("bhwc,h->b", placed, np.arange(30)) / area
    assert middle.min() < 8 and middle.max() > 21  # it goes everywhere
    smaller = apply(Patch(pixels=WHITE, scale=(0.2, 0.4), circle=circle), key, dark)
    sides = np.sqrt(np.asarray(smaller.sum(axis=(1, 2, 3))) / share) / 24
    assert 0.19 < sides.min() < 0.25 and 0.35 < sides.max() < 0.41


def test_upright_in_a_corner_its_pixels_are_the_images(key):
    pixels = RNG.uniform(size=(3, 3, 2)).astype(np.float32)
    x = RNG.uniform(size=(2, 6, 9, 2)).astype(np.float32)
    for place, rows, cols in (((0, 0), slice(3), slice(3)), ((1, 1), slice(3, 6), slice(6, 9))):
        patch = Patch(pixels=pixels, scale=(0.5, 0.5), rotation=0, place=place)
        expected = x.copy()
        expected[:, rows, cols] = pixels
        np.testing.assert_allclose(apply(patch, key, x), expected, atol=1e-5)


def test_it_turns_with_its_pixels(key):
    """Half of it white: the white's middle turns about the patch's."""
    half = WHITE.copy()
    half[2:] = 0
    patch = Patch(pixels=half, scale=(0.5, 0.5), rotation=45, place=(0.5, 0.5))
    placed = np.asarray(apply(patch, key, jnp.zeros((50, 40, 40, 1))))[..., 0]
    weight = placed / placed.sum(axis=(1, 2), keepdims=True)
    down = np.einsum("bhw,h->b", weight, np.arange(40) - 19.5)
    right = np.einsum("bhw,w->b", weight, np.arange(40) - 19.5)
    np.testing.assert_allclose(np.hypot(down, right), 5, atol=0.2)
    angles = np.rad2deg(np.arctan2(right, -down))
    assert angles.min() < -35 and angles.max() > 35 and abs(angles).max() < 46


def test_the_gradient_reaches_pixels_at_their_bounds_in_full(key):
    x = jnp.full((3, 8, 8, 1), 0.5)
    patch = Patch(pixels=WHITE, scale=(0.5, 0.5))
    total = lambda pixels: replace(patch, pixels=pixels).apply(key, x).sum()
    slope = jax.jit(jax.grad(total))(jnp.ones((4, 4, 1)))
    np.testing.assert_allclose(slope.sum(), 3 * 16, rtol=0.05)


def ridge(weights, x):
    return x.reshape(x.shape[0], -1) @ weights


@pytest.fixture(scope="module")
def digits():
    """A linear model fitted in closed form, training images and test images."""
    train, test = load("digits", "train"), load("digits", "test")
    x, xt = (
        jnp.asarray(np.asarray(d.x, np.float32) / 255).reshape(-1, 8, 8, 1) for d in (train, test)
    )
    y, yt = (jnp.asarray(np.asarray(d.y), jnp.int32) for d in (train, test))
    flat = np.asarray(x, np.float64).reshape(-1, 64)
    weights = np.linalg.solve(flat.T @ flat + np.eye(64), flat.T @ np.eye(10)[np.asarray(y)])
    model = jax.tree_util.Partial(ridge, jnp.asarray(10 * weights, jnp.float32))
    return model, x, y, xt, yt


def test_training_reaches_the_target_where_controls_do_not(digits, key):
    model, x, y, xt, yt = digits
    target, told = 3, []
    patch = train_patch(
        key,
        model,
        x[y != target],
        target,
        goal=Target(),
        scale=(0.4, 0.5),
        rotation=10,
        place=(0.5, 0.5),
        steps=150,
        batch_size=32,
        learning_rate=0.1,
        progress=lambda *what: told.append(what),
    )
    assert [done for done, _, _ in told[-2:]] == [147, 150] and told[-1][2] > told[0][2]
    assert patch.pixels.shape == (4, 4, 1)
    assert patch.pixels.min() >= 0 and patch.pixels.max() <= 1
    held_out = xt[yt != target]
    goals = np.full(len(held_out), target)
    aimed = lambda patch: patch.with_goal(Target())
    rate = lambda patch: aimed(patch).hits(key, model, held_out, goals, draws=4).mean() / 4
    grey = rate(replace(patch, pixels=jnp.full((4, 4, 1), 0.5)))
    noise = rate(replace(patch, pixels=jax.random.uniform(key, (4, 4, 1))))
    assert rate(patch) > 0.5 > 3 * max(grey, noise)


def test_an_untargeted_patch_lowers_the_accuracy_that_evaluate_sees(digits, key):
    model, x, y, xt, yt = digits
    patch = train_patch(key, model, x, y, scale=(0.4, 0.4), circle=True, steps=100, batch_size=32)
    grey = replace(patch, pixels=jnp.full_like(patch.pixels, 0.5))
    robust = evaluate(model, (xt, yt), {"trained": patch, "grey": grey}, key=key).robust
    assert robust["trained"].value < robust["grey"].value - 0.1


def test_hits_count_the_draws_that_succeed(tiny, key):
    model, _, x, y = tiny
    patch = Patch(pixels=WHITE, scale=(0.5, 0.9))
    hits = patch.hits(key, model, x, y, draws=5)
    keys = example_keys(key, 8)
    each = [jax.vmap(jax.random.fold_in, (0, None))(keys, d) for d in range(5)]
    expected = [np.asarray(patch.run(drawn, model, x, y).success, int) for drawn in each]
    np.testing.assert_array_equal(hits, np.sum(expected, axis=0))
    assert hits.dtype == np.int32 and 0 < hits.sum() < 40


@pytest.mark.parametrize(
    "fields",
    [
        {"ball": L2(1.0)},
        {"pixels": np.ones((3, 4, 1))},
        {"scale": (0.5, 0.4)},
        {"place": (0.0, 1.1)},
    ],
)
def test_what_it_does_not_take_is_refused(fields):
    with pytest.raises(ValueError, match="Patch: given .*(taken|expected)"):
        Patch(**({"pixels": WHITE} | fields))


def test_what_does_not_fit_is_refused(tiny, key):
    model, _, x, y = tiny
    with pytest.raises(ValueError, match="images of 2 channels; expected the patch's 3"):
        Patch(pixels=np.ones((2, 2, 3)))(key, model, x, y)
    with pytest.raises(ValueError, match="steps=0"):
        train_patch(key, model, x, y, steps=0)
