"""What every source of labelled images keeps to; a new source is one more row."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import table
from PIL import Image

from advjax.data import Dataset, batches, load, to_float

ABC = ("a", "b", "c")


@dataclasses.dataclass(frozen=True)
class Row:
    """What the table asks of a source.

    Attributes:
      load: ``(folder, split) -> Dataset``; the folder is empty, or the shared one.
      sizes: split to the number of images.
      image: ``[H, W, C]``.
      dtype: of the images at rest.
      classes: their names; a number for that many.
      name: of the set, where it is the same everywhere.
      cut: the splits are cut from one set, so train and test have ids of their own.
      mean: of all pixels of ``test``, in [0, 1], where it is published.
      least: images of every class in ``test``.
      shared: it needs the shared folder; without it the tests of the row skip.
    """

    load: Callable[..., Any]
    sizes: dict[str, int]
    image: tuple[int, ...]
    classes: Any = ABC
    dtype: type = np.uint8
    name: str = ""
    cut: bool = False
    mean: float | None = None
    least: int = 1
    shared: bool = False


def labels(n):
    return np.arange(n) % 3


def pixels(n, *shape):
    return np.random.default_rng(n).integers(0, 256, (n, *shape), dtype=np.uint8)


def arrays(folder, split):
    return Dataset(pixels(9, 2, 2), labels(9), ABC, split=split)


def floats(folder, split):
    x = np.random.default_rng(0).uniform(size=(9, 4, 3, 2))
    return Dataset(x, labels(9).astype(np.float64), ABC, split=split)


def npz(folder, split):
    np.savez(folder / "set.npz", x=pixels(20, 6, 5), y=labels(20), classes=np.array(ABC))
    return load(folder / "set.npz", split)


def npz_with_its_split(folder, split):
    x = np.random.default_rng(0).uniform(size=(9, 3, 2, 1)).astype(np.float32)
    parts = {"x_train": x, "y_train": labels(9), "x_test": x[:6], "y_test": labels(6)}
    np.savez(folder / "set.npz", **parts)
    return load(folder / "set.npz", split)


def picture(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def pictures(folder, split):
    for c in ABC:
        for i, image in enumerate(pixels(7, 5, 4, 3)):
            picture(folder / c / f"{i}.png", image)
    return load(folder, split)


def pictures_with_their_split(folder, split):
    for part, n in (("train", 3), ("test", 2)):
        for c in ABC:
            for i, image in enumerate(pixels(n, 4, 6)):
                picture(folder / part / c / f"{i}.jpg", image)
    return load(str(folder), split)


def prepared(name, image, mean, classes):
    return Row(
        lambda folder, split: load(name, split, folder / "tfds"),
        sizes={"test": 10_000},
        image=image,
        classes=classes,
        name=name,
        mean=mean,
        least=801,
        shared=True,
    )


DIGITS = tuple("0123456789")
ROWS = {
    "arrays": Row(arrays, {"train": 9}, (2, 2, 1)),
    "floats": Row(floats, {"train": 9}, (4, 3, 2), dtype=np.float32),
    "digits": Row(
        lambda folder, split: load("digits", split),
        {"train": 1297, "test": 500, "all": 1797},
        (8, 8, 1),
        classes=DIGITS,
        name="digits",
        cut=True,
        least=31,
    ),
    "npz": Row(npz, {"train": 16, "test": 4, "all": 20}, (6, 5, 1), cut=True),
    "npz with its split": Row(
        npz_with_its_split,
        {"train": 9, "test": 6},
        (3, 2, 1),
        classes=("0", "1", "2"),
        dtype=np.float32,
    ),
    "pictures": Row(pictures, {"train": 17, "test": 4, "all": 21}, (5, 4, 3), cut=True),
    "pictures with their split": Row(pictures_with_their_split, {"train": 9, "test": 6}, (4, 6, 1)),
    "mnist": prepared("mnist", (28, 28, 1), 0.1325, DIGITS),
    "fashion_mnist": prepared("fashion_mnist", (28, 28, 1), 0.2868, 10),
    "cifar10": prepared("cifar10", (32, 32, 3), 0.4765, 10),
}


def rows(names=ROWS):
    return table.rows("data", names)


TABLE = pytest.mark.parametrize("name", rows())
_READ: dict[tuple[str, str], Dataset] = {}


@pytest.fixture
def sets(request, tmp_path, name):
    """Split to data of the row; large ones are read once."""
    row = ROWS[name]
    folder = request.getfixturevalue("shared") if row.shared else tmp_path
    for split in row.sizes:
        if (name, split) not in _READ:
            _READ[name, split] = row.load(folder, split)
    return {split: _READ[name, split] for split in row.sizes}


@TABLE
def test_images_labels_and_names_are_what_is_promised(name, sets):
    row = ROWS[name]
    for split, data in sets.items():
        assert len(data) == row.sizes[split] and data.split == split
        assert data.x.shape == (len(data), *row.image) and data.x.dtype == row.dtype
        assert data.y.shape == data.ids.shape == (len(data),)
        assert data.y.dtype == data.ids.dtype == np.int32
        assert data.y.min() >= 0 and data.y.max() < len(data.classes)
        assert row.classes in (data.classes, len(data.classes))
        assert not row.name or data.name == row.name
        assert not row.name or data.x.max() == 255  # of the whole range
        assert len(set(data.ids.tolist())) == len(data)
    data = sets.get("test", data)
    assert (np.bincount(data.y, minlength=len(data.classes)) >= min(row.least, len(data))).all()
    seen = np.asarray(to_float(data.x[:50]))
    assert seen.dtype == np.float32 and seen.min() >= 0 and seen.max() <= 1
    if row.mean is not None:
        assert abs(data.x.mean() / 255 - row.mean) < 1e-3


@pytest.mark.parametrize("name", rows(name for name, row in ROWS.items() if row.cut))
def test_a_set_that_is_cut_has_disjoint_parts_of_fixed_images(name, sets, tmp_path):
    train, test, everything = (sets[split] for split in ("train", "test", "all"))
    assert sorted([*train.ids, *test.ids]) == sorted(everything.ids)
    place = {int(i): n for n, i in enumerate(everything.ids)}
    for part in (train, test):
        here = [place[int(i)] for i in part.ids]
        np.testing.assert_array_equal(part.x, everything.x[here])
        np.testing.assert_array_equal(part.y, everything.y[here])
    again = ROWS[name].load(tmp_path, "test")
    np.testing.assert_array_equal(again.x, test.x)
    np.testing.assert_array_equal(again.ids, test.ids)


@TABLE
def test_take_and_subset_keep_ids_classes_and_pairs(name, sets):
    data = next(iter(sets.values()))
    part = data.take([3, 2])
    for field in ("x", "y", "ids"):
        np.testing.assert_array_equal(getattr(part, field), getattr(data, field)[[3, 2]])
    assert part.classes == data.classes and part.name == data.name and part.split == data.split
    few = data.subset(4, seed=1)
    here = np.flatnonzero(np.isin(data.ids, few.ids))
    assert len(few) == len(here) == 4
    for field in ("x", "y", "ids"):
        np.testing.assert_array_equal(getattr(few, field), getattr(data, field)[here])
    np.testing.assert_array_equal(few.ids, data.subset(4, seed=1).ids)
    assert few.ids.tolist() != data.subset(4, seed=2).ids.tolist()
    assert len(data.subset(100_000)) == len(data)
    assert data.take(slice(0, 2)).take([1]).ids.tolist() == [data.ids[1]]


@TABLE
def test_batches_go_over_every_image_once(name, sets):
    data = next(iter(sets.values()))
    seen = np.concatenate([data.ids[ids[mask]] for ids, mask in batches(len(data), 7)])
    np.testing.assert_array_equal(seen, data.ids)


@pytest.mark.parametrize("name", rows(name for name, row in ROWS.items() if row.shared))
def test_a_slice_of_a_prepared_set_is_that_of_the_whole(name, sets, shared):
    part = load(f"tfds:{name}", "test[:3]", shared / "tfds")
    np.testing.assert_array_equal(part.x, sets["test"].x[:3])
    assert (name == "mnist") == (part.classes[0] == "0")


LOADED = tuple(name for name in ROWS if name not in ("arrays", "floats"))


@pytest.mark.parametrize("name", rows(LOADED))
def test_a_split_that_does_not_exist_is_named_in_one_line(name, request, tmp_path):
    row = ROWS[name]
    folder = request.getfixturevalue("shared") if row.shared else tmp_path
    known = "no split 'val'; it has train, test" + (", all" if row.cut else "")
    known = known if row.cut or row.shared else "has no (split 'val'; it has .*test|x_val)"
    with pytest.raises(ValueError, match=known) as error:
        row.load(folder, "val")
    assert "\n" not in str(error.value)
