"""Auto-PGD: projected gradient descent that sets its own step size."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from advjax.answers import draws_of, example_keys, fold_if_any, fold_in_each, is_stochastic
from advjax.arguments import check_ball, check_count, check_goal, check_loss, check_rank
from advjax.attacks.core.boundaries import of_rank
from advjax.attacks.core.checkpoints import Checkpoints
from advjax.attacks.core.driver import Iterative
from advjax.attacks.core.judging import Judgement, Strongest, Tally, ask, ask_with_gradient, judge
from advjax.attacks.core.minimal import at_distance
from advjax.balls import L0, L1, L2, Ball, Linf
from advjax.goals import Misclassify
from advjax.losses import cross_entropy, targeted_dlr
from advjax.pytrees import Array, ArrayLike, Key, driver_only, per_example, pytree, replace, static
from advjax.selection import signs_of_largest
from advjax.shapes import row, vanished, widen
from advjax.types import Goal, LossFn, Model

# What a key is folded with for the start and for a randomised model's answers; _STEP + i at step i.
_START, _CLEAN, _LAST, _STEP = 0, 1, 2, 4

_NEW_SHARE = 0.75  # how much of the new step goes in; the rest is momentum
_SHORTER = 1.5  # L1: divides the step size, and the best's pixels into those that a step moves
_SHORTEST = 0.1  # L1: smallest step size, in eps
_FIRST = 5.0  # L1: divides all pixels into those that the first steps move
_SPARSER = 0.95  # L1: a best with less than this share of the pixels before is progress
_changed = L0().size  # how many pixels a perturbation has


@pytree
class _State:
    """Between two steps. ``best`` is by loss, until an adversarial image ends the search."""

    schedule: Checkpoints
    keys: Any  # [B] keys for a randomised model, else None
    target: Any  # [B] classes to reach where there is a rank, else None
    live: Array
    x_adv: Array
    before: Any  # [B, ...] the iterate before, where there is momentum, else None
    best: Array
    best_grad: Array
    best_loss: Array
    found: Any  # Strongest, where the search goes on after a success, else None
    pixels: Any  # L1: how many pixels the best perturbation had at the last checkpoint
    moved: Any  # L1: how many pixels a step moves
    tally: Tally


@pytree
class APGD(Iterative):
    """Auto-PGD (Croce & Hein 2020, algorithm 1) in L-inf and L2, and its L1 form (2021).

    Steps of ``2 eps`` with momentum. At checkpoints, ever closer together, an example whose loss
    rose in too few of the window's steps, or whose best loss stood still, returns to its best
    iterate with half the step. In L1 (Croce & Hein 2021, algorithm 1) a step moves the pixels
    with the largest gradients, 2/3 as many as the best perturbation has, and a checkpoint divides
    the step by 1.5, or resets it where the best became sparser. Unlike the authors' code, the
    first rise is judged against the start (theirs: against zero, which every cross-entropy is
    above), and L2 projects on ball and box at once (theirs: in turn).

    Attributes:
      ball: the perturbations allowed, ``Linf``, ``L2`` or ``L1``.
      steps: number of steps, each one forward and one backward pass.
      loss: per-example loss ``(logits, y) -> [B]`` to raise, such as ``cross_entropy`` or ``dlr``;
        a named function, not a fresh lambda.
      rank: raise ``targeted_dlr`` instead, towards the class with the rank-th largest logit of the
        clean image, the label left out: 1 is the runner-up. Success is any class but the label.
        Where no class has that rank nothing is done. None for ``loss``.
      rho: a step is too long where the loss rose in at most this share of the window, 0 to 1.
      until_success: leave an example alone once it is adversarial, be it the clean image, and
        return that image; else go on and return the adversarial image with the largest loss.
      shrink: in L1, 30 % of the steps in a ball three times as large, 30 % in one twice as large,
        and the rest in the ball itself, where alone images count. The last step of the first two
        parts is the projection of their best on the next ball.
      goal: what is wanted, see ``Targeted``.
    """

    ball: Ball
    steps: int = driver_only(default=100)
    loss: LossFn = static(default=cross_entropy)
    rank: ArrayLike = per_example(default=None)
    rho: float = static(default=0.75)
    until_success: bool = static(default=True)
    shrink: bool = static(default=False)
    goal: Goal = Misclassify()

    def check(self) -> None:
        check_ball("APGD", self.ball, Linf, L2, L1, finite=True)
        check_count("APGD", "steps", self.steps, 0)
        if not 0 <= self.rho <= 1:
            raise ValueError(f"APGD: given rho={self.rho!r}; expected 0 to 1")
        if self.shrink and not isinstance(self.ball, L1):
            raise ValueError(f"APGD: given shrink=True with {self.ball!r}; expected an L1 ball")
        check_rank("APGD", self.rank, self.goal)
        if self.rank is not None:
            check_goal("APGD with a rank", self.goal, Misclassify)
        check_loss("APGD", self.loss, self.goal)

    def init(self, key: Key, model: Model, x: Array, y: Array, steps: Array) -> _State:
        keys = example_keys(key, x.shape[0])
        zero = jnp.zeros_like(row(x))
        live, target, tally = zero == 0, None, Tally.start(x)
        if self.until_success or self.rank is not None:
            judged, target, live = self._look(keys, model, x, y)
            fooled = judged.success & self.until_success
            live &= ~fooled
            tally = tally.spend(forwards=1).see(replace(judged, success=fooled), 0)
        sparse = isinstance(self.ball, L1)
        start = self._start(keys, x, steps)
        schedule = Checkpoints.start(x, steps)
        pixels = moved = None
        if sparse:
            schedule = Checkpoints.start(x, steps, window=self._window(steps, 0), step_size=1)
            pixels = _changed(start - x) if self.shrink else self.ball.free(x)
            moved = _fewer(pixels, _SHORTER if self.shrink else _FIRST)
        return _State(
            schedule=schedule,
            keys=keys if is_stochastic(model) else None,
            target=target,
            live=live,
            x_adv=start,
            before=None if sparse else start,
            best=x,
            best_grad=jnp.zeros_like(x),
            best_loss=zero - jnp.inf,
            found=None if self.until_success else Strongest.start(x),
            pixels=pixels,
            moved=moved,
            tally=tally,
        )

    def _look(self, keys: Key, model: Model, x: Array, y: Array) -> tuple[Judgement, Any, Array]:
        """Of the clean images: their judgement, the rank's classes, and who has such a class."""
        draws = draws_of(model, x, fold_in_each(keys, _CLEAN))
        target, able = None, y >= 0
        if self.rank is not None:
            target = of_rank(draws.mean(axis=0), y, self.rank)
            able &= jnp.asarray(self.rank) < draws.shape[-1]
        return judge(self.goal, self.loss, draws, y), target, able

    def _start(self, keys: Key, x: Array, total: Array) -> Array:
        """A random image at distance eps, cut to the box; in L1 inside the first ball."""
        keys = fold_in_each(keys, _START)
        if not isinstance(self.ball, L1):
            return at_distance(self.ball, keys, x, self.ball.eps)
        draw = lambda key: jax.random.normal(key, x.shape[1:], x.dtype)
        return self._ball(total, 0).apply(x, self.ball.masked(jax.vmap(draw)(keys)))

    def _part(self, total: Array, i: Any) -> Array:
        """Which of the three parts of a shrinking run step i belongs to; 2 without parts."""
        if not self.shrink:
            return jnp.asarray(2)
        third = total * 3 // 10
        return jnp.asarray(i >= third, jnp.int32) + jnp.asarray(i >= 2 * third, jnp.int32)

    def _ball(self, total: Array, i: Any) -> Ball:
        if not self.shrink:
            return self.ball
        return self.ball.scaled(3.0 - self._part(total, i).astype(jnp.float32))

    def _window(self, total: Array, i: Any) -> Array:
        """In L1 the length of all windows of step i's part."""
        if self.shrink:
            third = total * 3 // 10
            total = jnp.where(self._part(total, i) == 2, total - 2 * third, third)
        return jnp.maximum(total * 4 // 100, 1)

    def record_loss(self, state: _State) -> LossFn:
        towards = lambda logits, y: targeted_dlr(logits, y, state.target)
        return self.loss if self.rank is None else towards

    def step(self, i: Array, state: _State, model: Model, x: Array, y: Array) -> _State:
        live, loss = state.live, self.record_loss(state)
        keys = fold_if_any(state.keys, _STEP + i)
        judged, grad = ask_with_gradient(self.goal, loss, model, state.x_adv, y, keys)
        state = self._keep(state, judged, grad, i)
        tally = state.tally.spend(backwards=live).lose(live & vanished(grad))
        state = replace(state, tally=tally)
        if isinstance(self.ball, L1):
            state, back = self._check_sparsity(state, i, x)
        else:
            schedule, back = state.schedule.update(i, state.best_loss, self.rho)
            state = replace(state, schedule=schedule)
        grad = jnp.where(widen(back, x), state.best_grad, grad)
        x_adv = jnp.where(widen(back, x), state.best, state.x_adv)
        move = self._move_few if isinstance(self.ball, L1) else self._move_all
        return move(i, replace(state, x_adv=x_adv), grad, x)

    def _keep(self, state: _State, judged: Judgement, grad: Any, i: Any) -> _State:
        """The state after iterate i has been judged.

        Nothing that is returned of an example changes once it is not live; its iterates go on.
        """
        loss, live, tally = judged.loss, state.live, state.tally
        counts = live & (self._part(state.schedule.total, i) == 2)
        hit = judged.success & counts
        take = live & (loss > state.best_loss)
        found = state.found
        if self.until_success:
            take |= hit
        else:
            found = found.keep(state.x_adv, judged, counts)
        wide = widen(take, state.best)
        return replace(
            state,
            live=live & ~hit if self.until_success else live,
            best=jnp.where(wide, state.x_adv, state.best),
            best_grad=state.best_grad if grad is None else jnp.where(wide, grad, state.best_grad),
            best_loss=jnp.where(take, loss, state.best_loss),
            found=found,
            schedule=state.schedule.see(loss),
            tally=tally.spend(forwards=live).see(judged, tally.backwards, counts),
        )

    def _move_all(self, i: Array, state: _State, grad: Array, x: Array) -> _State:
        x_adv = state.x_adv
        step_size = widen(jnp.asarray(self.ball.eps, x.dtype) * state.schedule.step_size, x)
        end = self.ball.apply(x, x_adv + step_size * self.ball.steepest(grad, x_adv) - x)
        share = jnp.where(i > 0, _NEW_SHARE, 1.0).astype(x.dtype)
        moved = x_adv + share * (end - x_adv) + (1 - share) * (x_adv - state.before)
        return replace(state, x_adv=self.ball.apply(x, moved - x), before=x_adv)

    def _check_sparsity(self, state: _State, i: Array, x: Array) -> tuple[_State, Array]:
        """At a checkpoint of L1 sets the step; returns who goes back to the best."""
        schedule = state.schedule
        due = i == schedule.checkpoint
        pixels = _changed(state.best - x)
        sparser = pixels < _SPARSER * state.pixels
        shorter = jnp.maximum(schedule.step_size / _SHORTER, _SHORTEST)
        size = jnp.where(due, jnp.where(sparser, 1, shorter), schedule.step_size)
        checkpoint = jnp.where(due, i + schedule.window, schedule.checkpoint)
        state = replace(
            state,
            schedule=replace(schedule, checkpoint=checkpoint, step_size=size),
            pixels=jnp.where(due, pixels, state.pixels),
            moved=jnp.where(due, _fewer(pixels, _SHORTER), state.moved),
        )
        return state, due & sparser

    def _move_few(self, i: Array, state: _State, grad: Array, x: Array) -> _State:
        schedule = state.schedule
        total = schedule.total
        ball = self._ball(total, i + 1)
        step_size = widen(jnp.asarray(ball.eps, x.dtype) * schedule.step_size, x)
        aim = state.x_adv + step_size * signs_of_largest(self.ball.masked(grad), state.moved)
        if not self.shrink:
            return replace(state, x_adv=ball.apply(x, aim - x))
        turn = self._part(total, i) != self._part(total, i + 1)
        state = replace(state, x_adv=ball.apply(x, jnp.where(turn, state.best, aim) - x))
        window = self._window(total, i + 1)
        fresh = turn & state.live
        pixels = _changed(state.x_adv - x)
        schedule = replace(
            schedule,
            window=window,
            checkpoint=jnp.where(turn, i + 1 + window, schedule.checkpoint),
            step_size=jnp.where(turn, 1, schedule.step_size),
        )
        return replace(
            state,
            schedule=schedule,
            best=jnp.where(widen(fresh, x), state.x_adv, state.best),
            best_loss=jnp.where(fresh, -jnp.inf, state.best_loss),
            pixels=jnp.where(turn, pixels, state.pixels),
            moved=jnp.where(turn, _fewer(pixels, _SHORTER), state.moved),
        )

    def last(self, state: _State, model: Model, x: Array, y: Array) -> _State:
        keys = fold_if_any(state.keys, _LAST)
        _, judged = ask(self.goal, self.record_loss(state), model, state.x_adv, y, keys)
        return self._keep(state, judged, None, state.schedule.total)

    def result(self, state: _State, x: Array) -> Array:
        del x
        return state.best if self.until_success else state.found.image

    def live(self, state: _State) -> Array:
        return state.live


def _fewer(pixels: Array, divisor: float) -> Array:
    return jnp.maximum(jnp.ceil(pixels / divisor), 1)
