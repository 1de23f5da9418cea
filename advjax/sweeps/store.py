"""The one file of a sweep: a line of JSON for what is new, written by its driver alone.

The first line of ``sweep.jsonl`` says what the sweep is. Each other line has the name of a cell and
fields of it; a later line stands over an earlier one. A line that was cut off is the last and does
not count. What a worker has found is in its cell's folder until the driver has written it here.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from advjax.files import whole_file
from advjax.sweeps.outcome import SweepError

FORMAT = 2
FILE = "sweep.jsonl"
OLD = "sweep.db"  # of versions before, as SQLite
ENDED = ("done", "ko", "failed")


@dataclasses.dataclass(frozen=True)
class Cell:
    """What the store knows of a cell.

    Attributes:
      name: the hash of its configuration, and the name of its folder.
      place: its number in the grid, from 0.
      config: the fields of Config.
      status: ``waiting``, ``running``, ``done``, ``ko`` or ``failed``.
      reason: why it is ``ko`` or ``failed``, or ended before its last step.
      metrics: name to number, when it is done.
      seconds: how long it took.
      began: when it was last given to a worker, seconds since 1970.
      worker: which one that was.
      losses: how many workers it lost since it last got further.
      far: how many steps it had made then.
    """

    name: str
    place: int
    config: Mapping[str, Any]
    status: str = "waiting"
    reason: str = ""
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    began: float | None = None
    worker: str = ""
    losses: int = 0
    far: int = 0

    @property
    def lost(self) -> str:
        """``KO: reason`` or ``failed: reason`` of one that ended without a result, or nothing."""
        kind = {"ko": "KO", "failed": "failed"}.get(self.status)
        return f"{kind}: {self.reason}" if kind else ""


class Store:
    """A sweep's file as it is when opened; a context manager.

    Args:
      folder: the sweep's folder.
      write: False to look only: nothing is made or changed, and a driver may be writing meanwhile.

    Raises:
      SweepError: if it is missing, damaged, of another version or cannot be written to.
    """

    def __init__(self, folder: Path, *, write: bool = False) -> None:
        self.path = folder / FILE
        if (folder / OLD).is_file() and not self.path.is_file():
            raise SweepError(
                f"{folder} holds a sweep of an earlier version, {OLD}; expected {FILE}: overwrite "
                f"it, or take another folder, or make an empty {FILE} there (touch) and run the "
                "same, unchanged experiment file again, which keeps its finished cells"
            )
        if not write and not self.path.is_file():
            raise SweepError(f"{folder} is no sweep: it has no {FILE}")
        self._about: dict[str, Any] = {}
        self._cells: dict[str, Cell] = {}
        try:
            content = self.path.read_bytes() if self.path.is_file() else b""
        except OSError as error:
            raise SweepError(f"{self.path}: {error.strerror}") from error
        if content or not write:
            self._read(content)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _read(self, content: bytes) -> None:
        whole = content[: content.rfind(b"\n") + 1].splitlines()
        try:
            self._about, *changes = json.loads(b"[" + b",".join(whole) + b"]")
            if (version := self._about.get("format")) != FORMAT:
                raise SweepError(f"{self.path} is of format {version}; expected format {FORMAT}")
            fields: dict[str, dict[str, Any]] = {}
            for change in changes:
                fields.setdefault(change["name"], {}).update(change)
            self._cells = {name: Cell(**found) for name, found in fields.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise SweepError(f"{self.path} is damaged: {error}") from error

    # --- reading ------------------------------------------------------------------------------

    def about(self) -> dict[str, Any]:
        """What the sweep is: experiment, its source's hash, axes, versions, ..."""
        return self._about

    def cells(self) -> list[Cell]:
        """All cells, in the grid's order."""
        return sorted(self._cells.values(), key=lambda cell: cell.place)

    def cell(self, name: str) -> Cell:
        """A cell by its name."""
        return self._cells[name]

    def counts(self) -> dict[str, int]:
        """How many cells have each status."""
        return dict(collections.Counter(cell.status for cell in self._cells.values()))

    def history(self, cell: str) -> list[dict[str, Any]]:
        """The metrics of a cell over time: the rows of its run's ``metrics.jsonl``."""
        from advjax.runs.folder import read_rows  # looking at a sweep does without

        return read_rows(self.path.parent / "cells" / cell / "run")

    # --- writing, by the driver ---------------------------------------------------------------

    def start(self, about: Mapping[str, Any], cells: Sequence[Cell]) -> list[str]:
        """Makes the sweep, or accepts the one that is there, with new cells added to it.

        A sweep goes on when it is the same experiment file with the same base configuration. Of
        cells that the grid no longer has those that ended stay. Every cell that was running waits
        again.

        Returns:
          Lines that say what is not as before.

        Raises:
          SweepError: if the store holds another sweep; what differs is named.
        """
        from advjax.runs.folder import differences  # looking at a sweep does without

        about = json.loads(json.dumps({"format": FORMAT, **about}, default=str))
        notes: list[str] = []
        old = self._about
        if old:
            kept = ("experiment", "source", "base", "search")
            wrong = differences({n: old.get(n) for n in kept}, {n: about.get(n) for n in kept})
            if wrong:
                raise SweepError(
                    f"{self.path.parent} holds another sweep: {'; '.join(wrong)} "
                    "(take another folder, or overwrite it)"
                )
            if old.get("versions") != about.get("versions"):
                notes.append("the versions of packages are not those that the sweep began with")
        known = self._cells
        fresh = [cell for cell in cells if cell.name not in known]
        gone = known.keys() - {cell.name for cell in cells}
        if known and (fresh or gone):
            notes.append(f"{len(fresh)} cells are new; {len(gone)} are no longer in the grid")
        first = max((cell.place for cell in known.values()), default=-1) + 1
        stay = [
            dataclasses.replace(c, status="waiting") if c.status == "running" else c
            for c in self.cells()
            if c.name not in gone or c.status in ENDED
        ]
        stay += [dataclasses.replace(c, place=first + i) for i, c in enumerate(fresh)]
        self._about, self._cells = dict(about), {cell.name: cell for cell in stay}
        try:
            with whole_file(self.path) as file:
                file.write(_lines([self._about, *map(_differing, stay)]))
        except OSError as error:
            raise self._full(error) from error
        return notes

    def add(self, cell: Cell) -> None:
        """A cell that was not foreseen at the start."""
        self._cells[cell.name] = cell
        self._append(_differing(cell))

    def change(self, name: str, **fields: Any) -> None:
        """Other values for fields of a cell."""
        self._cells[name] = dataclasses.replace(self._cells[name], **fields)
        self._append({"name": name, **fields})

    def _append(self, line: Mapping[str, Any]) -> None:
        try:
            size = self.path.stat().st_size
            with self.path.open("ab") as file:
                file.write(_lines([line]))
        except OSError as error:
            if self.path.is_file():
                os.truncate(self.path, size)  # no half a line before the next one
            raise self._full(error) from error

    def _full(self, error: OSError) -> SweepError:
        return SweepError(f"{self.path}: {error.strerror}; what was written before is kept")


def _lines(found: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in found).encode()


def _differing(cell: Cell) -> dict[str, Any]:
    """A cell's fields that are not as in one that waits."""
    fresh = Cell(cell.name, -1, {})
    return {n: v for n, v in vars(cell).items() if n == "name" or v != getattr(fresh, n)}
