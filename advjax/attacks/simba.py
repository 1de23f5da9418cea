"""SimBA: one random orthonormal direction at a time, kept where it helps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from advjax.answers import example_keys, fold_in_each
from advjax.arguments import check_ball, check_count, check_number
from advjax.attacks.core.driver import Iterative
from advjax.attacks.core.judging import Judgement, Tally, ask
from advjax.attacks.core.minimal import free_pixels
from advjax.attacks.core.oracle import Scores
from advjax.balls import Ball
from advjax.goals import Misclassify
from advjax.losses import cross_entropy
from advjax.pytrees import Array, ArrayLike, Key, per_example, pytree, replace, static
from advjax.shapes import only, over_features, spread, widen
from advjax.types import Goal, LossFn, Model

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
    tally: Tally


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
      goal: what is wanted, see ``Targeted``.
    """

    ball: Ball
    queries: int = static(default=10_000)
    step_size: ArrayLike = per_example(default=0.2)
    basis: str = static(default="pixel")
    freq_dims: int = static(default=28)
    goal: Goal = Misclassify()

    def check(self) -> None:
        check_ball("SimBA", self.ball, finite=True)
        check_number("SimBA", "step_size", self.step_size)
        check_count("SimBA", "queries", self.queries)
        check_count("SimBA", "freq_dims", self.freq_dims)
        if self.basis not in _BASES:
            raise ValueError(f"SimBA: given basis={self.basis!r}; expected one of {_BASES}")

    @property
    def steps(self) -> int:
        return self.queries - 1

    @property
    def loss(self) -> LossFn:
        return cross_entropy

    def check_fits(self, x: Array) -> None:
        super().check_fits(x)
        if self.basis == "dct" and x.ndim != 4:
            raise ValueError(
                f"SimBA: given images {x.shape}; expected [B, H, W, C] for basis='dct'"
            )

    def init(self, key: Key, model: Model, x: Array, y: Array, steps: Array) -> _State:
        keys, none = example_keys(key, x.shape[0]), jnp.zeros_like(y)
        order, available = self._order(keys, x)
        judged = self._judge(keys, model, x, y, 0)
        return _State(
            keys=keys,
            order=order,
            available=available,
            turn=none,
            second=none > 0,
            x_adv=x,
            loss=judged.loss,
            tally=Tally.start(x, doubts=False).spend(forwards=1).see(judged, 0),
        )

    def _judge(self, keys: Key, model: Model, x: Array, y: Array, n: ArrayLike) -> Judgement:
        drawn = fold_in_each(fold_in_each(keys, _MODEL), n)
        return ask(self.goal, self.loss, Scores(model), x, y, drawn)[1]

    def _order(self, keys: Key, x: Array) -> tuple[Array, Array]:
        """As many directions as there are queries, ``[B, N]``; pixels off the mask are none."""
        count = x[0].size
        free = free_pixels(self.ball, x).reshape(x.shape[0], -1)
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
        square = jnp.sum(jnp.square(move), axis=over_features(move))
        return square <= (1e-3 * jnp.asarray(self.step_size, move.dtype)) ** 2

    def live(self, state: _State) -> Array:
        return ~state.tally.found & (state.tally.forwards < self.queries)

    def step(self, i: Array, state: _State, model: Model, x: Array, y: Array) -> _State:
        live = self.live(state)
        which = jnp.take_along_axis(state.order, (state.turn % state.available)[:, None], axis=1)
        along = spread(self.step_size, x) * self._direction(which[:, 0], x)
        minus = self.ball.apply(x, state.x_adv - along - x)
        plus = self.ball.apply(x, state.x_adv + along - x)
        second = state.second | self._undone(minus - state.x_adv)
        candidate = jnp.where(widen(second, x), plus, minus)
        idle = self._undone(candidate - state.x_adv)
        judged = self._judge(state.keys, model, candidate, y, i + 1)
        taken = ~idle & (judged.success | (judged.loss > state.loss))
        onward = taken | second
        after = replace(
            state,
            turn=state.turn + onward.astype(jnp.int32),
            second=~onward,
            x_adv=jnp.where(widen(taken, x), candidate, state.x_adv),
            loss=jnp.where(taken, judged.loss, state.loss),
            tally=state.tally.spend(forwards=~idle).see(judged, state.tally.forwards, ~idle),
        )
        return only(live, after, state)

    def scaled(self, factor: ArrayLike) -> SimBA:
        return replace(
            self, ball=self.ball.scaled(factor), step_size=jnp.multiply(self.step_size, factor)
        )


def _cosine(frequency: Array, size: int, dtype: Any) -> Array:
    """Rows ``[B, size]`` of the orthonormal DCT-II matrix."""
    middle = (2 * jnp.arange(size) + 1) / (2 * size)
    row = jnp.cos(jnp.pi * frequency[:, None].astype(jnp.float32) * middle[None]).astype(dtype)
    return row * jnp.where(frequency == 0, 1 / size, 2 / size)[:, None].astype(dtype) ** 0.5
