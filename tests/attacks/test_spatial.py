"""Rotations and translations against NumPy, SciPy and all transformations in turn."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from advjax import L2, Target, example_keys
from advjax.attacks.spatial import Spatial, bilinear, rotate_and_shift

RNG = np.random.default_rng(0)


transform = jax.jit(rotate_and_shift)


def moved(x, degrees=0.0, down=0.0, right=0.0, fill=0.0):
    ones = np.ones(len(x), np.float32)
    return np.asarray(transform(x, degrees * ones, down * ones, right * ones, fill))


@pytest.mark.parametrize("fill", [None, 0.3])
def test_sampling_between_pixels_is_scipys(fill):
    image = RNG.uniform(size=(5, 4, 2)).astype(np.float32)
    rows = RNG.uniform(-2, 6, size=(7, 9)).astype(np.float32)
    cols = RNG.uniform(-2, 5, size=(7, 9)).astype(np.float32)
    mode = {"mode": "nearest"} if fill is None else {"mode": "grid-constant", "cval": fill}
    expected = [
        ndimage.map_coordinates(image[..., c], [rows, cols], order=1, **mode) for c in (0, 1)
    ]
    got = jax.jit(bilinear)(image, rows, cols, fill)
    np.testing.assert_allclose(got, np.stack(expected, -1), atol=1e-5)


def test_slope_in_the_position_is_the_difference_of_the_neighbours():
    image = RNG.uniform(size=(5, 4, 1)).astype(np.float32)
    value = lambda row, col: bilinear(jnp.asarray(image), row, col)[0]
    slope = jax.jit(jax.grad(value, argnums=(0, 1)))(1.25, 2.5)
    low, high = image[1, :, 0], image[2, :, 0]
    np.testing.assert_allclose(slope[0], (high[2:] - low[2:]).mean(), atol=1e-6)
    np.testing.assert_allclose(slope[1], (0.75 * low + 0.25 * high)[2:] @ [-1, 1], atol=1e-6)


def test_quarter_turns_shifts_and_the_identity_are_numpys():
    square = RNG.uniform(size=(2, 5, 5, 3)).astype(np.float32)
    np.testing.assert_array_equal(moved(square), square)
    turned = np.rot90(square, axes=(1, 2))  # counter-clockwise
    np.testing.assert_allclose(moved(square, 90.0), turned, atol=1e-5)
    wide = RNG.uniform(size=(2, 4, 7, 3)).astype(np.float32)
    np.testing.assert_allclose(moved(wide, 180.0), wide[:, ::-1, ::-1], atol=1e-5)
    fill = np.float32([0.1, 0.2, 0.3])
    expected = np.broadcast_to(fill, wide.shape).copy()
    expected[:, 1:, :-2] = wide[:, :-1, 2:]
    np.testing.assert_allclose(moved(wide, 0.0, 1.0, -2.0, fill), expected, atol=1e-6)
    turned = np.roll(np.rot90(square, axes=(1, 2)), 1, axis=1)  # turned first, shifted then
    np.testing.assert_allclose(moved(square, 90.0, 1.0)[:, 1:], turned[:, 1:], atol=1e-5)


def test_the_grid_is_searched_whole_and_the_worst_is_kept(tiny, key):
    model, _, x, y = tiny
    angles, shifts = np.linspace(-5, 5, 3), np.linspace(-0.1, 0.1, 3)
    every = [moved(x, *point) for point in itertools.product(angles, shifts, shifts)]
    logits = np.asarray(model(np.concatenate(every))).reshape(27, 8, 5)
    fooled = logits.argmax(axis=-1) != y[None]
    loss = np.log(np.exp(logits).sum(axis=-1)) - logits[:, np.arange(8), y]
    assert 0 < fooled.any(axis=0).sum() < 8  # some stand all transformations
    fields = {"max_shift": 0.1, "max_rotation": 5, "shifts": 3, "rotations": 3}
    record = Spatial(early_stop=False, **fields).run(key, model, x, y)
    np.testing.assert_array_equal(record.success, fooled.any(axis=0))
    worst = np.where(fooled | ~fooled.any(axis=0, keepdims=True), loss, -np.inf).max(axis=0)
    np.testing.assert_allclose(record.loss, worst, rtol=1e-4)
    assert (record.forwards == 28).all() and (record.backwards == 0).all()
    early = Spatial(**fields).run(key, model, x, y)
    np.testing.assert_array_equal(early.success, record.success)
    np.testing.assert_array_equal(early.first_success, record.first_success)
    stood = ~np.asarray(early.success)
    np.testing.assert_array_equal(early.forwards, np.where(stood, 28, early.first_success + 2))


def test_a_wrong_image_is_returned_as_it_is(tiny, key):
    model, _, x, y = tiny
    record = Spatial(shifts=3, rotations=3).run(key, model, x, (y + 1) % 5)
    np.testing.assert_array_equal(record.x_adv, x)
    assert (record.first_success == 0).all()


def test_more_draws_contain_fewer_and_limits_may_be_per_image(tiny, key):
    model, _, x, y = tiny
    few, many = (Spatial(draws=n, max_shift=1).run(key, model, x, y) for n in (2, 8))
    assert (many.success >= few.success).all()
    limits = np.float32([0, 2, 0, 2, 2, 2, 2, 2])
    attack = Spatial(draws=3, max_shift=limits, max_rotation=0, early_stop=False)
    record = attack.run(key, model, x, y)
    np.testing.assert_array_equal(record.x_adv[::2][:2], x[::2][:2])
    alone = Spatial(draws=3, max_shift=2, max_rotation=0, early_stop=False)
    one = alone(example_keys(key, 8)[3:4], model, x[3:4], y[3:4])[0]
    np.testing.assert_allclose(one, record.x_adv[3], atol=1e-6)


def test_targeted_looks_for_the_target(tiny, key):
    model, _, x, y = tiny
    target = (y + 1) % 5
    record = Spatial(draws=60, max_shift=2, max_rotation=180, goal=Target()).run(
        key, model, x, target
    )
    assert record.success.any()
    np.testing.assert_array_equal(record.success, jnp.argmax(model(record.x_adv), 1) == target)


@pytest.mark.parametrize(
    "fields",
    [
        {"ball": L2(1.0)},
        {"ball": L2(mask=np.ones((4, 3, 2)))},
        {"max_shift": -1},
        {"max_rotation": np.inf},
        {"shifts": 0},
        {"draws": 1.5},
    ],
)
def test_what_it_does_not_take_is_refused(fields):
    with pytest.raises(ValueError, match="Spatial: given .*(taken|expected)"):
        Spatial(**fields)


def test_what_does_not_fit_the_images_is_refused(tiny, key):
    model, _, x, y = tiny
    with pytest.raises(ValueError, match=r"expected \[B, H, W, C\]"):
        Spatial()(key, model, x.reshape(8, -1), y)
    with pytest.raises(ValueError, match="one per image"):
        Spatial(max_shift=[1, 2])(key, model, x, y)
