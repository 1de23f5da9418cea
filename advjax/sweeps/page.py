"""A sweep as one self-contained HTML page: tables and charts that the reader chooses."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from advjax.report.markup import Markup, element, joined
from advjax.report.page import Facts, Script, Section, write_report
from advjax.sweeps.grid import canonical
from advjax.sweeps.store import Cell, Store
from advjax.sweeps.table import axes_of, default_metric, metrics_of, show

STATUSES = ("done", "ko", "failed", "running", "waiting")
_MOST_ROWS, _MOST_COLUMNS = 500, 40


def write_page(
    sweep: str | os.PathLike[str] | Sequence[Cell],
    path: str | os.PathLike[str],
    *,
    about: Mapping[str, Any] | None = None,
    metric: str | None = None,
) -> Path:
    """Writes the page, whole or not at all. It loads nothing: no network, no other file.

    Args:
      sweep: its folder, or its cells.
      path: the ``.html`` file.
      about: what the sweep is, as ``Store.about()`` says; the folder's own when None.
      metric: what the page shows first; chosen as ``tabulate`` does when None.

    Returns:
      The path.

    Raises:
      SweepError: if the folder holds no sweep.
      ValueError: for a metric that no cell has.
      FileNotFoundError: if the path's folder does not exist.
    """
    if isinstance(sweep, (str, os.PathLike)):
        with Store(Path(sweep)) as store:
            cells, about = store.cells(), store.about() if about is None else about
    else:
        cells = list(sweep)
    about = about or {}
    data = _data(cells, metric)
    axes = {axis["name"] for axis in data["axes"]}
    fixed = {n: show(v) for n, v in (cells[0].config if cells else {}).items() if n not in axes}
    controls, *parts = _file("page.html").split("\n\n")
    sections: list[Section] = [*map(Markup, parts)]
    if fixed:
        sections.append(Facts(fixed, "The same in every cell"))
    write_report(
        path,
        f"Sweep of {about.get('experiment') or 'an experiment'}",
        sections,
        str(about.get("summary") or ""),
        summary=_summary(cells),
        made_by=", ".join(f"{n} {version}" for n, version in about.get("versions", {}).items()),
        script=Script(_file("charts.js") + _file("page.js"), data, _file("page.css"), controls),
    )
    return Path(path)


def lost(cells: Sequence[Cell]) -> list[str]:
    """A line for each reason that cells have no result for, the most frequent first."""
    reasons = Counter(cell.lost for cell in cells if cell.lost)
    return [f"{n} x {reason}" for reason, n in reasons.most_common()]


def _data(cells: Sequence[Cell], metric: str | None) -> dict[str, Any]:
    """What the page's script reads: a list a field, values of axes by their numbers."""
    known = metrics_of(cells)
    metric = default_metric(known) if metric is None else metric
    if metric not in known:
        if known:
            raise ValueError(f"no cell has a metric {metric}; there are: {', '.join(known)}")
        known = [metric]
    axes = [_axis(name, values, cells) for name, values in axes_of(cells).items()]
    rows, column = _layout(axes)
    reasons = {reason: i for i, reason in enumerate(dict.fromkeys(c.reason for c in cells))}
    return {
        "start": {"metric": known.index(metric), "rows": rows, "column": column},
        "axes": axes,
        "metrics": [_metric(name, cells) for name in known],
        "reasons": list(reasons),
        "cells": {
            "name": [cell.name for cell in cells],
            "status": [cell.status for cell in cells],
            "reason": [reasons[cell.reason] for cell in cells],
            "seconds": [_number(cell.seconds, 3) for cell in cells],
        },
    }


def _layout(axes: Sequence[Mapping[str, Any]]) -> tuple[list[int], int]:
    """Row axes and the column axis of ``tabulate`` (-1: none); fewer where no screen has room."""
    size = lambda k: len(axes[k]["values"])
    free = [k for k, axis in enumerate(axes) if "seed" not in axis["name"]]
    narrow = [k for k in free if size(k) <= _MOST_COLUMNS]
    column = narrow[-1] if len(free) > 1 and narrow else -1
    rows = [k for k in free if k != column]
    different = lambda: len(set(zip(*(axes[k]["cells"] for k in rows), strict=True)))
    while len(rows) > 1 and different() > _MOST_ROWS:
        rows.remove(max(rows, key=size))
    return rows, column


def _axis(name: str, values: Sequence[Any], cells: Sequence[Cell]) -> dict[str, Any]:
    values = list(values)
    places = {canonical(value): i for i, value in enumerate(values)}
    found = []
    for cell in cells:
        value = cell.config.get(name)
        key = canonical(value)
        if key not in places:  # a cell without this field
            places[key] = len(values)
            values.append(value)
        found.append(places[key])
    kinds = {type(value) for value in values}
    finite = kinds <= {int, float} and all(map(math.isfinite, values))
    numbers = [float(value) for value in values] if finite else None
    return {"name": name, "values": [*map(show, values)], "numbers": numbers, "cells": found}


def _metric(name: str, cells: Sequence[Cell]) -> dict[str, Any]:
    found = [_number(c.metrics.get(name)) if c.status == "done" else None for c in cells]
    numbers = [value for value in found if value is not None]
    percent = bool(numbers) and all(0 <= value <= 1 for value in numbers)
    return {"name": name, "percent": percent, "values": found}


def _number(value: Any, digits: int = 7) -> float | int | None:
    """A number with fewer digits, which makes the page smaller; None for what JSON cannot say."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return int(value) if isinstance(value, int) else float(f"{value:.{digits}g}")


def _summary(cells: Sequence[Cell]) -> Markup:
    """How many cells have ended how, and why."""
    counts = Counter(cell.status for cell in cells)
    chips = [element("li", f"{len(cells):,} cells", class_="chip")] + [
        element("li", f"{counts[s]:,} {s.replace('ko', 'KO')}", class_=f"chip {s}")
        for s in STATUSES
        if counts[s]
    ]
    reasons = lost(cells)
    shown = reasons[:8] + [f"and {len(reasons) - 8} other reasons"] * (len(reasons) > 8)
    lines = [element("li", line) for line in shown]
    return joined(element("ul", *chips, class_="chips"), element("ul", *lines, class_="reasons"))


def _file(name: str) -> str:
    """A part of the page that is not Python and lies beside this file."""
    return Path(__file__).with_name(name).read_text()
