"""Any attack with a budget, as a search for the smallest budget at which it succeeds."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advjax.answers import example_keys, fold_in_each
from advjax.arguments import check_count
from advjax.attacks.compose import Targeted, Wrapper
from advjax.attacks.core.judging import Tally, ask, outcome
from advjax.attacks.core.minimal import Closest, farthest
from advjax.balls import Ball, concrete
from advjax.checks import is_traced
from advjax.losses import margin
from advjax.pytrees import Array, ArrayLike, Key, pytree, replace, static
from advjax.types import Attack, Loop, LossFn, Model, Record, auto_loop


@pytree
class _Search:
    """Between two runs, per example: where the smallest budget lies, and the nearest success."""

    low: Array  # the largest budget that failed
    closest: Closest  # its distance is the smallest budget known to suffice
    farthest: Array  # distance of the farthest corner of the box
    tally: Tally


def _innermost(attack: Attack) -> tuple[Attack, ...]:
    """The attacks inside all wrappers."""
    if isinstance(attack, Targeted):
        raise TypeError(f"MinimalNorm: given {attack!r}; expected Targeted(MinimalNorm(attack))")
    found = tuple(inner for part in attack.parts() for inner in _innermost(part))
    return found or (attack,)


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
        super().check()
        check_count("MinimalNorm", "searches", self.searches)
        balls = [attack.ball for attack in _innermost(self.attack)]
        if not all(isinstance(ball, Ball) for ball in balls):
            raise TypeError(f"MinimalNorm: given {self.attack!r}; expected an attack with a ball")
        eps = concrete(self._first_ball.eps)
        others = [concrete(ball.eps) for ball in balls if ball is not None]
        if len({type(ball) for ball in balls}) > 1 or not all(
            eps is None or other is None or np.array_equal(eps, other) for other in others
        ):
            raise ValueError(
                f"MinimalNorm: given parts with the balls {balls}; expected one ball for all"
            )
        if eps is not None and not ((eps > 0) & np.isfinite(eps)).all():
            raise ValueError(
                f"MinimalNorm: given eps={eps.tolist()}; expected a finite first guess > 0"
            )

    @property
    def _first_ball(self) -> Ball:
        """The ball of the attack inside all wrappers; of several, of the first."""
        ball = _innermost(self.attack)[0].ball
        assert ball is not None  # check() made sure
        return ball

    @property
    def ball(self) -> Ball:
        """The norm, the box and the mask; no limit."""
        return replace(self._first_ball, eps=np.inf)

    @property
    def loss(self) -> LossFn:
        return margin

    def solve(
        self, key: Key, model: Model, x: Array, y: Array, *, record: bool, loop: Loop = auto_loop
    ) -> Record:
        keys = example_keys(key, x.shape[0])
        state = _start(self, keys, model, x, y)

        def search(r: Any, state: _Search) -> _Search:
            first = self._first_ball.eps
            eps = _budget(first, state)
            attack = self.attack.scaled(eps / first)
            found = attack.solve(fold_in_each(keys, r + 1), model, x, y, record=True, loop=loop)
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
    _, judged = ask(attack.goal, margin, model, x, y, fold_in_each(keys, 0))
    closest = Closest.start(x)
    zero = jnp.zeros_like(closest.distance)
    return _Search(
        low=zero,
        closest=closest.keep(x, judged.success, zero),
        farthest=farthest(attack.ball, x),
        tally=Tally.start(x, doubts=False).spend(forwards=1).see(judged, 0),
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
    tally = state.tally.spend(spent * found.forwards, spent * found.backwards)
    return replace(
        state,
        low=jnp.where(found.success, state.low, eps),
        closest=state.closest.keep(found.x_adv, found.success, found.distance),
        tally=tally.lose(spent * found.zero_gradient).hit(found.success, run),
    )


@functools.partial(jax.jit, static_argnums=6)
def _end(
    attack: MinimalNorm, state: _Search, keys: Key, model: Any, x: Array, y: Array, record: bool
) -> Record:
    drawn = fold_in_each(keys, attack.searches + 1)
    return outcome(
        attack,
        model,
        x,
        y,
        state.closest.image,
        drawn,
        record=record,
        loss=margin,
        tally=state.tally,
    )
