"""What a run tells and gives: events, snapshots, the result, and the error of a bad step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advjax.training import runfolder
from advjax.training.state import TrainState


class DivergedError(FloatingPointError):
    """A metric or a parameter became NaN or infinite, or the loss passed its limit.

    Attributes:
      step: the first bad step, counted from 1.
      metric: what was bad.
      value: what it was.
    """

    def __init__(self, step: int, metric: str, value: float, reason: str) -> None:
        super().__init__(f"step {step}: {metric} is {value:g}, {reason}")
        self.step, self.metric, self.value = step, metric, value


@dataclasses.dataclass(frozen=True)
class Event:
    """What ``fit`` tells its ``progress`` callable.

    Attributes:
      kind: ``start``, ``step`` (handed to the devices), ``train`` (metrics of the steps since the
        last one, averaged), ``evaluation``, ``watch``, ``checkpoint``, ``note``, ``stopped`` (the
        text is ``Result.stopped``) or ``finished``.
      step: how many steps have been made.
      steps: how many the run has.
      metrics: name to number.
      text: one line for people.
    """

    kind: str
    step: int
    steps: int
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    text: str = ""


Progress = Callable[[Event], None]
StopWhen = Callable[[Sequence[runfolder.Row]], str | None]


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A model of the run.

    Attributes:
      model: the classifier, in evaluation mode.
      step: after how many steps.
      metrics: its evaluation (``clean``, ``robust/NAME``, ``worst`` on the test images,
        ``validation/clean`` and so on on the validation images); ``watched_accuracy`` where a watch
        alone told the best; empty without any.
    """

    model: Any
    step: int
    metrics: Mapping[str, float]

    @property
    def score(self) -> float:
        """What the best is chosen by: validation images where there are any, the worst case."""
        names = ("validation/worst", "validation/clean", "worst", "clean")
        return next(self.metrics[name] for name in names if name in self.metrics)


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run gives.

    Attributes:
      best: the model of the best evaluation (the earliest of equals), on the validation images
        where there are any, otherwise on the test images; ``last`` without either.
      last: the model after the last step.
      history: the rows of ``metrics.jsonl``: ``kind`` (``train``, ``evaluation`` or ``watch``),
        ``step``, ``seconds`` of wall clock, and the metrics.
      run_dir: the run folder, if there is one.
      was_finished: whether the run had ended before and nothing was trained now.
      stopped: what ended the run, early stopping or catastrophic overfitting, in one line; None
        for its last step.
    """

    best: Snapshot
    last: Snapshot
    history: Sequence[runfolder.Row]
    run_dir: Path | None
    was_finished: bool
    stopped: str | None = None


def check_metrics(step: int, row: Mapping[str, float], loss_limit: float) -> DivergedError | None:
    """The error of a step's metrics, if they are bad."""
    for name, value in row.items():
        if not math.isfinite(value):
            return DivergedError(step, name, value, "training stops here")
    if row["loss"] > loss_limit:
        return DivergedError(step, "loss", row["loss"], f"above the limit of {loss_limit:g}")
    return None


def check_parameters(step: int, state: TrainState) -> None:
    """An update can overflow while its loss and gradient were finite."""
    for path, value in jax.tree.leaves_with_path((state.params, state.stats)):
        if jnp.issubdtype(value.dtype, jnp.floating):
            host = np.asarray(value)
            if not np.isfinite(host).all():
                name = "parameters" + jax.tree_util.keystr(path[1:])
                worst = float(host[~np.isfinite(host)].flat[0])
                raise DivergedError(step, name, worst, "training stops here")
