"""What executors on many machines have in common: the driver's side of it, and the workers'."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
import hashlib
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advjax.runs import folder as runfolder
from advjax.runs.signals import Stopped
from advjax.sweeps.cell import Task, run_cell
from advjax.sweeps.executors import Ended, Lost, worker_environment
from advjax.sweeps.outcome import Outcome, SweepError

_LOOK_S = 5.0  # between looks of a job for its driver


@dataclasses.dataclass(frozen=True)
class Terms:
    """What a worker must find, or it does not run the cell.

    Attributes:
      token: of the driver, in the file ``driver`` of the workers' folder.
      source: SHA-256 of the experiment file.
      packages: name to version.
    """

    token: str
    source: str
    packages: Mapping[str, str]

    @classmethod
    def of(cls, task: Task, token: str) -> Terms:
        """The terms as this machine, the driver's, has them."""
        return cls(token, _digest(task.experiment), _packages())


class Cluster(abc.ABC):
    """What both have: slots for so many cells at a time, and the driver's token."""

    NAME = ""

    def __init__(self, workers: int | None, environment: Mapping[str, str] | None) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"workers={workers}; at least 1 is taken")
        self._workers = workers
        self._given = environment or {}
        self._running: dict[Any, tuple[str, Task]] = {}  # by Ray's or submitit's handle
        self._token, self._driver = "", Path(os.devnull)

    def __exit__(self, *exc: object) -> None:
        if self._token:
            with contextlib.suppress(OSError):
                self._driver.unlink()
        self._end()
        self._token = ""
        self._running.clear()

    def start(self, folder: Path) -> None:
        """Gets ready; ``folder`` is the sweep's.

        Raises:
          SweepError: if the cluster does not answer, or has no room for a cell.
          ValueError: for a parameter that it does not know.
        """
        self._driver, self._token = folder / "workers" / "driver", secrets.token_hex(16)
        self._driver.parent.mkdir(exist_ok=True)
        self._driver.write_text(self._token)
        self._begin(self._driver.parent)

    def free(self) -> str | None:
        """The name of a slot that no cell has, or None."""
        taken = {slot for slot, _ in self._running.values()}
        names = (f"{self.NAME}-{i}" for i in range(self._limit()))
        return next((name for name in names if name not in taken), None)

    def submit(self, task: Task) -> None:
        """Hands a task to the cluster."""
        slot = self.free()
        assert slot is not None
        self._running[self._hand(task, Terms.of(task, self._token))] = slot, task

    def _ended(self, handle: Any) -> Ended | Lost:
        _, task = self._running.pop(handle)
        answer = self._answer(handle)
        if "error" in answer:
            raise SweepError(answer["error"])
        if "lost" in answer:
            return Lost(task.name, answer["lost"])
        return Ended(task.name, Outcome(**answer))

    def _added(self) -> dict[str, str]:
        """What a worker's environment has beside, or instead of, that of its machine."""
        found = worker_environment(self._given)
        ours = ("JAX_", "XLA_")
        return {n: v for n, v in found.items() if n.startswith(ours) or os.environ.get(n) != v}

    @abc.abstractmethod
    def _begin(self, logs: Path) -> None: ...

    @abc.abstractmethod
    def _end(self) -> None: ...

    @abc.abstractmethod
    def _limit(self) -> int: ...

    @abc.abstractmethod
    def _hand(self, task: Task, terms: Terms) -> Any: ...

    @abc.abstractmethod
    def _answer(self, handle: Any) -> dict[str, Any]: ...


def run_task(task: Task, terms: Terms) -> dict[str, Any]:
    """Runs a cell.

    Returns:
      Its ``Outcome`` as a dictionary; or ``error``, for which the sweep must end; or ``lost``, for
      which the cell is run again.
    """
    try:
        problem = _problem(task, terms)
        if problem is not None:
            return {"error": f"{socket.gethostname()} {problem}"}
        return dataclasses.asdict(run_cell(task))
    except SweepError as error:
        # A machine that has gone may hold its lock on a shared folder for some time.
        held = isinstance(error.__cause__, runfolder.RunError)
        return {"lost" if held else "error": str(error)}
    except Stopped as stopped:
        return {"lost": f"{signal.Signals(int(stopped.code or 0) - 128).name} at {stopped.after}"}
    except Exception as error:
        return {"lost": " ".join(f"{type(error).__name__}: {error}".split())[:500]}


def run_job(task: Task, terms: Terms) -> dict[str, Any]:
    """``run_task`` in a process of its own, which ends when its driver does or is another."""
    # Under submitit SIGTERM does nothing, and SIGUSR2 (the time is nearly up) raises anywhere: a
    # training shall save its state instead, and anything else end.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, lambda *_: os.kill(os.getpid(), signal.SIGTERM))

    def look() -> None:
        while _token(task) in (terms.token, None):
            time.sleep(_LOOK_S)
        os.kill(os.getpid(), signal.SIGTERM)

    if _token(task) == terms.token:
        threading.Thread(target=look, daemon=True).start()
    return run_task(task, terms)


def _token(task: Task) -> str | None:
    """The driver's; empty where there is none, None where the folder cannot be read just now."""
    try:
        return (_folder(task) / "workers" / "driver").read_text()
    except FileNotFoundError:
        return ""
    except OSError:
        return None


def _folder(task: Task) -> Path:
    return Path(task.folder).parents[1]


def _problem(task: Task, terms: Terms) -> str | None:
    """What this machine lacks."""
    must = "; it must be at the same path on every machine"
    if _token(task) != terms.token:
        return f"does not see the sweep's folder {_folder(task)}, or sees another{must}"
    try:
        if _digest(task.experiment) != terms.source:
            return f"sees another version of {task.experiment}{must}"
    except OSError as error:
        return f"does not see {task.experiment}: {error.strerror}{must}"
    here = _packages()
    for name, version in terms.packages.items():
        if here.get(name) != version:
            return f"has {name} {here.get(name)}, the driver {version}; equal ones are needed"
    return None


def _digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@functools.cache
def _packages() -> dict[str, str]:
    return dict(runfolder.versions([])["packages"])
