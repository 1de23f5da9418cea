"""What attacks that look for the smallest perturbation keep and return."""

from __future__ import annotations

from typing import Any, Self

import jax
import jax.numpy as jnp

from advjax.answers import example_keys, fold_if_any, is_stochastic
from advjax.attacks.core.driver import Iterative
from advjax.attacks.core.judging import Judgement, Tally, ask_with_gradient
from advjax.balls import Ball, Linf
from advjax.pytrees import Array, ArrayLike, Key, pytree, replace
from advjax.shapes import row, widen
from advjax.types import Model


@pytree
class Closest:
    """The nearest adversarial image found so far, per example.

    Attributes:
      image: ``[B, ...]``; the clean image until one is found.
      distance: ``[B]``, infinite until one is found.
    """

    image: Array
    distance: Array

    @classmethod
    def start(cls, x: Array) -> Closest:
        """Nothing found yet."""
        return cls(image=x, distance=jnp.full_like(row(x), jnp.inf))

    @property
    def found(self) -> Array:
        """``[B]`` bool."""
        return jnp.isfinite(self.distance)

    def keep(self, image: Array, success: Array, distance: Array) -> Closest:
        """With these images where they are adversarial and nearer."""
        nearer = success & (distance < self.distance)
        return Closest(
            image=jnp.where(widen(nearer, image), image, self.image),
            distance=jnp.where(nearer, distance, self.distance),
        )

    def within(self, ball: Ball, x: Array) -> Array:
        """The images ``[B, ...]``; those farther than ``eps`` are pulled back to it."""
        pulled = ball.apply(x, self.image - x)
        return jnp.where(widen(self.distance <= ball.eps, x), self.image, pulled)


@pytree
class SearchState:
    """What every search for the smallest perturbation has between two steps.

    Attributes:
      keys: ``[B]`` keys, or None where nothing is drawn.
      steps: how many there will be, float32 since attacks divide by it.
    """

    keys: Any
    steps: Array
    closest: Closest
    tally: Tally

    @classmethod
    def start(
        cls, key: Key, model: Model, x: Array, steps: Array, *, draws: bool = False, **own: Any
    ) -> Self:
        """Before the first step; ``draws`` whether the attack does, ``own`` its further fields."""
        draws = draws or is_stochastic(model)
        return cls(
            keys=example_keys(key, x.shape[0]) if draws else None,
            steps=steps.astype(jnp.float32),
            closest=Closest.start(x),
            tally=Tally.start(x),
            **own,
        )


def free_pixels(ball: Ball, x: Array) -> Array:
    """``[B, ...]`` bool: the pixels that may change."""
    return ball.on_mask(jnp.ones_like(x, bool), False)


def farthest(ball: Ball, x: Array) -> Array:
    """``[B]`` distance of the farthest corner of the box, on the mask."""
    lower, upper = ball.box(x)
    return ball.size(ball.on_mask(jnp.maximum(x - lower, upper - x)))


def at_distance(ball: Ball, keys: Key, x: Array, distance: ArrayLike) -> Array:
    """The images ``[B, ...]`` moved so far, scalar or ``[B]``, in random directions, in the box."""
    draw = lambda key: jax.random.normal(key, x.shape[1:], x.dtype)
    if isinstance(ball, Linf):
        draw = lambda key: jax.random.uniform(key, x.shape[1:], x.dtype, -1, 1)
    direction = ball.masked(jax.vmap(draw)(keys))
    size = ball.size(direction)
    length = jnp.asarray(distance, x.dtype) / jnp.where(size > 0, size, 1)
    return ball.clip(x + widen(length, x) * direction)


class KeepsClosest(Iterative):
    """Ends at the nearest success of all iterations; its state is a ``SearchState``."""

    def result(self, state: Any, x: Array) -> Array:
        return state.closest.within(self.ball, x)


class MinimumNorm(KeepsClosest):
    """Follows a gradient by a schedule, and leaves an example that needs no perturbation.

    Its state is a ``SearchState`` that also has ``x_adv``.
    """

    def _cosine(self, i: Array, state: Any) -> Array:
        """From 1 to 0 along a cosine, which ends with the last step."""
        return (1 + jnp.cos(jnp.pi * jnp.asarray(i, jnp.float32) / state.steps)) / 2

    def _look(self, i: Array, state: Any, model: Model, y: Array) -> tuple[Judgement, Array]:
        """The judgement of the iterate, and its gradient."""
        keys = fold_if_any(state.keys, i + 1)
        return ask_with_gradient(self.goal, self.loss, model, state.x_adv, y, keys)

    def _seen(self, i: Array, state: Any, judged: Judgement, lost: Array, x: Array) -> Any:
        """The state after its iterate has been judged; ``lost [B]``: without a gradient."""
        live, distance = self.live(state), self.ball.size(state.x_adv - x)
        tally = state.tally.spend(forwards=live, backwards=live).lose(lost & live).see(judged, i)
        closest = state.closest.keep(state.x_adv, judged.success, distance)
        return replace(state, closest=closest, tally=tally)

    def live(self, state: Any) -> Array:
        return state.closest.distance > 0
