"""The sigma-zero attack: the fewest changed features, by a smooth count and a moving threshold."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from advjax.attacks._closest import Closest, widen
from advjax.attacks._iterate import Iterative, Judgement, Loop, auto_loop, judge, outcome
from advjax.balls import L0, Ball, concrete
from advjax.losses import margin
from advjax.types import (
    Array,
    ArrayLike,
    Key,
    Record,
    example_keys,
    fold_in_each,
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
class SigmaZero(Iterative):
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
        if not isinstance(self.ball, L0):
            raise TypeError(f"SigmaZero: given ball={self.ball!r}; an L0 ball is taken")
        if not isinstance(self.steps, int) or self.steps < 0:
            raise ValueError(f"SigmaZero: given steps={self.steps!r}; an integer >= 0 is taken")
        sigma = concrete(self.sigma)
        if sigma is not None and not (sigma > 0).all():
            raise ValueError(f"SigmaZero: given sigma={sigma.tolist()}; numbers > 0 are taken")

    @property
    def bounds(self) -> tuple[ArrayLike, ArrayLike]:
        return self.ball.bounds

    def check_fits(self, x: Array) -> None:
        if jnp.shape(self.ball.eps) not in ((), (x.shape[0],)):
            raise ValueError(
                f"eps: given shape {jnp.shape(self.ball.eps)}; a scalar or [{x.shape[0]}], "
                "one per image, is taken"
            )

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

    def _judge(
        self, state: _State, model: Any, x: Array, y: Array, i: Any
    ) -> tuple[Array, Judgement]:
        keys: Any = None if state.keys is None else fold_in_each(state.keys, i + 1)
        return judge(margin, self.targeted, model, x, y, keys)

    def step(self, i: Array, state: _State, model: Any, x: Array, y: Array) -> _State:
        value_and_grad = jax.value_and_grad(
            lambda x_adv: self._judge(state, model, x_adv, y, i), has_aux=True
        )
        (_, judged), grad = value_and_grad(state.x_adv)
        live, delta = self.live(state), state.x_adv - x
        closest = state.closest.keep(state.x_adv, judged.success, self.ball.size(delta), i)
        grad = jnp.where(jnp.isfinite(grad), grad, 0)
        short = judged.loss <= 0
        lost = short & jnp.all(grad == 0, axis=tuple(range(1, x.ndim)))

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
            state,
            x_adv=jnp.where(kept, x_adv, x),
            adam=adam,
            threshold=threshold,
            closest=closest,
            taken=state.taken + live,
            zero_gradient=state.zero_gradient + (lost & live),
            probabilities=state.probabilities & judged.probabilities,
        )

    def _step_size(self, i: Array) -> Array:
        horizon = self.steps if self.horizon is None else self.horizon
        cosine = (1 + jnp.cos(jnp.pi * i / jnp.asarray(horizon))) / 2
        return jnp.asarray(self.step_size) * (0.1 + 0.9 * cosine)

    def live(self, state: _State) -> Array:
        return state.closest.distance > 0

    def finish(self, state: _State, model: Any, x: Array, y: Array, *, record: bool) -> Record:
        keys: Any = None if state.keys is None else fold_in_each(state.keys, 0)
        return outcome(
            self,
            model,
            x,
            y,
            state.closest.within(self.ball, x),
            keys,
            record=record,
            loss=margin,
            forwards=state.taken,
            backwards=state.taken,
            first_success=state.closest.first_success,
            zero_gradient=state.zero_gradient,
        )

    def doubts(self, state: _State) -> Array:
        return state.probabilities

    def pieces(self) -> SigmaZero:
        horizon = np.float32(max(self.steps, 1)) if self.horizon is None else self.horizon
        return replace(self, steps=0, horizon=horizon, loop=auto_loop)

    def aimed(self) -> SigmaZero:
        return replace(self, targeted=True)

    def scaled(self, factor: ArrayLike) -> SigmaZero:
        return replace(self, ball=self.ball.scaled(factor))
