"""What attacks share that follow a gradient to the smallest perturbation, by a schedule."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advjax.attacks._closest import KeepsClosest
from advjax.attacks._iterate import Judgement, auto_loop, judge
from advjax.types import Array, ArrayLike, fold_in_each, is_stochastic, replace


class MinimumNorm(KeepsClosest):
    """Keeps the nearest success of all steps, and leaves an example that needs no perturbation.

    Its state also has ``x_adv``.
    """

    horizon: ArrayLike

    def _cosine(self, i: Array) -> Array:
        """From 1 to 0 along a cosine, which ends at the horizon."""
        horizon = self.steps if self.horizon is None else self.horizon
        return (1 + jnp.cos(jnp.pi * i / jnp.asarray(horizon))) / 2

    def _look(self, i: Array, state: Any, model: Any, y: Array) -> tuple[Judgement, Array]:
        """The judgement of the iterate, and its gradient."""
        keys: Any = fold_in_each(state.keys, i + 1) if is_stochastic(model) else None
        value_and_grad = jax.value_and_grad(
            lambda x_adv: judge(self.loss, self.targeted, model, x_adv, y, keys), has_aux=True
        )
        (_, judged), grad = value_and_grad(state.x_adv)
        return judged, jnp.where(jnp.isfinite(grad), grad, 0)

    def _seen(self, i: Array, state: Any, judged: Judgement, lost: Array, x: Array) -> Any:
        """The state after its iterate has been judged; ``lost [B]``: without a gradient."""
        live, distance = self.live(state), self.ball.size(state.x_adv - x)
        return replace(
            state,
            closest=state.closest.keep(state.x_adv, judged.success, distance, i),
            taken=state.taken + live,
            zero_gradient=state.zero_gradient + (lost & live),
            probabilities=state.probabilities & judged.probabilities,
        )

    def live(self, state: Any) -> Array:
        return state.closest.distance > 0

    def pieces(self) -> Any:
        horizon = np.float32(max(self.steps, 1)) if self.horizon is None else self.horizon
        return replace(self, steps=0, horizon=horizon, loop=auto_loop)
