"""``train``: the loop around a program's steps, for one run and for several in lockstep."""

from __future__ import annotations

import collections
import contextlib
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from advjax.runs import hosts
from advjax.runs.checkpoint import CheckpointError
from advjax.runs.folder import RunError
from advjax.runs.outcome import DivergedError, Progress, Result
from advjax.runs.program import Program
from advjax.runs.run import Run
from advjax.runs.signals import Signals, Stopped
from advjax.runs.watchers import Watcher


def train(
    program: Program[Any],
    run_dir: str | os.PathLike[str] | None = None,
    *,
    config: Any = None,
    source: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    watchers: Sequence[Watcher] = (),
    wait_s: float = 0.0,
) -> Result:
    """Runs a program to its end, and with a run folder saves and resumes.

    After ``advjax.runs.hosts.join`` the same call in every process is one run; the first process
    has the folder.

    The same call on the same folder goes on where the last one was killed. On SIGTERM or SIGINT the
    state is saved and ``Stopped`` (a ``SystemExit``) is raised; without a folder the signals are
    left alone.

    Args:
      program: what to compute.
      run_dir: the run's folder; made when missing, resumed when it holds this run. None keeps
        everything in memory.
      config: JSON-able settings the program was built from; kept, and compared on resuming.
      source: the experiment file, copied into the folder.
      overwrite: deletes the run that the folder holds.
      progress: called with an ``Event`` now and then.
      watchers: beside the program's own.
      wait_s: seconds to wait while another process trains in this folder.

    Raises:
      RunError: if the folder holds another run (the fields are named) or something else.
      DivergedError: at the first bad step; nothing of it is saved.
    """
    with contextlib.ExitStack() as stack:
        run = Run(program, progress, watchers)
        if run_dir is not None:
            opened = functools.partial(
                run.open,
                stack,
                Path(run_dir).absolute(),
                config,
                None if source is None else Path(source),
                overwrite,
                wait_s,
            )
            if hosts.is_distributed():
                _open_first(run, opened)
            else:
                opened()
            run.signals = stack.enter_context(Signals())
        run.begin()
        if not run.ended:
            step = lambda state: program.step(state, program.batch(run.at.step))
            lockstep([run], program.place(run.state), step)
        return run.finish()


def _open_first(run: Run, opened: Callable[[], None]) -> None:
    """Of several processes the first one opens the folder, and the others follow."""
    refused: Exception | None = None
    if hosts.is_coordinator():
        try:
            opened()
        except (RunError, CheckpointError) as error:
            refused = error
    said = hosts.broadcast(refused and str(refused))
    if said is not None:
        raise refused or RunError(said)
    run.follow()


def lockstep(
    runs: Sequence[Run],
    state: Any,
    step: Callable[[Any], tuple[Any, Any]],
    *,
    member: Callable[[Any, int], Any] | None = None,
    until: int = 0,
    diverged: dict[int, DivergedError] | None = None,
) -> list[Run]:
    """Makes the steps of runs that stand at the same step; each has its state where it ends.

    Args:
      runs: one, or several whose states are one.
      state: on the devices.
      step: the next state and the metrics.
      member: ``(state, i)`` gives the i-th run's state; None where there is one run.
      until: how many of them may still go on when it returns.
      diverged: by ``id(run)`` what ended the runs that diverged; None raises it.

    Returns:
      Those that go on, with their states.

    Raises:
      Stopped: after a signal, when all have been saved.
    """
    several = member is not None
    member = member or (lambda state, i: state)
    limit = steps_in_flight(runs[0].program.devices)
    in_flight: collections.deque[Any] = collections.deque()
    active = dict(enumerate(runs))
    while len(active) > until:
        state, metrics = step(state)
        in_flight.append(metrics)
        if len(in_flight) >= limit:
            jax.block_until_ready(in_flight.popleft())
        stopped: dict[int, Stopped] = {}
        for i, run in list(active.items()):
            own = functools.partial(member, state, i)
            try:
                run.stepped(metrics, own, i if several else None)
            except Stopped as error:
                stopped[i] = error
            except DivergedError as error:
                if diverged is None:
                    raise
                diverged[id(run)] = error
                del active[i]
                continue
            if run.ended:
                run.state = own()
                del active[i]
        if stopped:
            for i in active.keys() - stopped.keys():
                active[i].leave(functools.partial(member, state, i))
            raise next(iter(stopped.values()))
    for i, run in active.items():
        run.state = member(state, i)
    return [*active.values()]


def steps_in_flight(devices: Sequence[jax.Device]) -> int:
    """How many steps may be handed to the devices before the first of them has to be done.

    Enough to keep a device busy. CPU devices of one process share a thread pool: a second step's
    all-reduce can take the threads that the first one's is waiting for, and neither ends.
    """
    several_cpus = len(devices) > 1 and devices[0].platform == "cpu"
    return 1 if several_cpus else 4
