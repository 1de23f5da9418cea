"""DeepFool, and the linearised decision boundaries that it shares with FAB."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from advjax.attacks._checks import check_ball, check_count
from advjax.attacks._iterate import Iterative, Loop, auto_loop, outcome
from advjax.attacks._rows import close_size, widen
from advjax.balls import L1, L2, Ball, Linf
from advjax.checks import looks_like_probabilities
from advjax.losses import margin
from advjax.types import (
    Array,
    ArrayLike,
    Key,
    Record,
    example_keys,
    fold_in_each,
    is_stochastic,
    pytree,
    replace,
    static,
)

_ROUNDING = 1e-6  # of the largest logit
_FINAL = 2**32 - 2  # what a key is folded with for the last judgement
_SHORTEST = 1e-5  # of a step: on the boundary itself the exact step is zero and goes nowhere
_TOGETHER = 192  # gradients at a time on a CPU, whose cache holds no more of a small network's
_LONGEST = 1e6  # of a step, far out of any box: a vanishing gradient asks for infinity


@pytree
class Answer:
    """What a model says of a batch: mean logits ``[B, K]`` over draws, and two flags ``[B]``."""

    logits: Array
    success: Array
    probabilities: Array


def ask(model: Any, x: Array, y: Array, keys: Any, *, targeted: bool) -> Answer:
    """The model's answer; a randomised model is fooled where more than half of its draws are."""
    logits = model(x, key=keys) if is_stochastic(model) else model(x)
    draws = logits.reshape((-1,) + logits.shape[-2:]).astype(jnp.float32)
    reached = jnp.argmax(draws, axis=-1) == y
    votes = jnp.mean(reached if targeted else ~reached, axis=0, dtype=jnp.float32)
    return Answer(
        logits=jnp.mean(draws, axis=0),
        success=votes > 0.5,
        probabilities=looks_like_probabilities(draws).all(axis=0),
    )


def differentiated(
    model: Any, x: Array, y: Array, keys: Any, *, targeted: bool
) -> tuple[Answer, Callable[[Array], Array]]:
    """The answer, and the map from cotangents of its logits to image gradients: one forward."""

    def logits(x: Array) -> tuple[Array, Answer]:
        answer = ask(model, x, y, keys, targeted=targeted)
        return answer.logits, answer

    _, pullback, answer = jax.vjp(logits, x, has_aux=True)
    return answer, lambda cotangent: pullback(cotangent)[0]


def others(logits: Array, y: Array, count: int | None = None) -> Array:
    """``[n, B]`` classes but the label: all of them, or the ``count`` with the largest logits."""
    classes = logits.shape[-1]
    if count is None or count >= classes - 1:
        return (y + jnp.arange(1, classes)[:, None]) % classes
    is_label = jax.nn.one_hot(y, classes, dtype=bool)
    return jax.lax.top_k(jnp.where(is_label, -jnp.inf, logits), count)[1].T


def strongest(logits: Array, y: Array) -> Array:
    """``[B]`` class with the largest logit but the label's."""
    is_label = jax.nn.one_hot(y, logits.shape[-1], dtype=bool)
    return jnp.argmax(jnp.where(is_label, -jnp.inf, logits), axis=-1)


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
    measure: Callable[[Array, Array], Array] | None = None,
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
    classes = logits.shape[-1]
    hot = lambda index: jax.nn.one_hot(index, classes, dtype=logits.dtype)

    def nearest(raised: Array) -> Plane:
        cotangents = hot(raised) - hot(lowered)
        several = raised.shape[0] > 1
        slope = jax.vmap(pullback)(cotangents) if several else pullback(cotangents[0])[None]
        slope = ball._masked(jnp.where(jnp.isfinite(slope), slope, 0))
        gap = jnp.sum(jnp.where(cotangents != 0, cotangents * logits, 0), axis=-1)
        needed = gap
        if back is not None:
            needed = gap - jnp.sum(slope * back, axis=tuple(range(2, slope.ndim)))
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


@pytree
class _State:
    """Between two steps."""

    keys: Any  # [B] keys for a randomised model, else None
    x_adv: Array  # the point tested last
    raised: Any  # [B, n] classes looked at where they are chosen, else None
    first_success: Array  # -1 until the point is adversarial
    forwards: Array
    backwards: Array
    zero_gradient: Array
    probabilities: Array


@pytree
class DeepFool(Iterative):
    """DeepFool (Moosavi-Dezfooli et al. 2016, algorithm 2 and section 3.3), in L2 or L-inf.

    Every step goes to the nearest of the linearised boundaries between the label and the other
    classes. The image tested and returned is ``x + (1 + overshoot) * sum of the steps``, cut to box
    and ball after every step: what is cut off is not made up for later. An example stops as soon
    as it is adversarial by more than float32's rounding.

    Attributes:
      ball: ``L2()`` or ``Linf()``; a finite eps keeps every step inside the ball.
      steps: most steps, at least 0.
      overshoot: how much farther than the boundary to go, relative to the whole perturbation.
      classes: look at this many classes only, those with the largest logits on the clean image,
        the label among them (the authors' code takes 10); None for all.
      chunk: gradients of how many classes are held at a time, at most; None for what is fastest,
        on a GPU all.
      targeted: labels are targets: every step goes to the boundary between the target and the
        strongest other class, an extension.
      loop: who iterates.
    """

    ball: Ball
    steps: int = static(default=50)
    overshoot: ArrayLike = 0.02
    classes: int | None = static(default=None)
    chunk: int | None = static(default=None)
    targeted: bool = static(default=False)
    loop: Loop = static(default=auto_loop)

    def check(self) -> None:
        check_ball("DeepFool", self.ball, L2, Linf)
        check_count("DeepFool", "steps", self.steps, 0)
        check_count("DeepFool", "chunk", self.chunk, none=True)
        check_count("DeepFool", "classes", self.classes, 2, none=True)

    def init(self, key: Key, model: Any, x: Array, y: Array) -> _State:
        keys: Any = example_keys(key, x.shape[0]) if is_stochastic(model) else None
        drawn = None if keys is None else fold_in_each(keys, 0)
        answer = ask(model, x, y, drawn, targeted=self.targeted)
        one = jnp.ones_like(answer.success, dtype=jnp.int32)
        raised = None
        if self.classes is not None and not self.targeted:
            raised = others(answer.logits, y, self.classes - 1).T
        return _State(
            keys=keys,
            x_adv=x,
            raised=raised,
            first_success=jnp.where(answer.success, 0, -one),
            forwards=one,
            backwards=0 * one,
            zero_gradient=0 * one,
            probabilities=answer.probabilities,
        )

    def live(self, state: _State) -> Array:
        return state.first_success < 0

    def fitting_size(self, rows: int, batch: int) -> int:
        # A step is K + 1 passes: carrying examples along costs more than a few compilations.
        return close_size(rows, batch, parts=8, smallest=2)

    def step(self, i: Array, state: _State, model: Any, x: Array, y: Array) -> _State:
        live = self.live(state)
        draw = lambda n: None if state.keys is None else fold_in_each(state.keys, n)
        answer, pullback = differentiated(
            model, state.x_adv, y, draw(2 * i + 1), targeted=self.targeted
        )
        if self.targeted:
            raised, lowered = y[None], strongest(answer.logits, y)
        else:
            raised = others(answer.logits, y) if state.raised is None else state.raised.T
            lowered = y
        plane = nearest_plane(self.ball, answer.logits, pullback, raised, lowered, chunk=self.chunk)
        # A targeted example may be past this boundary and not yet there because of another one.
        length = jnp.clip(plane.distance, _SHORTEST, _LONGEST)
        if isinstance(self.ball, Linf):
            direction = jnp.sign(plane.slope)
        else:
            direction = self.ball.steepest(plane.slope)
        step = (1 + jnp.asarray(self.overshoot)) * widen(length, x) * direction
        x_adv = self.ball.apply(x, state.x_adv + step - x)
        # One forward pass more tells now who is done: the next step would, but differentiating.
        judged = ask(model, x_adv, y, draw(2 * i + 2), targeted=self.targeted)
        # Past the boundary by no more than rounding, another batch size would call it back.
        beyond = margin(judged.logits, y) * (-1 if self.targeted else 1)
        clear = beyond > _ROUNDING * jnp.max(jnp.abs(judged.logits), axis=-1)
        keep = lambda new, old: jnp.where(widen(live, new), new, old)
        return replace(
            state,
            x_adv=keep(x_adv, state.x_adv),
            first_success=jnp.where(live & judged.success & clear, i + 1, state.first_success),
            forwards=state.forwards + 2 * live,
            backwards=state.backwards + raised.shape[0] * live,
            zero_gradient=state.zero_gradient + (live & (plane.size == 0)),
            probabilities=state.probabilities & judged.probabilities,
        )

    def finish(self, state: _State, model: Any, x: Array, y: Array, *, record: bool) -> Record:
        return outcome(
            self,
            model,
            x,
            y,
            state.x_adv,  # the first adversarial point, or the last one, as in the paper
            None if state.keys is None else fold_in_each(state.keys, _FINAL),
            record=record,
            loss=margin,
            forwards=state.forwards,
            backwards=state.backwards,
            first_success=state.first_success,
            zero_gradient=state.zero_gradient,
        )

    def doubts(self, state: _State) -> Array:
        return state.probabilities

    def pieces(self) -> DeepFool:
        return replace(self, steps=0, loop=auto_loop)
