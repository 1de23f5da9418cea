"""What is written has its name whole, or not at all."""

import pytest

from advjax.files import whole_file


def test_a_file_has_its_name_once_it_is_whole(tmp_path):
    path = tmp_path / "report.html"
    path.write_bytes(b"old")
    with whole_file(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_what_fails_half_way_leaves_what_was_there(tmp_path):
    path = tmp_path / "report.html"
    for before in ([], [path]):
        with pytest.raises(OSError, match="No space left"), whole_file(path) as file:
            file.write(b"ha")
            raise OSError("No space left on device")
        assert list(tmp_path.iterdir()) == before
        path.write_bytes(b"old")
    assert path.read_bytes() == b"old"


def test_a_missing_folder_is_named(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match=r"gone/a\.csv: there is no folder .*gone$"),
        whole_file(tmp_path / "gone" / "a.csv"),
    ):
        pass
