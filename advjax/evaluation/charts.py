"""Line charts as SVG text, for HTML pages that load nothing."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from advjax.evaluation.curves import Curve

WIDTH, HEIGHT = 640, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 22, 12, 46
_COLOURS = 6  # classes c0 .. c5 of the page's style
_MOST_POINTS = 600  # a line with more is thinned out: a screen shows no more
_MOST_MARKS = 40


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
      name: for the legend.
      x: where.
      y: values; the line breaks where one is not finite.
      low: lower ends of the intervals, or nothing.
      high: upper ends of the intervals, or nothing.
      colour: 0 to 5; by position in the chart when ``None``.
      dashed: drawn dashed.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    colour: int | None = None
    dashed: bool = False

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y) or len(self.low) != len(self.high):
            raise ValueError(f"line {self.name!r}: x and y, low and high have equal lengths")
        if self.low and len(self.low) != len(self.x):
            raise ValueError(f"line {self.name!r}: one interval per point is taken")

    @classmethod
    def of(cls, name: str, curve: Curve, **style: Any) -> Line:
        """A robustness curve with its intervals, in percent."""
        share = lambda end: [100 * getattr(a, end) for a in curve.accuracy]
        return cls(name, list(curve.eps), share("value"), share("low"), share("high"), **style)


@dataclasses.dataclass(frozen=True)
class Chart:
    """Lines over one pair of axes, with bands for intervals, a legend and hover texts.

    Attributes:
      title: heading.
      lines: at most six are told apart by colour and mark.
      x_label: what the horizontal axis shows.
      y_label: what the vertical axis shows.
      y_range: its ends; from the data when ``None``.
      note: a sentence below.
    """

    title: str
    lines: Sequence[Line]
    x_label: str = ""
    y_label: str = ""
    y_range: tuple[float, float] | None = None
    note: str = ""

    def html(self) -> str:
        """The chart as a ``figure`` element."""
        legend = "".join(
            f'<li><svg viewBox="0 0 34 12" width="34" height="12" aria-hidden="true">'
            f'<g class="{_look(line, i)}"><path class="line" d="M1 6H33"/>{_mark(i, 17, 6)}'
            f"</g></svg>{html.escape(line.name)}</li>"
            for i, line in enumerate(self.lines)
        )
        note = f'<p class="note">{html.escape(self.note)}</p>' if self.note else ""
        return (
            f"<figure><h3>{html.escape(self.title)}</h3>{self.svg()}"
            f'<ul class="legend">{legend}</ul>{note}</figure>'
        )

    def svg(self) -> str:
        """The drawing alone."""
        xs = [v for line in self.lines for v in line.x if math.isfinite(v)]
        ys = [v for e in self.lines for v in (*e.y, *e.low, *e.high) if math.isfinite(v)]
        if not xs or not ys:
            return '<p class="note">Nothing to draw: no finite values.</p>'
        x_ticks = ticks(min(xs), max(xs))
        y_ticks = ticks(*(self.y_range or (min(ys), max(ys))))
        x_ends = (min(xs), max(xs)) if max(xs) > min(xs) else (x_ticks[0], x_ticks[-1])
        y_ends = self.y_range or (y_ticks[0], y_ticks[-1])
        bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT

        def at_x(v: float) -> float:
            return _LEFT + (v - x_ends[0]) / (x_ends[1] - x_ends[0]) * (right - _LEFT)

        def at_y(v: float) -> float:
            v = min(max(v, y_ends[0]), y_ends[1])
            return bottom - (v - y_ends[0]) / (y_ends[1] - y_ends[0]) * (bottom - _TOP)

        parts = []
        for v in (t for t in y_ticks if y_ends[0] <= t <= y_ends[1]):
            y = f"{at_y(v):.1f}"
            parts.append(f'<path class="grid" d="M{_LEFT} {y}H{right}"/>')
            parts.append(f'<text x="{_LEFT - 8}" y="{y}" dy=".32em" class="end">{number(v)}</text>')
        for v in (t for t in x_ticks if x_ends[0] <= t <= x_ends[1]):
            x = f"{at_x(v):.1f}"
            parts.append(f'<path class="axis" d="M{x} {bottom}v5"/>')
            parts.append(f'<text x="{x}" y="{bottom + 19}" class="middle">{number(v)}</text>')
        parts.append(f'<path class="axis" d="M{_LEFT} {bottom}H{right}"/>')
        middle_x, middle_y = (_LEFT + right) / 2, (_TOP + bottom) / 2
        parts.append(
            f'<text x="{middle_x}" y="{HEIGHT - 6}" class="middle">'
            f"{html.escape(self.x_label)}</text>"
            f'<text transform="translate(14 {middle_y}) rotate(-90)" class="middle">'
            f"{html.escape(self.y_label)}</text>"
        )
        drawn = [
            f'<g class="{_look(line, i)}">{_drawn(line, i, at_x, at_y)}</g>'
            for i, line in enumerate(self.lines)
        ]
        label = html.escape(f"{self.title}: {self.y_label} against {self.x_label}", quote=True)
        return (
            f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
            f"{''.join(parts)}{''.join(drawn)}</svg>"
        )


def training_charts(history: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """A run's history as charts: loss, accuracy, and whatever else was measured.

    Args:
      history: rows with ``kind`` (``"train"`` or ``"evaluation"``), ``step`` and numbers by name;
        accuracies are shares.
    """
    series: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for row in history:
        for name, value in row.items():
            if name in ("kind", "step", "seconds") or not isinstance(value, int | float):
                continue
            evaluated = row.get("kind") == "evaluation"
            share = evaluated or "accuracy" in name
            chart = "accuracy" if share else "loss" if "loss" in name else name
            judge = "validation" if name.startswith("validation/") else "test"
            said = name.removeprefix("validation/").removeprefix("robust/").replace("_", " ")
            said = f"{judge}: {said}" if evaluated else f"training: {said}" if share else said
            x, y = series.setdefault(chart, {}).setdefault(said, ([], []))
            x.append(float(row["step"]))
            y.append(100 * float(value) if share else float(value))
    titles = {"loss": "Training loss", "accuracy": "Accuracy while training"}
    return [
        Chart(
            title=titles.get(name, name.replace("_", " ")),
            lines=[Line(said, x, y) for said, (x, y) in lines.items()],
            x_label="step",
            y_label="accuracy, %" if name == "accuracy" else name.replace("_", " "),
            y_range=(0, 100) if name == "accuracy" else None,
        )
        for name, lines in sorted(series.items(), key=lambda item: item[0] not in titles)
    ]


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers, evenly spaced, the outermost at or outside ``low`` and ``high``."""
    if high <= low:
        margin = abs(low) / 2 or 1.0
        low, high = low - margin, high + margin
    size = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(size))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= size * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def number(v: float) -> str:
    """A number as short as its digits allow: ``0.05``, ``1200``, ``3e-05``."""
    return f"{v:.4g}" if 1e-4 <= abs(v) < 1e5 or v == 0 else f"{v:.2g}"


def _look(line: Line, position: int) -> str:
    colour = position if line.colour is None else line.colour
    return f"c{colour % _COLOURS}" + (" dashed" if line.dashed else "")


def _drawn(line: Line, position: int, at_x: Any, at_y: Any) -> str:
    parts = []
    step = max(1, math.ceil(len(line.x) / _MOST_POINTS))
    kept = [*range(0, len(line.x), step)]
    if kept and kept[-1] != len(line.x) - 1:
        kept.append(len(line.x) - 1)
    for piece in _pieces(line, kept):
        if line.low and len(piece) > 1:
            upper = " ".join(f"{at_x(line.x[i]):.1f},{at_y(line.high[i]):.1f}" for i in piece)
            lower = " ".join(f"{at_x(line.x[i]):.1f},{at_y(line.low[i]):.1f}" for i in piece[::-1])
            parts.append(f'<polygon class="band" points="{upper} {lower}"/>')
        points = " ".join(f"{at_x(line.x[i]):.1f},{at_y(line.y[i]):.1f}" for i in piece)
        parts.append(f'<polyline class="line" points="{points}"/>')
        if len(line.x) > _MOST_MARKS and len(piece) > 1:
            continue
        for i in piece:
            said = f"{line.name}: {number(line.y[i])} at {number(line.x[i])}"
            if line.low:
                said += f" [{number(line.low[i])}, {number(line.high[i])}]"
            mark = _mark(position, at_x(line.x[i]), at_y(line.y[i]))
            parts.append(f"<g>{mark}<title>{html.escape(said)}</title></g>")
    return "".join(parts)


def _pieces(line: Line, kept: Sequence[int]) -> Iterator[list[int]]:
    """Runs of points that can be drawn."""
    piece: list[int] = []
    for i in kept:
        values = (line.x[i], line.y[i], *((line.low[i], line.high[i]) if line.low else ()))
        if all(map(math.isfinite, values)):
            piece.append(i)
        elif piece:
            yield piece
            piece = []
    if piece:
        yield piece


def _mark(position: int, x: float, y: float) -> str:
    """A dot, square, triangle or diamond: lines are told apart without colours too."""
    if position % 4 == 0:
        return f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="3.6"/>'
    shape = (
        "",
        "m-3.3 -3.3h6.6v6.6h-6.6z",
        "m0 -4.4l4.2 7.4h-8.4z",
        "m0 -4.6l4.6 4.6l-4.6 4.6l-4.6 -4.6z",
    )
    return f'<path class="mark" d="M{x:.1f} {y:.1f}{shape[position % 4]}"/>'
