"""Square: random search with square windows, from scores alone."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advjax.answers import example_keys, fold_in_each
from advjax.arguments import check_ball, check_count, check_pictures
from advjax.attacks.core.driver import Iterative
from advjax.attacks.core.judging import Judgement, Tally, ask
from advjax.attacks.core.oracle import Scores
from advjax.balls import L1, L2, Ball, Linf, concrete
from advjax.goals import Misclassify
from advjax.pytrees import Array, ArrayLike, Key, driver_only, pytree, replace, static
from advjax.shapes import spread, widen
from advjax.types import Goal, Model

# The windows' share of the image halves after each of these steps, of 10,000.
HALVINGS = np.array([10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000])

# What a key is folded with to draw the start, and for the model's draws then; step i uses 2 i + 2
# and 2 i + 3.
_START, _FIRST = 0, 1

_THINNING = 16  # passes of the L1 form's search


@pytree
class _State:
    """Between two steps: the best image so far, how good it is, and the tally."""

    steps: Array
    keys: Key
    x_adv: Array
    loss: Array
    tally: Tally


@pytree
class Square(Iterative):
    """Square attack (Andriushchenko et al. 2020, algorithms 1 to 3), in L-inf, L2 or L1.

    Every step proposes one change in a random square window, which shrinks over time, and keeps it
    where the margin falls: it asks the model for scores, never for gradients. The perturbation
    always uses the whole budget. In L-inf a window becomes ``x + eps`` or ``x - eps`` per channel,
    and one that would change nothing takes the other signs. In L2 and L1 two opposite bumps are
    added to the window, paid with what a second window loses; the L1 form is AutoAttack's. An
    example stops at its first success; its windows are its own.

    Attributes:
      ball: a finite ``Linf``, ``L2`` or ``L1``; images must be ``[B, H, W, C]``.
      steps: most proposals, at least 0; the start is one query more.
      p_init: share of the image that the first windows cover, 0 to 1.
      rescale_schedule: stretch the schedule of the windows' share, made for 10,000 steps, to
        ``steps``. AutoAttack does not.
      goal: what is wanted, see ``Targeted``.
    """

    ball: Ball
    steps: int = driver_only(default=5000)
    p_init: ArrayLike = 0.8
    rescale_schedule: bool = static(default=False)
    goal: Goal = Misclassify()

    def check(self) -> None:
        check_ball("Square", self.ball, Linf, L2, L1, finite=True)
        check_count("Square", "steps", self.steps, 0)
        share = concrete(self.p_init)
        if share is not None and not ((share > 0) & (share <= 1)).all():
            raise ValueError(f"Square: given p_init={share.tolist()}; expected one in (0, 1]")

    def check_fits(self, x: Array) -> None:
        check_pictures("Square", x)
        super().check_fits(x)

    def share(self, i: ArrayLike, steps: ArrayLike = None) -> Array:
        """The share of the image that step i's window covers, of so many steps."""
        step = jnp.asarray(i, jnp.int32)
        if self.rescale_schedule:  # floor(10,000 i / steps), without overflow
            most = jnp.maximum(self.steps if steps is None else steps, 1)
            step = step * 100 // most * 100 + step * 100 % most * 100 // most
        halvings = jnp.sum(step > HALVINGS)
        return jnp.asarray(self.p_init) * jnp.exp2(-halvings.astype(jnp.float32))

    def side(self, i: ArrayLike, x: Array, steps: ArrayLike = None) -> Array:
        """The side of step i's window, of so many steps."""
        height, width = x.shape[1:3]
        side = jnp.round(jnp.sqrt(self.share(i, steps) * height * width)).astype(jnp.int32)
        if isinstance(self.ball, Linf):
            return jnp.maximum(side, 1)
        side = jnp.maximum(side, 3)  # a bump, and its opposite, and a middle
        shortest = min(height, width)
        return jnp.minimum(side + (side + 1) % 2, shortest - (shortest % 2 == 0))

    def init(self, key: Key, model: Model, x: Array, y: Array, steps: Array) -> _State:
        keys = example_keys(key, x.shape[0])
        drawn = fold_in_each(keys, _START)
        if isinstance(self.ball, Linf):
            stripes = _signs(drawn, (1, *x.shape[2:]), x.dtype)
            start = self._at(x, self.ball.masked(jnp.broadcast_to(stripes, x.shape)))
        else:
            start = self._fill(x, self._tiles(drawn, x))
        judged = self._judge(keys, _FIRST, model, start, y)
        return _State(
            steps=steps,
            keys=keys,
            x_adv=start,
            loss=jnp.where(jnp.isnan(judged.loss), -jnp.inf, judged.loss),
            tally=Tally.start(x).spend(forwards=1).see(judged, 0),
        )

    def _judge(self, keys: Key, tag: ArrayLike, model: Model, x: Array, y: Array) -> Judgement:
        return ask(self.goal, self.loss, Scores(model), x, y, fold_in_each(keys, tag))[1]

    def live(self, state: _State) -> Array:
        return ~state.tally.found

    def step(self, i: Array, state: _State, model: Model, x: Array, y: Array) -> _State:
        live = self.live(state)
        propose = self._window if isinstance(self.ball, Linf) else self._move
        side = self.side(i, x, state.steps)
        proposal = propose(fold_in_each(state.keys, 2 * i + 2), side, state.x_adv, x)
        judged = self._judge(state.keys, 2 * i + 3, model, proposal, y)
        better = live & (judged.success | (judged.loss > state.loss))
        return replace(
            state,
            x_adv=jnp.where(widen(better, x), proposal, state.x_adv),
            loss=jnp.where(better, judged.loss, state.loss),
            tally=state.tally.spend(forwards=live).see(judged, i + 1, live),
        )

    def _at(self, x: Array, signs: Array) -> Array:
        """The images at distance eps on the sides given."""
        return self.ball.clip(x + spread(self.ball.eps, x) * signs)

    def _window(self, keys: Key, side: Array, best: Array, x: Array) -> Array:
        """The best images with a window at one corner of the ball, per channel."""
        height, width, channels = x.shape[1:]
        corner = _uniform(fold_in_each(keys, 0), 2)
        rows, columns = (
            _inside(_offsets(corner[:, axis], jnp.minimum(side, length), length), side)
            for axis, length in enumerate((height, width))
        )
        window = self.ball.masked((rows[:, :, None] & columns[:, None, :])[..., None])
        window = window.astype(bool)
        signs = _signs(fold_in_each(keys, 1), (1, 1, channels), x.dtype)
        changes = jnp.any(window & (self._at(x, signs) != best), axis=(1, 2, 3))
        signs = jnp.where(widen(changes, x), signs, -signs)
        return jnp.where(window, self._at(x, signs), best)

    def _fill(self, x: Array, delta: Array) -> Array:
        """The images moved by the perturbations, brought to size eps, inside the box."""
        lower, upper = self.ball.box(x)
        eps, delta = spread(self.ball.eps, x), self.ball.masked(delta)
        if isinstance(self.ball, L1):
            room = jnp.where(delta > 0, upper - x, x - lower)
            delta = jnp.sign(delta) * _thinned(jnp.abs(delta), jnp.maximum(room, 0), eps)
        else:
            delta = eps * delta / _positive(_norm(self.ball, delta, (1, 2, 3)))
        return jnp.clip(x + delta, lower, upper)

    def _tiles(self, keys: Key, x: Array) -> Array:
        """The start: bumps in tiles, five to the shorter side, each with its own sign."""
        batch, height, width, channels = x.shape
        side = max(min(height, width) // 5, 1)
        counts = height // side, width // side
        inner = jnp.arange(side)[None]
        as_is = _bumps(self.ball, inner, inner, side, np.zeros(1, bool))[0]
        place, tile, covered = [], [], []
        for length, count in zip((height, width), counts, strict=True):
            offset = np.arange(length) - (length - side * count) // 2
            covered.append((offset >= 0) & (offset < side * count))
            place.append(offset % side)
            tile.append(np.clip(offset // side, 0, count - 1))
        pattern = lambda bump: bump[place[0][:, None], place[1][None, :]]
        of_tile = lambda values: values[:, tile[0][:, None], tile[1][None, :]]
        signs = of_tile(_signs(fold_in_each(keys, 0), (*counts, channels), x.dtype))
        turned = of_tile(_signs(fold_in_each(keys, 1), counts, x.dtype)) > 0
        bumps = jnp.where(turned, pattern(as_is.T), pattern(as_is))
        inside = (covered[0][:, None] & covered[1][None, :]).astype(np.float32)
        return (bumps * inside[None])[..., None] * signs

    def _move(self, keys: Key, side: Array, best: Array, x: Array) -> Array:
        """The best images with bumps added to one window and another one given up for it."""
        height, width, channels = x.shape[1:]
        draw = _uniform(fold_in_each(keys, 0), 5)
        rows, columns = (
            [_offsets(draw[:, 2 * w + axis], side, length) for w in range(2)]
            for axis, length in enumerate((height, width))
        )
        first, second = (
            (_inside(rows[w], side)[:, :, None] & _inside(columns[w], side)[:, None, :])[..., None]
            for w in range(2)
        )
        signs = _signs(fold_in_each(keys, 1), (1, 1, channels), x.dtype)
        bumps = _bumps(self.ball, rows[0], columns[0], side, draw[:, 4] < 0.5)[..., None]
        delta = best - x
        norm = lambda values, *axes: _norm(self.ball, values, axes)
        old = jnp.where(first, delta, 0)
        new = signs * bumps + old / _positive(norm(old, 1, 2))
        new = new / _positive(norm(new, 1, 2))
        freed = jnp.where(first | second, delta, 0)
        eps = spread(self.ball.eps, x)
        if isinstance(self.ball, L2):
            unused = jnp.maximum(eps**2 - norm(delta, 1, 2, 3) ** 2, 0)
            budget = jnp.sqrt(unused / channels + norm(freed, 1, 2) ** 2)
        else:  # too much for several channels: the projection cuts it, and so makes it sparse
            unused = jnp.maximum(eps - norm(delta, 1, 2, 3), 0)
            budget = unused + channels * norm(freed, 1, 2, 3)
        return self._fill(x, jnp.where(first, budget * new, jnp.where(second, 0, delta)))


def _signs(keys: Key, shape: tuple[int, ...], dtype: Any) -> Array:
    """``[B, ...]`` of -1 and 1."""
    return jax.vmap(lambda key: jax.random.rademacher(key, shape, dtype))(keys)


def _uniform(keys: Key, count: int) -> Array:
    return jax.vmap(lambda key: jax.random.uniform(key, (count,)))(keys)


def _offsets(draw: Array, side: Array, length: int) -> Array:
    """``[B, length]``: where each row (or column) lies in the window; any window is as likely."""
    places = length - side + 1
    first = jnp.minimum((draw * places.astype(draw.dtype)).astype(jnp.int32), places - 1)
    return jnp.arange(length)[None] - first[:, None]


def _inside(offset: Array, side: Array) -> Array:
    return (offset >= 0) & (offset < side)


def _positive(norm: Array) -> Array:
    return jnp.where(norm > 0, norm, 1)


def _norm(ball: Ball, values: Array, axes: tuple[int, ...]) -> Array:
    if isinstance(ball, L1):
        return jnp.sum(jnp.abs(values), axis=axes, keepdims=True)
    return jnp.sqrt(jnp.sum(values * values, axis=axes, keepdims=True))


def _thinned(magnitude: Array, room: Array, eps: Array) -> Array:
    """``clip(magnitude - t, 0, room)`` for the smallest t >= 0 of few passes whose sum fits eps.

    As ``L1.project``, whose passes would cost more than a small network's; what the last digits of
    t leave unused, the next window gets.
    """
    axes = (1, 2, 3)
    total = lambda values: jnp.sum(values, axis=axes, keepdims=True)
    taken = lambda t: jnp.clip(magnitude - t, 0, room)

    def search(_: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        t, low, high = carry
        excess = total(taken(t)) - eps
        free = total((magnitude > t) & (magnitude - t < room))
        low, high = jnp.where(excess > 0, t, low), jnp.where(excess > 0, high, t)
        newton = t + excess / jnp.maximum(free, 1).astype(excess.dtype)
        inside = (newton > low) & (newton < high) & (free > 0)
        return jnp.where(inside, newton, (low + high) / 2), low, high

    largest = jnp.max(magnitude, axis=axes, keepdims=True)
    start = (jnp.zeros_like(largest), jnp.zeros_like(largest), largest)
    t, _, high = jax.lax.fori_loop(0, _THINNING, search, start)
    t = jnp.where(total(taken(t)) <= eps, t, high)
    return taken(jnp.where(total(taken(0)) <= eps, 0, t))


def _bumps(ball: Ball, rows: Array, columns: Array, side: ArrayLike, turned: ArrayLike) -> Array:
    """A bump and its opposite, halves of a square window; ``[B, H, W]``, zero outside it.

    A half is a pile of centred squares, the k-th ``2 k - 1`` wide and ``k**-power`` high, brought
    to unit norm. The height of a pixel depends on its distance to the centre along the two axes,
    and only on the larger one, so that a table of heights per row and per column is enough.

    Args:
      ball: ``L2`` or ``L1``.
      rows: ``[B, H]`` where the rows lie in the window.
      columns: ``[B, W]`` likewise.
      side: of the window.
      turned: ``[B]``, whether the halves are left and right instead of above each other.
    """
    longest = max(rows.shape[1], columns.shape[1])
    power = 4 if isinstance(ball, L1) else 2
    levels = np.arange(1, longest + 2, dtype=np.float64) ** -power
    table = jnp.asarray(np.concatenate([[0], np.cumsum(levels)]), jnp.float32)
    half = jnp.asarray(side) // 2
    sunk = lambda distance: table[jnp.minimum(jnp.abs(distance), longest)]
    top = table[half + 1]

    def across(offset: Array) -> Array:
        return sunk(offset - half)

    def along(offset: Array) -> Array:
        centre = jnp.where(offset < half, half // 2, half + (side - half) // 2)
        return sunk(offset - centre)

    place = jnp.arange(longest)
    one = jnp.where(
        _inside(place, side)[:, None] & _inside(place, side)[None, :],
        top - jnp.maximum(along(place)[:, None], across(place)[None, :]),
        0,
    )
    norms = [
        _positive(_norm(ball, jnp.where(part[:, None], one, 0), (0, 1)).reshape(()))
        for part in (place < half, place >= half)
    ]
    both = 2.0 if isinstance(ball, L1) else 2.0**0.5
    inside = lambda offset: _inside(offset, side).astype(jnp.float32)
    weight = lambda offset: (
        inside(offset) * jnp.where(offset < half, 1 / (both * norms[0]), -1 / (both * norms[1]))
    )
    flipped = jnp.asarray(turned)[:, None]
    pick = lambda one, other: jnp.where(flipped, one, other)
    heights = top - jnp.maximum(
        pick(across(rows), along(rows))[:, :, None],
        pick(along(columns), across(columns))[:, None, :],
    )
    weights = (
        pick(inside(rows), weight(rows))[:, :, None]
        * pick(weight(columns), inside(columns))[:, None, :]
    )
    return weights * heights
