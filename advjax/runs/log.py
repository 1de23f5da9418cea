"""The metrics of a run: fetched from the device, kept as rows, written down and told."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import jax

from advjax.runs.folder import Metrics, Row
from advjax.runs.outcome import DivergedError, Event, Progress, check_metrics

_HEAD = ("kind", "step", "seconds")


def metrics_of(row: Row) -> dict[str, float]:
    """A row without what every row has."""
    return {n: v for n, v in row.items() if n not in _HEAD}


class Log:
    """The rows of a run, and whom it tells.

    Attributes:
      history: the rows so far.
      file: where they are written too, if anywhere.
      shown: when metrics were last fetched, ``time.monotonic()``.
    """

    def __init__(self, steps: int, progress: Progress | None) -> None:
        self.history: list[Row] = []
        self.file: Metrics | None = None
        self.shown = self._began = time.monotonic()
        self._steps, self._progress = steps, progress
        self._pending: list[tuple[int, Any, int | None]] = []  # metrics that are on the device

    def resume(self, rows: list[Row]) -> None:
        """Goes on after the rows of an earlier call."""
        self.history = rows
        self._began -= rows[-1]["seconds"] if rows else 0.0

    def tell(
        self, kind: str, step: int, metrics: Mapping[str, float] | None = None, text: str = ""
    ) -> None:
        if self._progress is not None:
            self._progress(Event(kind, step, self._steps, metrics or {}, text))

    def stepped(self, step: int, metrics: Any, place: int | None) -> None:
        """Metrics of a step, on the device; of several runs where ``place`` is one of them."""
        self._pending.append((step, metrics, place))
        self.tell("step", step)

    def flush(self, loss_limit: float) -> None:
        """Fetches the metrics that wait on the device, checks them and writes them down.

        Raises:
          DivergedError: for the first bad ones; those before them are written.
        """
        if not self._pending:
            return
        waiting, self._pending = self._pending, []
        values = jax.device_get([metrics for _, metrics, _ in waiting])
        rows: list[Row] = []
        self.shown = time.monotonic()
        bad: DivergedError | None = None
        for (step, _, place), metrics in zip(waiting, values, strict=True):
            row = {n: float(v if place is None else v[place]) for n, v in metrics.items()}
            bad = check_metrics(step, row, loss_limit)
            if bad is not None:
                break
            rows.append(self._row("train", step, row))
        self._write(rows)
        if bad is not None:
            raise bad
        means = {n: sum(r[n] for r in rows) / len(rows) for n in metrics_of(rows[0])}
        self._told("train", waiting[-1][0], means)

    def add(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        """A row of an evaluation or a watcher."""
        self._write([self._row(kind, step, metrics)])
        self._told(kind, step, metrics)

    def _row(self, kind: str, step: int, metrics: Mapping[str, float]) -> Row:
        seconds = round(time.monotonic() - self._began, 3)
        return {"kind": kind, "step": step, "seconds": seconds, **metrics}

    def _write(self, rows: list[Row]) -> None:
        self.history += rows
        if self.file is not None:
            self.file.add(rows)

    def _told(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        if self.file is not None:
            self.file.add_events(kind, step, metrics)
        self.tell(kind, step, metrics)
