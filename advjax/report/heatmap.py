"""Matrices of percentages as pictures."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import numpy as np

from advjax.files import whole_file
from advjax.report.markup import Markup, axis_names, drawing, element, figure, label


@dataclasses.dataclass(frozen=True, eq=False)
class HeatMap:
    """A matrix of percentages as a picture, a section of a report; numbers in the cells.

    Attributes:
      title: heading.
      rows: names of the rows.
      columns: names of the columns.
      values: ``[R, C]`` from 0 to 100; NaN for an empty cell.
      hints: ``[R][C]`` texts for hovering.
      row_label: what the rows are.
      column_label: what the columns are.
      footer: name and texts of one more row, not coloured; empty for none.
      note: a sentence below.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: np.ndarray
    hints: Sequence[Sequence[str]] = ()
    row_label: str = ""
    column_label: str = ""
    footer: tuple[str, Sequence[str]] = ("", ())
    note: str = ""

    def html(self) -> str:
        """The picture as a ``figure`` element of a report."""
        return figure(self.title, Markup(self.svg()), note=self.note)

    def svg(self) -> str:
        """The drawing alone, in the colours of the page that it is on."""
        wide, high, top = 62, 38, 52
        names = (*self.rows, self.footer[0])
        left = 40 + 8 * max(map(len, names), default=0)
        width = left + wide * len(self.columns) + 10
        bottom = top + high * len(self.rows)
        height = bottom + (high if self.footer[0] else 8)
        middle_x, middle_y = left + wide * len(self.columns) / 2, (top + bottom) / 2
        centre = [left + wide * (c + 0.5) for c in range(len(self.columns))]
        parts = [axis_names(middle_x, middle_y, self.column_label, self.row_label, at=16)]
        parts += [
            label(x, top - 12, name, "middle") for x, name in zip(centre, self.columns, strict=True)
        ]
        for r, name in enumerate(self.rows):
            y = top + high * (r + 0.5)
            parts.append(label(left - 8, y, name, "end", dy=".32em"))
            for c, value in enumerate(self.values[r]):
                # Up to 0.8: the number stays readable in light and in dark.
                place = {"x": left + wide * c + 1, "y": y - high / 2 + 1, "rx": 3, "class_": "cell"}
                size = {"width": wide - 2, "height": high - 2}
                opacity = f"{0 if np.isnan(value) else 0.8 * value / 100:.3f}"
                cell = element("rect", **place, **size, fill_opacity=opacity)
                hint = [element("title", self.hints[r][c])] if self.hints else []
                shown = label(centre[c], y, percent(value / 100), "middle ink", dy=".32em")
                parts.append(element("g", *hint, cell, shown))
        y = bottom + high / 2
        for x, said in zip(centre, self.footer[1], strict=False):
            parts.append(label(x, y, said, "middle", dy=".32em"))
        parts.append(label(left - 8, y, self.footer[0], "end", dy=".32em"))
        colours = ".cell{fill:var(--c1);stroke:var(--line)}.chart .ink{fill:var(--ink)}"
        style = element("style", Markup(colours))
        own = {"xmlns": "http://www.w3.org/2000/svg", "style": f"max-width:{1.4 * width:.0f}px"}
        return drawing(width, height, self.title, style, *parts, **own)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the picture as an SVG file that needs no page, whole or not at all."""
        style = (
            ".chart{--c1:#d1442f;--line:#d9dee3;--ink:#1c2024;background:#fff;"
            "font:14px system-ui,sans-serif}.chart text{fill:#5b6570}"
            ".middle{text-anchor:middle}.end{text-anchor:end}"
        )
        drawing = self.svg().replace("<style>", f"<style>{style}", 1)
        with whole_file(path) as file:
            file.write(drawing.encode())


def percent(share: float) -> str:
    """A share as a percentage with one decimal; NaN is a dash."""
    return "-" if np.isnan(share) else f"{100 * share:.1f}"
