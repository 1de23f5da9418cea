"""Where data sets come from: scikit-learn's digits, tensorflow-datasets, npz files, folders."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from advjax.data.dataset import Dataset
from advjax.data.pictures import decode

_DIGITS_TRAIN = 1297
_TEST_FRACTION = 0.2
_SUFFIXES = {".png", ".jpg", ".jpeg"}
# Class names of sets whose prepared folders may lack their label file.
_CLASSES = {
    "cifar10": [
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ],
}


def load(
    name: str | os.PathLike[str],
    split: str = "train",
    data_dir: str | os.PathLike[str] | None = None,
    *,
    size: tuple[int, int] | None = None,
) -> Dataset:
    """Loads a labelled image set into memory. Never downloads anything.

    Args:
      name: one of

        * ``"digits"``: the 1 797 real 8x8 handwritten digits inside scikit-learn, 1 297 for
          training and 500 for testing by a fixed permutation;
        * a tensorflow-datasets name (``"mnist"``, ``"cifar10"``, ``"name/config:1.0.0"``) prepared
          in ``data_dir`` in the array_record format; read without TensorFlow;
        * a path to an ``.npz`` with ``x`` (uint8, or floats in [0, 1]), ``y`` (integers) and, if
          wanted, ``classes`` (names);
        * a path to a folder ``class/*.png|jpg|jpeg``, classes in the order of their names.

        An ``.npz`` with ``x_train, y_train, x_test, y_test`` and a folder with ``train/`` and
        ``test/`` bring their own split; any other is cut by a fixed permutation, a fifth for test.
      split: ``"train"``, ``"test"`` or ``"all"`` (not for tensorflow-datasets, which take their own
        split names and slices, such as ``"train[:10%]"``).
      data_dir: where tensorflow-datasets are; default ``$TFDS_DATA_DIR`` or
        ``~/tensorflow_datasets``.
      size: ``(height, width)`` to resize images to, for folders and tensorflow-datasets whose
        images differ in size.

    Raises:
      FileNotFoundError: for a set that is not there, with the command that downloads it.
      ValueError: for an unknown name (with near ones), a split that does not exist, or unreadable
        or inconsistent data, naming the file.
    """
    path = Path(name).expanduser()
    text = os.fspath(name)
    if path.suffix == ".npz":
        return _load_npz(path, split)
    if text == "digits":
        return _load_digits(split)
    if path.is_dir() and (
        os.sep in text or isinstance(name, Path) or not _prepared(text, data_dir)
    ):
        return _load_folder(path, split, size)
    if os.sep in text and (path.is_absolute() or text.startswith((".", "~"))):
        raise FileNotFoundError(f"no folder {text}; a data folder is class/*.png, a file is .npz")
    return _load_tfds(text.removeprefix("tfds:"), split, data_dir, size)


def _load_digits(split: str) -> Dataset:
    from sklearn.datasets import load_digits

    _check_split("digits", split)
    x, y = load_digits(return_X_y=True)
    x = np.round(x.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)  # sklearn has 0..16
    order = np.random.default_rng(0).permutation(len(y))
    cut = {"train": slice(_DIGITS_TRAIN), "test": slice(_DIGITS_TRAIN, None), "all": slice(None)}
    return Dataset(x, y, name="digits", split=split, ids=np.arange(len(y))).take(order[cut[split]])


def _load_npz(path: Path, split: str) -> Dataset:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except Exception as error:  # a broken zip, a pickle inside, a truncated member
        raise ValueError(f"{path} is no readable .npz of plain arrays: {_line(error)}") from error
    classes = tuple(map(str, arrays.get("classes", ())))
    if "x_train" in arrays or "x_test" in arrays:
        if f"x_{split}" not in arrays or f"y_{split}" not in arrays:
            raise ValueError(f"{path} has no x_{split} and y_{split}; it has {sorted(arrays)}")
        x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
        return Dataset(x, y, classes, name=path.stem, split=split)
    if "x" not in arrays or "y" not in arrays:
        raise ValueError(f"{path} takes arrays x and y (and classes); it has {sorted(arrays)}")
    whole = Dataset(arrays["x"], arrays["y"], classes, name=path.stem, split=split)
    return _cut(whole, split)


def _load_folder(path: Path, split: str, size: tuple[int, int] | None) -> Dataset:
    own_split = (path / "train").is_dir() or (path / "test").is_dir()
    root = path / split if own_split else path
    if not root.is_dir():
        raise ValueError(f"{path} has no split {split!r}; it has {_names(path)}")
    classes = _names(path / "train") if (path / "train").is_dir() else _names(root)
    files = [
        (file, label)
        for label, class_name in enumerate(classes)
        for file in sorted((root / class_name).glob("*"))
        if file.suffix.lower() in _SUFFIXES
    ]
    unknown = sorted(set(_names(root)) - set(classes))
    if unknown:
        raise ValueError(f"{root} has classes that train/ has not: {', '.join(unknown)}")
    if not files:
        raise ValueError(f"{path} holds no images; a data folder is class/*.png, *.jpg or *.jpeg")
    images = [decode(file.read_bytes(), str(file), size) for file, _ in files]
    x = _stack(images, [str(file) for file, _ in files])
    y = np.array([label for _, label in files])
    whole = Dataset(x, y, tuple(classes), name=path.resolve().name, split=split)
    return whole if own_split else _cut(whole, split)


def _load_tfds(
    text: str,
    split: str,
    data_dir: str | os.PathLike[str] | None,
    size: tuple[int, int] | None,
) -> Dataset:
    folder = _prepared(text, data_dir)
    if folder is None:
        raise _missing(text, data_dir)
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(os.fspath(folder))
    features: Any = builder.info.features
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise ValueError(
            f"{folder} is stored as {builder.info.file_format.value}; expected array_record: "
            "prepare it again with tfds.builder(..., file_format='array_record')"
        )
    image, label = builder.info.supervised_keys or ("image", "label")
    if image not in features or not isinstance(dict(features).get(label), tfds.features.ClassLabel):
        raise ValueError(
            f"{text} is no set of labelled images; its features are {', '.join(sorted(features))}"
        )
    base = split.partition("[")[0]
    if base not in builder.info.splits:
        raise ValueError(f"{text} has no split {split!r}; it has {', '.join(builder.info.splits)}")
    if isinstance(features[image], tfds.features.Image):
        decoders: Any = {image: tfds.decode.SkipDecoding()}  # bytes: Pillow here is 3 times faster
    else:
        decoders = None
    source = builder.as_data_source(split=split, decoders=decoders)
    images, labels = [], []
    for start in range(0, len(source), 1024):
        records = source.__getitems__(list(range(start, min(start + 1024, len(source)))))
        for position, record in enumerate(records, start):
            value = record[image]
            if isinstance(value, bytes):
                value = decode(value, f"{text} {split} example {position}", size)
            images.append(value)
            labels.append(record[label])
    x = _stack(images, [f"{text} example {i}" for i in range(len(images))])
    names = features[label].names
    if names == [str(i) for i in range(len(names))]:
        names = _CLASSES.get(builder.name, names)
    return Dataset(x, np.array(labels), tuple(names), name=builder.name, split=split)


def _root(data_dir: str | os.PathLike[str] | None) -> Path:
    given = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(given).expanduser()


def _prepared(text: str, data_dir: str | os.PathLike[str] | None) -> Path | None:
    """The folder ``root/name[/config]/version`` of a prepared set: the newest, or the one named."""
    name, _, version = text.removeprefix("tfds:").partition(":")
    folder = _root(data_dir) / name
    if not name or not folder.is_dir():
        return None
    found = sorted(
        (f.parent for f in folder.glob(f"{version or '*'}/dataset_info.json")),
        key=lambda f: [(not p.isdigit(), int(p) if p.isdigit() else 0) for p in f.name.split(".")],
    )
    return found[-1] if found else None


def _missing(text: str, data_dir: str | os.PathLike[str] | None) -> Exception:
    """One line: the download command for a name tensorflow-datasets knows, else the near names."""
    name = text.partition(":")[0].partition("/")[0]
    root = _root(data_dir)
    try:
        import tensorflow_datasets as tfds

        registered = set(tfds.list_builders(with_community_datasets=False))
    except ImportError:
        registered = set(_CLASSES)
    if name in registered:
        where = f", data_dir={os.fspath(root)!r}" if data_dir else ""
        code = (
            f"import tensorflow_datasets as t; t.builder({text!r}, file_format='array_record'"
            f"{where}).download_and_prepare()"
        )
        return FileNotFoundError(
            f'{text} is not in {root}; download it with: python -c "{code}" '
            "(preparing it may need `pip install tensorflow`, reading it does not)"
        )
    local = [p.name for p in root.iterdir() if p.is_dir()] if root.is_dir() else []
    known = sorted({"digits", *registered, *local})
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    hint = (
        f"near: {', '.join(near)}" if near else f"in {root}: {', '.join(sorted(local)) or 'none'}"
    )
    return ValueError(
        f"no data set {text!r}; taken are digits, tensorflow-datasets names, .npz files and "
        f"folders class/*.png; {hint}"
    )


def _stack(images: Sequence[np.ndarray], names: Sequence[str]) -> np.ndarray:
    for image, name in zip(images, names, strict=True):
        if image.shape != images[0].shape:
            raise ValueError(
                f"{name} is {image.shape}, {names[0]} is {images[0].shape}; "
                "expected images of one shape, or size=(height, width)"
            )
    return np.stack(images)


def _cut(whole: Dataset, split: str) -> Dataset:
    """The split of a set that brings none: a fixed permutation, the last fifth for testing."""
    _check_split(whole.name, split)
    if split == "all":
        return whole
    order = np.random.default_rng(0).permutation(len(whole))
    n_train = len(whole) - max(1, round(len(whole) * _TEST_FRACTION))
    return whole.take(np.sort(order[:n_train] if split == "train" else order[n_train:]))


def _check_split(name: str, split: str) -> None:
    if split not in ("train", "test", "all"):
        raise ValueError(f"{name} has no split {split!r}; it has train, test, all")


def _names(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
