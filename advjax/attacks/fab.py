"""FAB: the fast adaptive boundary attack, and its exact projections onto a plane in a box."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from advjax.answers import draws_of, example_keys, fold_if_any, fold_in_each, is_stochastic
from advjax.arguments import check_ball, check_count, check_goal, check_rank
from advjax.attacks.core.boundaries import (
    Plane,
    answer,
    differentiated,
    nearest_plane,
    of_rank,
    sides,
)
from advjax.attacks.core.judging import Judgement, Tally
from advjax.attacks.core.minimal import Closest, KeepsClosest, at_distance
from advjax.balls import L1, L2, Ball, Linf, check_finite
from advjax.goals import Misclassify, Target
from advjax.pytrees import Array, ArrayLike, Key, driver_only, per_example, pytree, replace, static
from advjax.shapes import widen
from advjax.types import Goal, Model

# Passes of the searches, the same for every example: a test for convergence would tie the examples
# of a batch to each other. Newton's took at most 12 and 21 on 3,000 hard cases of up to 150,528
# features; bisection on the bits of a positive float is exact after 31.
_PASSES = {"linf": 14, "l2": 24, "l1": 31}
_FEW = {"linf": 5, "l2": 5, "l1": 16}  # to tell which of several planes is the nearest
_FAR = 1e10  # the distance of a plane that no pixel can approach
_START = 0  # what a key is folded with to draw the start
_RANK = 1  # and for the model's draw that ranks the classes; step i uses i + 2
_LAST = 2**32 - 3  # and for its draw after the last step


def onto_plane(
    ball: Ball,
    slope: Array,
    needed: Array,
    lower: Array,
    upper: Array,
    passes: Mapping[str, int] = _PASSES,
) -> Array:
    """The shortest steps in the ball's norm that planes ask for, inside limits, ``[P, B, D]``.

    Minimises ``|step|`` subject to ``slope . step = needed`` and ``lower <= step <= upper``; where
    the limits are too tight, the step goes as far towards the plane as they let it.

    Args:
      ball: ``Linf``, ``L2`` or ``L1``.
      slope: ``[P, B, D]`` for P planes of each example, or ``[1, B, D]``.
      needed: ``[P, B]``, for P points or planes.
      lower: ``[P, B, D]`` or ``[1, B, D]``, at most 0; ``upper``: likewise, at least 0.
      passes: of the searches; with fewer the steps may stop short of the plane, in L1 be longer.
    """
    largest = jnp.max(jnp.abs(slope), axis=-1, keepdims=True)
    weight = jnp.abs(slope) / jnp.where(largest > 0, largest, 1)
    sign = jnp.sign(needed)[..., None] * jnp.sign(slope)
    room = jnp.where(sign > 0, upper, -lower)
    total = lambda values: jnp.sum(values, axis=-1, keepdims=True)
    goal = jnp.abs(needed)[..., None] / jnp.where(largest > 0, largest, 1)
    goal = jnp.minimum(goal, total(weight * room))  # no plane is farther than the corner
    if isinstance(ball, L1):
        return sign * _steepest_first(weight, room, goal, passes["l1"])
    # Every pixel moves at its speed until it reaches its limit. What they gain together is concave
    # in time: Newton's method from below never passes the goal, and ends on it.
    speed, count = weight, passes["l2"]
    if isinstance(ball, Linf):
        speed, count = jnp.sign(weight), passes["linf"]

    def search(_: Array, time: Array) -> Array:
        free = time * speed < room
        gained = total(weight * jnp.where(free, time * speed, room))
        rate = total(jnp.where(free, weight * speed, 0))
        new = time + jnp.maximum(goal - gained, 0) / jnp.where(rate > 0, rate, jnp.inf)
        return jnp.minimum(new, 1e30)  # an infinite time would make NaN of no speed

    time = jax.lax.fori_loop(0, count, search, jnp.zeros_like(goal))
    return sign * jnp.minimum(time * speed, room)


def _steepest_first(weight: Array, room: Array, goal: Array, passes: int) -> Array:
    """Steps of least sum: whole rooms in order of weight, and a part of those at the threshold."""
    total = lambda values: jnp.sum(values, axis=-1, keepdims=True)
    gain = weight * room
    bits = jax.lax.bitcast_convert_type(weight, jnp.int32)  # ordered as the weights are

    def search(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket  # taking all above low is too much, all above high is not
        middle = (low + high) // 2
        fits = total(jnp.where(bits > middle, gain, 0)) <= goal
        return jnp.where(fits, low, middle), jnp.where(fits, middle, high)

    one = jax.lax.bitcast_convert_type(jnp.ones((), weight.dtype), jnp.int32)  # the largest weight
    start = (jnp.full(goal.shape, -1, jnp.int32), jnp.full(goal.shape, one, jnp.int32))
    low, high = jax.lax.fori_loop(0, passes, search, start)
    above, at = bits > high, (bits > low) & (bits <= high)  # at the threshold: ties
    left = goal - total(jnp.where(above, gain, 0))
    tied = total(jnp.where(at, gain, 0))
    part = jnp.clip(left / jnp.where(tied > 0, tied, 1), 0, 1)
    return jnp.where(above, room, jnp.where(at, part * room, 0)) * (weight > 0).astype(weight.dtype)


@pytree
class _State:
    """Between two steps."""

    keys: Any  # [B] keys where there are draws to make, else None
    point: Array  # the iterate, not yet tested
    taken: Array  # steps so far
    target: Array  # [B] the class by rank, once known; -1 where there are not so many classes
    closest: Closest
    tally: Tally


@pytree
class FAB(KeepsClosest):
    """The fast adaptive boundary attack (Croce & Hein 2020b, algorithm 1), in L-inf, L2 or L1.

    Linearises the boundary at the iterate, projects the iterate and the clean image onto it inside
    the box, and goes to a mixture of the two, a little beyond. From an adversarial iterate it first
    goes back towards the clean image. The nearest adversarial image seen is returned.

    One pass of the model per step tests the iterate and linearises there. The published code tests
    it, steps back and linearises in a second pass: nearer to the boundary the plane is better, and
    one pass is cheaper.

    Attributes:
      ball: ``Linf()``, ``L2()`` or ``L1()``; with a finite eps only nearer images count.
      steps: number of steps, at least 0.
      rank: look at one class only, the rank-th by clean logit without the label (1 is the runner
        up), scalar or ``[B]``: FAB-T (Croce & Hein 2020a, section 4), with one gradient per step
        instead of K - 1; does nothing where there are fewer classes. None for all classes.
      alpha_max: largest share of the clean image's projection.
      overshoot: factor on the projections' steps (the paper's eta), at least 1.
      backward: what is left of an adversarial perturbation (the paper's beta), 0 to 1.
      random_start: start at distance eps / 2 in a random direction instead of at the image.
      until_success: stop an example at its first adversarial image within eps.
      chunk: gradients of how many classes are held at a time; None for all.
      goal: what is wanted, see ``Targeted``. Towards a target the plane is that between it and the
        strongest other class at the iterate, an extension.
    """

    ball: Ball
    steps: int = driver_only(default=100)
    rank: ArrayLike = per_example(default=None)
    alpha_max: ArrayLike = 0.1
    overshoot: ArrayLike = 1.05
    backward: ArrayLike = 0.9
    random_start: bool = static(default=False)
    until_success: bool = static(default=False)
    chunk: int | None = static(default=None)
    goal: Goal = Misclassify()

    def check(self) -> None:
        check_ball("FAB", self.ball, Linf, L2, L1)
        check_count("FAB", "steps", self.steps, 0)
        check_count("FAB", "chunk", self.chunk, none=True)
        if self.random_start:
            check_finite("FAB with random_start", self.ball)
        check_goal("FAB", self.goal, Misclassify, Target)
        check_rank("FAB", self.rank, self.goal)

    def init(self, key: Key, model: Model, x: Array, y: Array, steps: Array) -> _State:
        del steps
        keys: Any = None
        if self.random_start or is_stochastic(model):
            keys = example_keys(key, x.shape[0])
        point, target, tally = x, jnp.zeros_like(y), Tally.start(x)
        if self.rank is not None:
            able = jnp.asarray(self.rank) < jax.eval_shape(draws_of, model, x, keys).shape[-1]
            target = jnp.where(able, target, -1)
        if self.random_start:
            point = at_distance(self.ball, fold_in_each(keys, _START), x, self.ball.eps / 2)
        if self.random_start and self.rank is not None:
            logits, _ = answer(self.goal, model, x, y, fold_in_each(keys, _RANK))
            target = jnp.where(able, of_rank(logits, y, self.rank), -1)
            tally = tally.spend(forwards=able)
        return _State(
            keys=keys,
            point=point,
            taken=jnp.zeros((), jnp.int32),
            target=target,
            closest=Closest.start(x),
            tally=tally,
        )

    def live(self, state: _State) -> Array:
        enough = jnp.asarray(self.ball.eps) if self.until_success else 0
        return (state.closest.distance > enough) & (state.target >= 0)

    def _seen(self, i: ArrayLike, state: _State, judged: Judgement, x: Array) -> _State:
        """The state after its point has been judged, as iterate number i."""
        live, distance = self.live(state), self.ball.size(state.point - x)
        return replace(
            state,
            closest=state.closest.keep(state.point, live & judged.success, distance),
            tally=state.tally.spend(forwards=live).see(judged, i, live),
        )

    def step(self, i: Array, state: _State, model: Model, x: Array, y: Array) -> _State:
        live, target, among = self.live(state), state.target, None
        drawn = fold_if_any(state.keys, i + 2)
        logits, judged, pullback = differentiated(self.goal, model, state.point, y, drawn)
        if self.rank is not None:
            if not self.random_start:  # the first point is the clean image
                ranked = jnp.where(target < 0, -1, of_rank(logits, y, self.rank))
                target = jnp.where(i == 0, ranked, target)
            among = jnp.maximum(target, 0)[None]
        raised, lowered = sides(self.goal, logits, y, among)
        widely = lambda value: jnp.asarray(value, x.dtype)
        kept = jnp.where(widen(judged.success, x), widely(self.backward), 1)
        point = x + kept * (state.point - x)
        back = state.point - point
        plane = nearest_plane(
            self.ball,
            logits,
            pullback,
            raised,
            lowered,
            back=back,
            measure=lambda slope, needed: self._distances(point, slope, needed),
            chunk=self.chunk,
        )
        to_point, to_image, share = self._projections(plane, state.point, point, x)
        beyond, share = widely(self.overshoot), widen(share, x)
        # As increments: a pixel that no step moves keeps its value to the bit.
        moved = point + (1 - share) * beyond * to_point
        moved += share * (x - point + beyond * to_image)
        moved = self.ball.clip(moved)
        state = self._seen(i, state, judged, x)
        tally = state.tally.spend(backwards=jnp.where(live, raised.shape[0], 0))
        return replace(
            state,
            taken=i + 1,
            point=jnp.where(widen(live, x), moved, state.point),
            target=jnp.where(live, target, state.target),
            tally=tally.lose(live & (plane.size == 0)),
        )

    def last(self, state: _State, model: Model, x: Array, y: Array) -> _State:
        drawn = fold_if_any(state.keys, _LAST)
        _, judged = answer(self.goal, model, state.point, y, drawn)
        return self._seen(state.taken, state, judged, x)

    def _room(self, points: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
        """How far the box lets flattened images ``[P, B, D]`` go down and up."""
        flat = lambda bound: jnp.broadcast_to(bound, shape[1:]).reshape(1, 1, -1)
        lower, upper = map(flat, self.bounds)
        return jnp.minimum(lower - points, 0), jnp.maximum(upper - points, 0)

    def _distances(self, point: Array, slope: Array, needed: Array) -> Array:
        """``[n, B]`` to several planes inside the box, nearly.

        The published code chooses the plane as if there were no box: in L1, and where many pixels
        lie on a bound, that is often the wrong one.
        """
        slope = slope.reshape(*slope.shape[:2], -1)
        room = self._room(point.reshape(1, point.shape[0], -1), point.shape)
        steps = onto_plane(self.ball, slope, needed, *room, passes=_FEW)
        lengths = self.ball.size(steps.reshape(-1, steps.shape[-1])).reshape(needed.shape)
        gained = jnp.abs(jnp.sum(slope * steps, axis=-1))
        # A plane beyond the box is as far as its step would be at the same rate.
        missed = jnp.abs(needed) / jnp.where(gained > 0, gained, jnp.inf)
        return jnp.where(gained > 0, lengths * missed, jnp.where(needed == 0, 0, _FAR))

    def _projections(
        self, plane: Plane, linearised: Array, point: Array, x: Array
    ) -> tuple[Array, Array, Array]:
        """The steps from the point and from the image onto the plane, and the image's share."""
        flat = lambda value: value.reshape(value.shape[0], -1)
        slope, starts = flat(plane.slope)[None], jnp.stack([flat(point), flat(x)])
        needed = jnp.sum(slope * (flat(linearised)[None] - starts), axis=-1) - plane.gap[None]
        steps = onto_plane(self.ball, slope, needed, *self._room(starts, x.shape))
        lengths = self.ball.size(steps.reshape(-1, steps.shape[-1])).reshape(2, -1)
        near, far = jnp.maximum(lengths, 1e-8)
        share = jnp.minimum(near / (near + far), jnp.asarray(self.alpha_max))
        return steps[0].reshape(x.shape), steps[1].reshape(x.shape), share

    def with_goal(self, goal: Goal) -> FAB:
        return replace(self, goal=goal, rank=None if goal.targeted else self.rank)
