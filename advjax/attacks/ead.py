"""Elastic-net attacks: sparse perturbations by iterative soft thresholding."""

from __future__ import annotations

from typing import ClassVar, Literal

import jax.numpy as jnp

from advjax.answers import fold_if_any
from advjax.arguments import check_ball, check_count
from advjax.attacks.core.judging import ask
from advjax.attacks.core.penalty import ConstantSearch, Penalty, PenaltyState, Seen
from advjax.balls import L1, Ball
from advjax.goals import Misclassify
from advjax.losses import margin
from advjax.pytrees import Array, ArrayLike, driver_only, per_example, pytree, static
from advjax.shapes import over_features, row, widen
from advjax.types import Goal, Model


@pytree
class _Search:
    image: Array
    slack: Array  # the image and the momentum, where the gradient is taken
    constant: ConstantSearch


@pytree
class EAD(Penalty):
    """The elastic-net attack (Chen et al. 2018, algorithm 1, with the momentum of their code).

    FISTA minimises ``c * max(confidence - margin, 0) + |d|_2^2 + beta * |d|_1`` over the change d:
    a gradient step at the slack point with a step size that falls to zero as a square root, then
    the shrinking of every change by ``beta`` towards zero, inside the box. As in the authors' code
    the shrinking does not fall with the step size. c is searched per example as by
    ``CarliniWagner``; the best image by ``rule`` is returned, the clean one where there is none.

    Attributes:
      ball: an ``L1`` ball, by default without a limit; with a finite ``eps`` an image farther away
        is pulled back to it.
      steps: iterations of one search, at least 1; each is two forward passes and a backward one.
      searches: number of searches, at least 1.
      step_size: the first gradient step's, positive.
      beta: how much every pixel's change is shrunk, and the weight of L1; pixel units, positive.
        As it does not fall with the step size, L1 counts ``beta / step_size`` against the squares:
        the authors' value leaves an L1 norm up to 1.6 times the smallest on linear models, 0.05 one
        within 3 %, and 40 % less of it on a network for MNIST than theirs.
      c: the first search's constant, positive, scalar or ``[B]``.
      confidence: the margin in logits by which the image must be adversarial (kappa), at least 0.
      rule: which image is best: ``"L1"``, or ``"EN"`` by ``|d|_2^2 + beta * |d|_1``.
      abort_early: end a search that gets nowhere: every tenth of ``steps`` its lowest objective
        must have fallen by 0.01 %.
      goal: what is wanted, see ``Targeted``.
    """

    forwards_per_step: ClassVar[int] = 2

    ball: Ball = L1()
    steps: int = driver_only(default=1000)
    searches: int = static(default=9)
    step_size: ArrayLike = 0.01
    beta: ArrayLike = 1e-3
    c: ArrayLike = per_example(default=1e-3)
    confidence: ArrayLike = per_example(default=0.0)
    rule: Literal["L1", "EN"] = static(default="L1")
    abort_early: bool = static(default=True)
    goal: Goal = Misclassify()

    def check(self) -> None:
        check_ball("EAD", self.ball, L1, expected="an L1 ball")
        for name in ("steps", "searches"):
            check_count("EAD", name, getattr(self, name))
        self.check_numbers("step_size", "beta", "c")
        if self.rule not in ("L1", "EN"):
            raise ValueError(f"EAD: given rule={self.rule!r}; expected 'L1' or 'EN'")

    @property
    def most_steps(self) -> int:
        return self.steps * self.searches

    def begin(self, x: Array, y: Array) -> _Search:
        del y
        return _Search(image=x, slack=x, constant=ConstantSearch.start(self.c, row(x)))

    def look(self, i: Array, state: PenaltyState, model: Model, x: Array, y: Array) -> Seen:
        search: _Search = state.search
        at_slack = self.ask(model, search.slack, x, y, fold_if_any(state.keys, 2 * i + 1))
        part = search.constant.progress.taken.astype(x.dtype) / state.steps
        step_size = jnp.asarray(self.step_size) * jnp.sqrt(jnp.maximum(1 - part, 0))
        down = 2 * at_slack.change - at_slack.pull(search.constant.c)
        image = self._shrunk(search.slack - widen(step_size, x) * down, x)
        # The first slack point is the clean image, which may be adversarial already.
        clean = at_slack.judged.success & (i == 0)
        image = jnp.where(widen(clean, x), x, image)
        keys = fold_if_any(state.keys, 2 * i + 2)
        _, judged = ask(self.goal, margin, model, image, y, keys)
        return self.seen(judged, at_slack.rise, image, image - x)

    def size(self, change: Array) -> Array:
        l1 = jnp.sum(jnp.abs(change), axis=over_features(change))
        return l1 if self.rule == "L1" else self._elastic(change)

    def _elastic(self, change: Array) -> Array:
        axes = over_features(change)
        l1 = jnp.sum(jnp.abs(change), axis=axes)
        return jnp.sum(change**2, axis=axes) + jnp.asarray(self.beta) * l1

    def move(self, seen: Seen, state: PenaltyState, x: Array) -> tuple[_Search, Array]:
        search: _Search = state.search
        count = (search.constant.progress.taken + 1).astype(x.dtype)
        slack = seen.image + widen(count / (count + 3), x) * (seen.image - search.image)
        objective = self._elastic(seen.change) + search.constant.c * seen.short
        over, constant = search.constant.after(
            objective, seen.judged.success, state.steps, self.abort_early
        )
        new = _Search(
            image=jnp.where(widen(over, x), x, seen.image),
            slack=jnp.where(widen(over, x), x, slack),
            constant=constant,
        )
        return new, constant.done >= self.searches

    def _shrunk(self, moved: Array, x: Array) -> Array:
        """The changes nearer to zero by ``beta``, exactly zero where they are smaller."""
        lower, upper = self.ball.box(x)
        beta, change = jnp.asarray(self.beta), moved - x
        less, more = jnp.clip(moved + beta, lower, upper), jnp.clip(moved - beta, lower, upper)
        shrunk = jnp.where(change > beta, more, jnp.where(change < -beta, less, x))
        return self.ball.on_mask(shrunk, x)
