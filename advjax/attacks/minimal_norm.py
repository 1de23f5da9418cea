"""Any attack with a budget, as a search for the smallest budget at which it succeeds."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advjax.attacks._checks import check_count
from advjax.attacks._closest import Closest, farthest
from advjax.attacks._iterate import Attack, judge, outcome
from advjax.attacks.compose import Targeted, WorstOf, Wrapper
from advjax.balls import Ball, concrete
from advjax.checks import is_traced
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
class _Search:
    """Between two runs, per example: where the smallest budget lies, and the nearest success."""

    low: Array  # the largest budget that failed
    closest: Closest  # its distance is the smallest budget known to suffice
    farthest: Array  # distance of the farthest corner of the box
    forwards: Array
    backwards: Array
    zero_gradient: Array


def _cores(attack: Any) -> tuple[Any, ...]:
    """The attacks inside all wrappers."""
    if isinstance(attack, Targeted):
        raise TypeError(f"MinimalNorm: given {attack!r}; Targeted(MinimalNorm(attack)) is taken")
    if isinstance(attack, WorstOf):
        return tuple(core for part in attack.attacks for core in _cores(part))
    if hasattr(attack, "ball") or not hasattr(attack, "attack"):
        return (attack,)
    return _cores(attack.attack)


@pytree
class MinimalNorm(Wrapper):
    """The smallest perturbation that an attack with a budget finds, per example.

    Runs the attack ``searches`` times, with a budget for each example: twice the last one until
    it succeeds (or the budget holds the whole box), from then on halfway between the largest that
    failed and the smallest that succeeded. The attack's own eps is the first guess; its step size
    scales along.

    Attributes:
      attack: what to run; a ``Targeted`` goes outside: ``Targeted(MinimalNorm(attack))``. The
        parts of a ``WorstOf``, such as AutoAttack, share one ball.
      searches: number of runs, at least 1. Halving from an ``eps`` within 2^k of the answer leaves
        a relative gap of 2^(k - searches).
    """

    attack: Attack = dataclasses.field(kw_only=False)
    searches: int = static(default=12)

    def check(self) -> None:
        if not isinstance(self.attack, Attack):
            raise TypeError(f"MinimalNorm: given {self.attack!r}; an attack is taken")
        check_count("MinimalNorm", "searches", self.searches)
        cores = _cores(self.attack)
        balls = [getattr(core, "ball", None) for core in cores]
        if not all(isinstance(ball, Ball) for ball in balls):
            raise TypeError(f"MinimalNorm: given {self.attack!r}; an attack with a ball is taken")
        eps = concrete(self._core.ball.eps)
        others = [concrete(core.ball.eps) for core in cores]
        if len({type(ball) for ball in balls}) > 1 or not all(
            eps is None or other is None or np.array_equal(eps, other) for other in others
        ):
            raise ValueError(
                f"MinimalNorm: given parts with the balls {balls}; one ball for all is taken"
            )
        if eps is not None and not ((eps > 0) & np.isfinite(eps)).all():
            raise ValueError(
                f"MinimalNorm: given eps={eps.tolist()}; a finite first guess > 0 is taken"
            )

    @property
    def _core(self) -> Any:
        """The attack inside all wrappers; of several, the first."""
        return _cores(self.attack)[0]

    @property
    def ball(self) -> Ball:
        """The norm, the box and the mask; no limit."""
        return replace(self._core.ball, eps=np.inf)

    @property
    def targeted(self) -> bool:
        return bool(self._core.targeted)

    def solve(self, key: Key, model: Any, x: Array, y: Array, *, record: bool) -> Record:
        keys = example_keys(key, x.shape[0])
        state = _start(self, keys, model, x, y)

        def search(r: Any, state: _Search) -> _Search:
            first = self._core.ball.eps
            eps = _budget(first, state)
            attack = self.attack.scaled(eps / first)
            found = attack.solve(fold_in_each(keys, r + 1), model, x, y, record=True)
            return _narrowed(state, found, eps, r + 1)

        if is_traced(self, key, model, x, y):
            state = jax.lax.fori_loop(0, self.searches, search, state)
        else:
            for r in range(self.searches):
                state = search(r, state)
        return _end(self, state, keys, model, x, y, record)


@jax.jit
def _start(attack: MinimalNorm, keys: Key, model: Any, x: Array, y: Array) -> _Search:
    """Before the first run: an image that is adversarial as it is has distance zero."""
    drawn: Any = fold_in_each(keys, 0) if is_stochastic(model) else None
    _, judged = judge(margin, attack.targeted, model, x, y, drawn)
    closest = Closest.start(x)
    none = jnp.zeros_like(closest.first_success)
    return _Search(
        low=jnp.zeros_like(closest.distance),
        closest=closest.keep(x, judged.success, jnp.zeros_like(closest.distance), 0),
        farthest=farthest(attack.ball, x),
        forwards=none + 1,
        backwards=none,
        zero_gradient=none,
    )


@jax.jit
def _budget(first: ArrayLike, state: _Search) -> Array:
    """``[B]`` budgets of the next run."""
    low, high = state.low, state.closest.distance
    doubled = jnp.minimum(jnp.where(low > 0, 2 * low, first), state.farthest)
    # A success nearer than a failure says that the failure said nothing.
    middle = (jnp.where(low < high, low, 0) + high) / 2
    return jnp.where(state.closest.found, middle, doubled)


@jax.jit
def _narrowed(state: _Search, found: Record, eps: Array, run: Any) -> _Search:
    """The state after a run; images that were adversarial as they are cost nothing."""
    spent = (state.closest.distance > 0).astype(jnp.int32)
    return replace(
        state,
        low=jnp.where(found.success, state.low, eps),
        closest=state.closest.keep(found.x_adv, found.success, found.distance, run),
        forwards=state.forwards + spent * found.forwards,
        backwards=state.backwards + spent * found.backwards,
        zero_gradient=state.zero_gradient + spent * found.zero_gradient,
    )


@functools.partial(jax.jit, static_argnums=6)
def _end(
    attack: MinimalNorm, state: _Search, keys: Key, model: Any, x: Array, y: Array, record: bool
) -> Record:
    return outcome(
        attack,
        model,
        x,
        y,
        state.closest.image,
        fold_in_each(keys, attack.searches + 1) if is_stochastic(model) else None,
        record=record,
        loss=margin,
        forwards=state.forwards,
        backwards=state.backwards,
        first_success=state.closest.first_success,
        zero_gradient=state.zero_gradient,
    )
