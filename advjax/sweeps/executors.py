"""Where cells run: in this process, or in worker processes of this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from advjax import process_settings
from advjax.sweeps.cell import Progress, Task, run_cell
from advjax.sweeps.outcome import Outcome, SweepError

GRACE_S = 30.0  # for a worker to save its state before it is killed


@dataclasses.dataclass(frozen=True)
class Ended:
    """A cell that ended."""

    name: str
    outcome: Outcome


@dataclasses.dataclass(frozen=True)
class Lost:
    """A cell whose worker ended first, and how it did."""

    name: str
    reason: str


class Executor(Protocol):
    """Runs tasks somewhere; a context manager that ends what it started."""

    def __enter__(self) -> Executor: ...

    def __exit__(self, *exc: object) -> None: ...

    def start(self, folder: Path) -> None:
        """Gets ready; ``folder`` is the sweep's, for logs."""

    def free(self) -> str | None:
        """The name of a worker that takes a task now, or None."""

    def submit(self, task: Task) -> None:
        """Gives a task to the worker that ``free`` named."""

    def wait(self, seconds: float) -> list[Ended | Lost]:
        """What happened, as soon as something has, or nothing after so many seconds."""


class Here:
    """In this process: nothing to start, compiled programs are shared.

    Args:
      progress: told of the training inside a cell, as by ``fit``.
      together: how many trainings of one program may run as one, mapped over their numbers (by
        ``fit_together``), where memory allows; 1 for one after the other. When None, one on CPUs,
        where that is faster, and 64 elsewhere.
    """

    NAME = "here"

    def __init__(self, progress: Progress | None = None, *, together: int | None = None) -> None:
        if together is not None and together < 1:
            raise ValueError(f"together={together}; at least 1 is taken")
        self._progress, self._together = progress, together
        self._tasks: list[Task] = []

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def start(self, folder: Path) -> None:
        if self._together is None:
            from advjax.sweeps.population import together_by_default

            self._together = together_by_default()

    def free(self) -> str | None:
        assert self._together is not None
        return self.NAME if len(self._tasks) < self._together else None

    def submit(self, task: Task) -> None:
        self._tasks.append(task)

    def wait(self, seconds: float) -> list[Ended | Lost]:
        assert self._together is not None
        tasks, self._tasks = self._tasks, []
        if len(tasks) == 1:
            return [Ended(tasks[0].name, run_cell(tasks[0], self._progress))]
        from advjax.sweeps.population import run_cells

        found = run_cells(tasks, self._together, self._progress)
        return [Ended(name, outcome) for name, outcome in found.items()]


class Processes:
    """Worker processes on this machine, each with its share of the cores.

    A worker that ends, killed or crashed, costs the progress of its cell since the last checkpoint
    and is replaced.

    Args:
      workers: how many, at least 1.
      environment: variables for all of them, such as ``XLA_FLAGS``.
      devices: what ``CUDA_VISIBLE_DEVICES`` is for each worker in turn, such as ``("0", "1")``, so
        that each has a GPU; None leaves it alone.
    """

    def __init__(
        self,
        workers: int = 2,
        *,
        environment: Mapping[str, str] | None = None,
        devices: Sequence[str] | None = None,
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers={workers}; at least 1 is taken")
        self._workers = [_Worker(i, workers, environment or {}, devices) for i in range(workers)]
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *exc: object) -> None:
        for worker in self._workers:
            worker.ask_to_end()
        until = time.monotonic() + GRACE_S
        for worker in self._workers:
            worker.end(until)
        self._selector.close()

    def start(self, folder: Path) -> None:
        for worker in self._workers:
            worker.log = folder / "workers" / f"{worker.name}.log"
            worker.log.parent.mkdir(exist_ok=True)
            self._run(worker)

    def free(self) -> str | None:
        worker = self._idle()
        return None if worker is None else worker.name

    def submit(self, task: Task) -> None:
        worker = self._idle()
        assert worker is not None
        worker.give(task)

    def wait(self, seconds: float) -> list[Ended | Lost]:
        events: list[Ended | Lost] = []
        for key, _ in self._selector.select(seconds):
            worker: _Worker = key.data
            task = worker.task
            answer = worker.answer()
            if answer is None:
                self._selector.unregister(key.fileobj)
                reason = worker.reason()
                if task is not None:
                    events.append(Lost(task.name, reason))
                elif worker.idle_ends > 2:
                    raise SweepError(f"a worker does not start: {reason}, see {worker.log}")
                self._run(worker)
            elif task is not None:
                events.append(Ended(task.name, answer))
        return events

    def pids(self) -> list[int]:
        """The ids of the processes that run now."""
        return [w.process.pid for w in self._workers if w.process is not None]

    def _idle(self) -> _Worker | None:
        return next((w for w in self._workers if w.task is None), None)

    def _run(self, worker: _Worker) -> None:
        worker.run()
        self._selector.register(worker.pipe(), selectors.EVENT_READ, worker)


class _Worker:
    """One worker process and what it is doing."""

    def __init__(
        self, i: int, n: int, environment: Mapping[str, str], devices: Sequence[str] | None
    ) -> None:
        self.name = f"worker-{i}"
        self.log = Path(os.devnull)
        self.process: subprocess.Popen[str] | None = None
        self.task: Task | None = None
        self.idle_ends = 0  # ends in a row without a task: it cannot even start
        self._environment = worker_environment(environment)
        if devices is not None:
            self._environment["CUDA_VISIBLE_DEVICES"] = devices[i % len(devices)]
        self._cores = _share(i, n)

    def run(self) -> None:
        if self.process is not None:
            self._close()
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "advjax.sweeps.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self._environment,
                start_new_session=True,  # Ctrl-C is the driver's; it passes the end on
            )
        if self._cores is not None:
            os.sched_setaffinity(self.process.pid, self._cores)
        self.task = None

    def pipe(self) -> Any:
        assert self.process is not None
        return self.process.stdout

    def give(self, task: Task) -> None:
        assert self.process is not None and self.process.stdin is not None
        self.task = task
        # One that has just ended says so by its pipe, and the task counts as lost.
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(dataclasses.asdict(task)) + "\n")
            self.process.stdin.flush()

    def answer(self) -> Outcome | None:
        """Its outcome, or None when it has ended."""
        try:
            said = json.loads(self.pipe().readline())
        except ValueError:
            self.idle_ends += self.task is None
            self.task = None
            return None
        self.task, self.idle_ends = None, 0
        if "error" in said:
            raise SweepError(said["error"])
        return Outcome(**said)

    def reason(self) -> str:
        """How it ended."""
        assert self.process is not None
        code = self.process.wait()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def ask_to_end(self) -> None:
        """A training saves its state and leaves; an idle worker leaves."""
        if self.process is not None and self.process.poll() is None:
            if self.task is not None:
                self.process.send_signal(signal.SIGTERM)
            assert self.process.stdin is not None
            self.process.stdin.close()

    def end(self, until: float) -> None:
        if self.process is None:
            return
        try:
            self.process.wait(max(until - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._close()

    def _close(self) -> None:
        assert self.process is not None
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def worker_environment(given: Mapping[str, str]) -> dict[str, str]:
    """This process's variables and those given, with the settings that must stand before a worker
    starts, and this very package on its path."""
    found = {**os.environ, **given}
    found.update(process_settings.settings(found))
    root, path = str(Path(__file__).parents[2]), found.get("PYTHONPATH")
    found["PYTHONPATH"] = f"{root}{os.pathsep}{path}" if path else root
    return found


def _share(i: int, n: int) -> set[int] | None:
    """The cores of worker i of n; None where the system cannot bind them."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))
    if n >= len(cores):
        return {cores[i % len(cores)]}
    return set(cores[i * len(cores) // n : (i + 1) * len(cores) // n])
