"""A sweep as one self-contained HTML page: tables and charts that the reader chooses."""

from __future__ import annotations

import html
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import advjax
from advjax.files import whole_file
from advjax.report.style import STYLE
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
    path = Path(path)
    page = _page(about or {}, cells, metric).encode()
    with whole_file(path) as file:
        file.write(page)
    return path


def lost(cells: Sequence[Cell]) -> list[str]:
    """A line for each reason that cells have no result for, the most frequent first."""
    reasons = Counter(
        f"{'KO' if cell.status == 'ko' else 'failed'}: {cell.reason}"
        for cell in cells
        if cell.status in ("ko", "failed")
    )
    return [f"{n} x {reason}" for reason, n in sorted(reasons.items(), key=lambda item: -item[1])]


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


def _embedded(data: Any) -> str:
    """JSON that cannot end the element that it stands in."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.translate({ord(c): f"\\u{ord(c):04x}" for c in "<>&"})


def _page(about: Mapping[str, Any], cells: Sequence[Cell], metric: str | None) -> str:
    said = html.escape
    data = _data(cells, metric)
    title = str(about.get("experiment") or "sweep")
    lead = f'<p class="lead">{said(str(about["summary"]))}</p>' if about.get("summary") else ""
    counts = Counter(cell.status for cell in cells)
    chips = "".join(
        f'<li class="chip {status}">{counts[status]:,} {status.replace("ko", "KO")}</li>'
        for status in STATUSES
        if counts[status]
    )
    reasons = lost(cells)
    lines = "".join(f"<li>{said(line)}</li>" for line in reasons[:8])
    more = f"<li>and {len(reasons) - 8} other reasons</li>" if len(reasons) > 8 else ""
    axes = {axis["name"] for axis in data["axes"]}
    fixed = "".join(
        f"<div><dt>{said(name)}</dt><dd>{said(show(value))}</dd></div>"
        for name, value in (cells[0].config if cells else {}).items()
        if name not in axes
    )
    same = f'<section><h2>The same in every cell</h2><dl class="facts">{fixed}</dl></section>'
    versions = about.get("versions") or {"advjax": advjax.__version__}
    script = _file("charts.js") + _file("page.js")
    made_by = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
        f"<title>{said(title)}: sweep</title><style>{STYLE}{_file('page.css')}</style></head>"
        f"<body><header><h1>{said(title)}</h1>{lead}"
        f'<ul class="chips"><li class="chip">{len(cells):,} cells</li>{chips}</ul>'
        f'<ul class="reasons">{lines}{more}</ul></header>'
        f"<noscript><p>The tables and charts of this page need JavaScript.</p></noscript>{_BODY}"
        f"{same if fixed else ''}</main>"
        f'<footer>{said(made_by)}</footer><div id="tip" role="status" hidden></div>'
        f'<script type="application/json" id="data">{_embedded(data)}</script>'
        f"<script>(() => {{'use strict';{script}}})();</script></body></html>\n"
    )


def _file(name: str) -> str:
    """A part of the page that is not Python and lies beside this file."""
    return Path(__file__).with_name(name).read_text()


_BODY = """
<form id="controls" aria-label="What the page shows">
<div class="choose"><label>Metric <select id="metric"></select></label>
<label>Find <input id="find" type="search" placeholder="dense eps=0.1 KO"></label>
<span id="count" role="status"></span><button id="all" type="button">Show all</button></div>
<div class="choose" id="filters"></div></form><main>
<section><h2>Means <span class="of"></span></h2><fieldset class="choose"><span>Rows</span>
<span id="rows" class="choose"></span><label>Columns <select id="column"></select></label>
</fieldset><div class="tall" tabindex="0"><table class="pivot" id="pivot"></table></div>
<p class="note" id="over"></p><p class="note key"><span id="ramp"></span>
<span><span class="place ko">KO</span> diverged or out of memory</span>
<span><span class="place failed">failed</span> another error</span>
<span><span class="place waiting">...</span> waiting or running</span></p></section>
<section><h2>The effect of each axis <span class="of"></span></h2><div id="effects"></div>
<p class="note">Mean and standard error over all other axes; the largest differences first, all on
one scale.</p></section>
<section id="tradeoff"><h2>Robust against clean accuracy</h2><div class="choose">
<label>Robust <select id="pair"></select></label><label>Colour <select id="colour"></select></label>
</div><figure><div id="scatter"></div><ul class="legend" id="legend"></ul></figure>
<p class="note">Point at a mark, or step through them with the arrow keys, for its configuration.
On the dashed line robust accuracy would be as high as clean accuracy.</p></section>
<section><h2>Parallel coordinates <span class="of"></span></h2><figure><div id="parallel"></div>
</figure><p class="note">A line for each cell, from the lowest fifth of the metric in red to the
highest in blue; cells without a number are grey, dashed and end below. <span id="drawn"></span></p>
</section>
<section><h2>All cells</h2><div class="wide"><table id="cells"></table></div>
<div class="choose"><button id="back">Back</button><span id="page" role="status"></span>
<button id="next">Next</button></div></section>"""
