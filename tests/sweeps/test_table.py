"""The table of a sweep, against figures worked out by hand."""

import csv
import math

import pytest

from advjax.sweeps import Cell, export, records, tabulate


def cell(place, status="done", metrics=None, reason="", **config):
    config = {"net": "a", "dropout": 0.0, "seed": 0, "widths": [4, 8], **config}
    return Cell(f"cell{place}", place, config, status, reason, metrics or {})


CELLS = [
    cell(0, metrics={"best/clean": 0.90, "best/worst": 0.5}),
    cell(1, metrics={"best/clean": 0.94, "best/worst": 0.7}, seed=1),
    cell(2, metrics={"best/clean": 0.80, "best/worst": 0.25}, dropout=0.5),
    cell(3, "ko", reason="out of memory, needs 31.0 GB more", dropout=0.5, seed=1),
    cell(4, "ko", reason="diverged at step 812", net="b"),
    cell(5, "failed", reason="ValueError: no", net="b", seed=1),
    cell(6, "failed", reason="ValueError: no", net="b", dropout=0.5),
    cell(7, "waiting", net="b", dropout=0.5, seed=1),
]


def test_means_and_standard_errors_are_over_what_is_neither_row_nor_column():
    table = tabulate(CELLS)
    assert table.metric == "best/worst" and table.percent
    assert (table.row_axes, table.column_axes, table.over) == (("net",), ("dropout",), ("seed",))
    (first, second), (ko, mixed) = table.values
    assert first.mean == pytest.approx(0.6)
    assert first.standard_error == pytest.approx(math.sqrt(0.02) / math.sqrt(2))
    assert first.text(percent=True) == "60.0 +- 10.0"
    assert second.text(percent=True) == "25.0 (1 KO)" and second.standard_error is None
    assert ko.text() == "KO" and mixed.text() == "failed..."


def test_a_table_is_text_and_markdown():
    lines = tabulate(CELLS, "best/clean").text().splitlines()
    assert lines[0] == "best/clean in percent, mean and standard error over seed"
    assert lines[1].split() == ["net", "\\", "dropout", "0", "0.5"]
    assert lines[3].split() == ["a", "92.0", "+-", "2.0", "80.0", "(1", "KO)"]
    assert "| a | 92.0 +- 2.0 | 80.0 (1 KO) |" in tabulate(CELLS, "best/clean").markdown()


def test_rows_and_columns_may_be_several_axes_or_none():
    table = tabulate(CELLS, rows=["seed"], columns=["net", "dropout"])
    assert table.columns == (("a", 0.0), ("a", 0.5), ("b", 0.0), ("b", 0.5))
    assert [len(line) for line in table.header()] == [5, 5] and table.over == ()
    assert len(table.text().splitlines()) == 6
    whole = tabulate(CELLS, rows=[], columns=[])
    assert whole.values[0][0].mean == pytest.approx((0.5 + 0.7 + 0.25) / 3)
    assert whole.text().splitlines()[-1].split()[0] == "48.3"


def test_what_no_cell_has_is_told():
    with pytest.raises(ValueError, match="no cell has a metric acc; there are: best/clean"):
        tabulate(CELLS, "acc")
    with pytest.raises(ValueError, match="no field depth; these vary: net, dropout, seed"):
        tabulate(CELLS, rows=["depth"])


def test_every_cell_is_a_row_of_the_export(tmp_path):
    path = export(CELLS, tmp_path / "cells.csv")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 and rows[3]["reason"].startswith("out of memory")
    assert float(rows[1]["best/clean"]) == 0.94 and rows[4]["best/clean"] == ""
    assert rows[0]["widths"] == "4x8" and rows[0]["cell"] == "cell0"
    assert not list(tmp_path.glob("*.tmp"))
    clash = records([cell(0, metrics={"seed": 3, "status": 1})])[0]
    assert (clash["seed"], clash["metric/seed"], clash["status"]) == (0, 3, "done")
    with pytest.raises(ValueError, match="ends in .csv or .parquet"):
        export(CELLS, tmp_path / "cells.json")


def test_parquet_holds_the_same(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(export(CELLS, tmp_path / "cells.parquet"))
    assert table.to_pylist() == records(CELLS)
