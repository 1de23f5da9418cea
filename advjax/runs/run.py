"""One run: where it stands between the steps, and what is due after a step."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from advjax.runs import folder as folders
from advjax.runs import hosts
from advjax.runs.checkpoint import (
    Checkpoints,
    DamagedCheckpointError,
    arrays_of,
    fill,
    read,
    set_aside,
    steps_in,
)
from advjax.runs.log import Log, metrics_of
from advjax.runs.outcome import Progress, Result, Snapshot, check_finite
from advjax.runs.program import Program
from advjax.runs.signals import Signals, Stopped
from advjax.runs.watchers import View, Watcher

_SHOW_EVERY_S = 5.0  # metrics are fetched at least this often, so that slow steps are seen too


@dataclasses.dataclass
class Position:
    """Where a run stands, beside its state.

    Attributes:
      step: how many steps have been made.
      evaluated: whether the state as it is has been evaluated.
      stopped: what ended the run before its last step, if anything has.
      best: the best model so far.
      memories: what the watchers remember, by their names.
    """

    step: int = 0
    evaluated: bool = False
    stopped: str | None = None
    best: Snapshot | None = None
    memories: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """All of it but the best model itself."""
        best = self.best and {"step": self.best.step, "metrics": dict(self.best.metrics)}
        named = {"step": self.step, "evaluated": self.evaluated, "stopped": self.stopped}
        return {**self.memories, **named, "best": best}

    @staticmethod
    def from_json(record: Mapping[str, Any], step: int, watchers: Sequence[Watcher]) -> Position:
        """The position without its best model."""
        memories = {w.name: record.get(w.name) for w in watchers if w.name}
        evaluated, stopped = bool(record.get("evaluated")), record.get("stopped")
        return Position(step, evaluated, stopped, None, memories)


class Run:
    """The mutable middle of ``train``: a program between its steps.

    Attributes:
      program: what is computed.
      watchers: what looks at it.
      state: as it was when it was last needed.
      at: where it stands.
      log: its metrics.
      folder: its folder, if it has one.
      signals: where requests to stop arrive, if they are listened to.
    """

    def __init__(
        self,
        program: Program[Any],
        progress: Progress | None = None,
        watchers: Sequence[Watcher] = (),
    ) -> None:
        self.program = program
        self.watchers = (*program.watchers(), *watchers)
        self.state = program.init()
        self.at = Position()
        self.log = Log(program.total_steps, progress if hosts.is_coordinator() else None)
        self.folder: Path | None = None
        self.signals: Signals | None = None
        self._checkpoints: Checkpoints | None = None
        self._saved = time.monotonic()
        self._was_finished = False

    # --- the folder -------------------------------------------------------------------------

    def open(
        self,
        stack: contextlib.ExitStack,
        folder: Path,
        config: Any,
        source: Path | None,
        overwrite: bool,
        wait_s: float = 0.0,
    ) -> None:
        """Takes the folder until ``stack`` is left, and goes on where it stands."""
        stack.enter_context(folders.lock(folder, wait_s))
        folders.open_run(
            folder,
            self.program.describe(),
            config,
            versions=folders.versions(self.program.devices),
            source=source,
            overwrite=overwrite,
            by_version=self.program.by_version,
        )
        self.folder = folder
        self._resume(folder)
        self._checkpoints = stack.enter_context(Checkpoints(folder / "checkpoints"))
        self._checkpoints.best = self.at.best.step if self.at.best else None
        rows = self.log.history
        self.log.file = stack.enter_context(folders.Metrics(folder, rows, self._note))

    def follow(self) -> None:
        """Takes over where the first process, which has the folder, stands."""
        record = hosts.broadcast({**self.at.to_json(), "history": self.log.history})
        best, model = record["best"], self.at.best and self.at.best.model
        if record["step"]:
            arrays = hosts.broadcast_arrays(arrays_of(self.state))
            self.state = fill("the first process's state", self.state, arrays)
        if best is not None:
            model = self.program.model(self.state) if model is None else model
            arrays = hosts.broadcast_arrays(arrays_of(model))
            model = fill("the first process's best model", model, arrays)
        if self.folder is None:
            self.log.resume(record["history"])
        self.at = Position.from_json(record, record["step"], self.watchers)
        self.at.best = best and self._snapshot(model, best["step"], best["metrics"])
        self._was_finished = self.ended

    def _resume(self, folder: Path) -> None:
        """Loads the latest checkpoint that is whole, and the rows up to its step."""
        checkpoints = folder / "checkpoints"
        for step in reversed(steps_in(checkpoints)):
            loaded = self._load(checkpoints, step)
            if loaded is None:
                continue
            self.state, record = loaded
            self.at = Position.from_json(record, step, self.watchers)
            self._was_finished = self.ended
            self.at.best = self._load_best(checkpoints, record.get("best"))
            rows = folders.read_rows(folder, up_to=step)
            if not self.at.evaluated:
                rows = [r for r in rows if r["kind"] == "train" or r["step"] < step]
            self.log.resume(rows)
            self._note(f"resumed after step {step}")
            return

    def _load(self, folder: Path, step: int) -> tuple[Any, dict[str, Any]] | None:
        try:
            arrays, record = read(folder, step)
        except DamagedCheckpointError as error:
            self._note(f"{error}; moved to {set_aside(folder, step)}, an earlier one is used")
            return None
        return fill(f"checkpoint {folder / str(step)}", self.state, arrays), record["position"]

    def _load_best(self, folder: Path, best: Any) -> Snapshot | None:
        if best is None:
            return None
        state, step = self.state, best["step"]
        if step != self.at.step:
            if step not in steps_in(folder):
                self._note(f"the best checkpoint, step {step}, is gone; another best is looked for")
                return None
            loaded = self._load(folder, step)
            if loaded is None:
                return None
            state = loaded[0]
        return self._snapshot(self.program.model(state), step, best["metrics"])

    def save(self) -> None:
        """A checkpoint of the state as it is; its metrics have been fetched and were good."""
        if self._checkpoints is None:
            return
        check_finite(self.at.step, self.program.finite(self.state))
        self._checkpoints.best = self.at.best.step if self.at.best else None
        position = {**self.at.to_json(), **self.program.position(self.at.step)}
        self._checkpoints.save(self.at.step, self.program.gather(self.state), position)
        self._saved = time.monotonic()
        self._tell("checkpoint", text=f"checkpoint {self.at.step}")

    # --- the loop ---------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Whether no step is left to make."""
        return self.at.step >= self.program.total_steps or self.at.stopped is not None

    def begin(self) -> None:
        """Before the first step of this call."""
        total = self.program.total_steps
        self._tell("start", text=f"{total - self.at.step} of {total} steps to go")
        if self.at.step and not self.at.evaluated:
            self._judge()

    def finish(self) -> Result:
        """After the last step."""
        if self._checkpoints is not None:
            self._checkpoints.wait()
        if self.at.stopped is not None:
            self._tell("stopped", text=self.at.stopped)
        before = ", before this call" if self._was_finished else ""
        self._tell("finished", text=f"finished after step {self.at.step}{before}")
        evaluations = [r for r in self.log.history if r["kind"] == "evaluation"]
        now = evaluations and evaluations[-1]["step"] == self.at.step
        metrics = metrics_of(evaluations[-1]) if now else {}
        last = self._snapshot(self.program.model(self.state), self.at.step, metrics)
        return Result(
            best=self.at.best or last,
            last=last,
            history=tuple(self.log.history),
            run_dir=self.folder,
            was_finished=self._was_finished,
            stopped=self.at.stopped,
        )

    def stepped(self, metrics: Any, state: Callable[[], Any], place: int | None = None) -> None:
        """A step has been handed to the devices: does what is due after it.

        Args:
          metrics: of the step, on the device; of several runs where ``place`` is one of them.
          state: gives the state after the step; called only where it is needed.
          place: where this run stands in each of the metrics; None where they are its own.

        Raises:
          DivergedError: for metrics and parameters that are not finite.
          Stopped: after a signal, when the state has been saved.
        """
        program, now = self.program, time.monotonic()
        self.at.step, self.at.evaluated = self.at.step + 1, False
        step = self.at.step
        self.log.stepped(step, metrics, place)
        stop = self.signals is not None and self.signals.received is not None
        due = program.evaluates_at(step) or any(_due(w, step) for w in self.watchers)
        due = due or step == program.total_steps
        late = self._checkpoints is not None and now - self._saved > program.checkpoint_every_s
        logged = step % program.log_every == 0
        if hosts.is_distributed():  # clocks and signals differ: all do the same at the same steps
            late, stop = late and logged, logged and hosts.any_of(stop)
        else:
            logged = logged or now - self.log.shown > _SHOW_EVERY_S
        if stop:
            self.leave(state)
            self._stop()
        if due or late:
            self.state = state()
        if due or late or logged:
            self.log.flush(program.loss_limit)
        if due:
            self._judge()
        if due or late:
            self.save()

    def leave(self, state: Callable[[], Any]) -> None:
        """Saves the state as it is, before a stop."""
        self.state = state()
        self.log.flush(self.program.loss_limit)
        self.save()

    def _stop(self) -> None:
        """After a signal, which another process may have got."""
        assert self.signals is not None
        if self._checkpoints is not None:
            self._checkpoints.wait()
        raise Stopped(self.signals.received or signal.SIGTERM, f"step {self.at.step}")

    def _interrupt(self, *_: Any, **__: Any) -> None:
        """Called by an evaluation between its parts."""
        if hosts.is_distributed():
            return
        if self.signals is not None and self.signals.received is not None:
            self.save()
            self._stop()

    # --- evaluations and watchers -----------------------------------------------------------

    def _judge(self) -> None:
        """The evaluation and the looks that are due at this step; each may end the run."""
        step, evaluates = self.at.step, self.program.evaluates_at(self.at.step)
        if evaluates:
            self._evaluate()
        for watcher in self.watchers:
            after = evaluates and step < self.program.total_steps and self.at.stopped is None
            if _due(watcher, step) or (watcher.every is None and after):
                self._look(watcher)
        self.at.evaluated = True

    def _evaluate(self) -> None:
        """Evaluates the state, and keeps it when it is the best so far."""
        check_finite(self.at.step, self.program.finite(self.state))
        model = self.program.model(self.state)
        metrics = dict(self.program.evaluate(model, self._interrupt))
        self.log.add("evaluation", self.at.step, metrics)
        snapshot = self._snapshot(model, self.at.step, metrics)
        if self.at.best is None or snapshot.score > self.at.best.score:
            self.at.best = snapshot

    def _look(self, watcher: Watcher) -> None:
        check_finite(self.at.step, self.program.finite(self.state))
        at, history = self.at, self.log.history
        view = View(at.step, self.state, history, at.best, self._interrupt)
        found = watcher.look(view, at.memories.get(watcher.name))
        if watcher.name:
            at.memories[watcher.name] = found.memory
        if found.metrics:
            self.log.add("watch", at.step, found.metrics)
        if found.stop is not None:
            at.stopped = found.stop
        elif found.metrics and not self.program.evaluates_at(self.program.total_steps):
            at.best = Snapshot(self.program.model(self.state), at.step, found.metrics)

    def _snapshot(self, model: Any, step: int, metrics: Mapping[str, float]) -> Snapshot:
        scored = metrics and self.program.evaluates_at(self.program.total_steps)
        if not scored:
            return Snapshot(model, step, metrics)
        return Snapshot(model, step, metrics, self.program.score(metrics))

    # --- progress ---------------------------------------------------------------------------

    def _tell(self, kind: str, text: str) -> None:
        self.log.tell(kind, self.at.step, text=text)

    def _note(self, text: str) -> None:
        self._tell("note", text)


def _due(watcher: Watcher, step: int) -> bool:
    return watcher.every is not None and step % watcher.every == 0
