"""The one file of a sweep: an SQLite database that its driver alone writes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from advjax.sweeps.outcome import Outcome, SweepError

FORMAT = 1
FILE = "sweep.db"
ENDED = ("done", "ko", "failed")

_TABLES = """
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE cells (
  name TEXT PRIMARY KEY, place INTEGER NOT NULL UNIQUE, config TEXT NOT NULL,
  status TEXT NOT NULL, reason TEXT NOT NULL, metrics TEXT NOT NULL,
  seconds REAL NOT NULL, began REAL, worker TEXT NOT NULL,
  losses INTEGER NOT NULL, far INTEGER NOT NULL
);
CREATE TABLE history (cell TEXT NOT NULL, row TEXT NOT NULL);
CREATE INDEX history_cell ON history (cell);
"""


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


_COLUMNS = [f.name for f in dataclasses.fields(Cell)]


class Store:
    """A sweep's database; a context manager.

    Args:
      folder: the sweep's folder.
      write: False to look only: nothing is made or changed, and a driver may be writing meanwhile.

    Raises:
      SweepError: if it is missing, damaged, of another version or cannot be written to.
    """

    def __init__(self, folder: Path, *, write: bool = False) -> None:
        self.path = folder / FILE
        if not write and not self.path.is_file():
            raise SweepError(f"{folder} is no sweep: it has no {FILE}")
        self._write = write
        with self._clear_errors():
            if write:
                self._db = sqlite3.connect(self.path, isolation_level=None)
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = NORMAL")
            else:
                # Without a writer's log the file is whole, and a read-only folder is no hindrance.
                alone = not self.path.with_name(FILE + "-wal").exists()
                how = "immutable=1" if alone else "mode=ro"
                uri = f"{self.path.absolute().as_uri()}?{how}"
                self._db = sqlite3.connect(uri, uri=True, isolation_level=None)
            self._db.execute("PRAGMA busy_timeout = 10000")
            tables = self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            empty = tables.fetchone() is None
            if empty and write:
                with self._transaction():
                    for statement in _TABLES.split(";"):
                        self._db.execute(statement)
            elif not empty and self.about().get("format") != FORMAT:
                raise SweepError(f"{self.path} is not of this version; format {FORMAT} is taken")

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    # --- reading ------------------------------------------------------------------------------

    def about(self) -> dict[str, Any]:
        """What the sweep is: experiment, its source's hash, axes, versions, ..."""
        with self._clear_errors():
            rows = self._db.execute("SELECT name, value FROM about").fetchall()
        return {name: json.loads(value) for name, value in rows}

    def cells(self) -> list[Cell]:
        """All cells, in the grid's order."""
        with self._clear_errors():
            rows = self._db.execute(f"SELECT {', '.join(_COLUMNS)} FROM cells ORDER BY place")
            return [_cell(row) for row in rows]

    def counts(self) -> dict[str, int]:
        """How many cells have each status."""
        with self._clear_errors():
            return dict(self._db.execute("SELECT status, COUNT(*) FROM cells GROUP BY status"))

    def history(self, cell: str) -> list[dict[str, Any]]:
        """The metrics of a finished cell over time: the rows of its run's ``metrics.jsonl``."""
        with self._clear_errors():
            rows = self._db.execute(
                "SELECT row FROM history WHERE cell = ? ORDER BY rowid", (cell,)
            )
            return [json.loads(row) for (row,) in rows]

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
        old = self.about()
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
        known = {cell.name: cell for cell in self.cells()}
        fresh = [cell for cell in cells if cell.name not in known]
        gone = sorted(known.keys() - {cell.name for cell in cells})
        if known and (fresh or gone):
            notes.append(f"{len(fresh)} cells are new; {len(gone)} are no longer in the grid")
        unfinished = [name for name in gone if known[name].status not in ENDED]
        with self._clear_errors(), self._transaction():
            self._db.executemany(
                "INSERT OR REPLACE INTO about VALUES (?, ?)",
                [(name, json.dumps(value)) for name, value in about.items()],
            )
            self._db.execute("UPDATE cells SET status = 'waiting' WHERE status = 'running'")
            for name in unfinished:
                self._db.execute("DELETE FROM cells WHERE name = ?", (name,))
            first = max((cell.place for cell in known.values()), default=-1) + 1
            self._insert([dataclasses.replace(c, place=first + i) for i, c in enumerate(fresh)])
        return notes

    def add(self, cell: Cell) -> None:
        """A cell that was not foreseen at the start."""
        with self._clear_errors():
            self._insert([cell])

    def begin(self, name: str, worker: str) -> None:
        """A cell was given to a worker."""
        self._update(name, status="running", reason="", began=time.time(), worker=worker)

    def end(self, name: str, outcome: Outcome, history: Iterable[Mapping[str, Any]] = ()) -> None:
        """A cell has ended, with the rows of its metrics over time."""
        with self._clear_errors(), self._transaction():
            self._db.execute("DELETE FROM history WHERE cell = ?", (name,))
            self._db.executemany(
                "INSERT INTO history VALUES (?, ?)", [(name, json.dumps(row)) for row in history]
            )
            self._update(
                name,
                status=outcome.status,
                reason=outcome.reason,
                metrics=json.dumps(dict(outcome.metrics)),
                seconds=outcome.seconds,
            )

    def lost(self, name: str, far: int, limit: int, reason: str) -> bool:
        """A worker was lost with this cell; it waits again, or is ``ko`` when that was too often.

        Args:
          name: the cell.
          far: how many steps its checkpoints hold.
          limit: how many workers in a row it may lose without getting further.
          reason: how the worker ended.

        Returns:
          Whether it waits again.
        """
        with self._clear_errors():
            columns = ", ".join(_COLUMNS)
            found = self._db.execute(f"SELECT {columns} FROM cells WHERE name = ?", (name,))
            before = _cell(found.fetchone())
        losses = 1 if far > before.far else before.losses + 1
        again = losses < limit
        self._update(
            name,
            status="waiting" if again else "ko",
            reason="" if again else f"ended its process {losses} times: {reason}",
            losses=losses,
            far=max(far, before.far),
        )
        return again

    def wait_again(self, names: Iterable[str]) -> None:
        """These cells are to be run (again)."""
        with self._clear_errors(), self._transaction():
            for name in names:
                self._update(name, status="waiting", reason="", losses=0)

    def _insert(self, cells: Iterable[Cell]) -> None:
        marks = ", ".join("?" * len(_COLUMNS))
        self._db.executemany(
            f"INSERT INTO cells ({', '.join(_COLUMNS)}) VALUES ({marks})", map(_row, cells)
        )

    def _update(self, name: str, **values: Any) -> None:
        with self._clear_errors():
            self._db.execute(
                f"UPDATE cells SET {', '.join(f'{n} = ?' for n in values)} WHERE name = ?",
                (*values.values(), name),
            )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of it or nothing, whatever ends the process."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextlib.contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            kept = "; what was written before is kept" if self._write else ""
            raise SweepError(f"{self.path}: {error}{kept}") from error


def _cell(row: Sequence[Any]) -> Cell:
    fields = dict(zip(_COLUMNS, row, strict=True))
    for name in ("config", "metrics"):
        fields[name] = json.loads(fields[name])
    return Cell(**fields)


def _row(cell: Cell) -> tuple[Any, ...]:
    plain = {"config": json.dumps(cell.config), "metrics": json.dumps(cell.metrics)}
    return tuple(plain.get(name, getattr(cell, name)) for name in _COLUMNS)
