"""The linearised decision boundaries of a classifier, and its classes in order."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from advjax.answers import draws_of
from advjax.attacks.core.judging import Judgement, judge
from advjax.balls import L1, Ball, Linf
from advjax.losses import margin
from advjax.pytrees import Array, ArrayLike, Key, pytree
from advjax.shapes import widen
from advjax.types import Goal, Model

_TOGETHER = 192  # gradients at a time on a CPU, whose cache holds no more of a small network's

Measure = Callable[[Array, Array], Array]
"""``(slopes [n, B, ...], needed [n, B]) -> distances [n, B]``."""


def by_logit(logits: Array, y: Array) -> Array:
    """``[B, K]`` classes by falling logit ``[B, K]``, the label ``y [B]`` last."""
    is_label = jax.nn.one_hot(y, logits.shape[-1], dtype=bool)
    return jnp.argsort(jnp.where(is_label, jnp.inf, -logits), axis=-1, stable=True)


def of_rank(logits: Array, y: Array, rank: ArrayLike) -> Array:
    """``[B]`` class with the rank-th largest logit, the label left out: 1 is the runner-up.

    Args:
      logits: ``[B, K]``.
      y: ``[B]`` labels.
      rank: scalar or ``[B]``; the last class where there are not so many.
    """
    last = logits.shape[-1] - 1
    place = jnp.clip(jnp.asarray(rank, jnp.int32), 1, last) - 1
    place = jnp.broadcast_to(place, y.shape)[:, None]
    return jnp.take_along_axis(by_logit(logits, y), place, axis=-1)[:, 0].astype(y.dtype)


def answer(
    goal: Goal, model: Model, x: Array, y: Array, keys: Key | None
) -> tuple[Array, Judgement]:
    """The model's logits ``[B, K]``, in the mean over its draws, and their judgement."""
    draws = draws_of(model, x, keys).astype(jnp.float32)
    return jnp.mean(draws, axis=0), judge(goal, margin, draws, y)


def differentiated(
    goal: Goal, model: Model, x: Array, y: Array, keys: Key | None
) -> tuple[Array, Judgement, Callable[[Array], Array]]:
    """As ``answer``, and the map from cotangents of the logits to image gradients: one forward."""
    logits, pullback, judged = jax.vjp(lambda x: answer(goal, model, x, y, keys), x, has_aux=True)
    return logits, judged, lambda cotangent: pullback(cotangent)[0]


def sides(goal: Goal, logits: Array, y: Array, among: Array | None = None) -> tuple[Array, Array]:
    """The boundaries to the goal: classes to be raised ``[n, B]`` and those to be lowered ``[B]``.

    Away from the label every other class may be raised, or those in ``among [n, B]`` alone;
    towards a target it is the target, against the strongest other class.
    """
    if goal.targeted:
        return y[None], by_logit(logits, y)[:, 0]
    classes = logits.shape[-1]
    return (y[None] + jnp.arange(1, classes)[:, None]) % classes if among is None else among, y


@pytree
class Plane:
    """A boundary between two classes, linearised at a point: ``gap + slope . (x - point) = 0``.

    Attributes:
      gap: ``[B]`` the logit to be raised minus the one to be lowered, at the point.
      slope: ``[B, ...]`` its gradient; zero where there is none.
      size: ``[B]`` the slope's norm dual to the ball's.
      distance: ``[B]`` from the point asked about, in the ball's norm; infinite where there is no
        gradient.
    """

    gap: Array
    slope: Array
    size: Array
    distance: Array


def _dual(ball: Ball, slope: Array) -> Array:
    """The norm dual to the ball's, over all axes but the first two of ``[n, B, ...]``."""
    axes = tuple(range(2, slope.ndim))
    if isinstance(ball, Linf):
        return jnp.sum(jnp.abs(slope), axis=axes)
    largest = jnp.max(jnp.abs(slope), axis=axes, keepdims=True)
    if isinstance(ball, L1):
        return largest.reshape(slope.shape[:2])
    unit = slope / jnp.where(largest > 0, largest, 1)  # squares would underflow
    return largest.reshape(slope.shape[:2]) * jnp.sqrt(jnp.sum(unit * unit, axis=axes))


def nearest_plane(
    ball: Ball,
    logits: Array,
    pullback: Callable[[Array], Array],
    raised: Array,
    lowered: Array,
    back: Array | None = None,
    measure: Measure | None = None,
    chunk: int | None = None,
) -> Plane:
    """The nearest of several boundaries, per example.

    Args:
      ball: gives the norm and the mask.
      logits: ``[B, K]`` at the point.
      pullback: from ``[B, K]`` cotangents to image gradients.
      raised: ``[n, B]`` classes to be raised, one for each boundary.
      lowered: ``[B]`` classes to be lowered.
      back: the point minus the one that distances are measured from; None if they are the same.
      measure: distances ``[n, B]`` of several planes from their slopes and what is to be gained;
        by default as if there were no box.
      chunk: most boundaries differentiated at a time; None for all of them, on a CPU for as many
        as its cache likes.
    """
    nearest = lambda raised: _nearest(ball, logits, pullback, raised, lowered, back, measure)
    count, most = raised.shape[0], chunk
    if most is None:
        most = count
        if jax.default_backend() == "cpu":
            most = max(_TOGETHER // raised.shape[1], 1)
    parts = -(-count // most)
    if parts == 1:
        return nearest(raised)
    chunk = -(-count // parts)  # equal parts
    padded = jnp.concatenate([raised, jnp.repeat(raised[-1:], parts * chunk - count, axis=0)])
    padded = padded.reshape(parts, chunk, -1)

    def nearer(old: Plane, raised: Array) -> tuple[Plane, None]:
        new = nearest(raised)
        take = new.distance < old.distance
        choose = lambda a, b: jnp.where(widen(take, a), a, b)
        return jax.tree.map(choose, new, old), None

    return jax.lax.scan(nearer, nearest(padded[0]), padded[1:])[0]


def _nearest(
    ball: Ball,
    logits: Array,
    pullback: Callable[[Array], Array],
    raised: Array,
    lowered: Array,
    back: Array | None,
    measure: Measure | None,
) -> Plane:
    """``nearest_plane`` of boundaries that are differentiated together."""
    hot = lambda index: jax.nn.one_hot(index, logits.shape[-1], dtype=logits.dtype)
    cotangents = hot(raised) - hot(lowered)[None]
    several = raised.shape[0] > 1
    slope = jax.vmap(pullback)(cotangents) if several else pullback(cotangents[0])[None]
    slope = ball.masked(jnp.where(jnp.isfinite(slope), slope, 0))
    gap = jnp.sum(jnp.where(cotangents != 0, cotangents * logits[None], 0), axis=-1)
    needed = gap
    if back is not None:
        needed = gap - jnp.sum(slope * back[None], axis=tuple(range(2, slope.ndim)))
    size = _dual(ball, slope)
    distance = jnp.abs(needed) / jnp.where(size > 0, size, 1)
    if several and measure is not None:
        distance = measure(slope, -needed)
    distance = jnp.where((size > 0) & jnp.isfinite(distance), distance, jnp.inf)
    first = jnp.argmin(distance, axis=0)
    pick = lambda values: jnp.take_along_axis(
        values, first.reshape((1, -1) + (1,) * (values.ndim - 2)), axis=0
    )[0]
    if not several:
        pick = lambda values: values[0]
    useful = jnp.isfinite(pick(distance))
    return Plane(
        gap=jnp.where(useful, pick(gap), 0),
        slope=jnp.where(widen(useful, pick(slope)), pick(slope), 0),
        size=jnp.where(useful, pick(size), 0),
        distance=pick(distance),
    )
