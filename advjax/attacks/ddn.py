"""The decoupled direction and norm attack: the smallest L2 perturbation by a moving radius."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advjax.attacks._closest import Closest, widen
from advjax.attacks._iterate import Iterative, Judgement, Loop, LossFn, auto_loop, judge, outcome
from advjax.balls import L2, Ball, concrete
from advjax.losses import cross_entropy
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

_NOISE = 2**30  # what a key is folded with, plus i, to draw the noise of step i; a model's: i + 1


@pytree
class _State:
    """Between two steps; all but the keys ``[B]`` or ``[B, ...]``."""

    keys: Key
    x_adv: Array
    radius: Array
    farthest: Array  # distance of the farthest corner of the box
    closest: Closest
    taken: Array
    zero_gradient: Array
    probabilities: Array


@pytree
class DDN(Iterative):
    """Decoupled direction and norm (Rony et al. 2019, algorithm 1).

    Each step goes along the normalised gradient, is put on the sphere of the current radius and
    into the box; the radius then shrinks by ``gamma`` where the image was adversarial and grows
    by it where not. Where no gradient reaches the image the direction is Gaussian noise.

    Attributes:
      ball: an ``L2`` ball: its box and mask, and the largest distance that counts as a success.
      steps: number of steps, at least 0; each costs a forward and a backward pass.
      step_size: length of the first step, pixel units; decays to a hundredth along a cosine.
      init_norm: the first radius, pixel units, above 0.
      gamma: relative change of the radius, above 0 and below 1.
      in_box: lengthen what is left after the cut to the box until its length is the radius (or the
        box is full). As published the cut shortens it: on 200 MNIST images and an adversarially
        trained network, 98.5 % of them found at a mean of 1.92 after 1,000 steps; 100 % at 1.83
        with ``in_box``. On an ordinary network the two are equal.
      levels: values are rounded to so many, evenly spaced over the box, before they are judged:
        256 for results that survive being saved, as published; None for no rounding.
      horizon: the step at which the cosine ends; ``steps`` by default.
      loss: per-example loss ``(logits, y) -> [B]``; a named function, not a fresh lambda.
      targeted: labels are targets and the loss is lowered; see ``Targeted``.
      loop: who iterates; ``auto_loop``, ``host_loop``, ``device_loop`` or your own.
    """

    ball: Ball = L2()
    steps: int = static(default=100)
    step_size: ArrayLike = 1.0
    init_norm: ArrayLike = 1.0
    gamma: ArrayLike = 0.05
    in_box: bool = static(default=False)
    levels: int | None = static(default=256)
    horizon: ArrayLike = None
    loss: LossFn = static(default=cross_entropy)
    targeted: bool = static(default=False)
    loop: Loop = static(default=auto_loop)

    def check(self) -> None:
        if not isinstance(self.ball, L2):
            raise TypeError(f"DDN: given ball={self.ball!r}; an L2 ball is taken")
        if not isinstance(self.steps, int) or self.steps < 0:
            raise ValueError(f"DDN: given steps={self.steps!r}; an integer >= 0 is taken")
        if self.levels is not None and not (isinstance(self.levels, int) and self.levels >= 2):
            raise ValueError(f"DDN: given levels={self.levels!r}; an integer >= 2 or None is taken")
        gamma, norm = concrete(self.gamma), concrete(self.init_norm)
        if gamma is not None and not ((gamma > 0) & (gamma < 1)).all():
            raise ValueError(f"DDN: given gamma={gamma.tolist()}; between 0 and 1 is taken")
        if norm is not None and not (norm > 0).all():
            raise ValueError(f"DDN: given init_norm={norm.tolist()}; numbers > 0 are taken")

    @property
    def bounds(self) -> tuple[ArrayLike, ArrayLike]:
        return self.ball.bounds

    def check_fits(self, x: Array) -> None:
        for name, value in (("eps", self.ball.eps), ("init_norm", self.init_norm)):
            if jnp.shape(value) not in ((), (x.shape[0],)):
                raise ValueError(
                    f"{name}: given shape {jnp.shape(value)}; a scalar or [{x.shape[0]}], "
                    "one per image, is taken"
                )

    def init(self, key: Key, model: Any, x: Array, y: Array) -> _State:
        del model, y
        lower, upper = self.bounds
        closest = Closest.start(x)
        none = jnp.zeros_like(closest.first_success)
        corner = jnp.maximum(x - lower, upper - x)
        corner = corner if self.ball.mask is None else jnp.where(self.ball.mask, corner, 0)
        return _State(
            keys=example_keys(key, x.shape[0]),
            x_adv=x,
            radius=jnp.broadcast_to(self.init_norm, none.shape).astype(x.dtype),
            farthest=self.ball.size(corner),
            closest=closest,
            taken=none,
            zero_gradient=none,
            probabilities=none == 0,
        )

    def _judge(
        self, state: _State, model: Any, x: Array, y: Array, i: Any
    ) -> tuple[Array, Judgement]:
        keys: Any = fold_in_each(state.keys, i + 1) if is_stochastic(model) else None
        return judge(self.loss, self.targeted, model, x, y, keys)

    def step(self, i: Array, state: _State, model: Any, x: Array, y: Array) -> _State:
        value_and_grad = jax.value_and_grad(
            lambda x_adv: self._judge(state, model, x_adv, y, i), has_aux=True
        )
        (_, judged), grad = value_and_grad(state.x_adv)
        live, delta = self.live(state), state.x_adv - x
        closest = state.closest.keep(state.x_adv, judged.success, self.ball.size(delta), i)
        grad = self.ball.steepest(jnp.where(jnp.isfinite(grad), grad, 0))
        lost = jnp.all(grad == 0, axis=tuple(range(1, x.ndim)))
        draw = lambda key: jax.random.normal(key, x.shape[1:], x.dtype)
        noise = jax.vmap(draw)(fold_in_each(state.keys, _NOISE + i))
        delta += self._step_size(i) * jnp.where(widen(lost, x), noise, grad)
        change = jnp.where(judged.success, -1, 1) * jnp.asarray(self.gamma)
        radius = jnp.minimum(state.radius * (1 + change), state.farthest)
        return replace(
            state,
            x_adv=self._on_sphere(x, delta, radius),
            radius=radius,
            closest=closest,
            taken=state.taken + live,
            zero_gradient=state.zero_gradient + (lost & live),
            probabilities=state.probabilities & judged.probabilities,
        )

    def _step_size(self, i: Array) -> Array:
        horizon = self.steps if self.horizon is None else self.horizon
        cosine = (1 + jnp.cos(jnp.pi * i / jnp.asarray(horizon))) / 2
        return jnp.asarray(self.step_size) * (0.01 + 0.99 * cosine)

    def _on_sphere(self, x: Array, delta: Array, radius: Array) -> Array:
        """The image at distance ``radius`` along ``delta``, cut to the box and rounded."""
        lower, upper = self.bounds
        delta = widen(radius, x) * self.ball.steepest(delta)
        if self.in_box:
            x_adv = replace(self.ball, eps=radius).apply(x, 1e6 * delta)
        else:
            x_adv = jnp.clip(x + delta, lower, upper)
        if self.levels is not None:
            gaps = (self.levels - 1) / (upper - lower)
            x_adv = jnp.clip(lower + jnp.round((x_adv - lower) * gaps) / gaps, lower, upper)
        return x_adv if self.ball.mask is None else jnp.where(self.ball.mask, x_adv, x)

    def live(self, state: _State) -> Array:
        return state.closest.distance > 0

    def finish(self, state: _State, model: Any, x: Array, y: Array, *, record: bool) -> Record:
        keys: Any = fold_in_each(state.keys, 0) if is_stochastic(model) else None
        return outcome(
            self,
            model,
            x,
            y,
            state.closest.within(self.ball, x),
            keys,
            record=record,
            loss=self.loss,
            forwards=state.taken,
            backwards=state.taken,
            first_success=state.closest.first_success,
            zero_gradient=state.zero_gradient,
        )

    def doubts(self, state: _State) -> Array:
        return state.probabilities

    def pieces(self) -> DDN:
        horizon = np.float32(max(self.steps, 1)) if self.horizon is None else self.horizon
        return replace(self, steps=0, horizon=horizon, loop=auto_loop)

    def aimed(self) -> DDN:
        return replace(self, targeted=True)

    def scaled(self, factor: ArrayLike) -> DDN:
        return replace(self, ball=self.ball.scaled(factor))
