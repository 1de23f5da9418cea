"""One run: its state between the steps, its folder, and what is due after a step."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advjax.training import hosts, runfolder
from advjax.training.checkpoint import (
    Checkpoints,
    DamagedCheckpointError,
    arrays_of,
    fill,
    read,
    set_aside,
    steps_in,
)
from advjax.training.outcome import (
    Event,
    Progress,
    Result,
    Snapshot,
    StopWhen,
    check_metrics,
    check_parameters,
)
from advjax.training.parallel import gather, own
from advjax.training.signals import Signals, Stopped
from advjax.training.spec import Training, root_keys
from advjax.training.state import TrainState
from advjax.training.step import replays_of

_SHOW_EVERY_S = 5.0  # metrics are fetched at least this often, so that slow steps are seen too


class Run:
    """The mutable middle of ``fit`` and ``fit_together``."""

    def __init__(
        self,
        training: Training,
        devices: Sequence[jax.Device],
        progress: Progress | None,
        stop_when: StopWhen | None = None,
    ) -> None:
        self.training, self.devices, self.stop_when = training, devices, stop_when
        self.progress = progress if hosts.leads() else None
        init_key, step_key, self.evaluation_key = root_keys(training.seed)
        self.state: TrainState = training.first_state(step_key, init_key)
        self.judging = training.judging()
        self.step = 0
        self.folder: Path | None = None
        self.checkpoints: Checkpoints | None = None
        self.metrics: runfolder.Metrics | None = None
        self.signals: Signals | None = None
        self.history: list[runfolder.Row] = []
        self.best: Snapshot | None = None
        self.watched: float | None = None  # the watch's accuracy when it last looked
        self.stopped: str | None = None
        self.evaluated = False  # whether the state as it is has been
        self.resumed_finished = False
        self.pending: list[tuple[int, Any, int | None]] = []  # metrics that are on the device
        self.began = self.shown = self.saved = time.monotonic()

    # --- the folder -------------------------------------------------------------------------

    def open(
        self,
        stack: contextlib.ExitStack,
        folder: Path,
        config: Any,
        source: Path | None,
        overwrite: bool,
        signals: bool = True,
        wait_s: float = 0.0,
    ) -> None:
        """Takes the folder until ``stack`` is left, and goes on where it stands."""
        stack.enter_context(runfolder.alone(folder, wait_s))
        runfolder.open_run(
            folder,
            self.training.describe(),
            config,
            versions=runfolder.versions(self.devices),
            source=source,
            overwrite=overwrite,
        )
        self.folder = folder
        rows = self._resume(folder / "checkpoints")
        self.history = rows
        self.began -= rows[-1]["seconds"] if rows else 0.0
        self.checkpoints = stack.enter_context(Checkpoints(folder / "checkpoints"))
        self.checkpoints.best = self.best.step if self.best else None
        self.metrics = stack.enter_context(runfolder.Metrics(folder, rows, self.note))
        self.signals = stack.enter_context(Signals()) if signals else None

    def follow(self, stack: contextlib.ExitStack) -> None:
        """Takes over where the first process, which has the folder, stands."""
        position = hosts.told(self._standing())
        if position["step"]:
            arrays = hosts.told_arrays(arrays_of(self.state))
            self.state = fill("the first process's state", self.state, arrays)
        self.step, self.evaluated = position["step"], position["evaluated"]
        self.watched, self.stopped = position["watched"], position["stopped"]
        self.resumed_finished = self.ended
        if position["best"] is not None:
            model = self._model(self.state) if self.best is None else self.best.model
            arrays = hosts.told_arrays(arrays_of(model))
            model = fill("the first process's best model", model, arrays)
            self.best = Snapshot(model, position["best"]["step"], position["best"]["metrics"])
        if self.signals is None:
            self.signals = stack.enter_context(Signals())

    def _resume(self, folder: Path) -> list[runfolder.Row]:
        """Loads the latest checkpoint that is whole; returns the rows up to its step."""
        for step in reversed(steps_in(folder)):
            loaded = self._load(folder, step)
            if loaded is None:
                continue
            self.state, position = loaded
            self.step, self.evaluated = step, bool(position.get("evaluated"))
            self.watched, self.stopped = position.get("watched"), position.get("stopped")
            self.resumed_finished = self.ended
            self.best = self._load_best(folder, position.get("best"))
            assert self.folder is not None
            rows = runfolder.read_rows(self.folder, up_to=step)
            if not self.evaluated:
                rows = [r for r in rows if r["kind"] == "train" or r["step"] < step]
            self.note(f"resumed after step {step}")
            return rows
        return []

    def _load(self, folder: Path, step: int) -> tuple[TrainState, dict[str, Any]] | None:
        try:
            arrays, record = read(folder, step)
        except DamagedCheckpointError as error:
            self.note(f"{error}; moved to {set_aside(folder, step)}, an earlier one is used")
            return None
        return fill(f"checkpoint {folder / str(step)}", self.state, arrays), record["position"]

    def _load_best(self, folder: Path, best: Any) -> Snapshot | None:
        if best is None:
            return None
        if best["step"] == self.step:
            return Snapshot(self._model(self.state), self.step, best["metrics"])
        if best["step"] not in steps_in(folder):
            self.note(f"the best checkpoint, step {best['step']}, is gone; best is told anew")
            return None
        loaded = self._load(folder, best["step"])
        return loaded and Snapshot(self._model(loaded[0]), best["step"], best["metrics"])

    def save(self) -> None:
        """A checkpoint of the state as it is; its metrics have been fetched and were good."""
        if self.checkpoints is None:
            return
        check_parameters(self.step, self.state)
        per_epoch = self.training.steps_per_epoch
        turn = self.step // replays_of(self.training.objective)
        self.checkpoints.best = self.best.step if self.best else None
        position = {
            **self._standing(),
            "epoch": turn // per_epoch,
            "offset": turn % per_epoch * self.training.batch_size,
            "seed": self.training.seed,
        }
        self.checkpoints.save(self.step, gather(self.state), position)
        self.saved = time.monotonic()
        self.tell("checkpoint", text=f"checkpoint {self.step}")

    def _standing(self) -> dict[str, Any]:
        """Where the run stands, beside its state; JSON-able."""
        return {
            "step": self.step,
            "evaluated": self.evaluated,
            "watched": self.watched,
            "stopped": self.stopped,
            "best": self.best and {"step": self.best.step, "metrics": dict(self.best.metrics)},
        }

    # --- the loop ---------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Whether no step is left to make."""
        return self.step >= self.training.total_steps or self.stopped is not None

    def begin(self) -> None:
        """Before the first step of this call."""
        total = self.training.total_steps
        self.tell("start", text=f"{total - self.step} of {total} steps to go")
        if self.step and not self.evaluated:
            self.judge()

    def finish(self) -> None:
        """After the last step."""
        if self.checkpoints is not None:
            self.checkpoints.wait()
        if self.stopped is not None:
            self.tell("stopped", text=self.stopped)
        before = ", before this call" if self.resumed_finished else ""
        self.tell("finished", text=f"finished after step {self.step}{before}")

    def stepped(self, metrics: Any, state: Callable[[], TrainState], place: int | None) -> None:
        """A step has been handed to the devices: does what is due after it.

        Args:
          metrics: of the step, on the device; of several runs where ``place`` is one of them.
          state: gives the state after the step; called only where it is needed.
          place: where this run stands in each of the metrics; None where they are its own.
        """
        training, now = self.training, time.monotonic()
        self.step, self.evaluated = self.step + 1, False
        self.pending.append((self.step, metrics, place))
        self.tell("step")
        stop = self.signals is not None and self.signals.received is not None
        due = training.evaluates_at(self.step) or training.watches_at(self.step)
        due = due or self.step == training.total_steps
        late = self.checkpoints is not None and now - self.saved > training.checkpoint_every_s
        logged = self.step % training.log_every == 0
        if hosts.several():  # clocks and signals differ: all do the same at the same steps
            late, stop = late and logged, logged and hosts.any_of(stop)
        else:
            logged = logged or now - self.shown > _SHOW_EVERY_S
        if due or late or stop:
            self.state = state()
        if due or late or stop or logged:
            self.flush()
        if due and not stop:
            self.judge()
            self.save()
        elif late and not stop:
            self.save()
        if stop:
            self.stop()

    def stop(self) -> None:
        """Saves and leaves, after a signal, which another process may have got."""
        assert self.signals is not None
        self.save()
        if self.checkpoints is not None:
            self.checkpoints.wait()
        raise Stopped(self.signals.received or signal.SIGTERM, f"step {self.step}")

    def flush(self) -> None:
        """Fetches the metrics that wait on the device, checks them and writes them down."""
        if not self.pending:
            return
        waiting, self.pending = self.pending, []
        steps = [step for step, _, _ in waiting]
        values = jax.device_get([metrics for _, metrics, _ in waiting])
        rows: list[runfolder.Row] = []
        self.shown = time.monotonic()
        seconds = round(self.shown - self.began, 3)
        bad = None
        for (step, _, place), metrics in zip(waiting, values, strict=True):
            row = {n: float(v if place is None else v[place]) for n, v in metrics.items()}
            bad = check_metrics(step, row, self.training.loss_limit)
            if bad is not None:
                break
            rows.append({"kind": "train", "step": step, "seconds": seconds, **row})
        self._record(rows)
        if bad is not None:
            raise bad
        names = [n for n in rows[0] if n not in ("kind", "step", "seconds")]
        means = {n: sum(r[n] for r in rows) / len(rows) for n in names}
        if self.metrics is not None:
            self.metrics.add_events("train", steps[-1], means)
        self.tell("train", means)

    def judge(self) -> None:
        """The evaluation and the check that are due at this step; either may end the run."""
        if self.training.evaluates_at(self.step):
            self.evaluate()
        if self.training.watches_at(self.step):
            self.watch()
        self.evaluated = True

    def evaluate(self) -> None:
        """Evaluates the state, and keeps it when it is the best so far."""
        model, attacks = self._model(self.state), dict(self.training.attacks)
        metrics: dict[str, float] = {}
        for prefix, data in self.judging.items():
            found = self._measure(model, data, attacks)
            metrics[f"{prefix}clean"] = float(found.clean.value)
            for name, accuracy in found.robust.items():
                metrics[f"{prefix}robust/{name}"] = float(accuracy.value)
            if found.robust:
                metrics[f"{prefix}worst"] = float(found.worst.value)
        self._judged("evaluation", metrics)
        snapshot = Snapshot(model, self.step, metrics)
        if self.best is None or snapshot.score > self.best.score:
            self.best = snapshot
        training = self.training
        if self.step == training.total_steps:
            return
        if training.out_of_patience(self.step, self.best.step):
            self.stopped = (
                f"early stopping: no better evaluation since step {self.best.step} "
                f"({100 * self.best.score:.1f} %)"
            )
        elif self.stop_when is not None:
            self.stopped = self.stop_when(self.history)

    def watch(self) -> None:
        """Looks for catastrophic overfitting, on the same images every time."""
        training = self.training
        data = training.train.subset(training.batch_size, training.seed)
        model = training.model(*map(_copied, (self.state.params, self.state.stats)))
        found = self._measure(model, data, {"watch": training.watch})
        accuracy, before = float(found.robust["watch"].value), self.watched
        self._judged("watch", {"watched_accuracy": accuracy})
        self.watched = accuracy
        if before is not None and before - accuracy > training.watch_drop:
            self.stopped = (
                f"catastrophic overfitting: accuracy under the watch fell from {100 * before:.1f} "
                f"to {100 * accuracy:.1f} % in one epoch"
            )
        elif not self.judging:
            self.best = Snapshot(model, self.step, {"watched_accuracy": accuracy})

    def _measure(self, model: Any, data: Any, attacks: dict[str, Any]) -> Any:
        from advjax.evaluation import evaluate

        check_parameters(self.step, self.state)
        return evaluate(
            model,
            data,
            attacks,
            key=self.evaluation_key,
            batch_size=min(256, len(data)),
            progress=self._interrupt,
            devices=own(self.devices),
        )

    def _judged(self, kind: str, metrics: dict[str, float]) -> None:
        seconds = round(time.monotonic() - self.began, 3)
        self._record([{"kind": kind, "step": self.step, "seconds": seconds, **metrics}])
        if self.metrics is not None:
            self.metrics.add_events(kind, self.step, metrics)
        self.tell(kind, metrics)

    def _interrupt(self, *_: Any, **__: Any) -> None:
        """Called by an evaluation between its parts."""
        if hosts.several():
            return
        if self.signals is not None and self.signals.received is not None:
            self.stop()

    def _record(self, rows: list[runfolder.Row]) -> None:
        self.history += rows
        if self.metrics is not None:
            self.metrics.add(rows)

    def _model(self, state: TrainState) -> Any:
        """The model to evaluate and keep."""
        return self.training.model(*map(_copied, state.evaluated()))

    # --- telling ----------------------------------------------------------------------------

    def tell(self, kind: str, metrics: Mapping[str, float] | None = None, text: str = "") -> None:
        if self.progress is not None:
            self.progress(Event(kind, self.step, self.training.total_steps, metrics or {}, text))

    def note(self, text: str) -> None:
        self.tell("note", text=text)

    def result(self) -> Result:
        evaluations = [r for r in self.history if r["kind"] == "evaluation"]
        metrics = {}
        if evaluations and evaluations[-1]["step"] == self.step:
            row = evaluations[-1]
            metrics = {n: v for n, v in row.items() if n not in ("kind", "step", "seconds")}
        last = Snapshot(self._model(self.state), self.step, metrics)
        return Result(
            best=self.best or last,
            last=last,
            history=tuple(self.history),
            run_dir=self.folder,
            was_finished=self.resumed_finished,
            stopped=self.stopped,
        )


def _copied(tree: Any) -> Any:
    """Copies of the arrays: the state's are donated to the next step."""
    return jax.tree.map(lambda v: jnp.asarray(np.array(v, copy=True)), tree)
