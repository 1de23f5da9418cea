"""One thing that is put on every image: the attack that does so, and the loop that trains it."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from advjax.answers import as_model, example_keys, fold_in_each
from advjax.arguments import check_count
from advjax.attacks.core.judging import FINAL, Tally, outcome
from advjax.balls import Ball
from advjax.checks import check_batch
from advjax.pytrees import Array, ArrayLike, Key, replace
from advjax.types import Attack, Goal, Loop, LossFn, Model, Record, auto_loop

Progress = Callable[[int, int, float], None]
T = TypeVar("T")


class Crafted(Attack):
    """Puts the same thing on every image and asks once what the model says."""

    ball: Ball
    loss: LossFn
    goal: Goal

    @property
    def bounds(self) -> tuple[ArrayLike, ArrayLike]:
        return self.ball.bounds

    def with_goal(self, goal: Goal) -> Any:
        return replace(self, goal=goal)

    @abc.abstractmethod
    def put(self, keys: Key, x: Array) -> Array:
        """The images ``[B, ...]`` with the thing on each; ``keys [B]`` are consumed."""

    def solve(
        self, key: Key, model: Model, x: Array, y: Array, *, record: bool, loop: Loop = auto_loop
    ) -> Record:
        del loop  # one step
        return _solve(self, key, model, x, y, record)


@functools.partial(jax.jit, static_argnums=5)
def _solve(attack: Crafted, key: Key, model: Model, x: Array, y: Array, record: bool) -> Record:
    keys = example_keys(key, x.shape[0])
    return outcome(
        attack,
        model,
        x,
        y,
        attack.put(fold_in_each(keys, 0), x),
        fold_in_each(keys, FINAL),
        record=record,
        loss=attack.loss,
        tally=Tally.start(x, doubts=False),
    )


def check_counts(name: str, **counts: Any) -> None:
    """Raises ValueError unless all are integers of at least 1."""
    for field, count in counts.items():
        check_count(name, field, count)


def checked(model: Any, x: Any, y: Any, ball: Ball) -> tuple[Model, Array, Array]:
    """The model, images ``[N, ...]`` and labels ``[N]``, where one label may serve all."""
    model = as_model(model)
    lower, upper = ball.bounds
    y = jnp.broadcast_to(jnp.asarray(y), np.shape(x)[:1])
    return model, *check_batch(model, x, y, lower=lower, upper=upper)


def craft(
    key: Key,
    steps: int,
    step: Callable[[int, Key, T], tuple[T, Array]],
    state: T,
    progress: Progress | None,
) -> T:
    """The state after all steps; the caller is told about fifty times how far it is.

    Step i is ``(i, fold_in(key, i), state) -> (state, loss)``.
    """
    for i in range(steps):
        state, value = step(i, jax.random.fold_in(key, np.int32(i)), state)
        if progress is not None and ((i + 1) % max(steps // 50, 1) == 0 or i + 1 == steps):
            progress(i + 1, steps, float(value))
    return state
