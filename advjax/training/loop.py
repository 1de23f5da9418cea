"""``fit``: a training as a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import jax

from advjax.runs import StopWhen, hosts, train
from advjax.runs.outcome import Progress, Result
from advjax.training.classifier import ClassifierProgram, StopFunction
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
    stop_when: StopFunction | None = None,
    wait_s: float = 0.0,
) -> Result:
    """Trains, evaluates, and with a run folder saves and resumes.

    After ``advjax.runs.hosts.join`` the same call in every process trains one run over the
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
    program = ClassifierProgram(training, list(jax.devices() if devices is None else devices))
    if hosts.is_distributed() and training.full_objective.carries:
        name = type(training.objective).__name__
        raise ValueError(f"{name} hands a carry from step to step; one process trains with it")
    return train(
        program,
        run_dir,
        config=config,
        source=source,
        overwrite=overwrite,
        progress=progress,
        watchers=() if stop_when is None else (StopWhen(stop_when),),
        wait_s=wait_s,
    )
