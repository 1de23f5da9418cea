"""GradAlign: one-step adversarial training that stays locally linear."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from advjax.answers import fold_in_each
from advjax.pytrees import Array, ArrayLike, pytree, replace
from advjax.training.objectives.controls import Regularised, input_gradient
from advjax.training.objectives.graph import sum_by_nonzero_weights
from advjax.types import NOISE, Net

_SMALLEST = 1e-30  # a gradient's largest entry from which on it counts; as good as zero below


def unit(grad: Array) -> tuple[Array, Array]:
    """Each row of ``[B, D]`` at length one, and whether it has a direction, ``[B]``.

    Rows are divided by their largest entry first, for a confident image's squares do not fit
    float32's range. Rows that have no direction are constants.
    """
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(grad), axis=1))
    counts = largest >= _SMALLEST
    # Ones in their place before anything is divided, so that nothing infinite comes back.
    grad = jnp.where(counts[:, None], grad, 1) / jnp.where(counts, largest, 1)[:, None]
    return grad / jnp.sqrt(jnp.sum(grad**2, axis=1, keepdims=True)), counts


@pytree
class GradAlign(Regularised):
    """An objective plus ``weight (1 - cos)`` of the gradients at x and at a random neighbour.

    Andriushchenko & Flammarion 2020: where the cross-entropy is linear inside the
    ball, one step finds the worst point, and catastrophic overfitting does not set in. The
    neighbour is a uniform draw of the attack's ball. As in the authors' code no gradient flows
    through the first of the two, both are of the network in training mode, and images where either
    gradient is zero do not count. (Zero to the authors is a length whose square float32 rounds to
    zero, about 1e-23; here it is no entry of 1e-30.)

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
        if self.threat() is None:
            given = type(self.objective).__name__
            raise TypeError(f"GradAlign: given {given}; expected an objective with an attack")

    def term(self, net: Net, batch: Mapping[str, Array]) -> dict[str, Array]:
        x, y, ball = batch["x"], batch["y"], self.threat()
        near = x + ball.sample(fold_in_each(net.key, NOISE), x)
        fixed = replace(net, params=jax.lax.stop_gradient(net.params))
        grads = [input_gradient(fixed, x, y), input_gradient(net, near, y)]
        first, second = (grad.reshape(x.shape[0], -1) for grad in grads)
        (first, one), (second, other) = unit(first), unit(second)
        misaligned = 1 - jnp.sum(first * second, axis=1)
        mean = sum_by_nonzero_weights(misaligned, one & other, net.axis)
        return {"misalignment": mean}
