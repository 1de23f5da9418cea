"""A sweep as a table: rows by columns of chosen axes, mean and standard error over the rest."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from advjax.files import whole_file
from advjax.report.text import aligned
from advjax.sweeps.grid import canonical
from advjax.sweeps.store import Cell

_OWN = ("cell", "status", "reason", "seconds")


@dataclasses.dataclass(frozen=True)
class Value:
    """What a place of the table holds: the cells that share its row and column.

    Attributes:
      numbers: the metric of those that are done and have it.
      lost: why the others have none, ``KO`` reasons before failures.
      waiting: how many have not ended.
    """

    numbers: tuple[float, ...] = ()
    lost: tuple[str, ...] = ()
    waiting: int = 0

    @property
    def mean(self) -> float | None:
        """The mean of the numbers, or None without any."""
        return math.fsum(self.numbers) / len(self.numbers) if self.numbers else None

    @property
    def standard_error(self) -> float | None:
        """The sample's standard deviation over the root of its size; None for fewer than two."""
        n, mean = len(self.numbers), self.mean
        if n < 2 or mean is None:
            return None
        return math.sqrt(math.fsum((v - mean) ** 2 for v in self.numbers) / (n - 1) / n)

    def text(self, percent: bool = False) -> str:
        """``91.1 +- 0.3``, ``KO``, ``failed`` or ``...`` while it waits.

        A mean of some cells only says how many are missing: ``88.2 +- 0.4 (1 KO)``.
        """
        scale = 100 if percent else 1
        mean, error = self.mean, self.standard_error
        if mean is None:
            if self.lost:
                word = "KO" if any(r.startswith("KO") for r in self.lost) else "failed"
                return word + ("..." if self.waiting else "")
            return "..." if self.waiting else ""
        text = f"{scale * mean:.1f}" if percent else f"{mean:.4g}"
        if error is not None:
            text += f" +- {scale * error:.1f}" if percent else f" +- {error:.2g}"
        if self.lost:
            text += f" ({len(self.lost)} KO)"
        return text + ("..." if self.waiting else "")


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows by columns.

    Attributes:
      metric: what is shown.
      row_axes: the fields that tell the rows apart.
      column_axes: the fields that tell the columns apart.
      rows: their values, one tuple a row.
      columns: their values, one tuple a column.
      values: ``values[i][j]``.
      over: the fields over which the mean is taken, those that vary and are neither.
    """

    metric: str
    row_axes: tuple[str, ...]
    column_axes: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    columns: tuple[tuple[Any, ...], ...]
    values: tuple[tuple[Value, ...], ...]
    over: tuple[str, ...]

    @property
    def percent(self) -> bool:
        """Whether every number is a share, shown as percent."""
        numbers = [v for row in self.values for value in row for v in value.numbers]
        return bool(numbers) and all(0 <= v <= 1 for v in numbers)

    def header(self) -> list[list[str]]:
        """A line of column titles for each column axis."""
        titles = [*self.row_axes] or [""]
        blank = [""] * (len(titles) - 1)
        lines = [
            [*blank, axis, *(show(column[i]) for column in self.columns)]
            for i, axis in enumerate(self.column_axes)
        ] or [[*blank, "", self.metric]]
        if self.row_axes:
            if self.column_axes:
                titles[-1] += " \\ " + self.column_axes[-1]
            lines[-1][: len(titles)] = titles
        return lines

    def lines(self) -> list[list[str]]:
        """The rows as text."""
        percent = self.percent
        return [
            [*(map(show, row) if row else [""]), *(v.text(percent) for v in values)]
            for row, values in zip(self.rows, self.values, strict=True)
        ]

    def text(self) -> str:
        """Aligned, for a terminal, with a line that says what is shown."""
        head, body = self.header(), self.lines()
        shown = aligned([*head, *body], left=max(len(self.row_axes), 1))
        shown.insert(len(head), "-" * max(map(len, shown)))
        over = f", mean and standard error over {', '.join(self.over)}" if self.over else ""
        unit = " in percent" if self.percent else ""
        return "\n".join([f"{self.metric}{unit}{over}", *shown])

    def markdown(self) -> str:
        """The same as a Markdown table; several column axes share one title line."""
        titles = [*(self.row_axes or ("",))]
        names = [", ".join(f"{a} {show(v)}" for a, v in zip(self.column_axes, column, strict=True))
                 for column in self.columns]  # fmt: skip
        lines = [[*titles, *(names if self.column_axes else [self.metric])]]
        lines += [["---"] * len(lines[0]), *self.lines()]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def show(value: Any) -> str:
    """A setting's value as people write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return "x".join(map(show, value))
    return "none" if value is None else str(value)


def axes_of(cells: Sequence[Cell]) -> dict[str, list[Any]]:
    """The fields that are not the same everywhere, and their values in the order of the cells."""
    found: dict[str, dict[str, Any]] = {}
    for cell in cells:
        for name, value in cell.config.items():
            found.setdefault(name, {}).setdefault(canonical(value), value)
    return {n: list(values.values()) for n, values in found.items() if len(values) > 1}


def metrics_of(cells: Sequence[Cell]) -> list[str]:
    """The names of the numbers that some cell has."""
    found: dict[str, None] = {}
    for cell in cells:
        for name, value in cell.metrics.items():
            if isinstance(value, (int, float)):
                found[name] = None
    return list(found)


def tabulate(
    cells: Sequence[Cell],
    metric: str | None = None,
    *,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
) -> Table:
    """Lays the cells out.

    Args:
      cells: of a sweep, in the grid's order.
      metric: the name of a number that cells have; the robust accuracy of the best network, or
        whatever comes first, when None.
      rows: fields whose values make the rows; when None, all that vary but the columns' and seeds.
      columns: fields whose values make the columns; when None, the last axis that is no seed,
        where there are two.

    Raises:
      ValueError: for a metric or a field that no cell has.
    """
    axes = axes_of(cells)
    known = metrics_of(cells)
    metric = default_metric(known) if metric is None else metric
    if metric not in known and any(cell.status == "done" for cell in cells):
        raise ValueError(f"no cell has a metric {metric}; there are: {', '.join(known)}")
    for name in (*(rows or ()), *(columns or ())):
        if cells and name not in cells[0].config:
            raise ValueError(f"no field {name}; these vary: {', '.join(axes)}")
    free = [name for name in axes if "seed" not in name]
    if columns is None:
        left = [name for name in free if name not in (rows or ())]
        columns = left[-1:] if len(left) > 1 or rows else []
    if rows is None:
        rows = [name for name in free if name not in columns]
    row_axes, column_axes = tuple(rows), tuple(columns)
    pick = lambda cell, names: tuple(cell.config.get(name) for name in names)
    places: dict[tuple[str, str], list[Cell]] = {}
    all_rows: dict[str, tuple[Any, ...]] = {}
    all_columns: dict[str, tuple[Any, ...]] = {}
    for cell in cells:
        row, column = pick(cell, row_axes), pick(cell, column_axes)
        all_rows.setdefault(canonical(row), row)
        all_columns.setdefault(canonical(column), column)
        places.setdefault((canonical(row), canonical(column)), []).append(cell)
    values = tuple(
        tuple(_value(places.get((row, column), []), metric) for column in all_columns)
        for row in all_rows
    )
    return Table(
        metric,
        row_axes,
        column_axes,
        tuple(all_rows.values()),
        tuple(all_columns.values()),
        values,
        tuple(name for name in axes if name not in (*row_axes, *column_axes)),
    )


def default_metric(known: Sequence[str]) -> str:
    """What a table shows when nobody says: the worst case, then clean accuracy, then the first."""
    for name in ("best/validation/worst", "best/worst", "best/validation/clean", "best/clean"):
        if name in known:
            return name
    return known[0] if known else "best/worst"


def _value(cells: Sequence[Cell], metric: str) -> Value:
    numbers, lost, waiting = [], [], 0
    for cell in cells:
        number = cell.metrics.get(metric)
        if cell.status in ("waiting", "running"):
            waiting += 1
        elif cell.status != "done":
            lost.append(cell.lost)
        elif isinstance(number, (int, float)):
            numbers.append(float(number))
        else:
            lost.append(f"failed: no {metric}")
    return Value(tuple(numbers), tuple(sorted(lost)), waiting)


def records(cells: Iterable[Cell]) -> list[dict[str, Any]]:
    """One flat dict a cell: name, status, reason, seconds, its configuration and its metrics.

    Lists in a configuration become ``16x32``; a metric that is called like a field gets
    ``metric/`` before its name. Every row has every name.
    """
    rows = []
    for cell in cells:
        config = {n: show(v) if isinstance(v, (list, tuple)) else v for n, v in cell.config.items()}
        taken = {*config, *_OWN}
        metrics = {f"metric/{n}" if n in taken else n: v for n, v in cell.metrics.items()}
        own = dict(zip(_OWN, (cell.name, cell.status, cell.reason, cell.seconds), strict=True))
        rows.append({**own, **config, **metrics})
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in names} for row in rows]


def export(cells: Sequence[Cell], path: str | os.PathLike[str]) -> Path:
    """Writes ``records`` as CSV or Parquet, by the file's ending.

    Raises:
      ValueError: for another ending, or Parquet without pyarrow.
    """
    path = Path(path)
    rows = records(cells)
    if path.suffix == ".csv":
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]) if rows else list(_OWN))
        writer.writeheader()
        writer.writerows(rows)
        content = text.getvalue().encode()
    elif path.suffix == ".parquet":
        content = _parquet(rows)
    else:
        raise ValueError(f"given {path.name}; expected a name that ends in .csv or .parquet")
    with whole_file(path) as file:
        file.write(content)
    return path


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError("Parquet needs pyarrow: pip install pyarrow") from error
    buffer = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue().to_pybytes()
