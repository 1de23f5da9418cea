"""``sweep``: runs every cell of a grid once, whatever is killed meanwhile."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from advjax.experiment import Experiment, load_experiment
from advjax.runs import folder as runfolder
from advjax.runs.signals import Signals, Stopped
from advjax.sweeps.cell import Task, forget, how_far
from advjax.sweeps.executors import Executor, Here
from advjax.sweeps.grid import Grid, config_hash
from advjax.sweeps.outcome import Outcome, SweepError
from advjax.sweeps.search import Search, median_rule
from advjax.sweeps.store import ENDED, FILE, OLD, Cell, Store

_LOSSES = 5  # workers in a row that a cell may lose without getting further


@dataclasses.dataclass(frozen=True)
class Told:
    """What ``sweep`` tells its ``progress`` callable.

    Attributes:
      counts: how many cells have each status.
      text: a remark, one line; empty for a plain change of the counts.
    """

    counts: dict[str, int]
    text: str = ""

    @property
    def ended(self) -> int:
        """Cells that will not be run again."""
        return sum(self.counts.get(status, 0) for status in ENDED)

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def sweep(
    experiment: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    grid: Grid | Search | None = None,
    base: Any = None,
    executor: Executor | None = None,
    memory_gb: float | None = None,
    retry: bool = False,
    overwrite: bool = False,
    progress: Callable[[Told], None] | None = None,
) -> list[Cell]:
    """Runs the cells of a grid, or those that a sweep in this folder has left.

    A cell is one configuration of an experiment file; its metrics are those of ``fit`` for a file
    with ``build`` (``last/clean``, ``best/worst``, ...), the numbers that ``main`` returns for one
    with ``main``. A cell that fails, diverges or does not fit in memory is a result; the sweep
    goes on. The same call goes on where the last one was killed: finished cells are not run again,
    others resume from their checkpoints. On SIGTERM and SIGINT running cells are saved.

    Args:
      experiment: the experiment file.
      folder: the sweep's: ``sweep.jsonl``, a folder for each cell, and the workers' logs.
      grid: what to run, or what to search for; the file's own ``grid`` when None.
      base: the Config whose fields the grid changes; its defaults when None.
      executor: where cells run; in this process when None.
      memory_gb: what a training may need on a device, in 10^9 bytes, as predicted from its shapes;
        one that needs more is ``ko`` without being tried. What the device has when None.
      retry: runs cells again that failed or were ``ko``.
      overwrite: deletes the sweep that the folder holds.
      progress: told when a cell begins and ends, and of anything odd.

    Returns:
      All cells, in the grid's order, those of a search in the order of their proposals.

    Raises:
      SweepError: if the folder holds another sweep (what differs is named) or something else, if
        another process works on it, or if it cannot be written to.
      ValueError: for a bad grid or experiment file.
      Stopped: after a signal.
    """
    loaded = load_experiment(Path(experiment))
    base = loaded.config() if base is None else base
    grid = grid_of(loaded.grid, base) if grid is None else grid
    search = grid if isinstance(grid, Search) else None
    configs = grid.configs(base) if isinstance(grid, Grid) else []
    if not configs and search is None:
        raise ValueError("the grid is empty; expected at least one setting")
    path = Path(folder).absolute()
    about = _about(loaded, base, grid)
    with contextlib.ExitStack() as stack:
        _open(stack, path, overwrite)
        store = stack.enter_context(Store(path, write=True))
        memory = None if memory_gb is None else memory_gb * 1e9
        file, where = loaded.path.absolute(), executor or Here()
        run = _Driver(store, file, where, progress, memory, base, search)
        run.all(run.start(about, [_cell(c, place) for place, c in enumerate(configs)]), retry)
        return store.cells()


def _about(experiment: Experiment, base: Any, grid: Grid | Search) -> dict[str, Any]:
    """What the sweep is; JSON-able with ``default=str``."""
    search = grid if isinstance(grid, Search) else None
    return {
        "experiment": experiment.path.name,
        "source": "sha256:" + hashlib.sha256(experiment.path.read_bytes()).hexdigest(),
        "summary": experiment.summary,
        "base": dataclasses.asdict(base),
        "axes": grid.axes,
        "search": search and search.describe(),
        "trials": search and search.trials,
        "versions": runfolder.versions([])["packages"],
    }


def grid_of(grid: Any, base: Any) -> Grid | Search:
    """The experiment file's grid, which may depend on the base configuration."""
    found = grid(base) if callable(grid) else grid
    if not isinstance(found, (Grid, Search)):
        raise ValueError(
            f"the file's grid is {type(found).__name__}; expected a Grid or Search, or a function "
            "grid(config) that returns one"
        )
    return found


def _cell(config: Any, place: int) -> Cell:
    fields = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return Cell(config_hash(config), place, fields)


def _open(stack: contextlib.ExitStack, folder: Path, overwrite: bool) -> None:
    try:
        stack.enter_context(runfolder.lock(folder))
    except runfolder.RunError as error:
        raise SweepError(f"{folder}: another sweep works on it, or it is a file") from error
    except OSError as error:
        raise SweepError(f"{folder}: {error.strerror}; expected a folder to write to") from error
    there = {p.name for p in folder.iterdir() if not p.name.startswith(".")}
    if there and not {FILE, OLD} & there:
        raise SweepError(f"{folder} is no sweep and not empty: it holds {', '.join(sorted(there))}")
    if overwrite:
        for name in ("cells", "workers"):
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in (FILE, OLD, f"{OLD}-wal", f"{OLD}-shm"):
            (folder / name).unlink(missing_ok=True)


@dataclasses.dataclass
class _Driver:
    """The mutable middle of ``sweep``."""

    store: Store
    experiment: Path
    executor: Executor
    progress: Callable[[Told], None] | None
    memory: float | None
    base: Any
    search: Search | None
    histories: dict[str, Any] = dataclasses.field(default_factory=dict)  # of a search's cells
    running: set[str] = dataclasses.field(default_factory=set)
    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def start(self, about: dict[str, Any], cells: list[Cell]) -> list[Cell]:
        """The cells of the grid, or of the search so far, as the store has them."""
        before = self.store.cells()
        if self.search is not None:
            cells = before
        for note in self.store.start(about, cells):
            self.tell(note)
        names = {cell.name for cell in cells}
        for cell in before:
            here = cell.status == "running" and cell.worker.startswith(Here.NAME)
            if here and cell.name in names:  # it may be what ended the process
                self.lost(cell.name, "the process of the sweep ended")
        return [self.store.cell(cell.name) for cell in cells]

    def all(self, cells: list[Cell], retry: bool) -> None:
        """Until every cell has ended."""
        again = {c.name for c in cells if retry and c.status in ("ko", "failed")}
        for name in again:
            forget(self._folder(name))
            self._wait_again(name)
        left = [c.name for c in cells if c.status not in ENDED or c.name in again]
        waiting = collections.deque(left)
        self.counts = collections.Counter(self.store.counts())
        more = 0
        if self.search is not None:
            more = max(self.search.trials - len(cells), 0)
            done = [c.name for c in cells if c.status == "done"]
            self.histories = {name: self.store.history(name) for name in done}
        self.counts["waiting"] += more
        self.tell(f"{len(left) + more} of {len(cells) + more} cells to go")
        if not left and not more:
            return
        with Signals() as signals:
            try:
                with self.executor:
                    self.executor.start(self.store.path.parent)
                    while (waiting or self.running or more) and signals.received is None:
                        while (waiting or more) and (worker := self.executor.free()) is not None:
                            if not waiting:
                                waiting.extend(self._proposed())
                                more = more - 1 if waiting else 0
                                continue
                            self._submit(waiting.popleft(), worker)
                        for name, found in self.executor.wait(0.2):
                            self.running.discard(name)
                            if isinstance(found, Outcome):
                                self._ended(name, found)
                            elif self.lost(name, found):
                                waiting.append(name)
            finally:
                for name in self.running:
                    self._wait_again(name)
            if signals.received is not None:
                ended = sum(self.counts[s] for s in ENDED)
                raise Stopped(signals.received, f"{ended} of {sum(self.counts.values())} cells")

    def _folder(self, name: str) -> Path:
        return self.store.path.parent / "cells" / name

    def _wait_again(self, name: str) -> None:
        self.store.change(name, status="waiting", reason="", losses=0)

    def _submit(self, name: str, worker: str) -> None:
        self.running.add(name)
        self.store.change(name, status="running", reason="", began=time.time(), worker=worker)
        self._count("waiting", "running")
        folder, config = str(self._folder(name)), self.store.cell(name).config
        rule = self.search and median_rule(self.search, [*self.histories.values()])
        fields = None if rule is None else dataclasses.asdict(rule)
        self.executor.submit(Task(name, str(self.experiment), config, folder, self.memory, fields))

    def _proposed(self) -> list[str]:
        """The next cell of the search; none where there is no other."""
        assert self.search is not None
        cells = self.store.cells()
        setting = self.search.propose(cells)
        if setting is None:
            self.counts["waiting"] -= self.search.trials - len(cells)
            self.tell(f"the search ends after {len(cells)} cells: its axes have no other setting")
            return []
        cell = _cell(Grid((setting,)).configs(self.base)[0], len(cells))
        self.store.add(cell)
        return [cell.name]

    def _ended(self, name: str, outcome: Outcome) -> None:
        self.store.change(name, **dataclasses.asdict(outcome))
        done = outcome.status == "done"
        if self.search is not None and done:
            self.histories[name] = self.store.history(name)
        said = "" if done else f"cell {name}: {outcome.status}, {outcome.reason}"
        self._count("running", outcome.status, said)
        if self.search and done and self.search.metric not in outcome.metrics:
            there = ", ".join(n for n, v in outcome.metrics.items() if isinstance(v, (int, float)))
            raise SweepError(f"no cell has a metric {self.search.metric}; there are: {there}")

    def lost(self, name: str, reason: str) -> bool:
        """A worker ended with this cell: whether it waits again, or is given up after so many."""
        before, far = self.store.cell(name), how_far(self._folder(name))
        losses = 1 if far > before.far else before.losses + 1
        again = losses < _LOSSES
        status = "waiting" if again else "ko"
        why = "" if again else f"ended its process {losses} times: {reason}"
        far = max(far, before.far)
        self.store.change(name, status=status, reason=why, losses=losses, far=far)
        what = "it waits again" if again else "it is given up"
        self._count("running", status, f"cell {name}: its worker ended ({reason}); {what}")
        return again

    def _count(self, before: str, after: str, said: str = "") -> None:
        self.counts[before] -= 1
        self.counts[after] += 1
        self.tell(said)

    def tell(self, text: str = "") -> None:
        if self.progress is not None:
            self.progress(Told({s: n for s, n in self.counts.items() if n}, text))
