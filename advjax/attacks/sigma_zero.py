"""The sigma-zero attack: the fewest changed features, by a smooth count and a moving threshold."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from advjax.attacks._checks import check_ball, check_count, check_number
from advjax.attacks._closest import Closest
from advjax.attacks._iterate import Loop, auto_loop
from advjax.attacks._minimum_norm import MinimumNorm
from advjax.attacks._rows import vanished, widen
from advjax.balls import L0, Ball
from advjax.types import (
    Array,
    ArrayLike,
    Key,
    example_keys,
    is_stochastic,
    pytree,
    replace,
    static,
)

_ADAM = optax.scale_by_adam()


@pytree
class _State:
    """Between two steps; all but the keys and Adam's count ``[B]`` or ``[B, ...]``."""

    keys: Any  # [B] keys for a randomised model, else None
    x_adv: Array
    adam: optax.OptState
    threshold: Array
    closest: Closest
    taken: Array
    zero_gradient: Array
    probabilities: Array


@pytree
class SigmaZero(MinimumNorm):
    """Sigma-zero (Cina et al. 2025, algorithm 1): minimum L0.

    Adam lowers ``max(-margin, 0) + mean(delta^2 / (delta^2 + sigma))``, whose second term is a
    smooth share of changed features; the gradient is divided by its largest entry. After each step
    changes below a threshold are undone. The threshold rises by ``threshold_rate`` times the step
    size where the image was adversarial and falls by it where not.

    Attributes:
      ball: an ``L0`` ball: its box and mask, and the largest count that counts as a success.
      steps: number of steps, at least 0; each costs a forward and a backward pass.
      step_size: Adam's first step size, pixel units; decays to a tenth along a cosine.
      sigma: width of the smooth count, squared pixel units, above 0.
      threshold: the first threshold, pixel units, at least 0.
      threshold_rate: change of the threshold per step size.
      horizon: the step at which the cosine ends; ``steps`` by default.
      targeted: labels are targets and the margin is lowered; see ``Targeted``.
      loop: who iterates; ``auto_loop``, ``host_loop``, ``device_loop`` or your own.
    """

    ball: Ball = L0()
    steps: int = static(default=1000)
    step_size: ArrayLike = 1.0
    sigma: ArrayLike = 1e-3
    threshold: ArrayLike = 0.3
    threshold_rate: ArrayLike = 0.01
    horizon: ArrayLike = None
    targeted: bool = static(default=False)
    loop: Loop = static(default=auto_loop)

    def check(self) -> None:
        check_ball("SigmaZero", self.ball, L0, taken="an L0 ball")
        check_count("SigmaZero", "steps", self.steps, 0)
        check_number("SigmaZero", "sigma", self.sigma)

    def init(self, key: Key, model: Any, x: Array, y: Array) -> _State:
        del y
        closest = Closest.start(x)
        none = jnp.zeros_like(closest.first_success)
        return _State(
            keys=example_keys(key, x.shape[0]) if is_stochastic(model) else None,
            x_adv=x,
            adam=_ADAM.init(x),
            threshold=jnp.broadcast_to(self.threshold, none.shape).astype(x.dtype),
            closest=closest,
            taken=none,
            zero_gradient=none,
            probabilities=none == 0,
        )

    def step(self, i: Array, state: _State, model: Any, x: Array, y: Array) -> _State:
        judged, grad = self._look(i, state, model, y)
        short, delta = judged.loss <= 0, state.x_adv - x
        lost = short & vanished(grad)

        sigma, features = jnp.asarray(self.sigma), x.size // x.shape[0]
        count_slope = 2 * sigma * delta / (delta**2 + sigma) ** 2 / features
        grad = self.ball.steepest(jnp.where(widen(short, x), -grad, 0) + count_slope)
        direction, adam = _ADAM.update(grad, state.adam)
        lower, upper = self.bounds
        x_adv = jnp.clip(x + delta - self._step_size(i) * direction, lower, upper)
        change = jnp.where(judged.success, 1, -1) * jnp.asarray(self.threshold_rate)
        threshold = state.threshold + change * self._step_size(i + 1)
        threshold = jnp.clip(threshold, 0, np.max(upper - lower))
        kept = jnp.abs(x_adv - x) >= widen(threshold, x)
        return replace(
            self._seen(i, state, judged, lost, x),
            x_adv=jnp.where(kept, x_adv, x),
            adam=adam,
            threshold=threshold,
        )

    def _step_size(self, i: Array) -> Array:
        return jnp.asarray(self.step_size) * (0.1 + 0.9 * self._cosine(i))
