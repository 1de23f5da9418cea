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

from advjax.runs.folder import Row


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
    """What a run tells its ``progress`` callable.

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


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A model of the run.

    Attributes:
      model: what was trained: of ``fit`` the classifier, in evaluation mode.
      step: after how many steps.
      metrics: its evaluation: of ``fit`` ``clean``, ``robust/NAME``, ``worst`` on the test images,
        ``validation/clean`` and so on on the validation images; ``watched_accuracy`` where a watch
        alone told the best; empty without any.
      score: what the best is chosen by, higher is better: of ``fit`` the worst case, on validation
        images where there are any; NaN where the state was not evaluated.
    """

    model: Any
    step: int
    metrics: Mapping[str, float]
    score: float = math.nan


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run gives.

    Attributes:
      best: the model of the best evaluation (the earliest of equals), of ``fit`` on the validation
        images where there are any, otherwise on the test images; ``last`` without either.
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
    history: Sequence[Row]
    run_dir: Path | None
    was_finished: bool
    stopped: str | None = None


def check_metrics(step: int, row: Mapping[str, float], loss_limit: float) -> DivergedError | None:
    """The error of a step's metrics, if they are bad."""
    for name, value in row.items():
        if not math.isfinite(value):
            return DivergedError(step, name, value, "training stops here")
    if row.get("loss", 0.0) > loss_limit:
        return DivergedError(step, "loss", row["loss"], f"above the limit of {loss_limit:g}")
    return None


def check_finite(step: int, trees: Sequence[Any]) -> None:
    """An update can overflow while its loss and gradient were finite.

    Raises:
      DivergedError: for the first number that is not finite.
    """
    for path, value in jax.tree.leaves_with_path(list(trees)):
        if jnp.issubdtype(value.dtype, jnp.floating):
            host = np.asarray(value)
            if not np.isfinite(host).all():
                name = "parameters" + jax.tree_util.keystr(path[1:])
                worst = float(host[~np.isfinite(host)].flat[0])
                raise DivergedError(step, name, worst, "training stops here")
