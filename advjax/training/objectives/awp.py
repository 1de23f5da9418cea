"""Adversarial weight perturbation: a low loss in a whole neighbourhood of the parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advjax.balls import concrete
from advjax.pytrees import Array, ArrayLike, pytree, replace
from advjax.training.objectives._shared import Around
from advjax.types import Aux, Net


@pytree
class AWP(Around):
    """Any objective at the worst parameters nearby (Wu, Xia and Wang 2020, section 4).

    Inputs are crafted once, with the parameters as they are. Then every tensor of more than one
    dimension moves up the objective's loss by ``gamma`` of its own length,
    ``v = gamma |w| / |g| g``; biases and the scales of norms stay. The step that follows is the
    gradient at ``w + v``, applied to ``w``. One more forward and backward pass a step.

    As published, both passes are in training mode, the running statistics of BatchNorm that are
    kept are those of the pass at ``w + v``, and the loss that is climbed is the one that is
    trained. Weight decay in the optimiser acts on ``w``; in the authors' code it acts on ``w + v``.

    Metrics: the objective's, at ``w + v``.

    Attributes:
      objective: what is trained; of those that craft, the crafted inputs serve both passes. One
        that carries a state from step to step (``FreeAT``) is refused.
      gamma: size of the perturbation, relative to each tensor, at least 0. Published: .01 for
        ``Madry``, .005 for ``TRADES``.
      warmup: steps without perturbation at the start. Published: 0, ten epochs for ``TRADES``.
    """

    objective: Any = dataclasses.field(kw_only=False)
    gamma: ArrayLike = 0.01
    warmup: ArrayLike = 0.0

    def check(self) -> None:
        super().check()
        for name in ("gamma", "warmup"):
            value = concrete(getattr(self, name))
            if value is not None and not ((value >= 0) & np.isfinite(value)).all():
                raise ValueError(
                    f"AWP: given {name}={value.tolist()}; expected finite numbers >= 0"
                )

    def at(self, step: Array) -> AWP:
        """The objective of one step, the schedules evaluated."""
        gamma = jnp.where(jnp.asarray(step, jnp.float32) < self.warmup, 0.0, self.gamma)
        return replace(super().at(step), gamma=gamma, warmup=0.0)

    def loss(self, net: Net, batch: Mapping[str, Array]) -> tuple[Array, Aux]:
        loss = lambda params: self.inner.loss(replace(net, params=params), batch)
        fixed = jax.lax.stop_gradient(net.params)
        gradient = jax.grad(lambda params: loss(params)[0])(fixed)
        if net.axis is not None:
            gradient = jax.lax.pmean(gradient, net.axis)
        move = perturbation(fixed, gradient, self.gamma)
        return loss(jax.tree.map(lambda p, v: p + v, net.params, move))


def perturbation(params: Any, direction: Any, gamma: ArrayLike) -> Any:
    """Per tensor of more than one dimension ``gamma |w| / |d| d``; nothing for the others."""

    def one(w: Array, d: Array) -> Array:
        if jnp.ndim(w) <= 1:
            return jnp.zeros_like(w)
        scale = gamma * jnp.linalg.norm(w.ravel()) / (jnp.linalg.norm(d.ravel()) + 1e-20)
        return (scale * d).astype(w.dtype)

    return jax.tree.map(one, params, direction)
