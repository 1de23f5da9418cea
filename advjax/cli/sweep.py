"""``advjax sweep``: runs the grid of an experiment file, and shows what a sweep has found."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from advjax.cli.console import Console
from advjax.cli.parsing import UsageError, parse
from advjax.cli.train import parse_beside

PROG = "advjax sweep"
PAGE = "index.html"
DESCRIPTION = f"""Runs every configuration of an experiment file's grid once, and shows the table.

  {PROG} FILE [--field value ...]     run, or go on with, the sweep
  {PROG} status FOLDER                how many cells are done, and how long the rest takes
  {PROG} table FOLDER                 rows by columns of chosen fields; --export writes every cell
  {PROG} page FOLDER                  one HTML file with the tables and charts, for a browser

FILE is an experiment file with a grid: grid = choices(lr=[.1, .2], seed=range(3)), a Search, which
chooses each cell by what those before it found, or a function grid(config) that returns either.
Every field of its Config that the grid does not set is an option. The sweep is one folder; the same
command on it goes on where it was stopped or killed. A cell that fails, diverges or does not fit in
memory is shown as such and does not end the sweep.

examples:
  {PROG} experiments/attack_grid.py --workers 2
  {PROG} experiments/adaptive_search.py --trials 100
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
    executor: Literal["here", "processes", "ray", "slurm"] | None = None
    """What runs the cells. None: processes where there are workers, else here."""
    address: str | None = None
    """Of the Ray cluster, such as auto; None: a Ray on this machine."""
    parameters: tuple[str, ...] = ()
    """What ray or slurm shall give a cell: gpus=1, or timeout_min=60 slurm_partition=gpu."""
    together: int | None = None
    """Trainings that differ in numbers only run as one program, at most so many, without workers.
    None: 1 on CPUs, where that is faster, and 64 elsewhere."""
    memory_gb: float | None = None
    """A training that needs more on a device, by its shapes, is KO. None: what the device has."""
    trials: int | None = None
    """Cells of a Search in all, instead of the file's number; a larger one goes on with it."""
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


@dataclasses.dataclass(frozen=True)
class PageOptions(FolderOptions):
    metric: str | None = None
    """What the page shows first; None: the worst case of the best network, or the first there is.
    """
    out: Path | None = None
    """Where the page goes. None: index.html in the sweep's folder."""


def main(args: Sequence[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        parse(SweepOptions, ["--help"], prog=f"{PROG} FILE", description=DESCRIPTION)
    if args[0] == "status":
        _status(parse(FolderOptions, args[1:], prog=f"{PROG} status", description=DESCRIPTION))
    elif args[0] == "table":
        _table(parse(TableOptions, args[1:], prog=f"{PROG} table", description=DESCRIPTION))
    elif args[0] == "page":
        _page(parse(PageOptions, args[1:], prog=f"{PROG} page", description=DESCRIPTION))
    elif args[0].startswith("-"):
        raise UsageError(f"the experiment file comes first: {PROG} FILE [--field value ...]")
    else:
        _run(args)


def _run(args: Sequence[str]) -> None:
    from advjax.experiment import load_experiment
    from advjax.sweeps import Search, SweepError, Told, sweep, tabulate
    from advjax.sweeps.page import lost, write_page
    from advjax.training import Stopped

    experiment = load_experiment(Path(args[0]))
    options, base = parse_beside(SweepOptions, experiment, args, PROG)
    console = Console(options.json)
    folder = options.folder or Path("sweeps") / experiment.path.stem
    grid = _grid(experiment, base, options.trials, args)
    executor = _executor(options)
    try:
        with console.progress("sweep") as bar:

            def watch(told: Told) -> None:
                if told.text:
                    console.note(told.text)
                bar(told.ended, max(told.total, 1), _counts(told.counts))

            cells = sweep(
                experiment.path,
                folder,
                grid=grid,
                base=base,
                executor=executor,
                memory_gb=options.memory_gb,
                retry=options.retry,
                overwrite=options.overwrite,
                progress=watch,
            )
    except Stopped as stopped:
        console.note(f"advjax: {stopped}")
        raise
    except SweepError as error:
        raise UsageError(str(error)) from error
    page: Path | None = None
    try:
        page = write_page(folder, folder / PAGE)
    except OSError as error:  # the sweep is done all the same
        console.note(f"advjax: no page: {error.strerror}")
    told = [dataclasses.asdict(cell) for cell in cells]
    console.result({"folder": str(folder), "page": page and str(page), "cells": told})
    if isinstance(grid, Search):
        console.say(_best(grid, cells))
    else:
        console.say(tabulate(cells).text())
    for line in lost(cells):
        console.say(line)
    console.say(f"sweep   {folder}")
    if page:
        console.say(f"page    {page}")


def _grid(experiment: Any, base: Any, trials: int | None, args: Sequence[str]) -> Any:
    """The file's grid or search, with so many trials; no option may be one of its axes."""
    from advjax.sweeps import Search
    from advjax.sweeps.driver import grid_of

    grid = grid_of(experiment.grid, base)
    if trials is not None:
        if not isinstance(grid, Search):
            raise UsageError(f"--trials is for a Search; {experiment.path} has a grid")
        grid = dataclasses.replace(grid, trials=trials)
    for name in grid.axes:
        option = "--" + name.replace("_", "-")
        if any(arg.partition("=")[0].replace("_", "-") == option for arg in args):
            raise UsageError(f"{option}: the grid of {experiment.path} sets {name} itself")
    return grid


def _best(search: Any, cells: Sequence[Any], n: int = 10) -> str:
    """A table of the best cells of a search."""
    from advjax.sweeps import tabulate

    best = search.ranked(cells)[:n]
    if not best:
        return f"no cell has {search.metric}"
    table = tabulate(best, search.metric, rows=[*search.axes], columns=[])
    return f"the best {len(best)} of {len(cells)}\n{table.text()}"


def _executor(options: SweepOptions) -> Any:
    from advjax.sweeps import Here, Processes, Ray, Slurm

    kind = options.executor or ("processes" if options.workers else "here")
    takes = {
        "here": (),
        "processes": ("workers", "gpus"),
        "ray": ("workers", "address", "parameters"),
        "slurm": ("workers", "parameters"),
    }
    for name in ("workers", "gpus", "address", "parameters"):
        if getattr(options, name) and name not in takes[kind]:
            raise UsageError(f"--{name} is not for --executor {kind}")
    if kind == "here":
        return Here(together=options.together)
    workers: dict[str, Any] = {"workers": options.workers} if options.workers else {}
    if kind == "processes":
        return Processes(**workers, devices=options.gpus or None)
    given: dict[str, Any] = {}
    for parameter in options.parameters:
        name, equals, value = parameter.partition("=")
        if not equals:
            raise UsageError(f"--parameters {parameter}: expected NAME=VALUE")
        given[name] = _value(value)
    try:
        return (
            Slurm(**workers, **given)
            if kind == "slurm"
            else Ray(options.address, **workers, **given)
        )
    except TypeError as error:
        raise UsageError(f"--parameters: {error}") from error


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _counts(counts: dict[str, int]) -> str:
    """``12 done, 1 ko, 2 running, 35 waiting``."""
    from advjax.sweeps.page import STATUSES

    return ", ".join(f"{counts[name]} {name}" for name in STATUSES if counts.get(name))


def _read(options: FolderOptions, what: str) -> tuple[dict[str, Any], list[Any]]:
    """What the sweep is, and its cells."""
    from advjax.sweeps import Store, SweepError

    if options.folder is None:
        raise UsageError(f"no sweep given: {PROG} {what} FOLDER")
    try:
        with Store(options.folder) as store:
            return store.about(), store.cells()
    except SweepError as error:
        raise UsageError(str(error)) from error


def _status(options: FolderOptions) -> None:
    from advjax.sweeps.page import lost

    console = Console(options.json)
    about, cells = _read(options, "status")
    counts = collections.Counter(cell.status for cell in cells)
    more = max((about.get("trials") or 0) - len(cells), 0)
    left = seconds_left(cells, more)
    now = time.time()
    running = [c for c in cells if c.status == "running"]
    console.result({"folder": str(options.folder), "counts": counts, "seconds_left": left})
    proposed = f", {more} to be proposed" if more else ""
    console.say(f"{about.get('experiment')}: {len(cells)} cells, {_counts(counts)}{proposed}")
    for cell in running:
        setting = {n: cell.config[n] for n in about.get("axes", {}) if n in cell.config}
        said = ", ".join(f"{n} {v}" for n, v in setting.items())
        console.say(f"  {cell.name} on {cell.worker} for {now - (cell.began or now):.0f} s: {said}")
    if left is not None:
        console.say(
            f"about {left / 60:.0f} minutes left" if left > 90 else f"about {left:.0f} s left"
        )
    for line in lost(cells):
        console.say(line)


def seconds_left(cells: Sequence[Any], more: int = 0) -> float | None:
    """What the cells that have not ended, and so many more, will take, if they are like those that
    have; None where none has ended, or all have."""
    ended = [c.seconds for c in cells if c.status == "done"]
    todo = more + sum(c.status in ("waiting", "running") for c in cells)
    workers = len({c.worker for c in cells if c.status == "running"})
    if not ended or not todo or not workers:
        return None
    return sum(ended) / len(ended) * todo / workers


def _table(options: TableOptions) -> None:
    from advjax.sweeps import export, records, tabulate
    from advjax.sweeps.page import lost

    console = Console(options.json)
    _, cells = _read(options, "table")
    table = tabulate(cells, options.metric, rows=options.rows, columns=options.columns)
    console.result({"folder": str(options.folder), "cells": records(cells)})
    console.say(table.markdown() if options.markdown else table.text())
    for line in lost(cells):
        console.say(line)
    if options.export is not None:
        console.say(f"written to {export(cells, options.export)}")


def _page(options: PageOptions) -> None:
    from advjax.sweeps import write_page

    console = Console(options.json)
    about, cells = _read(options, "page")
    path = options.out or (options.folder or Path()) / PAGE
    write_page(cells, path, about=about, metric=options.metric)
    console.result({"folder": str(options.folder), "page": str(path)})
    console.say(f"page    {path}")
