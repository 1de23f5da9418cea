"""Cells of one program as one training, mapped over their numbers, in chunks that fit in memory."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import jax

from advjax.runs.outcome import Progress
from advjax.sweeps.cell import (
    Task,
    check_memory,
    config_of,
    ended_by,
    held,
    loaded,
    make_room,
    read_outcome,
    run_cell,
    trained,
    write_down,
)
from advjax.sweeps.outcome import Outcome
from advjax.training import DivergedError, fit_together
from advjax.training.compiled import program_of
from advjax.training.spec import Training


def together_by_default() -> int:
    """How many trainings run as one where nobody says.

    One after the other on CPUs: mapped over their kernels, convolutional networks took 1.6 to 4.3
    times as long as in turn there, a perceptron .9 to 1.3 times (``benchmarks/results/sweeps.md``).
    """
    return 1 if jax.local_devices()[0].platform == "cpu" else 64


def run_cells(
    tasks: Sequence[Task], most: int, progress: Progress | None = None
) -> dict[str, Outcome]:
    """Runs several cells, those of one program together.

    A chunk takes as many as fit in memory, by ``predicted_bytes``, and at most ``most``; one that
    does not fit after all is halved. What no other cell shares a program with runs alone, as by
    ``run_cell``, and so does what is no training.

    Returns:
      The outcome of each task by its name.
    """
    found: dict[str, Outcome] = {}
    groups: dict[Hashable, list[_Member]] = {}
    for task in tasks:
        member = None if read_outcome(Path(task.folder)) else _member(task)
        if member is None:
            found[task.name] = run_cell(task, progress)
        else:
            groups.setdefault(member.program, []).append(member)
    for group in groups.values():
        room = group[0].room
        size = most if room is None else min(most, room)
        for start in range(0, len(group), size):
            found.update(_run_chunk(group[start : start + size], progress))
    return found


@dataclasses.dataclass(frozen=True)
class _Member:
    task: Task
    training: Training
    config: Any
    program: Hashable
    room: int | None  # how many like it fit in memory


def _member(task: Task) -> _Member | None:
    """The cell as a training, or None for one that has to run alone."""
    try:
        experiment = loaded(task.experiment)
        if experiment.build is None:
            return None
        config = config_of(experiment, task.config)
        training = experiment.build(config)
        room = check_memory(training, task.memory)
        if training.full_objective.carries:
            return None
        return _Member(task, training, config, program_of(training), room)
    except Exception:  # it will be told by run_cell
        return None


def _run_chunk(members: Sequence[_Member], progress: Progress | None) -> dict[str, Outcome]:
    if len(members) == 1:
        return {members[0].task.name: run_cell(members[0].task, progress)}
    began = time.monotonic()
    make_room()
    with contextlib.ExitStack() as stack:
        for member in members:
            stack.enter_context(held(Path(member.task.folder)))
            write_down(member.task)
        try:
            results = fit_together(
                [m.training for m in members],
                [Path(m.task.folder) / "run" for m in members],
                configs=[dataclasses.asdict(m.config) for m in members],
                source=members[0].task.experiment,
                progress=progress,
                stop_when=[m.task.stop_when() for m in members],
            )
        except Exception as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            results = None
        if results is not None:
            return {
                m.task.name: _ended(m, result, time.monotonic() - began)
                for m, result in zip(members, results, strict=True)
            }
    half = len(members) // 2
    return _run_chunk(members[:half], progress) | _run_chunk(members[half:], progress)


def _ended(member: _Member, result: Any, seconds: float) -> Outcome:
    """Writes down how a cell of a chunk ended."""
    if isinstance(result, DivergedError):
        outcome = ended_by(result, Path(member.task.folder), seconds)
    else:
        outcome = trained(result)
    write_down(member.task, outcome)
    return outcome
