"""``advjax report RUN``: writes a run's HTML report again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from advjax.cli.console import Console
from advjax.cli.parsing import UsageError, parse

PROG = "advjax report"
DESCRIPTION = """Writes RUN/report.html from what the run folder holds: settings, training curves,
evaluations with intervals and pictures. One page that needs no other file and no network.

example:
  advjax report runs/mnist_fast"""


@dataclasses.dataclass(frozen=True)
class Options:
    run: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")] = None
    """The run folder."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object."""


def main(args: Sequence[str]) -> None:
    options = parse(Options, args, prog=PROG, description=DESCRIPTION)
    if options.run is None:
        raise UsageError(f"no run given: {PROG} RUN")
    console = Console(options.json)
    report = write(options.run)
    console.say(str(report))
    console.result({"run": str(options.run), "report": str(report)})


def write(folder: Path) -> Path:
    """Writes ``report.html`` of a run folder and returns its path.

    Raises:
      UsageError: if the folder is no run.
    """
    from advjax.report.charts import training_charts
    from advjax.report.page import Facts, Row, Section, write_report
    from advjax.spec import readable
    from advjax.training import RunError, read_config, read_rows

    try:
        said = read_config(folder)
    except RunError as error:
        raise UsageError(str(error)) from error
    sections: list[Section] = []
    for path in sorted((folder / "evaluations").glob("*.json")):
        sections += _evaluation(path, said["training"]["classes"])
    charts = training_charts(read_rows(folder))
    if charts:
        sections.append(Row(charts))
    settings = readable({**said["training"], "config": said.get("config") or {}})
    settings["classes"] = ", ".join(settings["classes"])
    sections.append(Facts(settings, "Settings"))
    claim = _claim(folder / "experiment.py")
    report = folder / "report.html"
    write_report(report, folder.resolve().name, sections, claim)
    return report


def _evaluation(path: Path, classes: Sequence[str]) -> list[Any]:
    """The sections of one saved evaluation: its table, and pictures where images were kept."""
    from advjax.evaluation import Evaluation
    from advjax.evaluation.sections import accuracy_table, attack_gallery

    found = Evaluation.load(path.with_suffix(""))
    about = found.about
    title = f"{path.stem}: {about['examples']} images of {about['data']} {about['split']}"
    sections: list[Any] = [accuracy_table(found, title)]
    images = path.with_name(path.stem + "-images.npy")
    kept = [name for name, result in found.attacks.items() if result.x_adv is not None]
    if kept and images.is_file():
        import numpy as np

        x = np.load(images, allow_pickle=False)
        sections.append(attack_gallery(found, kept[-1], x, classes))
    return sections


def _claim(experiment: Path) -> str:
    """The first paragraph of the experiment's docstring, read without running the file."""
    import ast

    if not experiment.is_file():
        return ""
    try:
        text = ast.get_docstring(ast.parse(experiment.read_text())) or ""
    except (SyntaxError, UnicodeDecodeError):
        return ""
    return " ".join(text.split("\n\n")[0].split())
