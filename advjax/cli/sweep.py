"""``advjax sweep``: runs the grid of an experiment file, and shows what a sweep has found."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from advjax.cli.console import Console, Progress
from advjax.cli.parsing import UsageError, parse
from advjax.cli.train import parse_beside

PROG = "advjax sweep"
DESCRIPTION = f"""Runs every configuration of an experiment file's grid once, and shows the table.

  {PROG} FILE [--field value ...]     run, or go on with, the sweep
  {PROG} status FOLDER                how many cells are done, and how long the rest takes
  {PROG} table FOLDER                 rows by columns of chosen fields; --export writes every cell

FILE is an experiment file with a grid: grid = choices(lr=[.1, .2], seed=range(3)), or
grid(config) -> Grid. Every field of its Config that the grid does not set is an option. The sweep
is one folder; the same command on it goes on where it was stopped or killed. A cell that fails,
diverges or does not fit in memory is shown as such and does not end the sweep.

examples:
  {PROG} experiments/attack_grid.py --workers 2
  {PROG} table sweeps/attack_grid --metric best/worst --rows attack --columns eps
  {PROG} table sweeps/attack_grid --export cells.csv"""


@dataclasses.dataclass(frozen=True)
class SweepOptions:
    """Where the sweep goes and what runs its cells."""

    folder: Path | None = None
    """The sweep's folder. None: sweeps/ and the file's name."""
    workers: int = 0
    """Worker processes, each with its share of the cores; 0: one cell after the other in this one,
    which compiles programs once."""
    gpus: tuple[str, ...] = ()
    """What CUDA_VISIBLE_DEVICES is for each worker in turn: --workers 2 --gpus 0 1."""
    retry: bool = False
    """Run cells again that failed or were KO."""
    overwrite: bool = False
    """Start again, deleting the sweep that the folder holds."""
    json: bool = False
    """Print one JSON object instead of a table."""


@dataclasses.dataclass(frozen=True)
class FolderOptions:
    folder: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")] = None
    """The sweep's folder."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object."""


@dataclasses.dataclass(frozen=True)
class TableOptions(FolderOptions):
    metric: str | None = None
    """What to show; None: the worst case of the best network, or the first there is."""
    rows: tuple[str, ...] | None = None
    """Fields that make the rows; None: all that vary, without seeds and the columns."""
    columns: tuple[str, ...] | None = None
    """Fields that make the columns; None: the last that varies."""
    markdown: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the table as Markdown."""
    export: Path | None = None
    """Write every cell, one row each, to this .csv or .parquet file."""


def main(args: Sequence[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        parse(SweepOptions, ["--help"], prog=f"{PROG} FILE", description=DESCRIPTION)
    if args[0] == "status":
        _status(parse(FolderOptions, args[1:], prog=f"{PROG} status", description=DESCRIPTION))
    elif args[0] == "table":
        _table(parse(TableOptions, args[1:], prog=f"{PROG} table", description=DESCRIPTION))
    elif args[0].startswith("-"):
        raise UsageError(f"the experiment file comes first: {PROG} FILE [--field value ...]")
    else:
        _run(args)


def _run(args: Sequence[str]) -> None:
    from advjax.experiment import load_experiment
    from advjax.sweeps import Executor, Here, Processes, SweepError, sweep, tabulate
    from advjax.sweeps.driver import grid_of
    from advjax.training import Stopped

    experiment = load_experiment(Path(args[0]))
    options, base = parse_beside(SweepOptions, experiment, args, PROG)
    console = Console(options.json)
    folder = options.folder or Path("sweeps") / experiment.path.stem
    for name in grid_of(experiment.grid, base).axes:
        option = "--" + name.replace("_", "-")
        if any(arg.partition("=")[0].replace("_", "-") == option for arg in args):
            raise UsageError(f"{option}: the grid of {experiment.path} sets {name} itself")
    executor: Executor = Here()
    if options.workers:
        executor = Processes(options.workers, devices=options.gpus or None)
    try:
        with console.progress("sweep") as bar:
            cells = sweep(
                experiment.path,
                folder,
                base=base,
                executor=executor,
                retry=options.retry,
                overwrite=options.overwrite,
                progress=_Watch(console, bar),
            )
    except Stopped as stopped:
        console.note(f"advjax: {stopped}")
        raise
    except SweepError as error:
        raise UsageError(str(error)) from error
    console.result({"folder": str(folder), "cells": [dataclasses.asdict(c) for c in cells]})
    console.say(tabulate(cells).text())
    for line in _lost(cells):
        console.say(line)
    console.say(f"sweep   {folder}")


class _Watch:
    def __init__(self, console: Console, bar: Progress) -> None:
        self.console, self.bar = console, bar

    def __call__(self, told: Any) -> None:
        if told.text:
            self.console.note(told.text)
        self.bar(told.ended, max(told.total, 1), _counts(told.counts))


def _counts(counts: dict[str, int]) -> str:
    """``12 done, 1 ko, 2 running, 35 waiting``."""
    order = ("done", "ko", "failed", "running", "waiting")
    return ", ".join(f"{counts[name]} {name}" for name in order if counts.get(name))


def _lost(cells: Sequence[Any]) -> list[str]:
    """A line for each reason that cells have no result for."""
    reasons: dict[str, int] = {}
    for cell in cells:
        if cell.status in ("ko", "failed"):
            reason = f"{'KO' if cell.status == 'ko' else 'failed'}: {cell.reason}"
            reasons[reason] = reasons.get(reason, 0) + 1
    return [f"{n} x {reason}" for reason, n in sorted(reasons.items(), key=lambda item: -item[1])]


def _opened(options: FolderOptions, what: str) -> Any:
    from advjax.sweeps import Store, SweepError

    if options.folder is None:
        raise UsageError(f"no sweep given: {PROG} {what} FOLDER")
    try:
        return Store(options.folder)
    except SweepError as error:
        raise UsageError(str(error)) from error


def _status(options: FolderOptions) -> None:
    console = Console(options.json)
    with _opened(options, "status") as store:
        about, cells = store.about(), store.cells()
    counts: dict[str, int] = {}
    for cell in cells:
        counts[cell.status] = counts.get(cell.status, 0) + 1
    left = seconds_left(cells)
    now = time.time()
    running = [c for c in cells if c.status == "running"]
    console.result({"folder": str(options.folder), "counts": counts, "seconds_left": left})
    console.say(f"{about.get('experiment')}: {len(cells)} cells, {_counts(counts)}")
    for cell in running:
        setting = {n: cell.config[n] for n in about.get("axes", {}) if n in cell.config}
        said = ", ".join(f"{n} {v}" for n, v in setting.items())
        console.say(f"  {cell.name} on {cell.worker} for {now - (cell.began or now):.0f} s: {said}")
    if left is not None:
        console.say(
            f"about {left / 60:.0f} minutes left" if left > 90 else f"about {left:.0f} s left"
        )
    for line in _lost(cells):
        console.say(line)


def seconds_left(cells: Sequence[Any]) -> float | None:
    """What the cells that have not ended will take, if they are like those that have; None where
    none has ended, or all have."""
    ended = [c.seconds for c in cells if c.status == "done"]
    todo = sum(c.status in ("waiting", "running") for c in cells)
    workers = len({c.worker for c in cells if c.status == "running"})
    if not ended or not todo or not workers:
        return None
    return sum(ended) / len(ended) * todo / workers


def _table(options: TableOptions) -> None:
    from advjax.sweeps import export, records, tabulate

    console = Console(options.json)
    with _opened(options, "table") as store:
        cells = store.cells()
    table = tabulate(cells, options.metric, rows=options.rows, columns=options.columns)
    console.result({"folder": str(options.folder), "cells": records(cells)})
    console.say(table.markdown() if options.markdown else table.text())
    for line in _lost(cells):
        console.say(line)
    if options.export is not None:
        console.say(f"written to {export(cells, options.export)}")
