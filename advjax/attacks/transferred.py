"""Adversarial images crafted on one model and judged on another."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from advjax.answers import as_model, example_keys, fold_in_each
from advjax.attacks.compose import Targeted
from advjax.attacks.core.judging import ask
from advjax.attacks.core.wrap import Wrapper
from advjax.checks import classes_of
from advjax.losses import cross_entropy
from advjax.pytrees import Array, ArrayLike, Key, pytree, replace, static
from advjax.shapes import aligned
from advjax.types import Attack, Goal, Loop, LossFn, Model, Record, auto_loop

_JUDGE = 2**32 - 4  # what a key is folded with to judge on the target; no attack uses it


@functools.partial(jax.jit, static_argnames="levels")
def quantised(
    x: Array, x_adv: Array, levels: int, lower: ArrayLike = 0.0, upper: ArrayLike = 1.0
) -> Array:
    """Adversarial images as a file of so many levels a pixel holds them.

    A changed pixel goes to the next level towards the original ``x``, which it does not cross: the
    change grows in no norm. Unchanged pixels stay exactly as they are. With 256 levels and images
    that came from bytes the result is one that bytes can hold.
    """
    lower, upper = (aligned(jnp.asarray(bound, x.dtype), x) for bound in (lower, upper))
    unit = (upper - lower) / (levels - 1)
    level = (x_adv - lower) / unit
    up = x_adv > x
    slack = 4e-6 / unit  # of a level: rounding of the arithmetic, not a change
    there = jnp.where(up, jnp.floor(level + slack), jnp.ceil(level - slack)) * unit + lower
    crossed = jnp.where(up, there < x, there > x)
    return jnp.where((x_adv == x) | crossed, x, jnp.clip(there, lower, upper))


@pytree
class Transferred(Wrapper):
    """Crafts on a source and judges on the model it is given (Papernot et al. 2016, 1605.07277).

    The model is asked once per example, for the judgement, and needs no gradient. Of
    ``forwards`` and ``backwards`` all but that one forward pass are the source's.

    Attacks that stop once they succeed, such as ``APGD(until_success=True)``, stop when they fool
    the source, at an image that may just do so; with ``until_success=False`` they go on to one that
    transfers better.

    Attributes:
      attack: any attack but ``Targeted(..., choose=...)``, which goes around this one.
      source: the model to craft on, with the classes of the one to fool: ``Substitute.model``, or
        one of your own.
      levels: levels of a pixel that the model gets to see, such as 256 for bytes (``quantised``);
        None for the images as they are.
      loss: what the record's loss on the model is.
    """

    attack: Attack = dataclasses.field(kw_only=False)
    source: Any
    levels: int | None = static(default=None)
    loss: LossFn = static(default=cross_entropy)

    def check(self) -> None:
        super().check()
        if any(isinstance(part, Targeted) and part.choose for part in self.attack.walk()):
            raise ValueError(
                "Transferred: given an attack that chooses its targets; "
                "expected Targeted(Transferred(...), choose=...)"
            )
        if self.levels is not None and not (isinstance(self.levels, int) and self.levels >= 2):
            raise ValueError(f"Transferred: given levels={self.levels!r}; expected None or >= 2")
        object.__setattr__(self, "source", as_model(self.source))

    def solve(
        self, key: Key, model: Model, x: Array, y: Array, *, record: bool, loop: Loop = auto_loop
    ) -> Record:
        own, target = classes_of(self.source, x), classes_of(model, x)
        if own != target:
            raise ValueError(
                f"Transferred: the source has {own} classes; expected {target}, the model's"
            )
        keys = example_keys(key, x.shape[0])
        out = self.attack.solve(keys, self.source, x, y, record=record, loop=loop)
        if self.levels is not None:
            shown = quantised(x, out.x_adv, self.levels, *self.bounds)
            balls = [part.ball for part in self.attack.walk() if part.ball is not None]
            size = _size(balls[0], shown - x) if record and balls else out.distance
            out = replace(out, x_adv=shown, distance=size)
        if not record:
            return out
        return _judged(self.loss, self.goal, out, model, y, fold_in_each(keys, _JUDGE))


@jax.jit
def _size(ball: Any, delta: Array) -> Array:
    return ball.size(delta)


@functools.partial(jax.jit, static_argnums=0)
def _judged(loss: LossFn, goal: Goal, out: Record, model: Model, y: Array, keys: Key) -> Record:
    """The source's record with the target's judgement in the place of its own."""
    _, judged = ask(goal, loss, model, out.x_adv, y, keys)
    return replace(
        out,
        success=judged.success,
        invalid=judged.invalid,
        loss=judged.loss,
        forwards=out.forwards + 1,
        first_success=jnp.where(judged.success, out.forwards, -1).astype(jnp.int32),
    )
