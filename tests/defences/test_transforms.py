"""Input transforms against NumPy, scipy and Pillow, and the way through them."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, optimize
from specs import same

from advjax.answers import example_keys, is_stochastic
from advjax.attacks import EOT, PGD
from advjax.balls import Linf
from advjax.defences.smoothing import Smoothed
from advjax.defences.transforms import (
    JPEG,
    BitDepth,
    MedianFilter,
    PixelDropout,
    Preprocessed,
    TotalVariation,
)
from advjax.models import Transformed

X = jnp.asarray(np.random.default_rng(0).random((2, 6, 5, 3)), jnp.float32)


def test_bit_depth_rounds_to_the_levels():
    x = jnp.asarray([[0.0, 0.32, 0.34, 0.49, 0.51, 1.0]])
    np.testing.assert_array_equal(BitDepth(1)(x), [[0, 0, 0, 0, 1, 1]])
    np.testing.assert_allclose(BitDepth(2)(x) * 3, [[0, 1, 1, 1, 2, 3]], rtol=1e-6)
    swept = jax.vmap(lambda bits: BitDepth(bits)(x))(jnp.asarray([1.0, 2.0]))
    np.testing.assert_array_equal(swept[1], BitDepth(2)(x))


@pytest.mark.parametrize("window", [1, 2, 3, 4])
def test_median_filter_is_scipys(window):
    expected = ndimage.median_filter(np.asarray(X), size=(1, window, window, 1))
    np.testing.assert_array_equal(MedianFilter(window)(X), expected)


def test_total_variation_of_two_pixels_is_known():
    """Two pixels move towards each other by the weight, and meet where nearer than that."""
    pair = jnp.asarray([[0.2, 0.8], [0.4, 0.5]]).reshape(2, 1, 2, 1)
    for x in (pair, pair.transpose(0, 2, 1, 3)):
        found = jax.jit(TotalVariation(0.1))(x).reshape(2, 2)
        np.testing.assert_allclose(found, [[0.3, 0.7], [0.45, 0.45]], atol=1e-5)


def test_total_variation_is_a_minimum_and_keeps_the_mean():
    transform = TotalVariation(0.05, steps=300)

    def cost(z):
        edges = np.zeros((2, *X.shape))
        edges[0, :, :-1], edges[1, :, :, :-1] = np.diff(z, axis=1), np.diff(z, axis=2)
        return ((z - X) ** 2).sum() / 2 + 0.05 * np.sqrt((edges**2).sum(0)).sum()

    found = np.asarray(jax.jit(transform)(X), np.float64)
    np.testing.assert_allclose(found.mean((1, 2)), X.mean((1, 2)), atol=1e-5)
    rng = np.random.default_rng(1)
    for size in (0.1, 0.03, 0.01):
        for _ in range(20):
            assert cost(found) < cost(found + size * rng.normal(size=X.shape))
    assert cost(found) < min(
        cost(np.asarray(X)), cost(np.broadcast_to(X.mean((1, 2), keepdims=True), X.shape))
    )
    # Smoother than its input by far, and with a gradient.
    slope = jax.jit(jax.grad(lambda x: (TotalVariation(0.05, steps=3)(x) ** 2).sum()))(X)
    assert jnp.isfinite(slope).all() and (slope != 0).any()


def test_pixel_dropout_is_the_minimum_on_the_pixels_that_are_kept():
    """Against scipy's on a smoothed total variation."""
    image, weight = np.float64(X[0]), 0.05
    kept = np.asarray(jax.random.bernoulli(jax.random.key(5), 0.6, image.shape))

    def cost(z, smooth=0.0):
        z = z.reshape(image.shape)
        edges = np.zeros((2, *image.shape))
        edges[0, :-1], edges[1, :, :-1] = np.diff(z, axis=0), np.diff(z, axis=1)
        lengths = np.sqrt((edges**2).sum(0) + smooth)
        return (kept * (z - image) ** 2).sum() / 2 + weight * lengths.sum()

    found = jax.jit(PixelDropout(0.6, weight, steps=1000))(jax.random.key(5), X[0])
    start = np.asarray(found).ravel() + 0.05 * np.random.default_rng(0).normal(size=image.size)
    best = optimize.minimize(lambda z: cost(z, 1e-8), start, options={"maxiter": 3000})
    assert cost(np.float64(found)) < best.fun < cost(image.ravel()) - 0.1
    # A default run is near it, and without holes it is the plain minimisation.
    assert cost(np.float64(PixelDropout(0.6, weight)(jax.random.key(5), X[0]))) < 1.01 * best.fun
    whole = PixelDropout(1, weight, steps=500)(jax.random.key(0), X[1])
    np.testing.assert_allclose(whole, TotalVariation(weight, steps=500)(X[1:])[0], atol=1e-4)


def test_a_dropped_pixel_has_no_part_in_the_answer():
    key, transform = jax.random.key(5), PixelDropout(0.5, steps=5)
    kept = jax.random.bernoulli(key, 0.5, X[0].shape)
    run = jax.jit(transform)
    np.testing.assert_array_equal(run(key, X[0]), run(key, jnp.where(kept, X[0], 0.9)))
    slope = jax.jit(jax.grad(lambda x: (transform(key, x) ** 2).sum()))(X[0])
    np.testing.assert_array_equal(slope != 0, kept)
    empty = PixelDropout(0.0)(key, X[0])
    np.testing.assert_array_equal(empty, jnp.zeros_like(empty))


def test_eot_goes_through_pixel_dropout(key):
    linear = lambda x: jnp.stack([4 * x.mean((1, 2, 3)), 0 * x[:, 0, 0, 0] + 2], -1)
    model, x = Transformed(linear, PixelDropout(steps=10)), jnp.stack([X[0]] * 3)
    assert is_stochastic(model)
    assert same(PixelDropout(steps=10), PixelDropout(0.5, 0.03, steps=10))
    y = jnp.ones(3, int)
    attack = EOT(PGD(ball=Linf(eps=0.2), steps=3, random_start=False), samples=2)
    out = attack.run(key, model, jnp.full_like(x, 0.4), y)
    assert out.success.all() and (out.zero_gradient == 0).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_pillows_for_any_quality_in_one_program(channels):
    x = X[..., :channels]
    run = jax.jit(lambda quality, x: JPEG(quality)(x))
    for quality in (10, 90):
        expected = np.empty(x.shape, np.float32)
        for i, image in enumerate(np.uint8(np.rint(np.asarray(x) * 255))):
            memory = io.BytesIO()
            Image.fromarray(image.squeeze()).save(memory, "JPEG", quality=quality)
            decoded = np.asarray(Image.open(memory), np.float32) / 255
            expected[i] = decoded.reshape(expected[i].shape)
        np.testing.assert_array_equal(run(quality, x), expected)
    assert run._cache_size() == 1
    swept = jax.vmap(lambda quality: JPEG(quality)(x))(jnp.asarray([10.0, 90.0]))
    np.testing.assert_array_equal(swept[1], expected)
    assert not np.array_equal(swept[0], swept[1])
    mapped = jax.vmap(JPEG(90))(x[None])
    np.testing.assert_array_equal(mapped[0], expected)


def test_an_attack_is_stopped_by_rounding_alone_and_goes_through_the_adaptive_model():
    linear = lambda x: jnp.stack([4 * x.mean((1, 2, 3)), 0 * x[:, 0, 0, 0] + 2], -1)
    model, x = Preprocessed(linear, BitDepth(2)), jnp.full((2, 4, 4, 1), 0.4)
    y, attack = jnp.ones(2, int), PGD(ball=Linf(eps=0.2), steps=3, random_start=False)
    masked = attack.run(jax.random.key(0), model, x, y)
    assert not masked.success.any() and (masked.zero_gradient == 3).all()
    assert attack.run(jax.random.key(0), model.adaptive(), x, y).success.all()


def test_a_randomised_model_may_be_behind_it(tiny, key):
    model, _, x, _ = tiny
    keys, inner = example_keys(key, 8), Smoothed(model, 0.1)
    both = Preprocessed(inner, BitDepth(3))
    assert is_stochastic(both) and not is_stochastic(Preprocessed(model, BitDepth(3)))
    np.testing.assert_array_equal(both(x, key=keys), inner(BitDepth(3)(x), key=keys))


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match=r"JPEG: given 2 channels; expected 1 or 3"):
        JPEG()(X[..., :2])
    with pytest.raises(ValueError, match=r"MedianFilter: given images of shape \(2, 3\)"):
        MedianFilter()(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"PixelDropout: given images of shape \(1, 3\)"):
        PixelDropout()(jax.random.key(0), jnp.ones(3))
