"""The training of a classifier as a program that a run makes the steps of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advjax.runs.folder import Row
from advjax.runs.program import Program
from advjax.runs.state import TrainState
from advjax.runs.watchers import Drop, Patience, View, Watcher
from advjax.training.compiled import compiled_step
from advjax.training.optimizers import Optimizer
from advjax.training.parallel import gather, own, place, positions, replicate
from advjax.training.spec import Training, root_keys

StopFunction = Callable[[Sequence[Row]], str | None]


class ClassifierProgram(Program[TrainState]):
    """A ``Training`` on some devices.

    Attributes:
      training: what is computed.
      places: each device's places in the batch.
    """

    def __init__(self, training: Training, devices: Sequence[jax.Device]) -> None:
        self.training, self._devices = training, devices
        if not isinstance(training.optimizer, Optimizer):
            self.by_version = ("optimizer",)  # identified by its program's text
        self.places = positions(training.batch_size, devices)
        self._init_key, self._step_key, self._evaluation_key = root_keys(training.seed)
        self._judging = training.judging()
        self.total_steps, self.log_every = training.total_steps, training.log_every
        self.checkpoint_every_s = training.checkpoint_every_s
        self.loss_limit = training.loss_limit

    @property
    def devices(self) -> Sequence[jax.Device]:
        return self._devices

    def describe(self) -> dict[str, Any]:
        return self.training.describe()

    def init(self) -> TrainState:
        return self.training.first_state(self._step_key, self._init_key)

    @cached_property
    def _step(self) -> Callable[..., Any]:
        return compiled_step(self.training, self._devices)

    @cached_property
    def _batch(self) -> tuple[Any, Any, Any]:
        objective, data = self.training.full_objective, self.training.arrays()
        return self.places, *(replicate(tree, self._devices) for tree in (objective, data))

    def batch(self, step: int) -> tuple[Any, Any, Any]:
        """Places, objective and data: the compiled step draws its batch from them itself."""
        return self._batch

    def step(self, state: TrainState, batch: Any) -> tuple[TrainState, Mapping[str, jax.Array]]:
        return self._step(state, *batch)

    def place(self, state: TrainState) -> TrainState:
        return place(state, self._devices)

    def gather(self, state: TrainState) -> TrainState:
        return gather(state)

    def finite(self, state: TrainState) -> Sequence[Any]:
        return (state.params, state.stats)

    def model(self, state: TrainState) -> Any:
        return self.training.model(*map(_copied, state.evaluated()))

    def evaluates_at(self, step: int) -> bool:
        every = self.training.steps_per_evaluation
        return bool(self._judging) and (step % every == 0 or step == self.total_steps)

    def evaluate(self, model: Any, interrupt: Callable[..., None]) -> Mapping[str, float]:
        metrics: dict[str, float] = {}
        for prefix, data in self._judging.items():
            found = self._measure(model, data, dict(self.training.attacks), interrupt)
            metrics[f"{prefix}clean"] = float(found.clean.value)
            for name, accuracy in found.robust.items():
                metrics[f"{prefix}robust/{name}"] = float(accuracy.value)
            if found.robust:
                metrics[f"{prefix}worst"] = float(found.worst.value)
        return metrics

    def score(self, metrics: Mapping[str, float]) -> float:
        """The worst case, on validation images where there are any."""
        names = ("validation/worst", "validation/clean", "worst", "clean")
        return next(metrics[name] for name in names if name in metrics)

    def watchers(self) -> Sequence[Watcher]:
        training, watchers = self.training, list[Watcher]()
        if training.patience is not None:
            watchers.append(Patience(training.patience, lambda score: f"{100 * score:.1f} %"))
        if training.watch is not None:
            watchers.append(
                Drop(
                    name="watched",
                    every=training.steps_per_epoch,
                    measure=self._watched,
                    limit=training.watch_drop,
                    metric="watched_accuracy",
                    what="catastrophic overfitting: accuracy under the watch",
                    per="epoch",
                )
            )
        return watchers

    def _watched(self, view: View) -> float:
        """The accuracy under the watch, on the same training images every time."""
        training = self.training
        data = training.train.subset(training.batch_size, training.seed)
        model = training.model(*map(_copied, (view.state.params, view.state.stats)))
        found = self._measure(model, data, {"watch": training.watch}, view.interrupt)
        return float(found.robust["watch"].value)

    def _measure(self, model: Any, data: Any, attacks: dict[str, Any], interrupt: Any) -> Any:
        from advjax.evaluation import evaluate

        return evaluate(
            model,
            data,
            attacks,
            key=self._evaluation_key,
            batch_size=min(256, len(data)),
            progress=interrupt,
            devices=own(self._devices),
        )

    def position(self, step: int) -> dict[str, Any]:
        training = self.training
        turn, per_epoch = step // training.full_objective.replays, training.steps_per_epoch
        offset = turn % per_epoch * training.batch_size
        return {"epoch": turn // per_epoch, "offset": offset, "seed": training.seed}


def _copied(tree: Any) -> Any:
    """Copies of the arrays: the state's are donated to the next step."""
    return jax.tree.map(lambda v: jnp.asarray(np.array(v, copy=True)), tree)
