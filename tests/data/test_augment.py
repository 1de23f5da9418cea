import jax
import numpy as np
import pytest

from advjax.data import Augment


@pytest.fixture
def images(rng):
    return rng.uniform(0.2, 1, (64, 6, 9, 2)).astype(np.float32)  # nowhere black


@pytest.fixture
def keys(key):
    return jax.random.split(key, 64)


def test_with_everything_off_it_returns_its_argument(keys, images):
    assert Augment()(keys, images) is images


def test_a_flip_mirrors_left_and_right_about_half_of_the_images(keys, images):
    out = np.asarray(Augment(flip=True)(keys, images))
    mirrored = np.array([np.array_equal(o, i[:, ::-1]) for o, i in zip(out, images, strict=True)])
    same = np.array([np.array_equal(o, i) for o, i in zip(out, images, strict=True)])
    assert (mirrored ^ same).all() and 16 < mirrored.sum() < 48


def test_a_crop_is_a_window_of_the_padded_image_and_all_windows_come(keys, images):
    out = np.asarray(Augment(crop=1)(keys, images))
    assert out.shape == images.shape
    seen = set()
    for o, i in zip(out, images, strict=True):
        padded = np.pad(i, ((1, 1), (1, 1), (0, 0)))
        windows = {(t, s): padded[t : t + 6, s : s + 9] for t in range(3) for s in range(3)}
        match = [at for at, window in windows.items() if np.array_equal(window, o)]
        assert len(match) == 1
        seen.add(match[0])
    assert len(seen) == 9


def test_cutout_blackens_one_square_and_nothing_else(keys, images):
    out = np.asarray(Augment(cutout=3)(keys, images))
    black = (out == 0).all(-1)
    assert np.array_equal(out[~black], images[~black])
    assert black.any(axis=(1, 2)).all() and black.sum(axis=(1, 2)).max() == 9
    for b in black:
        rows, columns = np.flatnonzero(b.any(1)), np.flatnonzero(b.any(0))
        assert b.sum() == len(rows) * len(columns)
        assert (np.diff(rows) == 1).all() and (np.diff(columns) == 1).all()


def test_an_examples_draws_depend_on_its_key_alone(keys, images):
    augment = Augment(crop=2, flip=True, cutout=2)
    whole = np.asarray(jax.jit(augment)(keys, images))
    few = np.asarray(augment(keys[10:3:-1], images[10:3:-1]))
    assert np.array_equal(whole[10:3:-1], few)


def test_it_is_structure_so_that_equal_ones_are_one_trace(keys, images):
    traces = []

    @jax.jit
    def run(augment, keys, x):
        traces.append(1)
        return augment(keys, x)

    run(Augment(flip=True), keys, images), run(Augment(flip=True), keys, images)
    assert len(traces) == 1


@pytest.mark.parametrize("bad", [{"crop": -1}, {"cutout": 1.5}])
def test_a_size_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match="a number of pixels, 0 or more"):
        Augment(**bad)
