"""``fit_together``: several trainings of one program as one, mapped over their states."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advjax.runs.loop import lockstep
from advjax.runs.outcome import DivergedError, Progress, Result
from advjax.runs.run import Run
from advjax.runs.signals import Signals
from advjax.runs.watchers import StopWhen
from advjax.training.classifier import ClassifierProgram, StopFunction
from advjax.training.compiled import compiled_steps, program_of
from advjax.training.parallel import replicate
from advjax.training.spec import Training


def fit_together(
    trainings: Sequence[Training],
    run_dirs: Sequence[str | os.PathLike[str]] | None = None,
    *,
    configs: Sequence[Any] | None = None,
    source: str | os.PathLike[str] | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: Progress | None = None,
    stop_when: Sequence[StopFunction | None] | None = None,
) -> list[Result | DivergedError]:
    """Trains several configurations in lockstep, as one program; each is a run like any other.

    Every run has its own folder, checkpoints and metrics, ends and resumes by itself, and gives
    what ``fit`` gives, to rounding: batches and draws are the same, products are added up in
    another order. A run that diverges or stops early leaves the others alone.

    On a GPU this is how small networks fill the device. On CPUs convolutions mapped over their
    kernels are slower than one run after the other (see ``benchmarks/README.md``).

    Args:
      trainings: of one program (``program_of``): they differ in numbers of the objective, the
        seed, dropout rates, what the optimiser keeps in its state
        (``optax.inject_hyperparams``), and the training images of one size.
      run_dirs: a folder for each, as in ``fit``; None keeps everything in memory.
      configs: JSON-able settings of each.
      source: the experiment file.
      devices: as in ``fit``.
      progress: told of the first training that goes on.
      stop_when: one for each, as in ``fit``.

    Returns:
      A ``Result`` for each training, or the ``DivergedError`` that ended it.

    Raises:
      ValueError: if the trainings are not one program, or their steps draw on carries.
      RunError: as ``fit``.
      Stopped: on SIGTERM and SIGINT, when all are saved.
    """
    trainings = list(trainings)
    if not trainings:
        return []
    _check(trainings, run_dirs, configs, stop_when)
    devices = list(jax.local_devices() if devices is None else devices)
    found: list[Result | DivergedError] = []
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals())
        runs = []
        for i, training in enumerate(trainings):
            stop = None if stop_when is None else stop_when[i]
            watchers = () if stop is None else (StopWhen(stop),)
            program = ClassifierProgram(training, devices)
            run = Run(program, None if i else progress, watchers)
            run.signals = signals
            if run_dirs is not None:
                config = None if configs is None else configs[i]
                file = None if source is None else Path(source)
                run.open(stack, Path(run_dirs[i]).absolute(), config, file, False)
            run.begin()
            runs.append(run)
        # Runs that were stopped between their checkpoints go on from different steps.
        by_step: dict[int, list[Run]] = {}
        for run in runs:
            if not run.ended:
                by_step.setdefault(run.at.step, []).append(run)
        diverged: dict[int, DivergedError] = {}
        for _, group in sorted(by_step.items()):
            while group:
                group = _train_group(group, diverged)
        for run in runs:
            found.append(diverged[id(run)] if id(run) in diverged else run.finish())
    return found


def _train_group(runs: list[Run], diverged: dict[int, DivergedError]) -> list[Run]:
    """Runs that stand at the same step, their states stacked, until half of them have ended.

    Returns those that go on; fewer are half the work, for a trace more.
    """
    programs: list[Any] = [run.program for run in runs]
    first = programs[0]
    data = [program.training.arrays() for program in programs]
    shared = all(_same(data[0], other) for other in data[1:])
    step = compiled_steps(first.training, first.devices, shared)
    objectives = stack([program.training.full_objective for program in programs])
    arguments = replicate((objectives, data[0] if shared else stack(data)), first.devices)
    return lockstep(
        runs,
        first.place(stack([run.state for run in runs])),
        lambda state: step(state, first.places, *arguments),
        member=_member,
        until=len(runs) // 2,
        diverged=diverged,
    )


def stack(trees: Sequence[Any]) -> Any:
    """Trees of one structure as one, every leaf with a first axis more."""
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *trees)


def _member(tree: Any, i: int) -> Any:
    """The i-th of the trees that ``stack`` made one."""
    return jax.tree.map(lambda leaf: leaf[i], tree)


def _same(a: Any, b: Any) -> bool:
    """Whether two sets of arrays are the same, value for value."""
    return all(
        one is other or np.array_equal(one, other)
        for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def _check(trainings: Sequence[Training], run_dirs: Any, configs: Any, stop_when: Any) -> None:
    for name, given in (("run_dirs", run_dirs), ("configs", configs), ("stop_when", stop_when)):
        if given is not None and len(given) != len(trainings):
            raise ValueError(
                f"given {len(given)} {name} for {len(trainings)} trainings; expected one for each"
            )
    if trainings[0].full_objective.carries:
        name = type(trainings[0].objective).__name__
        raise ValueError(f"{name} hands a carry from step to step; fit takes it, one at a time")
    first = program_of(trainings[0])
    for i, training in enumerate(trainings[1:], 1):
        if program_of(training) != first:
            raise ValueError(
                f"trainings 0 and {i} are different programs; they may differ in numbers of the "
                "objective, seeds, dropout rates, images of one number and size, and what the "
                "optimiser keeps in its state (optax.inject_hyperparams)"
            )
