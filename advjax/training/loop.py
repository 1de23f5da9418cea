"""``fit``: the training loop around the compiled step."""

from __future__ import annotations

import collections
import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from advjax.training import hosts, runfolder
from advjax.training.checkpoint import CheckpointError
from advjax.training.outcome import Progress, Result, StopWhen
from advjax.training.parallel import place, positions, replicate, steps_in_flight
from advjax.training.program import compiled_step
from advjax.training.run import Run
from advjax.training.spec import Training


def fit(
    training: Training,
    run_dir: str | os.PathLike[str] | None = None,
    *,
    config: Any = None,
    source: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    devices: Sequence[jax.Device] | None = None,
    progress: Progress | None = None,
    stop_when: StopWhen | None = None,
    wait_s: float = 0.0,
) -> Result:
    """Trains, evaluates, and with a run folder saves and resumes.

    After ``advjax.training.hosts.join`` the same call in every process trains one run over the
    devices of all; the first process has the folder.

    The same call on the same folder goes on where the last one was killed, to bit-identical
    weights on a CPU with the same devices. On SIGTERM or SIGINT the state is saved and ``Stopped``
    (a ``SystemExit``) is raised; without a folder the signals are left alone.

    Args:
      training: what to compute.
      run_dir: the run's folder; made when missing, resumed when it holds this run. None keeps
        everything in memory.
      config: JSON-able settings the training was built from; kept, and compared on resuming.
      source: the experiment file, copied into the folder.
      overwrite: deletes the run that the folder holds.
      devices: all by default, those of other processes too; the batch is split over them.
      progress: called with an ``Event`` now and then.
      stop_when: called after each evaluation but the last with the rows of ``Result.history`` so
        far; a text that it returns ends the run there, and becomes ``Result.stopped``.
      wait_s: seconds to wait while another process trains in this folder.

    Raises:
      RunError: if the folder holds another run (the fields are named) or something else.
      DivergedError: at the first bad step; nothing of it is saved.
      ValueError: if the devices cannot share the batch equally, or an objective with a carry is
        trained by several processes.
    """
    devices = list(jax.devices() if devices is None else devices)
    places = positions(training.batch_size, devices)
    if hosts.several() and hasattr(training.objective, "start"):
        name = type(training.objective).__name__
        raise ValueError(f"{name} hands a carry from step to step; one process trains with it")
    with contextlib.ExitStack() as stack:
        run = Run(training, devices, progress, stop_when)
        if run_dir is not None:
            folder, file = Path(run_dir).absolute(), None if source is None else Path(source)
            _open(run, stack, folder, config, file, overwrite, wait_s)
        run.begin()
        if not run.ended:
            _train(run, places)
        run.finish()
    return run.result()


def _open(
    run: Run,
    stack: contextlib.ExitStack,
    folder: Path,
    config: Any,
    source: Path | None,
    overwrite: bool,
    wait_s: float,
) -> None:
    """Opens the run's folder; of several processes the first one does, and tells the others."""
    if not hosts.several():
        run.open(stack, folder, config, source, overwrite, wait_s=wait_s)
        return
    refused: Exception | None = None
    if hosts.leads():
        try:
            run.open(stack, folder, config, source, overwrite, wait_s=wait_s)
        except (runfolder.RunError, CheckpointError) as error:
            refused = error
    said = hosts.told(refused and str(refused))
    if said is not None:
        raise refused or runfolder.RunError(said)
    run.follow(stack)


def _train(run: Run, places: Any) -> None:
    training = run.training
    step = compiled_step(training, run.devices)
    put = lambda tree: replicate(tree, run.devices)
    run.state, objective = place(run.state, run.devices), put(training.objective)
    x, y, streams = put(training.train.x), put(training.train.y), put(training.streams())
    limit = steps_in_flight(run.devices)
    in_flight: collections.deque[Any] = collections.deque()
    while not run.ended:
        run.state, metrics = step(run.state, places, objective, x, y, streams)
        in_flight.append(metrics["loss"])
        if len(in_flight) >= limit:
            in_flight.popleft().block_until_ready()
        run.stepped(metrics, lambda: run.state, None)
