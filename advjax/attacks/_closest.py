"""What attacks that look for the smallest perturbation keep and return."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from advjax.attacks._iterate import Iterative, LossFn, outcome
from advjax.attacks._rows import row, widen
from advjax.balls import Ball
from advjax.losses import margin
from advjax.types import Array, Record, fold_in_each, is_stochastic, pytree


@pytree
class Closest:
    """The nearest adversarial image found so far, per example.

    Attributes:
      image: ``[B, ...]``; the clean image until one is found.
      distance: ``[B]``, infinite until one is found.
      first_success: ``[B]`` int32, the iteration that found the first one; -1 until then.
    """

    image: Array
    distance: Array
    first_success: Array

    @classmethod
    def start(cls, x: Array) -> Closest:
        """Nothing found yet."""
        return cls(
            image=x,
            distance=jnp.full_like(row(x), jnp.inf),
            first_success=jnp.full_like(row(x), -1, dtype=jnp.int32),
        )

    @property
    def found(self) -> Array:
        """``[B]`` bool."""
        return jnp.isfinite(self.distance)

    def keep(self, image: Array, success: Array, distance: Array, i: Any) -> Closest:
        """With the images of iteration i where they are adversarial and nearer."""
        nearer = success & (distance < self.distance)
        first = jnp.where((self.first_success < 0) & success, i, self.first_success)
        return Closest(
            image=jnp.where(widen(nearer, image), image, self.image),
            distance=jnp.where(nearer, distance, self.distance),
            first_success=first.astype(jnp.int32),
        )

    def within(self, ball: Ball, x: Array) -> Array:
        """The images ``[B, ...]``; those farther than ``eps`` are pulled back to it."""
        pulled = ball.apply(x, self.image - x)
        return jnp.where(widen(self.distance <= ball.eps, x), self.image, pulled)


def farthest(ball: Ball, x: Array) -> Array:
    """``[B]`` distance of the farthest corner of the box, on the mask."""
    lower, upper = ball.bounds
    corner = jnp.maximum(x - lower, upper - x)
    return ball.size(corner if ball.mask is None else jnp.where(ball.mask, corner, 0))


class KeepsClosest(Iterative):
    """Ends at the nearest success of all iterations.

    Its state has ``keys``, ``closest``, ``taken``, ``zero_gradient``, ``probabilities``; each
    iteration costs a forward and a backward pass.
    """

    @property
    def loss(self) -> LossFn:
        """What a step raises, and the record tells."""
        return margin

    def finish(self, state: Any, model: Any, x: Array, y: Array, *, record: bool) -> Record:
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

    def doubts(self, state: Any) -> Array:
        return state.probabilities
