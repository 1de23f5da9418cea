"""HTML and SVG elements: made by one function, which escapes what it is given."""

from __future__ import annotations

import html
from typing import Any

_VOID = {"img", "meta"}
# Only these of SVG end at once without content; HTML reads ``<ul/>`` as not closed.
_CLOSED = {"circle", "path", "polygon", "polyline", "rect"}


class Markup(str):
    """Text that is HTML or SVG already; as it is, a section of a page."""

    def html(self) -> str:
        return self


def escaped(value: Any) -> Markup:
    """A value as HTML text: numbers with six digits, ``Markup`` as it is."""
    if isinstance(value, Markup):
        return value
    return Markup(html.escape(f"{value:.6g}" if isinstance(value, float) else str(value)))


def element(tag: str, *inside: Any, **attributes: Any) -> Markup:
    """``<tag name="value">inside</tag>``: ``class_`` is ``class``, ``aria_label`` ``aria-label``;
    None leaves an attribute out."""
    said = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escaped(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in _VOID:
        return Markup(f"<{tag}{said}>")
    if tag in _CLOSED and not inside:
        return Markup(f"<{tag}{said}/>")
    return Markup(f"<{tag}{said}>{joined(*inside)}</{tag}>")


def joined(*parts: Any) -> Markup:
    """Elements and text, one after the other."""
    return Markup("".join(map(escaped, parts)))


def titled(title: str, *inside: Any, note: str = "") -> Markup:
    """A section: its heading and its note only where they say anything."""
    return joined(element("h2", title) if title else "", *inside, small(note))


def figure(title: str, *inside: Any, note: str = "") -> Markup:
    """A framed drawing under its title."""
    return element("figure", element("h3", title), *inside, small(note))


def small(text: str) -> Markup:
    """A paragraph in small letters; nothing without a text."""
    return element("p", text, class_="note") if text else Markup()


def label(x: float, y: float, text: Any, anchor: str, *, dy: str | None = None) -> Markup:
    """Text in a drawing; ``anchor`` is ``middle`` or ``end``."""
    return element("text", text, x=x, y=y, dy=dy, class_=anchor)


def axis_names(x: float, y: float, below: str, beside: str, *, at: float) -> Markup:
    """The names of both axes: one centred at ``x`` in the height ``at``, one upright at ``y``."""
    upright = f"translate(14 {y:.6g}) rotate(-90)"
    return joined(
        label(x, at, below, "middle"),
        element("text", beside, transform=upright, class_="middle"),
    )


def drawing(width: float, height: float, title: str, *inside: Any, **attributes: Any) -> Markup:
    """An SVG drawing as wide as the page lets it be."""
    box = f"0 0 {width:.6g} {height:.6g}"
    return element(
        "svg", *inside, class_="chart", viewBox=box, role="img", aria_label=title, **attributes
    )
