"""One cell of a sweep: run it in its own folder, and say how it ended, whatever happens."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import json
import math
import re
import shutil
import sys
import time
import traceback
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from advjax.experiment import Experiment, load_experiment
from advjax.runs import folder as runfolder
from advjax.runs.checkpoint import steps_in
from advjax.runs.folder import RunError
from advjax.runs.outcome import Progress
from advjax.sweeps.outcome import Outcome, SweepError
from advjax.sweeps.search import Rule

FORMAT = 1
_PATIENCE_S = 60.0
_COMPILES_S = 0.1  # a cell that is faster has compiled nothing large
# What ends the sweep instead of its cell: nothing can be written down any more.
_LEAST_FREE = 64 * 1024
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


@dataclasses.dataclass(frozen=True)
class Task:
    """What a worker needs to know; JSON-able.

    Attributes:
      name: the configuration's hash.
      experiment: the experiment file.
      config: the fields of its Config.
      folder: the cell's own folder, an absolute path.
      memory: bytes that a training may need on a device; what the device has when None.
      rule: the fields of the ``Rule`` that may stop a training; none when None.
    """

    name: str
    experiment: str
    config: Mapping[str, Any]
    folder: str
    memory: float | None = None
    rule: Mapping[str, Any] | None = None

    def stop_when(self) -> Rule | None:
        return None if self.rule is None else Rule(**self.rule)


def run_cell(task: Task, progress: Progress | None = None) -> Outcome:
    """Runs a cell, or goes on with it, or tells how it ended before.

    The folder has ``cell.json``, ``run/`` (what the experiment writes) and, when it has ended,
    ``result.json``, with ``error.txt`` after a failure. Only one process at a time runs a cell.

    Raises:
      SweepError: if another process runs it and does not end, and if the disk is full or cannot be
        written to.
      Stopped: if it was asked to stop; it has saved its state.
    """
    folder = Path(task.folder)
    with held(folder):
        before = read_outcome(folder)
        if before is not None:
            return before
        write_down(task)
        outcome = _run(task, folder, progress)
        write_down(task, outcome)
        if outcome.seconds > _COMPILES_S:
            make_room()
        return outcome


def make_room() -> None:
    """Drops the compiled programs of earlier cells where they have used up half of the maps.

    XLA's CPU compiler maps every kernel by itself, thousands for a deep network, and Linux lets a
    process have 65,530 maps by default: after some thirty architectures the compiler found no
    memory and ended the process.
    """
    if "jax" not in sys.modules:
        return
    try:
        with open("/proc/self/maps", "rb") as maps:
            used = sum(1 for _ in maps)
        limit = int(Path("/proc/sys/vm/max_map_count").read_text())
    except OSError:  # not Linux
        return
    if used > limit // 2:
        sys.modules["jax"].clear_caches()


def write_down(task: Task, outcome: Outcome | None = None) -> None:
    """What the cell is, or how it ended, into its folder."""
    folder = Path(task.folder)
    if outcome is None:
        runfolder.write_json(folder / "cell.json", {"name": task.name, "config": task.config})
    else:
        result = {"format": FORMAT, **dataclasses.asdict(outcome)}
        runfolder.write_json(folder / "result.json", result)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds the cell, after the worker of an earlier driver that may still be saving it.

    Raises:
      SweepError: if that does not end, and when the disk is full or cannot be written to.
    """
    try:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(runfolder.lock(folder, _PATIENCE_S))
            except RunError as error:
                raise SweepError(f"{folder} is held by another process") from error
            yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise SweepError(f"{folder}: {error.strerror}; what is finished is kept") from error
        raise


def loaded(path: str) -> Experiment:
    """The experiment, imported once a process: its functions stay the same, and so compiled."""
    file = Path(path)
    return _imported(file, file.read_bytes() if file.is_file() else b"")


@functools.lru_cache(maxsize=4)
def _imported(file: Path, content: bytes) -> Experiment:
    del content  # a file that was changed is another
    return load_experiment(file)


def read_outcome(folder: Path) -> Outcome | None:
    """How the cell ended, or None while it has not; a damaged file counts as none."""
    try:
        found = json.loads((folder / "result.json").read_text())
    except (OSError, ValueError):
        return None
    names = {f.name for f in dataclasses.fields(Outcome)}
    if not isinstance(found, dict) or found.get("format") != FORMAT or not names <= set(found):
        return None
    return Outcome(**{name: found[name] for name in names})


def forget(folder: Path) -> None:
    """Lets a cell that has ended be run again."""
    for name in ("result.json", "error.txt"):
        (folder / name).unlink(missing_ok=True)


def how_far(folder: Path) -> int:
    """Steps that a cell would not have to make again; 0 where it keeps no checkpoints itself."""
    return max(steps_in(folder / "run" / "checkpoints"), default=0)


def _run(task: Task, folder: Path, progress: Progress | None) -> Outcome:
    began = time.monotonic()
    try:
        experiment = loaded(task.experiment)
        config = config_of(experiment, task.config)
        if experiment.build is not None:
            training = experiment.build(config)
            check_memory(training, task.memory)
            from advjax.training import fit

            result = fit(
                training,
                folder / "run",
                config=dataclasses.asdict(config),
                source=experiment.path,
                progress=progress,
                stop_when=task.stop_when(),
            )
            return trained(result)
        metrics = _studied(experiment, config, folder / "run", progress)
        return Outcome("done", "", metrics, time.monotonic() - began)
    except Exception as error:
        return ended_by(error, folder, time.monotonic() - began)


def ended_by(error: Exception, folder: Path, seconds: float) -> Outcome:
    """What an error says of a cell; one that ends the sweep is raised again."""
    if isinstance(error, SweepError) or getattr(error, "errno", None) in _NO_ROOM:
        raise error
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return Outcome("ko", _memory(str(error)), seconds=seconds)
    if isinstance(error, FloatingPointError):
        return Outcome("ko", _diverged(error), seconds=seconds)
    return _failed(folder, error, seconds)


def check_memory(training: Any, budget: float | None) -> int | None:
    """How many such trainings the budget, or what the device has, is enough for; None if unknown.

    Raises:
      MemoryError: if it is not enough for one.
    """
    import jax

    from advjax.training.memory import available_bytes, predicted_bytes

    devices = jax.local_devices()
    there = available_bytes(devices[0]) if budget is None else budget
    needed = predicted_bytes(training, len(devices))
    if there is not None and needed > there:
        raise MemoryError(f"needs {needed / 1e9:.3g} GB, {there / 1e9:.3g} GB are there")
    return None if there is None else int(there // needed)


def trained(result: Any) -> Outcome:
    """The outcome of ``fit``'s result."""
    metrics: dict[str, Any] = {"step": result.last.step}
    for which in ("last", "best"):
        found = getattr(result, which).metrics
        metrics.update({f"{which}/{name}": _number(v) for name, v in found.items()})
    metrics["best/step"] = result.best.step
    seconds = result.history[-1]["seconds"] if result.history else 0.0
    return Outcome("done", result.stopped or "", metrics, seconds)


def _studied(
    experiment: Experiment, config: Any, folder: Path, progress: Progress | None
) -> dict[str, Any]:
    """The numbers that ``main`` returns."""
    assert experiment.main is not None
    folder.mkdir(parents=True, exist_ok=True)
    told = {"progress": progress} if experiment.takes_progress else {}
    found = experiment.main(config, folder, **told)
    plain = {n: _number(v) for n, v in found.items() if n != "table"}
    return {n: v for n, v in plain.items() if isinstance(v, (int, float, str, type(None)))}


def _number(value: Any) -> Any:
    """A number as JSON has it; what is no number stays as it is."""
    if isinstance(value, (bool, int, str)) or value is None:
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        return value
    return number if math.isfinite(number) else None


def config_of(experiment: Experiment, fields: Mapping[str, Any]) -> Any:
    """The Config of JSON fields: tuples and paths are what they were."""
    hints = typing.get_type_hints(experiment.config)

    def one(name: str, value: Any) -> Any:
        if isinstance(value, list):
            return tuple(one(name, v) for v in value)
        kinds = {hints.get(name), *typing.get_args(hints.get(name))}
        return Path(value) if isinstance(value, str) and Path in kinds else value

    return experiment.config(**{name: one(name, value) for name, value in fields.items()})


def _memory(message: str) -> str:
    """``out of memory, needs 31.0 GB more`` of an allocator's message."""
    if message.startswith("needs "):
        return f"out of memory, {message}"
    found = re.search(r"allocat\w* (\d+) ?bytes", message, re.IGNORECASE)
    return "out of memory" + (f", needs {int(found[1]) / 1e9:.1f} GB more" if found else "")


def _diverged(error: FloatingPointError) -> str:
    step = getattr(error, "step", None)
    return f"diverged: {error}" if step is None else f"diverged at step {step}"


def _failed(folder: Path, error: BaseException, seconds: float) -> Outcome:
    if shutil.disk_usage(folder).free < _LEAST_FREE:  # whatever the error says then
        raise SweepError(f"{folder}: the disk is full; what is finished is kept") from error
    with contextlib.suppress(OSError):
        (folder / "error.txt").write_text("".join(traceback.format_exception(error)))
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return Outcome("failed", reason[:500], seconds=seconds)
