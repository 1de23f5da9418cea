"""Matrices of percentages as pictures."""

from __future__ import annotations

import dataclasses
import html
import os
from collections.abc import Sequence

import numpy as np

from advjax.files import whole_file


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
        note = f'<p class="note">{html.escape(self.note)}</p>' if self.note else ""
        return f"<figure><h3>{html.escape(self.title)}</h3>{self.svg()}{note}</figure>"

    def svg(self) -> str:
        """The drawing alone, in the colours of the page that it is on."""
        wide, high, top = 62, 38, 52
        names = (*self.rows, self.footer[0])
        left = 40 + 8 * max(map(len, names), default=0)
        width = left + wide * len(self.columns) + 10
        bottom = top + high * len(self.rows)
        height = bottom + (high if self.footer[0] else 8)
        said = lambda text: html.escape(str(text), quote=True)
        parts = [
            f'<text x="{left + wide * len(self.columns) / 2}" y="16" class="middle">'
            f"{said(self.column_label)}</text>",
            f'<text transform="translate(14 {(top + bottom) / 2}) rotate(-90)" class="middle">'
            f"{said(self.row_label)}</text>",
        ]
        for c, name in enumerate(self.columns):
            x = left + wide * (c + 0.5)
            parts.append(f'<text x="{x}" y="{top - 12}" class="middle">{said(name)}</text>')
        for r, name in enumerate(self.rows):
            y = top + high * r
            middle = f'y="{y + high / 2}" dy=".32em"'
            parts.append(f'<text x="{left - 8}" {middle} class="end">{said(name)}</text>')
            for c, value in enumerate(self.values[r]):
                x, share = left + wide * c, 0 if np.isnan(value) else value / 100
                hint = f"<title>{said(self.hints[r][c])}</title>" if self.hints else ""
                # Up to 0.8: the number stays readable in light and in dark.
                parts.append(
                    f'<g>{hint}<rect x="{x + 1}" y="{y + 1}" width="{wide - 2}" '
                    f'height="{high - 2}" rx="3" class="cell" fill-opacity="{0.8 * share:.3f}"/>'
                    f'<text x="{x + wide / 2}" {middle} class="middle ink">'
                    f"{percent(value / 100)}</text></g>"
                )
        middle = f'y="{bottom + high / 2}" dy=".32em"'
        for c, text in enumerate(self.footer[1]):
            x = left + wide * (c + 0.5)
            parts.append(f'<text x="{x}" {middle} class="middle">{said(text)}</text>')
        parts.append(f'<text x="{left - 8}" {middle} class="end">{said(self.footer[0])}</text>')
        return (
            f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'style="max-width:{1.4 * width:.0f}px" role="img" aria-label="{said(self.title)}">'
            "<style>.cell{fill:var(--c1);stroke:var(--line)}.chart .ink{fill:var(--ink)}</style>"
            f"{''.join(parts)}</svg>"
        )

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
