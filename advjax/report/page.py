"""One self-contained HTML page: tables, charts and pictures; no other file, nothing loaded."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Protocol

from advjax.files import whole_file
from advjax.report.markup import Markup, element, joined, titled
from advjax.report.style import STYLE

if TYPE_CHECKING:  # a page of tables is written without NumPy
    import numpy as np

_SIDE = 96  # pixels on the screen that small images are enlarged to
_MARKS = {None: ("picture", ""), True: ("picture wrong", "✗ "), False: ("picture right", "✓ ")}


class Section(Protocol):
    """A part of a page: anything that can write itself as HTML."""

    def html(self) -> str: ...


@dataclasses.dataclass(frozen=True)
class Text:
    """Paragraphs, separated by empty lines, under a heading."""

    text: str
    title: str = ""

    def html(self) -> str:
        paragraphs = [element("p", p) for p in self.text.split("\n\n") if p.strip()]
        return titled(self.title, *paragraphs)


@dataclasses.dataclass(frozen=True)
class Facts:
    """Names and values, such as a configuration. Nested mappings are flattened with dots."""

    facts: Mapping[str, Any]
    title: str = ""

    def html(self) -> str:
        rows = [
            element("div", element("dt", name), element("dd", value))
            for name, value in _flat(self.facts)
        ]
        return titled(self.title, element("dl", *rows, class_="facts"))


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text under a header; cells that are numbers stand right.

    Attributes:
      header: one name per column.
      rows: one text per column, each.
      title: heading.
      note: a sentence below.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    title: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f"a row has {len(row)} cells, the header {len(self.header)}")

    def html(self) -> str:
        # A header stands as its column does; the first cell that says anything decides.
        columns = zip(*self.rows, strict=True) if self.rows else [()] * len(self.header)
        first = [next((str(cell) for cell in column if str(cell)), "") for column in columns]
        head = [
            element("th", name, scope="col", class_=_number(cell) if i else None)
            for i, (name, cell) in enumerate(zip(self.header, first, strict=True))
        ]
        rows = [
            (row[0], [element("td", cell, class_=_number(str(cell))) for cell in row[1:]])
            for row in self.rows
        ]
        return titled(
            self.title, _table(rows, element("thead", element("tr", *head))), note=self.note
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """An image with its caption.

    Attributes:
      image: ``[H, W]``, ``[H, W, 1]`` or ``[H, W, 3]`` in [0, 1].
      caption: what is below it.
      wrong: whether to mark it as misclassified; ``None`` for no mark.
    """

    image: np.ndarray
    caption: str = ""
    wrong: bool | None = None

    def html(self) -> str:
        from advjax.report.images import png_bytes

        data = base64.b64encode(png_bytes(self.image)).decode()
        height, width = self.image.shape[:2]
        scale = max(1, round(_SIDE / max(height, width)))
        kind, mark = _MARKS[self.wrong]
        size = {"width": width * scale, "height": height * scale}
        source = f"data:image/png;base64,{data}"
        image = element("img", alt=self.caption, **size, src=source)
        return element("div", image, element("span", mark + self.caption), class_=kind)


@dataclasses.dataclass(frozen=True, eq=False)
class Gallery:
    """Rows of pictures, each row with its name; one column per example.

    Attributes:
      rows: ``(name, pictures)``.
      title: heading.
      note: a sentence below.
    """

    rows: Sequence[tuple[str, Sequence[Picture]]]
    title: str = ""
    note: str = ""

    def html(self) -> str:
        rows = [
            (name, [element("td", picture.html()) for picture in row]) for name, row in self.rows
        ]
        return titled(self.title, _table(rows, class_="gallery"), note=self.note)


@dataclasses.dataclass(frozen=True)
class Row:
    """Sections side by side, below each other on a narrow screen."""

    sections: Sequence[Section]

    def html(self) -> str:
        inner = (element("div", Markup(section.html())) for section in self.sections)
        return element("div", *inner, class_="row")


@dataclasses.dataclass(frozen=True)
class Script:
    """What makes a page interactive.

    Attributes:
      code: its JavaScript.
      data: what it reads, JSON-able, from the element called ``data``.
      style: CSS beside that of every page.
      controls: HTML between the header and the sections.
    """

    code: str
    data: Any
    style: str = ""
    controls: str = ""

    def html(self) -> str:
        # JSON that cannot end the element that it stands in.
        data = json.dumps(self.data, allow_nan=False, separators=(",", ":"))
        data = data.translate({ord(c): f"\\u{ord(c):04x}" for c in "<>&"})
        return (
            f'<script type="application/json" id="data">{data}</script>'
            f"<script>(() => {{'use strict';{self.code}}})();</script>"
        )


def write_report(
    path: str | os.PathLike[str],
    title: str,
    sections: Sequence[Section],
    subtitle: str = "",
    *,
    summary: str = "",
    made_by: str = "",
    script: Script | None = None,
) -> None:
    """Writes the page, whole or not at all. Readable in light and dark, printable.

    Args:
      path: the ``.html`` file; its folder must exist.
      title: heading and window title.
      sections: what is on it, in order.
      subtitle: a line below the title.
      summary: HTML below that.
      made_by: the last line; advjax's version when empty.
      script: what the reader can do with the page; none when None, and then nothing may run.
    """
    allowed = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    if script is not None:
        allowed += "; script-src 'unsafe-inline'"
    head = joined(
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", http_equiv="Content-Security-Policy", content=Markup(allowed)),
        element("title", title),
        element("style", Markup(STYLE + (script.style if script else ""))),
    )
    lead = element("p", subtitle, class_="lead") if subtitle else ""
    body = joined(
        element("header", element("h1", title), lead, Markup(summary)),
        Markup(script.controls if script else ""),
        element("main", *(element("section", Markup(part.html())) for part in sections)),
        element("footer", made_by or f"advjax {_version()}"),
        Markup(script.html() if script else ""),
    )
    page = f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'
    with whole_file(path) as file:
        file.write(page.encode())


def _version() -> str:
    try:
        return version("advjax")
    except PackageNotFoundError:  # a source tree that is not installed
        return ""


def _table(rows: Sequence[tuple[Any, Sequence[Markup]]], *head: Markup, **look: str) -> Markup:
    """Rows of a name and its cells, which can be scrolled where the screen is narrow."""
    lines = [element("tr", element("th", name, scope="row"), *cells) for name, cells in rows]
    return element("div", element("table", *head, element("tbody", *lines), **look), class_="wide")


def _number(cell: str) -> str | None:
    return "number" if cell[:1] in "0123456789-+[(" or not cell else None


def _flat(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", value))
    return found
