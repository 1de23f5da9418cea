"""What a run computes: the one contract between a training of any kind and the run around it."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import jax

from advjax.runs.watchers import Watcher

State = TypeVar("State")


class Program(abc.ABC, Generic[State]):
    """A computation of many steps from a state, any pytree of arrays, to the next.

    ``train`` gives it a folder, checkpoints, resuming, metrics, watchers and signals. What it
    resumes to is bit-identical where ``step`` and ``batch`` are pure: all that a step needs of the
    ones before it is in the state.

    Attributes:
      total_steps: how many steps the whole run has.
      log_every: steps whose metrics are fetched at once.
      checkpoint_every_s: seconds between checkpoints; each evaluation makes one too.
      loss_limit: a metric ``loss`` above this counts as divergence.
      by_version: fields of ``describe`` that another version of a package may word differently;
        they are compared only where the versions are the same.
    """

    total_steps: int
    log_every: int = 50
    checkpoint_every_s: float = 60.0
    loss_limit: float = math.inf
    by_version: tuple[str, ...] = ()

    @property
    def devices(self) -> Sequence[jax.Device]:
        """What it runs on."""
        return jax.local_devices()[:1]

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """JSON-able: all that the results depend on, so that two runs can be told apart."""

    @abc.abstractmethod
    def init(self) -> State:
        """The state before the first step."""

    @abc.abstractmethod
    def batch(self, step: int) -> Any:
        """What a step (from 0) takes beside the state, a function of the step alone.

        A program that draws its batches inside the compiled step gives the data they are of.
        """

    @abc.abstractmethod
    def step(self, state: State, batch: Any) -> tuple[State, Mapping[str, jax.Array]]:
        """The next state, and metrics by name, scalars; it need not wait for the device."""

    def place(self, state: State) -> State:
        """The state as ``step`` takes it, on the devices."""
        return state

    def gather(self, state: State) -> State:
        """The state as ``init`` gives it, as it is saved, from a placed one."""
        return state

    def finite(self, state: State) -> Sequence[Any]:
        """The trees of parameters that have to be finite; a state with others is never saved."""
        return (state,)

    def model(self, state: State) -> Any:
        """What is evaluated and returned: no array of it is one that a later step donates."""
        return state

    def evaluates_at(self, step: int) -> bool:
        """Whether the state after this many steps is evaluated; for the last step, if any is."""
        del step
        return False

    def evaluate(self, model: Any, interrupt: Callable[..., None]) -> Mapping[str, float]:
        """Metrics by name, of a model.

        Args:
          model: what ``model`` returned.
          interrupt: to be called now and then, with whatever arguments; may end the run.
        """
        del model, interrupt
        return {}

    def score(self, metrics: Mapping[str, float]) -> float:
        """What the best evaluation is chosen by, higher is better: here the loss, negated."""
        return -metrics["loss"]

    def watchers(self) -> Sequence[Watcher]:
        """What looks at the run now and then and may end it."""
        return ()

    def position(self, step: int) -> dict[str, Any]:
        """JSON-able: what a checkpoint after this many steps says beside what it needs."""
        del step
        return {}
