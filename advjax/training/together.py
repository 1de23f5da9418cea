"""``fit_together``: several trainings of one program as one, mapped over their states."""

from __future__ import annotations

import collections
import contextlib
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advjax.training.outcome import DivergedError, Progress, Result, StopWhen
from advjax.training.parallel import place, positions, replicate, steps_in_flight
from advjax.training.program import compiled_steps, program_of
from advjax.training.run import Run
from advjax.training.signals import Signals, Stopped
from advjax.training.spec import Training


def fit_together(
    trainings: Sequence[Training],
    run_dirs: Sequence[str | os.PathLike[str]] | None = None,
    *,
    configs: Sequence[Any] | None = None,
    source: str | os.PathLike[str] | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: Progress | None = None,
    stop_when: Sequence[StopWhen | None] | None = None,
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
    places = positions(trainings[0].batch_size, devices)
    found: dict[int, Result | DivergedError] = {}
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals())
        runs = [
            Run(training, devices, None, stop)
            for training, stop in zip(trainings, stop_when or [None] * len(trainings), strict=True)
        ]
        runs[0].progress = progress
        for i, run in enumerate(runs):
            if run_dirs is not None:
                config = None if configs is None else configs[i]
                file = None if source is None else Path(source)
                run.open(stack, Path(run_dirs[i]).absolute(), config, file, False, signals=False)
            run.begin()
        # Runs that were stopped between their checkpoints go on from different steps.
        by_step: dict[int, list[Run]] = {}
        for run in runs:
            if not run.ended:
                by_step.setdefault(run.step, []).append(run)
        diverged: dict[int, DivergedError] = {}
        for _, group in sorted(by_step.items()):
            while group:
                group = _Group(group, devices, places, signals).train(diverged)
        for i, run in enumerate(runs):
            if id(run) in diverged:
                found[i] = diverged[id(run)]
            else:
                run.finish()
                found[i] = run.result()
    return [found[i] for i in range(len(trainings))]


class _Group:
    """Runs that stand at the same step, their states stacked."""

    def __init__(
        self, runs: list[Run], devices: Sequence[jax.Device], places: Any, signals: Signals
    ) -> None:
        self.runs, self.devices, self.places, self.signals = runs, devices, places, signals

    def train(self, diverged: dict[int, DivergedError]) -> list[Run]:
        """Until half of the runs have ended; returns those that go on, with their states."""
        trainings = [run.training for run in self.runs]
        data = [(t.train.x, t.train.y, t.streams()) for t in trainings]
        shared = all(_same(data[0], other) for other in data[1:])
        step = compiled_steps(trainings[0], self.devices, shared)
        put = lambda tree: replicate(tree, self.devices)
        state = place(stack([run.state for run in self.runs]), self.devices)
        objective = put(stack([t.objective for t in trainings]))
        x, y, streams = put(data[0] if shared else stack(data))
        limit = steps_in_flight(self.devices)
        in_flight: collections.deque[Any] = collections.deque()
        active = dict(enumerate(self.runs))
        while len(active) > len(self.runs) // 2:  # fewer are half the work, for a trace more
            state, metrics = step(state, self.places, objective, x, y, streams)
            in_flight.append(metrics["loss"])
            if len(in_flight) >= limit:
                in_flight.popleft().block_until_ready()
            for i, run in list(active.items()):
                one = functools.partial(_member, state, i)
                try:
                    run.stepped(metrics, one, i)
                except DivergedError as error:
                    diverged[id(run)] = error
                    del active[i]
                    continue
                if run.ended:
                    run.state = one()
                    del active[i]
            if self.signals.received is not None:
                self._stop(active, state)
        for i, run in active.items():
            run.state = _member(state, i)
        return [*active.values()]

    def _stop(self, active: dict[int, Run], state: Any) -> None:
        """Saves all, after a signal."""
        for i, run in active.items():
            run.state = _member(state, i)
            run.flush()
            run.save()
        for run in active.values():
            if run.checkpoints is not None:
                run.checkpoints.wait()
        steps = max((run.step for run in active.values()), default=0)
        assert self.signals.received is not None
        raise Stopped(self.signals.received, f"step {steps}")


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
                f"given {len(given)} {name} for {len(trainings)} trainings; one for each is taken"
            )
    if hasattr(trainings[0].objective, "start"):
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
