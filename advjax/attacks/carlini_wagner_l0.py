"""The L0 attack of Carlini & Wagner."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from advjax.answers import fold_if_any
from advjax.arguments import check_ball, check_count
from advjax.attacks.core.penalty import Descent, Penalty, PenaltyState, Progress, Seen
from advjax.balls import L0, Ball
from advjax.goals import Misclassify
from advjax.pytrees import Array, ArrayLike, driver_only, per_example, pytree, replace, static
from advjax.shapes import over_features, row, widen
from advjax.types import Goal, Model

_SAME = 1e-4  # a smaller change of a pixel counts as none when the next ones are frozen
_MATTERS = 0.01  # of the margin, in logits: features that give less are frozen several at once


@pytree
class _Search:
    descent: Descent
    free: Array  # bool: the features that may still change
    c: Array
    progress: Progress  # with the present c


@pytree
class CarliniWagnerL0(Penalty):
    """The fewest changed features, by freezing (Carlini & Wagner 2017, section VI-B).

    The L2 attack runs until its image is adversarial; then the features that matter least go back
    to the clean image for good, and the attack goes on from there with the others. Without a
    success c is doubled; beyond ``largest_c`` the search ends. As in the authors' code a round
    freezes those that give less than 0.01 logits, by the gradient of the margin times the change,
    up to 0.3 times the root of the number of unchanged ones. Where all give more, the paper freezes
    the one that gives least, here it is the one that could give least, with all the room the box
    has for it: what is frozen never comes back, and the others have to give more from then on. The
    authors freeze pixels with all their channels; here each channel is a feature, as the ``L0``
    ball counts them. An example goes through its rounds at its own pace.

    Attributes:
      ball: an ``L0`` ball, by default without a limit; with a finite ``eps`` all but the largest
        ``eps`` changes of an image farther away are dropped.
      steps: most iterations in all, at least 0; an example that is done sooner spends fewer.
      attempt: most iterations with one set of features and one c (the paper: 1000).
      step_size: Adam's step, in tanh space; positive.
      c: the first constant, positive, scalar or ``[B]``; ``largest_c`` the last one.
      confidence: the margin in logits by which the image must be adversarial (kappa), at least 0.
      abort_early: end an attempt that gets nowhere: every tenth of ``attempt`` the best margin
        must have grown by 0.01 %.
      goal: what is wanted, see ``Targeted``.
    """

    ball: Ball = L0()
    steps: int = driver_only(default=10_000)
    attempt: ArrayLike = 200
    step_size: ArrayLike = 0.01
    c: ArrayLike = per_example(default=1e-3)
    largest_c: ArrayLike = 2e6
    confidence: ArrayLike = per_example(default=0.0)
    abort_early: bool = static(default=True)
    goal: Goal = Misclassify()

    def check(self) -> None:
        check_ball("CarliniWagnerL0", self.ball, L0, expected="an L0 ball")
        check_count("CarliniWagnerL0", "steps", self.steps, 0)
        self.check_numbers("attempt", "step_size", "c", "largest_c")

    def begin(self, x: Array, y: Array) -> _Search:
        del y
        zero = jnp.zeros_like(row(x))
        return _Search(
            descent=Descent.start(x, self.ball),
            free=self.ball.on_mask(jnp.ones_like(x)) > 0,
            c=zero + jnp.asarray(self.c),
            progress=Progress.start(zero),
        )

    def look(self, i: Array, state: PenaltyState, model: Model, x: Array, y: Array) -> Seen:
        free = state.search.free
        image = jnp.where(free, state.search.descent.image(i, x, self.ball), x)
        seen = self.ask(model, image, x, y, fold_if_any(state.keys, i + 1))
        return replace(seen, rise=jnp.where(free, seen.rise, 0))

    def move(self, seen: Seen, state: PenaltyState, x: Array) -> tuple[_Search, Array]:
        search: _Search = state.search
        c, success = search.c, seen.judged.success
        down = 2 * seen.change - seen.pull(c)
        descent, wait = search.descent.step(down, self.step_size, self.ball)
        over, progress = search.progress.after(seen.short, self.attempt, self.abort_early, wait)
        gave_up = over & ~success
        lower, upper = self.ball.box(x)
        room = jnp.where(seen.rise > 0, upper - x, x - lower)
        steep, moved = jnp.abs(seen.rise), jnp.abs(seen.change)
        frozen = _least(steep * moved, steep * room, moved, search.free)
        free = search.free & ~(frozen & widen(success, x))
        end = gave_up & (2 * c > jnp.asarray(self.largest_c))
        new = _Search(
            descent=Descent(
                w=jnp.where(widen(success, x), search.descent.w, descent.w),
                adam=descent.adam.forget(success),
            ),
            free=free,
            c=jnp.where(gave_up, 2 * c, c),
            progress=progress.again(success | over),
        )
        return new, end | ~jnp.any(free, axis=over_features(x))


def _least(gives: Array, could_give: Array, change: Array, free: Array) -> Array:
    """The free features that a round freezes; bool."""
    axes = over_features(gives)
    count = lambda which: jnp.sum(which, axis=axes, keepdims=True)
    smallest = lambda worth: jnp.min(worth, axis=axes, keepdims=True)
    gives, could_give = (jnp.where(free, worth, jnp.inf) for worth in (gives, could_give))
    most = jnp.maximum(0.3 * jnp.sqrt(count(change < _SAME)), 1).astype(jnp.int32)
    # The threshold below which at most so many lie. Floats >= 0 are ordered as their bits are:
    # 31 halvings of the integers are an exact search, without sorting.
    bits = jax.lax.bitcast_convert_type(gives.astype(jnp.float32), jnp.int32)

    def halve(n: Any, low: Array) -> Array:
        tried = low + (jnp.int32(1) << (30 - n))
        return jnp.where(count(bits < tried) <= most, tried, low)

    low = jnp.zeros_like(jnp.max(bits, axis=axes, keepdims=True))
    low = jax.lax.fori_loop(0, 31, halve, low)
    idle = (gives <= _MATTERS) & ((bits < low) | (gives <= smallest(gives)))
    weakest = could_give <= smallest(could_give)
    return free & jnp.where(smallest(gives) <= _MATTERS, idle, weakest)
