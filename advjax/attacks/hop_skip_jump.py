"""HopSkipJump: gradients at the decision boundary from labels alone."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from advjax.answers import fold_in_each
from advjax.arguments import check_ball, check_count
from advjax.attacks.boundary import _MODEL, Decision, first_start
from advjax.attacks.core.judging import Tally
from advjax.attacks.core.minimal import Closest, free_pixels
from advjax.attacks.core.oracle import Labels
from advjax.balls import L2, Ball, Linf
from advjax.goals import Misclassify
from advjax.pytrees import Array, ArrayLike, Key, per_example, pytree, replace, static
from advjax.shapes import only, row, widen
from advjax.types import Goal, Model

_MOST_BISECTIONS = 23  # then the interval is at float32's resolution
_HALVINGS = 10  # of a step along the gradient, before it counts as failed


@pytree
class _State:
    """Between two calls of the model.

    All examples are at the same slot of the same round, so that one program with one branch per
    slot serves them all; ``[B]`` flags say who has something to ask in it.
    """

    round: Array  # scalar; 0 is a short one that only looks for starts
    slot: Array  # scalar, within the round
    keys: Key
    closest: Closest
    tally: Tally
    point: Array  # [B, ...] the adversarial image the round works on
    low: Array  # distance at which the way to it was not adversarial
    rounds: Array  # the example's own, which start when it has a start
    joined: Array  # bool: takes part in this round
    landed: Array  # bool: this round's step has been made
    finished: Array  # bool: what is left of the budget is no use
    planned: Array  # probes of this round
    probed: Array
    hits: Array  # adversarial ones
    total: Array  # [B, ...] sum of the probes' directions
    hit_total: Array  # [B, ...] sum of those of the adversarial ones


@pytree
class HopSkipJump(Decision):
    """HopSkipJump (Chen et al. 2020, algorithm 2), L2 and L-inf, from labels alone.

    A round: bisect the way from the image to the adversarial one, down to the boundary (algorithm
    1); estimate the boundary's normal there from ``probes * sqrt(round)`` labels, less their mean
    (equation 16); step along it, halved until still adversarial. The nearest adversarial image of
    all queries is returned. With a finite eps an example stops inside it.

    A batch goes through its rounds in step, one batch of the model per slot: a query each while
    bisecting and stepping, ``chunk`` each while probing. Examples that have no start yet look for
    one in the slots of one query; an example with nothing to ask shows the model its clean image,
    whose class is known, and that is not counted.

    Attributes:
      ball: L2 or Linf; eps limits what counts as a success, infinite by default.
      queries: most queries per example: the look at the image, the search for a start and the
        bisections included; the judging pass of the record is one forward more.
      probes: labels for the first round's estimate; a round that can afford fewer is not begun.
      max_probes: most labels for one estimate.
      chunk: probes per example in one batch of the model. Bounds the memory; the last batch of a
        round may be partly idle.
      gamma: how fine the bisection is: down to ``gamma / d^1.5`` of the way in L2,
        ``gamma / d^2`` in L-inf, for d features.
      start: ``[B, ...]`` images to start from, tried before noise; a targeted attack seldom finds
        its class in noise. None for noise alone.
      start_queries: most queries of the search for a start; an example without one keeps its
        image and fails.
      goal: what is wanted, see ``Targeted``.
    """

    ball: Ball = L2()
    queries: int = static(default=25_000)
    probes: int = static(default=100)
    max_probes: int = static(default=10_000)
    chunk: int = static(default=50)
    gamma: float = static(default=1.0)
    start: ArrayLike = per_example(image=True, default=None)
    start_queries: int = static(default=1000)
    goal: Goal = Misclassify()

    def check(self) -> None:
        check_ball("HopSkipJump", self.ball, L2, Linf)
        super().check()
        for field in ("probes", "max_probes", "chunk"):
            check_count("HopSkipJump", field, getattr(self, field))
        if not isinstance(self.gamma, float | int) or not self.gamma > 0:
            raise ValueError(f"HopSkipJump: given gamma={self.gamma!r}; expected a number > 0")

    @property
    def steps(self) -> int:
        """Slots that suffice for an example that needs the fewest queries in every round, after
        the longest search for a start."""
        slots, spent, number = _HALVINGS + self.start_queries, 2, 0
        while spent + 1 + self.probes <= self.queries:
            number += 1
            planned = min(int(self.probes * number**0.5), self.max_probes)
            slots += _MOST_BISECTIONS + -(-planned // self.chunk) + _HALVINGS
            spent += 1 + planned + 1
        return min(slots + _MOST_BISECTIONS, 2 * self.queries)

    def _theta(self, x: Array) -> float:
        d = x[0].size
        return self.gamma / (d**1.5 if isinstance(self.ball, L2) else d**2)

    def _bisections(self, x: Array) -> int:
        return min(max(math.ceil(-math.log2(self._theta(x))), 1), _MOST_BISECTIONS)

    def _planned(self, number: Array) -> Array:
        probes = jnp.floor(self.probes * jnp.sqrt(number.astype(jnp.float32)))
        return jnp.minimum(probes, self.max_probes).astype(jnp.int32)

    def init(self, key: Key, model: Model, x: Array, y: Array, steps: Array) -> _State:
        none = jnp.zeros_like(y)
        return _State(
            **self._begin(key, model, x, y),
            round=jnp.zeros((), jnp.int32),
            slot=jnp.asarray(self._bisections(x), jnp.int32),
            point=x,
            low=jnp.zeros_like(row(x)),
            rounds=none,
            joined=none > 0,
            landed=none > 0,
            finished=none > 0,
            planned=none,
            probed=none,
            hits=none,
            total=jnp.zeros_like(x),
            hit_total=jnp.zeros_like(x),
        )

    def live(self, state: _State) -> Array:
        return super().live(state) & ~state.finished

    def step(self, i: Array, state: _State, model: Model, x: Array, y: Array) -> _State:
        live = self.live(state)
        first = self._bisections(x)
        batches = (self._planned(state.round) + self.chunk - 1) // self.chunk
        probing = (state.slot >= first) & (state.slot < first + batches)
        after = jax.lax.cond(
            probing,
            lambda: self._probe(i, state, model, x, y, live, state.slot == first),
            lambda: self._query(i, state, model, x, y, live, first + batches),
        )
        after = only(live, after, state)
        last = state.slot + 1 == first + batches + _HALVINGS
        return replace(
            after,
            round=state.round + last.astype(jnp.int32),
            slot=jnp.where(last, 0, state.slot + 1),
        )

    def _query(
        self, i: Array, state: _State, model: Model, x: Array, y: Array, live: Array, end: Array
    ) -> _State:
        """One query: of a start, of the middle of the way to the point, or of a step from it."""
        opening, closing = state.slot == 0, state.slot >= end
        searching = ~state.closest.found
        joined = jnp.where(opening, ~searching, state.joined)
        landed = state.landed & ~opening
        low = jnp.where(opening, 0, state.low)
        rounds = state.rounds + (opening & joined).astype(jnp.int32)
        bisecting, stepping = joined & ~closing, joined & closing & ~landed

        distance = self.ball.size(state.point - x)
        middle = (low + distance) / 2
        halfway = self._towards(state.point, x, distance, middle)
        length = distance / jnp.sqrt(jnp.maximum(rounds, 1).astype(x.dtype))
        length *= 0.5 ** jnp.maximum(state.slot - end, 0).astype(x.dtype)
        step = widen(length, x) * self.ball.steepest(_normal(state, x))
        candidate = jnp.where(widen(bisecting, x), halfway, self.ball.clip(state.point + step))
        draw = lambda key: jax.random.uniform(key, (x[0].size + 3,), x.dtype)
        uniform = jax.vmap(draw)(fold_in_each(state.keys, i))
        start = first_start(self.start, uniform, state.tally.forwards - 1, self.ball, x)
        candidate = jnp.where(widen(searching, x), start, candidate)

        asking = live & (searching | bisecting | stepping)
        candidate = jnp.where(widen(asking, x), candidate, x)
        hit = asking & self._ask(state.keys, model, candidate, y, i + 1)
        return replace(
            self._seen(state, candidate, x, asking, hit),
            point=jnp.where(widen(hit, x), candidate, state.point),
            low=jnp.where(bisecting & ~hit, middle, low),
            rounds=rounds,
            joined=joined,
            landed=landed | (stepping & hit),
        )

    def _towards(self, point: Array, x: Array, distance: Array, middle: Array) -> Array:
        """The image at distance ``middle`` on the way to the point."""
        if isinstance(self.ball, L2):
            part = middle / jnp.where(distance > 0, distance, 1)
            way = widen(part, x) * (point - x)
        else:
            way = jnp.clip(point - x, -widen(middle, x), widen(middle, x))
        return self.ball.clip(x + way)

    def _probe(
        self,
        i: Array,
        state: _State,
        model: Model,
        x: Array,
        y: Array,
        live: Array,
        opening: Array,
    ) -> _State:
        """A batch of labels around the point."""
        # What remains after the probes must do for a step and the bisection that gains from it.
        affordable = self.queries - state.tally.forwards - 1 - self._bisections(x)
        planned = jnp.minimum(self._planned(state.rounds), affordable)
        planned = jnp.where(opening, planned, state.planned)
        finished = state.joined & (planned < min(self.probes, self.max_probes))
        fresh = lambda value: jnp.where(opening, jnp.zeros_like(value), value)
        probed = fresh(state.probed)
        joined = live & state.joined & ~finished
        count = jnp.where(joined, jnp.clip(planned - probed, 0, self.chunk), 0)

        counted = jnp.arange(self.chunk)[None] < count[:, None]
        directions, points = self._probes(i, state, x)
        points = jnp.where(widen(counted, x), points, x[:, None])
        keys = fold_in_each(fold_in_each(state.keys, _MODEL), i + 1)
        each = jax.vmap(jax.random.fold_in, (None, 0))
        asked = jax.vmap(each, (0, None))(keys, jnp.arange(self.chunk)).reshape(-1)
        hit = Labels(model).adversarial(
            points.reshape(-1, *x.shape[1:]), jnp.repeat(y, self.chunk), goal=self.goal, key=asked
        )
        hit = hit.reshape(-1, self.chunk) & counted
        summed = lambda who: jnp.sum(jnp.where(widen(who, x), directions, 0), axis=1)
        return replace(
            state,
            tally=state.tally.spend(forwards=count),
            finished=state.finished | finished,
            planned=planned,
            probed=probed + count,
            hits=fresh(state.hits) + jnp.sum(hit, axis=1, dtype=jnp.int32),
            total=fresh(state.total) + summed(counted),
            hit_total=fresh(state.hit_total) + summed(hit),
        )

    def _probes(self, i: Array, state: _State, x: Array) -> tuple[Array, Array]:
        """Directions and the images there, ``[B, chunk, ...]``."""
        lower, upper = self.ball.bounds
        d, theta = x[0].size, self._theta(x)
        shape = (self.chunk, *x.shape[1:])
        keys = fold_in_each(state.keys, i)
        if isinstance(self.ball, L2):
            root, draw = d**0.5, lambda key: jax.random.normal(key, shape, x.dtype)
        else:
            root, draw = d, lambda key: jax.random.uniform(key, shape, x.dtype, -1, 1)
        drawn = jnp.where(free_pixels(self.ball, x)[:, None], jax.vmap(draw)(keys), 0)
        length = jnp.sqrt(jnp.sum(drawn**2, axis=tuple(range(2, drawn.ndim)), keepdims=True))
        distance = self.ball.size(state.point - x)
        width = float((upper - lower).max())
        radius = jnp.where(state.rounds <= 1, 0.1 * width, root * theta * distance)
        radius = radius.reshape(-1, *(1,) * x.ndim)
        point = state.point[:, None]
        points = self.ball.clip(point + radius * drawn / jnp.where(length > 0, length, 1))
        # What the box left of them; a radius of zero has no direction.
        return (points - point) / jnp.where(radius > 0, radius, 1), points


def _normal(state: _State, x: Array) -> Array:
    """The boundary's normal: what the adversarial probes have in common and the others lack."""
    count = jnp.maximum(state.probed, 1).astype(x.dtype)
    share = widen(state.hits.astype(x.dtype) / count, x)  # of adversarial probes
    # With signs s = 2 hit - 1: sum of (s - mean s) v = 2 (sum of hits' v - share * sum of v).
    without_mean = state.hit_total - share * state.total
    one_sided = jnp.where(share > 0.5, state.total, -state.total)
    return jnp.where((share > 0) & (share < 1), without_mean, one_sided)
