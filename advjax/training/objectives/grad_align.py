"""GradAlign: one-step adversarial training that stays locally linear."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from advjax.training.objectives._shared import NOISE, axis_of
from advjax.training.objectives.controls import Regularised, input_gradient
from advjax.training.objectives.graph import sum_by_nonzero_weights
from advjax.types import Apply, Array, ArrayLike, Key, fold_in_each, pytree


@pytree
class GradAlign(Regularised):
    """An objective plus ``weight (1 - cos)`` of the gradients at x and at a random neighbour.

    Andriushchenko & Flammarion 2020: where the cross-entropy is linear inside the
    ball, one step finds the worst point, and catastrophic overfitting does not set in. The
    neighbour is a uniform draw of the attack's ball. As in the authors' code no gradient flows
    through the first of the two, both are of the network in training mode, and images where either
    gradient is zero do not count.

    Published: on ``Madry(FGSM(ball=Linf(eps=8/255)))``, the step without random start.

    Metrics: the objective's, and ``misalignment``, the mean of ``1 - cos``.

    Attributes:
      objective: ``Madry``, or another objective with an ``attack`` that has a ball.
      weight: lambda, at least 0.
    """

    objective: Any = dataclasses.field(kw_only=False)
    weight: ArrayLike = 0.2

    def check(self) -> None:
        super().check()
        if not hasattr(getattr(self.objective, "attack", None), "ball"):
            given = type(self.objective).__name__
            raise TypeError(f"GradAlign: given {given}; an objective with an attack is taken")

    def term(
        self, key: Key, apply: Apply, params: Any, stats: Any, batch: Mapping[str, Array]
    ) -> dict[str, Array]:
        x, y, ball = batch["x"], batch["y"], self.objective.attack.ball
        near = x + ball.sample(fold_in_each(key, NOISE), x)
        grads = [
            input_gradient(key, apply, jax.lax.stop_gradient(params), stats, x, y),
            input_gradient(key, apply, params, stats, near, y),
        ]
        first, second = (grad.reshape(x.shape[0], -1) for grad in grads)
        squares = jnp.stack([jnp.sum(first**2, axis=1), jnp.sum(second**2, axis=1)])
        counts = jnp.all(squares > 0, axis=0)
        # A length of one where it would be zero: its square root has no gradient there.
        length = jnp.sqrt(jnp.prod(jnp.where(counts, squares, 1), axis=0))
        cosine = jnp.sum(first * second, axis=1) / length
        mean = sum_by_nonzero_weights(1 - cosine, counts, axis_of(apply))
        return {"misalignment": mean}
