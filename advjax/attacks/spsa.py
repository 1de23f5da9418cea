"""Simultaneous perturbation stochastic approximation: Adam along gradients from scores alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from advjax.arguments import check_number
from advjax.attacks.core.judging import Tally
from advjax.attacks.nes import Probed
from advjax.balls import Ball
from advjax.goals import Misclassify
from advjax.losses import margin
from advjax.pytrees import Array, ArrayLike, Key, per_example, pytree, replace, static
from advjax.shapes import spread
from advjax.types import Goal, LossFn, Model

_ADAM = optax.scale_by_adam()


@pytree
class _State:
    """Between two steps, batch-first but for Adam's count, which all live examples share."""

    keys: Key
    x_adv: Array
    adam: optax.OptState
    tally: Tally


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
      goal: what is wanted, see ``Targeted``.
    """

    ball: Ball
    queries: int = static(default=10_000)
    samples: int = static(default=128)
    delta: ArrayLike = per_example(default=0.01)
    step_size: ArrayLike = per_example(default=0.01)
    chunk: int | None = static(default=None)
    loss: LossFn = static(default=margin)
    goal: Goal = Misclassify()

    def check(self) -> None:
        super().check()
        check_number("SPSA", "delta", self.delta)

    def init(self, key: Key, model: Model, x: Array, y: Array, steps: Array) -> _State:
        return _State(**self._begin(key, model, x, y), adam=_ADAM.init(x))

    def step(self, i: Array, state: _State, model: Model, x: Array, y: Array) -> _State:
        gradient, _ = self._estimate(i, state, model, y, jax.random.rademacher, self.delta)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes counts and floats
            uphill, adam = _ADAM.update(gradient, state.adam)
        x_adv = self.ball.apply(x, state.x_adv + spread(self.step_size, x) * uphill - x)
        return self._look(i, state, replace(state, x_adv=x_adv, adam=adam), model, y, gradient)

    def scaled(self, factor: ArrayLike) -> SPSA:
        return replace(
            self, ball=self.ball.scaled(factor), step_size=jnp.multiply(self.step_size, factor)
        )
