"""The workers' side: what runs a task in a process of an executor, and says what came of it.

``python -m advjax.sweeps.worker`` is a worker of ``Processes``: one JSON object a line, a ``Task``
in and its answer out. It ends when its input does, as when the driver is gone: a cell that is
running then saves its state first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advjax.runs import folder as runfolder
from advjax.runs.signals import Stopped
from advjax.sweeps.cell import Task, run_cell
from advjax.sweeps.outcome import SweepError

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


def run_task(task: Task, terms: Terms | None = None) -> dict[str, Any]:
    """Runs a cell, on the driver's machine when ``terms`` is None.

    Returns:
      Its ``Outcome`` as a dictionary; or ``error``, for which the sweep must end; or ``lost``, for
      which the cell is run again.
    """
    try:
        problem = None if terms is None else _problem(task, terms)
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


def main() -> None:
    sys.path.append(os.getcwd())  # what an experiment imports from there
    # What the experiment prints goes to the log, never between the lines of the protocol.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    tasks: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    busy = threading.Event()

    def read() -> None:
        for line in sys.stdin:
            tasks.put(line)
        tasks.put(None)
        if busy.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=read, daemon=True).start()
    answers.write("ready\n")
    while (line := tasks.get()) is not None:
        busy.set()
        answer = run_task(Task(**json.loads(line)))
        busy.clear()
        with contextlib.suppress(BrokenPipeError):  # the driver is gone
            answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
