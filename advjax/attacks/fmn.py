"""The fast minimum-norm attack: the smallest perturbation in L0, L1, L2 or L-inf."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advjax.attacks._closest import Closest
from advjax.attacks._iterate import Iterative, Judgement, Loop, auto_loop, judge, outcome
from advjax.balls import L0, L1, L2, Ball, Linf, concrete
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

# In whose norm a gradient bounds how fast the margin changes along a perturbation.
_DUAL: dict[type[Ball], Ball] = {Linf: L1(), L2: L2(), L1: Linf()}


@pytree
class _State:
    """Between two steps; all but the keys ``[B]`` or ``[B, ...]``."""

    keys: Any  # [B] keys for a randomised model, else None
    x_adv: Array
    radius: Array
    farthest: Array  # distance of the farthest corner of the box
    closest: Closest
    taken: Array
    zero_gradient: Array
    probabilities: Array


@pytree
class FMN(Iterative):
    """Fast minimum-norm attack (Pintor et al. 2021, algorithm 1) in L0, L1, L2 or L-inf.

    Each step raises the margin along the L2-normalised gradient inside the ball of the current
    radius and the box. Until an adversarial image is found, the radius is where the linearised
    margin crosses zero; then it shrinks by ``gamma`` where the image was adversarial and grows by
    it where not. In L0 it is a count from the start and changes by at least one.

    Attributes:
      ball: the norm, the box and the mask, and the largest distance that counts as a success.
      steps: number of steps, at least 0; each costs a forward and a backward pass.
      step_size: L2 length of the first step, pixel units; decays to a hundredth along a cosine.
      gamma: first relative change of the radius, above 0 and below 1; decays along a cosine.
      gamma_final: its last value.
      horizon: the step at which the cosine ends; ``steps`` by default.
      targeted: labels are targets and the margin is lowered; see ``Targeted``.
      loop: who iterates; ``auto_loop``, ``host_loop``, ``device_loop`` or your own.
    """

    ball: Ball
    steps: int = static(default=100)
    step_size: ArrayLike = 1.0
    gamma: ArrayLike = 0.05
    gamma_final: ArrayLike = 0.001
    horizon: ArrayLike = None
    targeted: bool = static(default=False)
    loop: Loop = static(default=auto_loop)

    def check(self) -> None:
        if not isinstance(self.ball, L0) and type(self.ball) not in _DUAL:
            raise TypeError(f"FMN: given ball={self.ball!r}; Linf, L2, L1 or L0 is taken")
        if not isinstance(self.steps, int) or self.steps < 0:
            raise ValueError(f"FMN: given steps={self.steps!r}; an integer >= 0 is taken")
        for name in ("gamma", "gamma_final"):
            gamma = concrete(getattr(self, name))
            if gamma is not None and not ((gamma > 0) & (gamma < 1)).all():
                raise ValueError(f"FMN: given {name}={gamma.tolist()}; between 0 and 1 is taken")

    @property
    def bounds(self) -> tuple[ArrayLike, ArrayLike]:
        return self.ball.bounds

    def check_fits(self, x: Array) -> None:
        if jnp.shape(self.ball.eps) not in ((), (x.shape[0],)):
            raise ValueError(
                f"eps: given shape {jnp.shape(self.ball.eps)}; a scalar or [{x.shape[0]}], "
                "one per image, is taken"
            )

    def _masked(self, delta: Array) -> Array:
        return delta if self.ball.mask is None else jnp.where(self.ball.mask, delta, 0)

    def init(self, key: Key, model: Any, x: Array, y: Array) -> _State:
        del y
        lower, upper = self.bounds
        closest = Closest.start(x)
        none = jnp.zeros_like(closest.first_success)
        corner = jnp.maximum(x - lower, upper - x)
        first = 1.0 if isinstance(self.ball, L0) else jnp.inf
        return _State(
            keys=example_keys(key, x.shape[0]) if is_stochastic(model) else None,
            x_adv=x,
            radius=jnp.full_like(closest.distance, first),
            farthest=self.ball.size(self._masked(corner)),
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
        distance = self.ball.size(delta)
        closest = state.closest.keep(state.x_adv, judged.success, distance, i)
        grad = self._masked(jnp.where(jnp.isfinite(grad), grad, 0))
        lost = jnp.all(grad == 0, axis=tuple(range(1, x.ndim)))

        horizon = self.steps if self.horizon is None else self.horizon
        cosine = (1 + jnp.cos(jnp.pi * i / jnp.asarray(horizon))) / 2
        gamma = self.gamma_final + (jnp.asarray(self.gamma) - self.gamma_final) * cosine
        step_size = jnp.asarray(self.step_size) * (0.01 + 0.99 * cosine)
        if isinstance(self.ball, L0):
            radius = _next_count(state.radius, judged.success, closest.distance, gamma)
        else:
            shrunk = jnp.minimum(state.radius * (1 - gamma), closest.distance)
            slope = _DUAL[type(self.ball)].size(grad)
            ahead = jnp.abs(judged.loss) / jnp.where(slope > 0, slope, 1)
            # A little beyond the crossing: in a linear region the steps else end on the tie.
            estimate = (distance + ahead) * (1 + jnp.asarray(self.gamma_final))
            estimate = jnp.where(slope > 0, estimate, jnp.inf)
            grown = jnp.where(closest.found, state.radius * (1 + gamma), estimate)
            radius = jnp.where(judged.success, shrunk, grown)
        radius = jnp.minimum(radius, state.farthest)
        moved = delta + step_size * L2().steepest(grad)
        return replace(
            state,
            x_adv=replace(self.ball, eps=radius).apply(x, moved),
            radius=radius,
            closest=closest,
            taken=state.taken + live,
            zero_gradient=state.zero_gradient + (lost & live),
            probabilities=state.probabilities & judged.probabilities,
        )

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

    def pieces(self) -> FMN:
        horizon = np.float32(max(self.steps, 1)) if self.horizon is None else self.horizon
        return replace(self, steps=0, horizon=horizon, loop=auto_loop)

    def aimed(self) -> FMN:
        return replace(self, targeted=True)

    def scaled(self, factor: ArrayLike) -> FMN:
        return replace(self, ball=self.ball.scaled(factor))


def _next_count(count: Array, success: Array, smallest: Array, gamma: Array) -> Array:
    """How many features may change next: fewer where the last image was adversarial."""
    fewer = jnp.minimum(jnp.minimum(count - 1, jnp.floor(count * (1 - gamma))), smallest)
    more = jnp.maximum(count + 1, jnp.floor(count * (1 + gamma)))
    return jnp.maximum(jnp.where(success, fewer, more), 0)
