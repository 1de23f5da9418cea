"""Adversarial images crafted on one model and judged on another."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from advjax.attacks._iterate import Attack, LossFn, judge
from advjax.attacks.compose import Targeted
from advjax.checks import classes_of
from advjax.losses import cross_entropy
from advjax.types import (
    Array,
    ArrayLike,
    Key,
    Record,
    as_model,
    example_keys,
    fold_in_each,
    is_stochastic,
    pytree,
    replace,
    static,
)

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
    unit = (jnp.asarray(upper, x.dtype) - jnp.asarray(lower, x.dtype)) / (levels - 1)
    level = (x_adv - lower) / unit
    up = x_adv > x
    slack = 4e-6 / unit  # of a level: rounding of the arithmetic, not a change
    there = jnp.where(up, jnp.floor(level + slack), jnp.ceil(level - slack)) * unit + lower
    crossed = jnp.where(up, there < x, there > x)
    return jnp.where((x_adv == x) | crossed, x, jnp.clip(there, lower, upper))


@pytree
class Transferred(Attack):
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
        if not isinstance(self.attack, Attack):
            given = type(self.attack).__name__
            raise TypeError(f"Transferred: given attack={given}; an advjax attack is taken")
        if any(isinstance(part, Targeted) and part.choose for part in _parts(self.attack)):
            raise ValueError(
                "Transferred: given an attack that chooses its targets; "
                "Targeted(Transferred(...), choose=...) is taken"
            )
        if self.levels is not None and not (isinstance(self.levels, int) and self.levels >= 2):
            raise ValueError(f"Transferred: given levels={self.levels!r}; None or >= 2 is taken")
        object.__setattr__(self, "source", as_model(self.source))

    @property
    def bounds(self) -> tuple[ArrayLike, ArrayLike]:
        return self.attack.bounds

    @property
    def targeted(self) -> bool:
        return any(
            isinstance(part, Targeted) or getattr(part, "targeted", False) is True
            for part in _parts(self.attack)
        )

    def check_fits(self, x: Array) -> None:
        self.attack.check_fits(x)

    def solve(self, key: Key, model: Any, x: Array, y: Array, *, record: bool) -> Record:
        own, target = classes_of(self.source, x), classes_of(model, x)
        if own != target:
            raise ValueError(
                f"Transferred: the source has {own} classes; {target}, the model's, are taken"
            )
        keys = example_keys(key, x.shape[0])
        out = self.attack.solve(keys, self.source, x, y, record=record)
        if self.levels is not None:
            shown = quantised(x, out.x_adv, self.levels, *self.bounds)
            balls = [part.ball for part in _parts(self.attack) if hasattr(part, "ball")]
            size = _size(balls[0], shown - x) if record and balls else out.distance
            out = replace(out, x_adv=shown, distance=size)
        if not record:
            return out
        judge_keys: Any = fold_in_each(keys, _JUDGE) if is_stochastic(model) else None
        return _judged(self.loss, self.targeted, out, model, y, judge_keys)

    def aimed(self) -> Transferred:
        return replace(self, attack=self.attack.aimed())

    def scaled(self, factor: ArrayLike) -> Transferred:
        return replace(self, attack=self.attack.scaled(factor))


def _parts(attack: Any) -> list[Any]:
    """The attack and every attack inside it."""
    inner = [getattr(attack, "attack", None), *getattr(attack, "attacks", ())]
    return [attack, *(p for part in inner if isinstance(part, Attack) for p in _parts(part))]


@jax.jit
def _size(ball: Any, delta: Array) -> Array:
    return ball.size(delta)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _judged(loss: LossFn, targeted: bool, out: Record, model: Any, y: Array, keys: Any) -> Record:
    """The source's record with the target's judgement in the place of its own."""
    _, judged = judge(loss, targeted, model, out.x_adv, y, keys)
    return replace(
        out,
        success=judged.success,
        loss=judged.loss,
        forwards=out.forwards + 1,
        first_success=jnp.where(judged.success, out.forwards, -1).astype(jnp.int32),
    )
