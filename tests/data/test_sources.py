import io

import numpy as np
import pytest
from PIL import Image

from advjax.data import load


def png(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def test_a_missing_set_says_the_command_and_never_downloads(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load("mnist", data_dir=tmp_path)
    message = str(error.value)
    assert "python -c" in message and "download_and_prepare()" in message
    assert "array_record" in message and str(tmp_path) in message and "\n" not in message
    assert not list(tmp_path.iterdir())


def test_an_unknown_set_lists_the_near_names(tmp_path):
    with pytest.raises(ValueError, match="no data set 'mnits'.*near: mnist"):
        load("mnits", data_dir=tmp_path)
    with pytest.raises(ValueError, match="near: digits"):
        load("digit", data_dir=tmp_path)


def test_an_id_is_the_place_in_the_file(tmp_path, rng):
    x, y = rng.integers(0, 256, (20, 6, 5), dtype=np.uint8), np.arange(20) % 3
    np.savez(tmp_path / "set.npz", x=x, y=y)
    train, test = (load(tmp_path / "set.npz", split) for split in ("train", "test"))
    assert sorted([*train.ids, *test.ids]) == list(range(20))
    assert np.array_equal(test.x[..., 0], x[test.ids])


def test_npz_that_is_broken_or_holds_objects_is_refused_by_name(tmp_path):
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object), y=np.zeros(1, int))
    np.savez(tmp_path / "good.npz", x=np.zeros((4, 2, 2), np.uint8), y=np.zeros(4, int))
    whole = (tmp_path / "good.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    for name in ("objects.npz", "cut.npz"):
        with pytest.raises(ValueError, match=f"{name} is no readable .npz"):
            load(tmp_path / name)
    np.savez(tmp_path / "other.npz", images=np.zeros(3))
    with pytest.raises(ValueError, match=r"takes arrays x and y.*\['images'\]"):
        load(tmp_path / "other.npz")
    with pytest.raises(FileNotFoundError, match="no file"):
        load(tmp_path / "none.npz")


def test_a_folder_of_pictures_has_its_classes_by_name(tmp_path, rng):
    for c, name in enumerate(["cat", "ant", "bee"]):
        for i in range(3):
            png(tmp_path / name / f"{i}.png", np.full((5, 4, 3), 10 * c + i, np.uint8))
    data = load(tmp_path, "all")
    assert data.classes == ("ant", "bee", "cat") and data.x.shape == (9, 5, 4, 3)
    assert [int(data.x[i, 0, 0, 0]) for i in (0, 3, 6)] == [10, 20, 0]
    assert len(load(str(tmp_path), "train")) + len(load(tmp_path, "test")) == 9


def test_a_folder_may_bring_its_split_and_grey_pictures_get_a_channel(tmp_path):
    for split, n in (("train", 3), ("test", 2)):
        for name in ("a", "b"):
            for i in range(n):
                png(tmp_path / split / name / f"{i}.jpg", np.full((4, 4), 99, np.uint8))
    assert load(tmp_path).x.shape == (6, 4, 4, 1) and load(tmp_path, "test").x.shape == (4, 4, 4, 1)
    png(tmp_path / "test" / "c" / "0.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match="classes that train/ has not: c"):
        load(tmp_path, "test")


def test_pictures_of_two_sizes_are_named_or_resized(tmp_path):
    png(tmp_path / "a" / "0.png", np.zeros((4, 4), np.uint8))
    png(tmp_path / "a" / "1.png", np.zeros((8, 6), np.uint8))
    with pytest.raises(ValueError, match=r"1.png is \(8, 6, 1\).*size="):
        load(tmp_path, "all")
    assert load(tmp_path, "all", size=(5, 7)).x.shape == (2, 5, 7, 1)


@pytest.mark.parametrize("damage", ["text", "truncated"])
def test_an_unreadable_picture_is_named_in_one_line(tmp_path, damage, rng):
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(buffer, "PNG")
    data = b"no picture" if damage == "text" else buffer.getvalue()[:200]
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "bad.png").write_bytes(data)
    with pytest.raises(ValueError, match="bad.png is no readable image") as error:
        load(tmp_path, "all")
    assert "\n" not in str(error.value)


def test_a_folder_that_is_not_there_or_empty(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        load(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="holds no images"):
        load(tmp_path)
