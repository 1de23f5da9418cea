"""What attacks share that minimise ``distance + c * hinge(margin)``, an example at a time."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advjax.attacks._closest import KeepsClosest
from advjax.attacks._iterate import Judgement, auto_loop, judge
from advjax.attacks._rows import only, widen
from advjax.balls import Ball
from advjax.losses import margin
from advjax.types import (
    Array,
    ArrayLike,
    fold_in_each,
    is_stochastic,
    pytree,
    replace,
)

_GOLDEN = (5**0.5 - 1) / 2
_LARGEST = 1e10  # of c; beyond it, bisecting or not, the distance counts for nothing
_LEAST_LOOK = 20  # iterations: an objective that oscillates may not have fallen after ten


def over_features(x: Array) -> tuple[int, ...]:
    return tuple(range(1, x.ndim))


def on_mask(ball: Ball, changed: Array, x: Array) -> Array:
    """The changed images where the ball's mask lets them change, ``x`` itself elsewhere."""
    return changed if ball.mask is None else jnp.where(jnp.asarray(ball.mask) != 0, changed, x)


def margin_and_gradient(
    targeted: bool, model: Any, x: Array, y: Array, keys: Any, draw: Any
) -> tuple[Judgement, Array]:
    """The judgement, whose loss is the margin, and the margin's gradient, finite."""
    drawn: Any = fold_in_each(keys, draw) if is_stochastic(model) else None
    value_and_grad = jax.value_and_grad(
        lambda image: judge(margin, targeted, model, image, y, drawn), has_aux=True
    )
    (_, judged), grad = value_and_grad(x)
    return judged, jnp.where(jnp.isfinite(grad), grad, 0)


def convinces(judged: Judgement, confidence: ArrayLike) -> Array:
    """``[B]`` bool: adversarial, and by a margin of at least ``confidence``."""
    return judged.success & (judged.loss >= jnp.asarray(confidence))


def into_tanh(x: Array, ball: Ball) -> Array:
    """The variable w with ``x = lower + (upper - lower) * (tanh(w) + 1) / 2``, kept finite.

    A pixel on a bound must still be able to leave it. The authors' code puts all of them 5e-7 of
    the range inside; here each has its own distance, 1e-5 to 1e-4: they leave sooner, and a window
    of equal pixels does not lead the gradient of a max-pool to its first one alone.
    """
    lower, upper = ball.bounds
    unit = 2 * (jnp.clip(x, lower, upper) - lower) / (upper - lower) - 1
    place = np.arange(np.prod(x.shape[1:]), dtype=np.float64).reshape(x.shape[1:])
    own = 1e-5 + 9e-5 * (place * _GOLDEN % 1)  # spread evenly, neighbours far apart
    return jnp.arctanh(np.float32(1 - 2 * own) * unit)


def out_of_tanh(w: Array, x: Array, ball: Ball) -> tuple[Array, Array]:
    """The images of w, equal to ``x`` off the mask, and their derivative in w.

    ``(tanh(w) + 1) / 2`` is ``sigmoid(2 w)``, whose derivative is exact on both bounds.
    """
    lower, upper = ball.bounds
    share = jax.nn.sigmoid(2 * w)
    image = jnp.clip(lower + (upper - lower) * share, lower, upper)
    slope = 2 * (upper - lower) * share * jax.nn.sigmoid(-2 * w)
    return on_mask(ball, image, x), slope


def leaving_a_bound(w: Array, direction: Array) -> Array:
    """``[B]`` bool: a step along ``-direction`` still brings pixels away from a bound of the box.

    They take hundreds of iterations during which nothing else is seen of them.
    """
    leaving = (jnp.abs(w) > 3) & (jnp.sign(w) * direction > 0.5)
    return jnp.any(leaving, axis=over_features(w))


@pytree
class Adam:
    """Adam's two moments, ``[B, ...]``, and how many gradients they hold, ``[B]``."""

    mean: Array
    square: Array
    taken: Array

    @classmethod
    def start(cls, x: Array, row: Array) -> Adam:
        """Before the first gradient; ``row`` is any ``[B]`` array."""
        zero = jnp.zeros_like(x)
        return cls(mean=zero, square=zero, taken=jnp.zeros_like(row, dtype=jnp.int32))

    def step(self, grad: Array) -> tuple[Array, Adam]:
        """The direction to go down (of about length one in every pixel) and the new moments."""
        grad = jnp.clip(grad, -1e18, 1e18)  # whose square is still finite
        mean, square = 0.9 * self.mean + 0.1 * grad, 0.999 * self.square + 0.001 * grad**2
        taken = self.taken + 1
        unbiased = lambda moment, decay: moment / widen(1 - decay**taken, grad)
        direction = unbiased(mean, 0.9) / (jnp.sqrt(unbiased(square, 0.999)) + 1e-8)
        return direction, Adam(mean=mean, square=square, taken=taken)

    def forget(self, which: Array) -> Adam:
        """Started anew for some examples, ``[B]`` bool."""
        start = Adam.start(self.mean, self.taken)
        return only(which, start, self)


@pytree
class Progress:
    """Whether a minimisation still gets anywhere; all ``[B]``.

    Looked at every tenth of its length, but 20 iterations at least: it is over where the lowest
    objective has not fallen by 0.01 % since the last look. The authors' code compares single
    iterates instead, which oscillate, and sums over the batch.
    """

    taken: Array
    lowest: Array
    seen: Array

    @classmethod
    def start(cls, row: Array) -> Progress:
        infinite = jnp.full_like(row, jnp.inf, dtype=jnp.float32)
        zero = jnp.zeros_like(row, dtype=jnp.int32)
        return cls(taken=zero, lowest=infinite, seen=infinite)

    def after(
        self, objective: Array, length: ArrayLike, early: bool, wait: ArrayLike = False
    ) -> tuple[Array, Progress]:
        """Whether it is over, ``[B]`` bool, and the state after one more iteration.

        Args:
          length: the most iterations.
          early: stop where it gets nowhere.
          wait: but not yet; ``[B]`` bool.
        """
        length = jnp.asarray(length).astype(jnp.int32)
        taken = self.taken + 1
        lowest = jnp.where(objective < self.lowest, objective, self.lowest)
        look = taken % jnp.maximum(length // 10, _LEAST_LOOK) == 0
        stuck = look & (lowest > 0.9999 * self.seen) & ~jnp.asarray(wait)
        over = (taken >= length) | stuck if early else taken >= length
        new = Progress(taken=taken, lowest=lowest, seen=jnp.where(look, lowest, self.seen))
        return over, new

    def again(self, which: Array) -> Progress:
        """Started anew for some examples, ``[B]`` bool."""
        return only(which, Progress.start(self.lowest), self)


@pytree
class ConstantSearch:
    """The search for c, ``[B]`` each: times ten until a success, then by bisection.

    Every example is in a search of its own and begins the next one when that is over.
    """

    c: Array
    lower: Array
    upper: Array
    done: Array  # searches
    found: Array  # in the present search
    progress: Progress

    @classmethod
    def start(cls, c: ArrayLike, row: Array) -> ConstantSearch:
        progress = Progress.start(row)
        return cls(
            c=jnp.zeros_like(row, dtype=jnp.float32) + jnp.asarray(c),
            lower=jnp.zeros_like(progress.lowest),
            upper=progress.lowest,
            done=progress.taken,
            found=progress.taken > 0,
            progress=progress,
        )

    def after(
        self,
        objective: Array,
        success: Array,
        length: ArrayLike,
        early: bool,
        wait: ArrayLike = False,
    ) -> tuple[Array, ConstantSearch]:
        """Whether the search is over, ``[B]`` bool, and the state after one more iteration."""
        over, progress = self.progress.after(objective, length, early, wait)
        found = self.found | success
        upper = jnp.where(over & found, jnp.minimum(self.upper, self.c), self.upper)
        lower = jnp.where(over & ~found, jnp.maximum(self.lower, self.c), self.lower)
        larger = jnp.minimum(10 * self.c, np.float32(_LARGEST))
        new_c = jnp.where(jnp.isfinite(upper), (lower + upper) / 2, larger)
        return over, ConstantSearch(
            c=jnp.where(over, new_c, self.c),
            lower=lower,
            upper=upper,
            done=self.done + over,
            found=found & ~over,
            progress=progress.again(over),
        )


class Attempts(KeepsClosest):
    """Keeps the nearest success of one attempt after another, until an example has no more.

    Its state also has ``over``.
    """

    def live(self, state: Any) -> Array:
        return ~state.over & (state.closest.distance > 0)

    def pieces(self) -> Any:
        return replace(self, steps=0, loop=auto_loop)
