"""Simultaneous perturbation stochastic approximation: Adam along gradients from scores alone."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from advjax.attacks._checks import check_number, check_per_example
from advjax.attacks._iterate import Loop, LossFn, auto_loop
from advjax.attacks._rows import only, spread, vanished
from advjax.attacks.nes import Probed, Probing
from advjax.attacks.oracle import Scores
from advjax.balls import Ball
from advjax.losses import margin
from advjax.types import (
    Array,
    ArrayLike,
    Key,
    example_keys,
    fold_in_each,
    pytree,
    replace,
    static,
)

_ADAM = optax.scale_by_adam()


@pytree
class _State:
    """Between two steps, batch-first but for Adam's count, which all live examples share."""

    keys: Key
    x_adv: Array
    adam: optax.OptState
    fooled: Array
    used: Array  # queries
    first_success: Array
    zero_gradient: Array


@pytree
class SPSA(Probed):
    """Adam on the image with SPSA's gradients (Uesato et al. 2018, section 3.1, algorithm 1).

    Every step spends ``samples`` queries at ``x +- delta * direction``, with directions of random
    signs, and one on the image it moves to; an example stops at its first adversarial image.

    Attributes:
      ball: the perturbations allowed; eps finite.
      queries: most queries per example, the first look at the image included; the judging pass
        of the record is one forward more.
      samples: probes per step, even: two for each direction. 128 as in CleverHans; the paper takes
        up to 8,192 against strong defences.
      delta: how far from the image the probes are, pixel units.
      step_size: Adam's learning rate, pixel units.
      chunk: probes per example in one batch of the model, an even divisor of ``samples``; None
        for all at once. Bounds the memory.
      loss: per-example loss ``(logits, y) -> [B]``; a named function.
      targeted: labels are targets and the loss is lowered; see ``Targeted``.
      loop: who iterates.
    """

    ball: Ball
    queries: int = static(default=10_000)
    samples: int = static(default=128)
    delta: ArrayLike = 0.01
    step_size: ArrayLike = 0.01
    chunk: int | None = static(default=None)
    loss: LossFn = static(default=margin)
    targeted: bool = static(default=False)
    loop: Loop = static(default=auto_loop)

    def check(self) -> None:
        super().check()
        check_number("SPSA", "delta", self.delta)

    def check_fits(self, x: Array) -> None:
        check_per_example(x, eps=self.ball.eps, delta=self.delta, step_size=self.step_size)

    def init(self, key: Key, model: Any, x: Array, y: Array) -> _State:
        keys, none = example_keys(key, x.shape[0]), jnp.zeros_like(y)
        fooled = self._fooled(keys, Scores(model), x, y, 0)
        return _State(
            keys=keys,
            x_adv=x,
            adam=_ADAM.init(x),
            fooled=fooled,
            used=none + 1,
            first_success=jnp.where(fooled, 0, none - 1),
            zero_gradient=none,
        )

    def step(self, i: Array, state: _State, model: Any, x: Array, y: Array) -> _State:
        scores, live = Scores(model), self.live(state)
        probing = Probing(draw=jax.random.rademacher, samples=self.samples, chunk=self.chunk)
        keys = fold_in_each(state.keys, i)
        gradient, _ = probing.estimate(self, scores, state.x_adv, y, keys, self.delta)
        uphill, adam = _ADAM.update(gradient, state.adam)
        x_adv = self.ball.apply(x, state.x_adv + spread(self.step_size, x) * uphill - x)
        fooled = live & self._fooled(state.keys, scores, x_adv, y, i + 1)
        used = state.used + self.samples + 1
        lost = vanished(gradient)
        after = _State(
            keys=state.keys,
            x_adv=x_adv,
            adam=adam,
            fooled=fooled,
            used=used,
            first_success=jnp.where(fooled, used - 1, state.first_success),
            zero_gradient=state.zero_gradient + lost,
        )
        return only(live, after, state)

    def scaled(self, factor: ArrayLike) -> SPSA:
        return replace(
            self, ball=self.ball.scaled(factor), step_size=jnp.multiply(self.step_size, factor)
        )
