"""SimBA: one random orthonormal direction at a time, kept where it helps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from advjax.attacks._checks import check_ball, check_count, check_number, check_per_example
from advjax.attacks._iterate import Iterative, Judgement, Loop, auto_loop, judge, outcome
from advjax.attacks._rows import only, spread, widen
from advjax.attacks.oracle import Scores
from advjax.balls import Ball
from advjax.losses import cross_entropy
from advjax.types import (
    Array,
    ArrayLike,
    Key,
    Record,
    example_keys,
    fold_in_each,
    pytree,
    replace,
    static,
)

_ORDER, _MODEL = 0, 1  # what a key is folded with

_BASES = ("pixel", "dct")


@pytree
class _State:
    """Between two queries, ``[B]``: where the example is on its list of directions."""

    keys: Key
    order: Array  # [B, N] the directions in the order they are tried, then from the start again
    available: Array  # how many of them there are
    turn: Array  # which of them is next
    second: Array  # bool: its first sign has failed
    x_adv: Array
    loss: Array
    fooled: Array
    used: Array  # queries
    first_success: Array


@pytree
class SimBA(Iterative):
    """The simple black-box attack (Guo et al. 2019, algorithm 1), pixels or low frequencies.

    Directions come from an orthonormal basis in a random order of the example's own. A step is
    taken where it lowers the label's probability (raises the target's): one query where the first
    sign does, two where not. A sign that the box or the ball undoes costs no query. When all
    directions have been tried they come again.

    Attributes:
      ball: the perturbations allowed; eps finite. The paper has no limit but the queries.
      queries: most queries per example, the first look at the image included; the judging pass
        of the record is one forward more.
      step_size: length of a step, pixel units.
      basis: ``"pixel"`` or ``"dct"``, the cosines of images ``[B, H, W, C]``.
      freq_dims: frequencies per side, the lowest ones, of the ``"dct"`` basis. 28 is the paper's
        for ImageNet; for CIFAR-10 it has all 32.
      targeted: labels are targets; see ``Targeted``.
      loop: who iterates.
    """

    ball: Ball
    queries: int = static(default=10_000)
    step_size: ArrayLike = 0.2
    basis: str = static(default="pixel")
    freq_dims: int = static(default=28)
    targeted: bool = static(default=False)
    loop: Loop = static(default=auto_loop)

    def check(self) -> None:
        check_ball("SimBA", self.ball, finite=True)
        check_number("SimBA", "step_size", self.step_size)
        check_count("SimBA", "queries", self.queries)
        check_count("SimBA", "freq_dims", self.freq_dims)
        if self.basis not in _BASES:
            raise ValueError(f"SimBA: given basis={self.basis!r}; one of {_BASES} is taken")

    @property
    def steps(self) -> int:
        return self.queries - 1

    def check_fits(self, x: Array) -> None:
        check_per_example(x, eps=self.ball.eps, step_size=self.step_size)
        if self.basis == "dct" and x.ndim != 4:
            raise ValueError(f"SimBA: given images {x.shape}; basis='dct' takes [B, H, W, C]")

    def init(self, key: Key, model: Any, x: Array, y: Array) -> _State:
        keys, none = example_keys(key, x.shape[0]), jnp.zeros_like(y)
        order, available = self._order(keys, x)
        judged = self._judge(keys, Scores(model), x, y, 0)
        return _State(
            keys=keys,
            order=order,
            available=available,
            turn=none,
            second=none > 0,
            x_adv=x,
            loss=judged.loss,
            fooled=judged.success,
            used=none + 1,
            first_success=jnp.where(judged.success, 0, none - 1),
        )

    def _judge(self, keys: Key, scores: Scores, x: Array, y: Array, n: ArrayLike) -> Judgement:
        drawn = fold_in_each(fold_in_each(keys, _MODEL), n) if scores.stochastic else None
        return judge(cross_entropy, self.targeted, scores, x, y, drawn)[1]

    def _order(self, keys: Key, x: Array) -> tuple[Array, Array]:
        """As many directions as there are queries, ``[B, N]``; pixels off the mask are none."""
        count = x[0].size
        mask = self.ball.mask
        free = jnp.ones_like(x, bool) if mask is None else jnp.asarray(mask) != 0
        free = jnp.broadcast_to(free, x.shape).reshape(x.shape[0], -1)
        if self.basis == "dct":
            count = min(self.freq_dims, x.shape[1]) * min(self.freq_dims, x.shape[2]) * x.shape[3]
            free = jnp.broadcast_to(jnp.any(free, axis=1, keepdims=True), (x.shape[0], count))
        draw = jax.vmap(lambda key: jax.random.uniform(key, (count,)))
        scores = jnp.where(free, draw(fold_in_each(keys, _ORDER)), 2)
        order = jnp.argsort(scores, axis=1)[:, : self.queries].astype(jnp.int32)
        available = jnp.clip(jnp.sum(free, axis=1, dtype=jnp.int32), 1, order.shape[1])
        return order, available

    def _direction(self, which: Array, x: Array) -> Array:
        """``[B, ...]`` of unit length, made from its number ``[B]``."""
        if self.basis == "pixel":
            return jax.nn.one_hot(which, x[0].size, dtype=x.dtype).reshape(x.shape)
        _, height, width, channels = x.shape
        per_row = min(self.freq_dims, width)
        row, column = which // channels // per_row, which // channels % per_row
        rows, columns = _cosine(row, height, x.dtype), _cosine(column, width, x.dtype)
        channel = jax.nn.one_hot(which % channels, channels, dtype=x.dtype)
        return jnp.einsum("bh,bw,bc->bhwc", rows, columns, channel)

    def _undone(self, move: Array) -> Array:
        """``[B]``: the box and the ball left (but for rounding) nothing of a step."""
        square = jnp.sum(jnp.square(move), axis=tuple(range(1, move.ndim)))
        return square <= (1e-3 * jnp.asarray(self.step_size, move.dtype)) ** 2

    def live(self, state: _State) -> Array:
        return ~state.fooled & (state.used < self.queries)

    def step(self, i: Array, state: _State, model: Any, x: Array, y: Array) -> _State:
        live = self.live(state)
        which = jnp.take_along_axis(state.order, (state.turn % state.available)[:, None], axis=1)
        along = spread(self.step_size, x) * self._direction(which[:, 0], x)
        minus = self.ball.apply(x, state.x_adv - along - x)
        plus = self.ball.apply(x, state.x_adv + along - x)
        second = state.second | self._undone(minus - state.x_adv)
        candidate = jnp.where(widen(second, x), plus, minus)
        idle = self._undone(candidate - state.x_adv)
        judged = self._judge(state.keys, Scores(model), candidate, y, i + 1)
        taken = ~idle & (judged.success | (judged.loss > state.loss))
        fooled = ~idle & judged.success
        onward = taken | second
        after = replace(
            state,
            turn=state.turn + onward,
            second=~onward,
            x_adv=jnp.where(widen(taken, x), candidate, state.x_adv),
            loss=jnp.where(taken, judged.loss, state.loss),
            fooled=fooled,
            used=state.used + ~idle,
            first_success=jnp.where(fooled, state.used, state.first_success),
        )
        return only(live, after, state)

    def finish(self, state: _State, model: Any, x: Array, y: Array, *, record: bool) -> Record:
        return outcome(
            self,
            model,
            x,
            y,
            state.x_adv,
            fold_in_each(fold_in_each(state.keys, _MODEL), self.steps + 2),
            record=record,
            loss=cross_entropy,
            forwards=state.used,
            backwards=0,
            first_success=state.first_success,
        )

    def scaled(self, factor: ArrayLike) -> SimBA:
        return replace(
            self, ball=self.ball.scaled(factor), step_size=jnp.multiply(self.step_size, factor)
        )


def _cosine(frequency: Array, size: int, dtype: Any) -> Array:
    """Rows ``[B, size]`` of the orthonormal DCT-II matrix."""
    middle = (2 * jnp.arange(size) + 1) / (2 * size)
    row = jnp.cos(jnp.pi * frequency[:, None] * middle).astype(dtype)
    return row * jnp.where(frequency == 0, 1 / size, 2 / size)[:, None].astype(dtype) ** 0.5
