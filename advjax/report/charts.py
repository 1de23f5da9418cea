"""Line charts as SVG text, for HTML pages that load nothing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from advjax.report.markup import Markup, axis_names, drawing, element, figure, joined, label, small

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
            raise ValueError(f"line {self.name!r}: expected one interval per point")


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
        size = {"viewBox": "0 0 34 12", "width": 34, "height": 12, "aria_hidden": "true"}
        names = []
        for i, line in enumerate(self.lines):
            stroke = element("path", class_="line", d="M1 6H33")
            drawn = element("g", stroke, _mark(i, 17, 6), class_=_look(line, i))
            names.append(element("li", element("svg", drawn, **size), line.name))
        legend = element("ul", *names, class_="legend")
        return figure(self.title, Markup(self.svg()), legend, note=self.note)

    def svg(self) -> str:
        """The drawing alone."""
        xs = [v for line in self.lines for v in line.x if math.isfinite(v)]
        ys = [v for e in self.lines for v in (*e.y, *e.low, *e.high) if math.isfinite(v)]
        if not xs or not ys:
            return small("Nothing to draw: no finite values.")
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

        parts = [element("path", class_="axis", d=f"M{_LEFT} {bottom}H{right}")]
        for v in (t for t in y_ticks if y_ends[0] <= t <= y_ends[1]):
            parts.append(element("path", class_="grid", d=f"M{_LEFT} {at_y(v):.1f}H{right}"))
            parts.append(label(_LEFT - 8, round(at_y(v), 1), number(v), "end", dy=".32em"))
        for v in (t for t in x_ticks if x_ends[0] <= t <= x_ends[1]):
            parts.append(element("path", class_="axis", d=f"M{at_x(v):.1f} {bottom}v5"))
            parts.append(label(round(at_x(v), 1), bottom + 19, number(v), "middle"))
        middle = ((_LEFT + right) / 2, (_TOP + bottom) / 2)
        parts.append(axis_names(*middle, self.x_label, self.y_label, at=HEIGHT - 6))
        drawn = [
            element("g", _drawn(line, i, at_x, at_y), class_=_look(line, i))
            for i, line in enumerate(self.lines)
        ]
        title = f"{self.title}: {self.y_label} against {self.x_label}"
        return drawing(WIDTH, HEIGHT, title, *parts, *drawn)


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


def _drawn(line: Line, position: int, at_x: Any, at_y: Any) -> Markup:
    parts = []
    step = max(1, math.ceil(len(line.x) / _MOST_POINTS))
    kept = [*range(0, len(line.x), step)]
    if kept and kept[-1] != len(line.x) - 1:
        kept.append(len(line.x) - 1)
    through = lambda ys, places: " ".join(
        f"{at_x(line.x[i]):.1f},{at_y(ys[i]):.1f}" for i in places
    )
    for piece in _pieces(line, kept):
        if line.low and len(piece) > 1:
            ends = f"{through(line.high, piece)} {through(line.low, piece[::-1])}"
            parts.append(element("polygon", class_="band", points=ends))
        parts.append(element("polyline", class_="line", points=through(line.y, piece)))
        if len(line.x) > _MOST_MARKS and len(piece) > 1:
            continue
        for i in piece:
            said = f"{line.name}: {number(line.y[i])} at {number(line.x[i])}"
            if line.low:
                said += f" [{number(line.low[i])}, {number(line.high[i])}]"
            mark = _mark(position, at_x(line.x[i]), at_y(line.y[i]))
            parts.append(element("g", mark, element("title", said)))
    return joined(*parts)


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


def _mark(position: int, x: float, y: float) -> Markup:
    """A dot, square, triangle or diamond: lines are told apart without colours too."""
    if position % 4 == 0:
        return element("circle", class_="mark", cx=round(x, 1), cy=round(y, 1), r=3.6)
    shape = (
        "",
        "m-3.3 -3.3h6.6v6.6h-6.6z",
        "m0 -4.4l4.2 7.4h-8.4z",
        "m0 -4.6l4.6 4.6l-4.6 4.6l-4.6 -4.6z",
    )
    return element("path", class_="mark", d=f"M{x:.1f} {y:.1f}{shape[position % 4]}")
