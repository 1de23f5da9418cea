"""The L0 attack of Carlini & Wagner."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from advjax.attacks._checks import check_count, check_number, check_per_example
from advjax.attacks._closest import Closest
from advjax.attacks._iterate import Loop, auto_loop
from advjax.attacks._rows import only, widen
from advjax.attacks._tradeoff import (
    Adam,
    Attempts,
    Progress,
    convinces,
    into_tanh,
    leaving_a_bound,
    margin_and_gradient,
    on_mask,
    out_of_tanh,
    over_features,
)
from advjax.balls import L0, Ball
from advjax.types import (
    Array,
    ArrayLike,
    Key,
    example_keys,
    is_stochastic,
    pytree,
    replace,
    static,
)

_SAME = 1e-4  # a smaller change of a pixel counts as none when the next ones are frozen
_MATTERS = 0.01  # of the margin, in logits: features that give less are frozen several at once


@pytree
class _State:
    """Between two iterations; every array has the batch first."""

    keys: Any  # [B] keys for a randomised model, else None
    w: Array  # the image in tanh space
    free: Array  # bool: the features that may still change
    adam: Adam
    c: Array
    progress: Progress  # with the present c
    closest: Closest
    over: Array
    taken: Array
    zero_gradient: Array
    probabilities: Array


@pytree
class CarliniWagnerL0(Attempts):
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
      targeted: labels are targets; see ``Targeted``.
      loop: who iterates; ``auto_loop``, ``host_loop``, ``device_loop`` or your own.
    """

    ball: Ball = L0()
    steps: int = static(default=10_000)
    attempt: ArrayLike = 200
    step_size: ArrayLike = 0.01
    c: ArrayLike = 1e-3
    largest_c: ArrayLike = 2e6
    confidence: ArrayLike = 0.0
    abort_early: bool = static(default=True)
    targeted: bool = static(default=False)
    loop: Loop = static(default=auto_loop)

    def check(self) -> None:
        name = "CarliniWagnerL0"
        if not isinstance(self.ball, L0):
            raise TypeError(f"{name}: given ball={self.ball!r}; an L0 ball is taken")
        check_count(name, "steps", self.steps, 0)
        for field in ("attempt", "step_size", "c", "largest_c"):
            check_number(name, field, getattr(self, field))
        check_number(name, "confidence", self.confidence, zero=True)

    def check_fits(self, x: Array) -> None:
        check_per_example(x, eps=self.ball.eps, c=self.c, confidence=self.confidence)

    def init(self, key: Key, model: Any, x: Array, y: Array) -> _State:
        del y
        closest = Closest.start(x)
        none = jnp.zeros_like(closest.first_success)
        everything = on_mask(self.ball, jnp.ones_like(x), jnp.zeros_like(x))
        return _State(
            keys=example_keys(key, x.shape[0]) if is_stochastic(model) else None,
            w=into_tanh(x, self.ball),
            free=everything > 0,
            adam=Adam.start(x, none),
            c=jnp.zeros_like(none, dtype=jnp.float32) + jnp.asarray(self.c),
            progress=Progress.start(none),
            closest=closest,
            over=none > 0,
            taken=none,
            zero_gradient=none,
            probabilities=none == 0,
        )

    def step(self, i: Array, state: _State, model: Any, x: Array, y: Array) -> _State:
        image, slope = out_of_tanh(state.w, x, self.ball)
        # The first image is the clean one, to the bit: it may be adversarial already.
        image = jnp.where(state.free & widen(state.taken > 0, x), image, x)
        judged, rise = margin_and_gradient(self.targeted, model, image, y, state.keys, i + 1)
        success = convinces(judged, self.confidence)
        closest = state.closest.keep(image, success, self.ball.size(image - x), i)

        features, c, change = over_features(x), state.c, image - x
        short = jnp.maximum(jnp.asarray(self.confidence) - judged.loss, 0)
        rise = jnp.where(state.free, rise, 0)
        pull = widen(jnp.where(short > 0, c, 0), x)
        direction, adam = state.adam.step(slope * (2 * change - pull * rise))
        w = state.w - jnp.asarray(self.step_size) * direction

        wait = leaving_a_bound(state.w, direction)
        over, progress = state.progress.after(short, self.attempt, self.abort_early, wait)
        gave_up = over & ~success
        lower, upper = self.bounds
        room = jnp.where(rise > 0, upper - x, x - lower)
        steep, moved = jnp.abs(rise), jnp.abs(change)
        frozen = _least(steep * moved, steep * room, moved, state.free)
        free = state.free & ~(frozen & widen(success, x))
        end = gave_up & (2 * c > jnp.asarray(self.largest_c))
        new = _State(
            keys=None,
            w=jnp.where(widen(success, x), state.w, w),
            free=free,
            adam=adam.forget(success),
            c=jnp.where(gave_up, 2 * c, c),
            progress=progress.again(success | over),
            closest=closest,
            over=end | ~jnp.any(free, axis=features),
            taken=state.taken + 1,
            zero_gradient=state.zero_gradient + jnp.all(rise == 0, axis=features),
            probabilities=state.probabilities & judged.probabilities,
        )
        held = only(self.live(state), new, replace(state, keys=None))
        return replace(held, keys=state.keys)


def _least(gives: Array, could_give: Array, change: Array, free: Array) -> Array:
    """The free features that a round freezes; bool."""
    axes = over_features(gives)
    count = lambda which: jnp.sum(which, axis=axes, keepdims=True)
    smallest = lambda worth: jnp.min(worth, axis=axes, keepdims=True)
    gives, could_give = (jnp.where(free, worth, jnp.inf) for worth in (gives, could_give))
    most = jnp.maximum(jnp.floor(0.3 * jnp.sqrt(count(change < _SAME))), 1)
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
