"""One self-contained HTML page: tables, charts and pictures, no scripts, nothing loaded."""

from __future__ import annotations

import base64
import dataclasses
import html
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import numpy as np

from advjax.evaluation.images import amplification, amplified, png_bytes
from advjax.evaluation.result import Evaluation
from advjax.files import whole_file
from advjax.page_style import STYLE

_SIDE = 96  # pixels on the screen that small images are enlarged to


class Section(Protocol):
    """A part of a report: anything that can write itself as HTML."""

    def html(self) -> str: ...


@dataclasses.dataclass(frozen=True)
class Text:
    """Paragraphs, separated by empty lines, under a heading."""

    text: str
    title: str = ""

    def html(self) -> str:
        paragraphs = [p for p in self.text.split("\n\n") if p.strip()]
        return _heading(self.title) + "".join(f"<p>{_said(p)}</p>" for p in paragraphs)


@dataclasses.dataclass(frozen=True)
class Facts:
    """Names and values, such as a configuration. Nested mappings are flattened with dots."""

    facts: Mapping[str, Any]
    title: str = ""

    def html(self) -> str:
        rows = "".join(
            f"<div><dt>{_said(name)}</dt><dd>{_said(value)}</dd></div>"
            for name, value in _flat(self.facts)
        )
        return f'{_heading(self.title)}<dl class="facts">{rows}</dl>'


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

    @classmethod
    def of(cls, evaluation: Evaluation, title: str = "Accuracy") -> Table:
        """An evaluation's accuracies, intervals and costs."""
        header, rows = evaluation.rows()
        note = "Robust: right when clean and under the attack, judged on the returned image."
        if evaluation.cascade:
            note += " Each attack saw only what those above it had left standing."
        if counted := {r.draws for r in evaluation.attacks.values() if r.wrong_draws is not None}:
            note += (
                f" The model is randomised: its answer is the majority of {max(counted)} draws; "
                "fooled draws are the share of as many fresh ones on the attacked images, with an "
                "interval over images and draws."
            )
        return cls(header, rows, title, note)

    def html(self) -> str:
        # A header stands as its column does; the first cell that says anything decides.
        said = [
            next((str(r[i]) for r in self.rows if str(r[i])), "") for i in range(len(self.header))
        ]
        aligned = ["", *(_aligned(cell) for cell in said[1:])]
        head = "".join(
            f'<th scope="col"{where}>{_said(name)}</th>'
            for name, where in zip(self.header, aligned, strict=True)
        )
        body = ""
        for row in self.rows:
            cells = "".join(f"<td{_aligned(str(cell))}>{_said(cell)}</td>" for cell in row[1:])
            body += f'<tr><th scope="row">{_said(row[0])}</th>{cells}</tr>' if row else ""
        note = f'<p class="note">{_said(self.note)}</p>' if self.note else ""
        return (
            f'{_heading(self.title)}<div class="wide"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>{note}"
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

    @classmethod
    def of(
        cls,
        evaluation: Evaluation,
        attack: str,
        x: Any,
        classes: Sequence[str],
        title: str = "",
        n: int = 8,
    ) -> Gallery:
        """Original, amplified perturbation and adversarial image of the first attacked examples.

        Args:
          evaluation: one that kept images.
          attack: the name of an attack in it.
          x: the images that were evaluated, uint8 or in [0, 1]; the first ones are enough.
          classes: class names.
          title: heading; the attack's name by default.
          n: how many examples at most.
        """
        result = evaluation.attacks[attack]
        if result.x_adv is None:
            raise ValueError(f"{attack}: no images were kept; evaluate(..., keep_images=16) does")
        x = np.asarray(x[: len(result.x_adv)])
        x = x.astype(np.float32) / (255 if x.dtype == np.uint8 else 1)
        shown = np.flatnonzero(result.attacked[: len(x)])[:n]
        factor = amplification(x[shown], result.x_adv[shown])
        before, change, after = [], [], []
        for i in shown:
            said = _answer(classes, evaluation.prediction[i], evaluation.confidence[i])
            before.append(Picture(x[i], said, False))
            size = f"distance {result.distance[i]:.3g}"
            change.append(Picture(amplified(x[i], result.x_adv[i], factor), size))
            said = _answer(classes, result.prediction[i], result.confidence[i])
            after.append(Picture(result.x_adv[i], said, bool(result.success[i])))
        rows = (
            ("original", before),
            (f"perturbation \u00d7 {factor:g}", change),
            ("adversarial", after),
        )
        note = "Below each image the predicted class and its probability; middle grey: no change."
        return cls(rows, title or attack, note)

    def html(self) -> str:
        body = "".join(
            f'<tr><th scope="row">{_said(name)}</th>'
            + "".join(f"<td>{_picture(picture)}</td>" for picture in row)
            + "</tr>"
            for name, row in self.rows
        )
        note = f'<p class="note">{_said(self.note)}</p>' if self.note else ""
        return (
            f'{_heading(self.title)}<div class="wide"><table class="gallery"><tbody>{body}'
            f"</tbody></table></div>{note}"
        )


@dataclasses.dataclass(frozen=True)
class Row:
    """Sections side by side, below each other on a narrow screen."""

    sections: Sequence[Section]

    def html(self) -> str:
        inner = "".join(f"<div>{section.html()}</div>" for section in self.sections)
        return f'<div class="row">{inner}</div>'


def write_report(
    path: str | os.PathLike[str], title: str, sections: Sequence[Section], subtitle: str = ""
) -> None:
    """Writes the page, whole or not at all. Readable in light and dark, printable.

    Args:
      path: the ``.html`` file; its folder must exist.
      title: heading and window title.
      sections: what is on it, in order.
      subtitle: a line below the title.
    """
    try:
        made_by = f"advjax {version('advjax')}"
    except PackageNotFoundError:  # a source tree that is not installed
        made_by = "advjax"
    lead = f'<p class="lead">{_said(subtitle)}</p>' if subtitle else ""
    body = "".join(f"<section>{section.html()}</section>" for section in sections)
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{_said(title)}</title><style>{STYLE}</style></head><body>"
        f"<header><h1>{_said(title)}</h1>{lead}</header><main>{body}</main>"
        f"<footer>{_said(made_by)}</footer></body></html>\n"
    )
    with whole_file(path) as file:
        file.write(page.encode())


def _heading(title: str) -> str:
    return f"<h2>{_said(title)}</h2>" if title else ""


def _said(value: Any) -> str:
    return html.escape(f"{value:.6g}" if isinstance(value, float) else str(value))


def _aligned(cell: str) -> str:
    return ' class="number"' if cell[:1] in "0123456789-+[(" or not cell else ""


def _flat(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", value))
    return found


def _answer(classes: Sequence[str], prediction: int, confidence: float) -> str:
    name = classes[prediction] if 0 <= prediction < len(classes) else "no class"
    return f"{name}, {100 * confidence:.0f} %"


def _picture(picture: Picture) -> str:
    image = np.asarray(picture.image)
    data = base64.b64encode(png_bytes(image)).decode()
    height, width = image.shape[:2]
    scale = max(1, round(_SIDE / max(height, width)))
    kind = "" if picture.wrong is None else " wrong" if picture.wrong else " right"
    mark = {"": "", " wrong": "✗ ", " right": "✓ "}[kind]
    caption = html.escape(picture.caption, quote=True)
    return (
        f'<div class="picture{kind}"><img alt="{caption}" width="{width * scale}" '
        f'height="{height * scale}" src="data:image/png;base64,{data}">'
        f"<span>{mark}{caption}</span></div>"
    )
