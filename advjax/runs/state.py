"""All that one training step needs from the step before."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from advjax.pytrees import Array, Key, pytree


@pytree
class TrainState:
    """The state of a run between two steps.

    Attributes:
      step: int32 scalar, how many steps have been made.
      params: the parameters.
      stats: every other variable of the network.
      opt_state: the optimiser's.
      ema: ``{"params", "stats"}`` averaged over the steps, or None.
      key: the run's key; never consumed, every draw folds the step and the place in the batch in.
      carry: what the objective hands from step to step, leaves ``[B, ...]`` by place in the batch
        (``[D, B / D, ...]`` on the devices); None for most.
    """

    step: Array
    params: Any
    stats: Any
    opt_state: Any
    ema: Any
    key: Key
    carry: Any = None

    def evaluated(self) -> tuple[Any, Any]:
        """``(params, stats)`` that evaluation uses: the averaged ones when there are any."""
        if self.ema is None:
            return self.params, self.stats
        return self.ema["params"], self.ema["stats"]


def create_state(
    params: Any, stats: Any, optimizer: Any, key: Key, *, averaged: bool, carry: Any = None
) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        stats=stats,
        opt_state=optimizer.init(params),
        ema={"params": params, "stats": stats} if averaged else None,
        key=key,
        carry=carry,
    )


class Average(Protocol):
    """How an average of values follows a step; hashable, equal for equal ones."""

    def __call__(self, average: Any, value: Any, step: Array) -> Any:
        """The average after the step (from 0) that made the value."""


@dataclasses.dataclass(frozen=True)
class MovingAverage:
    """The exponential moving average; constants stay exactly what they are.

    The decay is ``min(decay, (1 + step) / (10 + step))``: a short run is not held back by its
    first parameters.
    """

    decay: float

    def __call__(self, average: Any, value: Any, step: Array) -> Any:
        return _towards(average, value, jnp.minimum(self.decay, (1 + step) / (10 + step)))


@dataclasses.dataclass(frozen=True)
class EqualAverage:
    """Stochastic weight averaging (Izmailov et al. 2018, section 3.2).

    The mean of the values after steps ``start``, ``start + every``, ...; before the first of them
    the value itself.
    """

    start: int
    every: int

    def __call__(self, average: Any, value: Any, step: Array) -> Any:
        made = step + 1
        n = (made - self.start) // self.every
        decay = jnp.where((made - self.start) % self.every == 0, n / (n + 1), 1.0)
        mean = _towards(average, value, decay)
        return jax.tree.map(partial(jnp.where, made <= self.start), value, mean)


def _towards(average: Any, value: Any, decay: Array) -> Any:
    def one(a: Array, v: Array) -> Array:
        if not jnp.issubdtype(v.dtype, jnp.floating):
            return v
        return (a + (1 - decay) * (v - a)).astype(v.dtype)

    return jax.tree.map(one, average, value)
