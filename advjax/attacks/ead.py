"""Elastic-net attacks: sparse perturbations by iterative soft thresholding."""

from __future__ import annotations

from typing import Any, Literal

import jax.numpy as jnp

from advjax.attacks._checks import check_count, check_number, check_per_example
from advjax.attacks._closest import Closest
from advjax.attacks._iterate import Iterative, Loop, auto_loop, judge, outcome
from advjax.attacks._rows import only, widen
from advjax.attacks._tradeoff import (
    ConstantSearch,
    convinces,
    margin_and_gradient,
    on_mask,
    over_features,
)
from advjax.balls import L1, Ball
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


@pytree
class _State:
    """Between two iterations; every array has the batch first."""

    keys: Any  # [B] keys for a randomised model, else None
    image: Array
    slack: Array  # the image and the momentum, where the gradient is taken
    search: ConstantSearch
    closest: Closest  # by the rule's distance
    taken: Array
    zero_gradient: Array
    probabilities: Array


@pytree
class EAD(Iterative):
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
      targeted: labels are targets; see ``Targeted``.
      length: as ``steps``, where the loop knows only the whole number; leave it.
      loop: who iterates; ``auto_loop``, ``host_loop``, ``device_loop`` or your own.
    """

    ball: Ball = L1()
    steps: int = static(default=1000)
    searches: int = static(default=9)
    step_size: ArrayLike = 0.01
    beta: ArrayLike = 1e-3
    c: ArrayLike = 1e-3
    confidence: ArrayLike = 0.0
    rule: Literal["L1", "EN"] = static(default="L1")
    abort_early: bool = static(default=True)
    targeted: bool = static(default=False)
    length: ArrayLike = None
    loop: Loop = static(default=auto_loop)

    def check(self) -> None:
        if not isinstance(self.ball, L1):
            raise TypeError(f"EAD: given ball={self.ball!r}; an L1 ball is taken")
        for name in ("steps", "searches"):
            check_count("EAD", name, getattr(self, name))
        for name in ("step_size", "beta", "c"):
            check_number("EAD", name, getattr(self, name))
        check_number("EAD", "confidence", self.confidence, zero=True)
        if self.rule not in ("L1", "EN"):
            raise ValueError(f"EAD: given rule={self.rule!r}; 'L1' or 'EN' is taken")

    def check_fits(self, x: Array) -> None:
        check_per_example(x, eps=self.ball.eps, c=self.c, confidence=self.confidence)

    def init(self, key: Key, model: Any, x: Array, y: Array) -> _State:
        del y
        closest = Closest.start(x)
        none = jnp.zeros_like(closest.first_success)
        return _State(
            keys=example_keys(key, x.shape[0]) if is_stochastic(model) else None,
            image=x,
            slack=x,
            search=ConstantSearch.start(self.c, none),
            closest=closest,
            taken=none,
            zero_gradient=none,
            probabilities=none == 0,
        )

    def step(self, i: Array, state: _State, model: Any, x: Array, y: Array) -> _State:
        features, c = over_features(x), state.search.c
        at_slack, rise = margin_and_gradient(
            self.targeted, model, state.slack, y, state.keys, 2 * i + 1
        )
        # The first slack point is the clean image, which may be adversarial already.
        clean = convinces(at_slack, self.confidence) & (state.taken == 0)
        closest = state.closest.keep(x, clean, jnp.zeros_like(c), i)

        pull = widen(jnp.where(self._short(at_slack.loss) > 0, c, 0), x)
        part = state.search.progress.taken / jnp.asarray(self._length)
        step_size = jnp.asarray(self.step_size) * jnp.sqrt(jnp.maximum(1 - part, 0))
        down = 2 * (state.slack - x) - pull * rise
        image = self._shrunk(state.slack - widen(step_size, x) * down, x)
        count = state.search.progress.taken + 1
        slack = image + widen(count / (count + 3), x) * (image - state.image)

        drawn: Any = None if state.keys is None else fold_in_each(state.keys, 2 * i + 2)
        _, judged = judge(margin, self.targeted, model, image, y, drawn)
        success = convinces(judged, self.confidence)
        l1 = jnp.sum(jnp.abs(image - x), axis=features)
        elastic = jnp.sum((image - x) ** 2, axis=features) + jnp.asarray(self.beta) * l1
        closest = closest.keep(image, success, l1 if self.rule == "L1" else elastic, i)

        objective = elastic + c * jnp.maximum(self._short(judged.loss), 0)
        over, search = state.search.after(objective, success, self._length, self.abort_early)
        new = _State(
            keys=None,
            image=jnp.where(widen(over, x), x, image),
            slack=jnp.where(widen(over, x), x, slack),
            search=search,
            closest=closest,
            taken=state.taken + 1,
            zero_gradient=state.zero_gradient
            + jnp.all(on_mask(self.ball, rise, jnp.zeros_like(x)) == 0, axis=features),
            probabilities=state.probabilities & judged.probabilities,
        )
        held = only(self.live(state), new, replace(state, keys=None))
        return replace(held, keys=state.keys)

    def _short(self, margins: Array) -> Array:
        """By how much the margins fall short of the confidence."""
        return jnp.asarray(self.confidence) - margins

    def _shrunk(self, moved: Array, x: Array) -> Array:
        """The changes nearer to zero by ``beta``, exactly zero where they are smaller."""
        lower, upper = self.bounds
        beta, change = jnp.asarray(self.beta), moved - x
        less, more = jnp.clip(moved + beta, lower, upper), jnp.clip(moved - beta, lower, upper)
        shrunk = jnp.where(change > beta, more, jnp.where(change < -beta, less, x))
        return on_mask(self.ball, shrunk, x)

    @property
    def _length(self) -> ArrayLike:
        return self.steps if self.length is None else self.length

    def live(self, state: _State) -> Array:
        return (state.search.done < self.searches) & (state.closest.distance > 0)

    def finish(self, state: _State, model: Any, x: Array, y: Array, *, record: bool) -> Record:
        best = state.closest.image
        closest = replace(state.closest, distance=self.ball.size(best - x))
        return outcome(
            self,
            model,
            x,
            y,
            closest.within(self.ball, x),
            None if state.keys is None else fold_in_each(state.keys, 0),
            record=record,
            loss=margin,
            forwards=2 * state.taken,
            last=state.taken,
            backwards=state.taken,
            first_success=state.closest.first_success,
            zero_gradient=state.zero_gradient,
        )

    def doubts(self, state: _State) -> Array:
        return state.probabilities

    def solve(self, key: Key, model: Any, x: Array, y: Array, *, record: bool) -> Record:
        whole = replace(self, steps=self.steps * self.searches, length=self._length)
        return Iterative.solve(whole, key, model, x, y, record=record)

    def pieces(self) -> EAD:
        return replace(self, steps=1, loop=auto_loop)
