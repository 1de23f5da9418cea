"""How tasks are handed out: one contract, and this machine's executors of it."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from advjax import process_settings
from advjax.sweeps.cell import Progress, Task, run_cell
from advjax.sweeps.outcome import Outcome, SweepError

GRACE_S = 30.0  # for a worker to save its state before it is killed
_TRIES = 3  # to start a worker


class Executor(abc.ABC):
    """Runs tasks somewhere, each in a slot; a context manager that ends what it started.

    Kinds of executors differ in their slots and futures. A future is what ``_submit`` returns for a
    task, anything that can be hashed. Its answer is a dictionary: the fields of ``Outcome``; or
    ``lost`` and why, for which the cell is run again; or ``error``, for which the sweep must end.
    """

    NAME = ""

    def __init__(self) -> None:
        self._running: dict[Any, tuple[str, Task]] = {}  # by their futures

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *exc: object) -> None:
        """Ends what was started; what still runs may save its state first."""
        self._running.clear()

    def free(self) -> str | None:
        """The name of a slot that takes a task now, or None."""
        used = {slot for slot, _ in self._running.values()}
        names = (f"{self.NAME}-{i}" for i in range(self._slots()))
        return next((name for name in names if name not in used), None)

    def submit(self, task: Task) -> None:
        """Gives a task to the slot that ``free`` named."""
        slot = self.free()
        assert slot is not None
        self._running[self._submit(task, slot)] = slot, task

    def wait(self, seconds: float) -> list[tuple[str, Outcome | str]]:
        """The names of tasks that ended, and how: with an outcome, or lost with their worker, and
        why. Returns as soon as one has, or nothing after so many seconds.

        Raises:
          SweepError: if a worker found what must end the sweep.
        """
        found: list[tuple[str, Outcome | str]] = []
        for future, answer in self._answers(seconds) if self._running else ():
            _, task = self._running.pop(future)
            if "error" in answer:
                raise SweepError(answer["error"])
            found.append((task.name, answer["lost"] if "lost" in answer else Outcome(**answer)))
        return found

    @abc.abstractmethod
    def start(self, folder: Path) -> None:
        """Gets ready; ``folder`` is the sweep's, for logs."""

    @abc.abstractmethod
    def _slots(self) -> int:
        """How many tasks run at a time."""

    @abc.abstractmethod
    def _submit(self, task: Task, slot: str) -> Any:
        """Begins a task; returns its future."""

    @abc.abstractmethod
    def _answers(self, seconds: float) -> list[tuple[Any, Mapping[str, Any]]]:
        """The futures that are done, waited for at most so long, and what they answer."""


class Here(Executor):
    """In this process: nothing to start, compiled programs are shared.

    Args:
      progress: told of the training inside a cell, as by ``fit``.
      together: how many trainings of one program may run as one, mapped over their numbers (by
        ``fit_together``), where memory allows; 1 for one after the other. When None, one on CPUs,
        where that is faster, and 64 elsewhere.
    """

    NAME = "here"

    def __init__(self, progress: Progress | None = None, *, together: int | None = None) -> None:
        super().__init__()
        if together is not None and together < 1:
            raise ValueError(f"together={together}; expected at least 1")
        self._progress, self._together = progress, together

    def start(self, folder: Path) -> None:
        if self._together is None:
            from advjax.sweeps.population import together_by_default

            self._together = together_by_default()

    def _slots(self) -> int:
        return self._together or 1

    def _submit(self, task: Task, slot: str) -> str:
        return task.name

    def _answers(self, seconds: float) -> list[tuple[Any, Mapping[str, Any]]]:
        tasks = [task for _, task in self._running.values()]
        if len(tasks) == 1:
            return [(tasks[0].name, vars(run_cell(tasks[0], self._progress)))]
        from advjax.sweeps.population import run_cells

        found = run_cells(tasks, self._slots(), self._progress)
        return [(name, vars(outcome)) for name, outcome in found.items()]


class Processes(Executor):
    """Worker processes on this machine, each with its share of the cores.

    A worker that ends, killed or crashed, costs the progress of its cell since the last checkpoint
    and is replaced.

    Args:
      workers: how many, at least 1.
      environment: variables for all of them, such as ``XLA_FLAGS``.
      devices: what ``CUDA_VISIBLE_DEVICES`` is for each worker in turn, such as ``("0", "1")``, so
        that each has a GPU; None leaves it alone.
    """

    NAME = "worker"

    def __init__(
        self,
        workers: int = 2,
        *,
        environment: Mapping[str, str] | None = None,
        devices: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if workers < 1:
            raise ValueError(f"workers={workers}; expected at least 1")
        self._workers: dict[str, _Worker] = {}
        for i in range(workers):
            given = dict(environment or {})
            if devices is not None:
                given["CUDA_VISIBLE_DEVICES"] = devices[i % len(devices)]
            self._workers[f"{self.NAME}-{i}"] = _Worker(given, _share(i, workers))

    def start(self, folder: Path) -> None:
        (folder / "workers").mkdir(exist_ok=True)
        for name, worker in self._workers.items():
            worker.start(folder / "workers" / f"{name}.log")

    def pids(self) -> list[int]:
        """The ids of the processes that run now."""
        return [w.process.pid for w in self._workers.values() if w.process is not None]

    def _slots(self) -> int:
        return len(self._workers)

    def _submit(self, task: Task, slot: str) -> _Worker:
        worker = self._workers[slot]
        worker.give(task)
        return worker

    def _answers(self, seconds: float) -> list[tuple[Any, Mapping[str, Any]]]:
        pipes = {worker.pipe(): worker for worker in self._running}
        ready = [pipes[pipe] for pipe in select.select([*pipes], [], [], seconds)[0]]
        return [(worker, worker.answer()) for worker in ready]

    def __exit__(self, *exc: object) -> None:
        for worker in self._workers.values():
            worker.ask_to_end(busy=worker in self._running)
        until = time.monotonic() + GRACE_S
        for worker in self._workers.values():
            worker.end(until)
        super().__exit__(*exc)


class _Worker:
    """One worker process after the other; ``process`` is the last one."""

    def __init__(self, environment: Mapping[str, str], cores: set[int] | None) -> None:
        self.process: subprocess.Popen[str] | None = None
        self._log = Path(os.devnull)
        self._environment, self._cores = worker_environment(environment), cores
        self._ready = False

    def start(self, log: Path) -> None:
        """Starts a process in the place of the last one."""
        self._close()
        self._log, self._ready = log, False
        with log.open("a") as output:
            self.process = subprocess.Popen(
                # Without -P a file here that is called as a module of Python takes its place.
                [sys.executable, "-P", "-m", "advjax.sweeps.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                env=self._environment,
                start_new_session=True,  # Ctrl-C is the driver's; it passes the end on
            )
        if self._cores is not None:
            os.sched_setaffinity(self.process.pid, self._cores)

    def pipe(self) -> Any:
        assert self.process is not None
        return self.process.stdout

    def give(self, task: Task) -> None:
        """Begins a task, in another process where the last one has ended.

        Raises:
          SweepError: if none starts.
        """
        assert self.process is not None
        if self.process.poll() is not None:
            self.start(self._log)
        tries = 1
        while not self._is_ready():
            reason = self._reason()
            if self.process.returncode < 0:
                break
            if tries == _TRIES:
                raise SweepError(f"a worker does not start: {reason}, see {self._log}")
            tries += 1
            self.start(self._log)
        assert self.process.stdin is not None
        # One that was killed meanwhile says so by its pipe, and the task counts as lost.
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(dataclasses.asdict(task)) + "\n")
            self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """What it says of its task; the task is lost when it has ended."""
        try:
            found: dict[str, Any] = json.loads(self.pipe().readline())
        except ValueError:
            found = {"lost": self._reason()}
            self.start(self._log)
        return found

    def ask_to_end(self, *, busy: bool) -> None:
        """A training saves its state and leaves; an idle worker leaves."""
        if self.process is not None and self.process.poll() is None:
            if busy:
                self.process.send_signal(signal.SIGTERM)
            assert self.process.stdin is not None
            self.process.stdin.close()

    def end(self, until: float) -> None:
        if self.process is not None:
            try:
                self.process.wait(max(until - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self._close()

    def _is_ready(self) -> bool:
        """Waits for a new process to say that it has started; False when it has ended."""
        assert self.process is not None
        if not self._ready:
            self._ready = self.pipe().readline() != ""
        return self._ready

    def _reason(self) -> str:
        """How it ended."""
        assert self.process is not None
        code = self.process.wait()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def _close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout) if self.process else ():
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
