import jax
import numpy as np
import pytest

from advjax.data import Dataset, to_float


def test_floats_that_were_bytes_go_back_to_bytes_and_others_stay(rng):
    as_bytes = rng.integers(0, 256, (5, 4, 3, 1), dtype=np.uint8)
    y = np.arange(5)
    back = Dataset((as_bytes / 255).astype(np.float64), y)
    assert back.x.dtype == np.uint8 and np.array_equal(back.x, as_bytes)
    fine = rng.uniform(size=(5, 4, 3, 1))
    assert Dataset(fine, y).x.dtype == np.float32


def test_to_float_is_the_same_inside_and_outside_jit():
    every = np.arange(256, dtype=np.uint8)
    outside = np.asarray(to_float(every))
    assert np.array_equal(jax.jit(to_float)(every), outside)
    assert np.abs(outside - every / 255).max() < 1e-7
    assert outside[0] == 0 and outside[255] == 1


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((2, 3, 3, 1), np.uint8), [0], r"given labels \(1,\); expected one per image"),
        (np.zeros((2, 3, 3, 1), np.int64), [0, 1], "uint8, or floats"),
        (np.full((2, 3, 3, 1), 1.5), [0, 1], "float images are in .0, 1.*1.5"),
        (np.full((2, 3, 3, 1), np.nan), [0, 1], "float images are in"),
        (np.zeros((2, 3, 3, 1), np.uint8), [0, 7], "labels run from 0 to 7"),
        (np.zeros((2, 3, 3, 1), np.uint8), [-1, 0], "labels run from -1"),
        (np.zeros((2, 3, 3, 1), np.uint8), [0, 0.5], "class numbers"),
        (np.zeros(2, np.uint8), [0, 1], "images are"),
    ],
)
def test_what_is_no_set_of_images_is_refused_in_one_line(x, y, message):
    with pytest.raises(ValueError, match=message) as error:
        Dataset(x, np.asarray(y), classes=("a", "b", "c"))
    assert "\n" not in str(error.value)
