"""ACG: Auto-PGD's step sizes along conjugate directions."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from advjax.answers import example_keys, fold_if_any, fold_in_each, is_stochastic
from advjax.arguments import check_ball, check_count, check_loss
from advjax.attacks.core.checkpoints import Checkpoints
from advjax.attacks.core.driver import Iterative
from advjax.attacks.core.judging import Judgement, Strongest, Tally, ask, ask_with_gradient
from advjax.balls import L2, Ball, Linf
from advjax.goals import Misclassify
from advjax.losses import margin
from advjax.pytrees import Array, Key, driver_only, pytree, replace, static
from advjax.shapes import only, over_features, row, spread, vanished, widen
from advjax.types import Goal, LossFn, Model

_START = 0  # what a key is folded with to draw the start; a draw of the model at step i uses i + 1
_ROUNDING = 1e-5  # of a product of two vectors, relative to their lengths


@pytree
class _Point:
    """An iterate and what the next direction from it follows."""

    x_adv: Array
    loss: Array
    grad: Array
    grad_before: Array  # of the iterate before; zero at the start
    direction: Array  # that led here; zero at the start


@pytree
class _State:
    """Between two steps."""

    keys: Any  # [B] keys for a randomised model, else None
    live: Array
    x_adv: Array
    grad_before: Array
    direction: Array
    best: _Point  # by loss
    found: Strongest
    schedule: Checkpoints
    tally: Tally


@pytree
class ACG(Iterative):
    """Auto conjugate gradient (Yamamura et al. 2022, algorithm 1), in L-inf and L2.

    APGD with a conjugate direction in the place of the gradient, and without momentum: a step
    follows ``s = gradient + beta * s_before``, with ``beta`` of Hestenes and Stiefel. An example
    whose step is halved goes back to its best iterate, and to the direction that led there. In L2,
    and with masks, the projection on ball and box at once is advjax's.

    The published attack starts once in the centre and then at random:
    ``WorstOf((ACG(ball=ball), Restarts(ACG(ball=ball, random_start=True), n=4)))``.

    Attributes:
      ball: the perturbations allowed, ``Linf`` or ``L2``.
      steps: number of steps, each one forward and one backward pass.
      loss: per-example loss ``(logits, y) -> [B]`` to raise; a named function, not a fresh lambda.
      rho: a step is too long where the loss rose in at most this share of the window, 0 to 1.
      random_start: start from a uniform draw of the ball, cut to the box; else from the middle of
        ball and box in L-inf, from the image in L2.
      until_success: leave an example alone once it is adversarial, and return that image; else go
        on and return the adversarial image with the largest loss.
      goal: what is wanted, see ``Targeted``.
    """

    ball: Ball
    steps: int = driver_only(default=100)
    loss: LossFn = static(default=margin)
    rho: float = static(default=0.75)
    random_start: bool = static(default=False)
    until_success: bool = static(default=True)
    goal: Goal = Misclassify()

    def check(self) -> None:
        check_ball("ACG", self.ball, Linf, L2, finite=True)
        check_count("ACG", "steps", self.steps, 0)
        if not 0 <= self.rho <= 1:
            raise ValueError(f"ACG: given rho={self.rho!r}; expected 0 to 1")
        check_loss("ACG", self.loss, self.goal)

    def init(self, key: Key, model: Model, x: Array, y: Array, steps: Array) -> _State:
        del y
        keys, none = example_keys(key, x.shape[0]), jnp.zeros_like(x)
        start, loss = self._start(keys, x), jnp.full_like(row(x), -jnp.inf)
        best = _Point(x_adv=start, loss=loss, grad=none, grad_before=none, direction=none)
        return _State(
            keys=keys if is_stochastic(model) else None,
            live=row(none) == 0,
            x_adv=start,
            grad_before=none,
            direction=none,
            best=best,
            found=Strongest.start(start),
            schedule=Checkpoints.start(x, steps),
            tally=Tally.start(x),
        )

    def _start(self, keys: Key, x: Array) -> Array:
        if self.random_start:
            return self.ball.apply(x, self.ball.sample(fold_in_each(keys, _START), x))
        if isinstance(self.ball, L2):
            return x
        (lower, upper), eps = self.ball.bounds, spread(self.ball.eps, x)
        middle = (jnp.maximum(x - eps, lower) + jnp.minimum(x + eps, upper)) / 2
        return self.ball.apply(x, middle - x)

    def step(self, i: Array, state: _State, model: Model, x: Array, y: Array) -> _State:
        keys = fold_if_any(state.keys, i + 1)
        judged, grad = ask_with_gradient(self.goal, self.loss, model, state.x_adv, y, keys)
        tally = state.tally.spend(backwards=state.live).lose(state.live & vanished(grad))
        state = self._keep(replace(state, tally=tally), judged, i)
        here = _Point(
            x_adv=state.x_adv,
            loss=judged.loss,
            grad=self.ball.masked(grad),
            grad_before=state.grad_before,
            direction=state.direction,
        )
        best = only(here.loss > state.best.loss, here, state.best)
        schedule, back = state.schedule.update(i, best.loss, self.rho)
        here = only(back, best, here)
        direction = conjugate(here.grad, here.grad_before, here.direction)
        length = spread(self.ball.eps, x) * widen(schedule.step_size, x)
        moved = here.x_adv + length * self.ball.steepest(direction, here.x_adv)
        return replace(
            state,
            x_adv=self.ball.apply(x, moved - x),
            grad_before=here.grad,
            direction=direction,
            best=best,
            schedule=schedule,
        )

    def _keep(self, state: _State, judged: Judgement, i: Any) -> _State:
        """The state after iterate i has been judged; who is not live keeps what was found."""
        live = state.live
        return replace(
            state,
            live=live & ~judged.success if self.until_success else live,
            found=state.found.keep(state.x_adv, judged, live),
            schedule=state.schedule.see(judged.loss),
            tally=state.tally.spend(forwards=live).see(judged, i, live),
        )

    def last(self, state: _State, model: Model, x: Array, y: Array) -> _State:
        steps = state.schedule.total
        keys = fold_if_any(state.keys, steps + 1)
        _, judged = ask(self.goal, self.loss, model, state.x_adv, y, keys)
        return self._keep(state, judged, steps)

    def result(self, state: _State, x: Array) -> Array:
        del x
        return state.found.image

    def live(self, state: _State) -> Array | None:
        return state.live if self.until_success else None


def conjugate(grad: Array, before: Array, direction: Array) -> Array:
    """The next search direction ``[B, ...]``, its largest entry one: only where it points counts.

    Args:
      grad: ``[B, ...]``, here.
      before: ``[B, ...]``, of the iterate before.
      direction: ``[B, ...]``, that led from there to here; at its zeros there is none yet.
    """
    # Both gradients in one unit, so that their products neither vanish nor overflow.
    _, unit = _scaled(jnp.maximum(jnp.abs(grad), jnp.abs(before)))
    grad, before = grad / unit, before / unit
    # The scale of ``direction`` cancels out of ``beta * direction``.
    scaled, _ = _scaled(grad + widen(hestenes_stiefel(grad, before, direction), grad) * direction)
    return scaled


def hestenes_stiefel(grad: Array, before: Array, direction: Array) -> Array:
    """``[B]`` beta, at least 0: how much of the direction before goes into the next.

    It makes the next direction orthogonal to the change of the gradient, as on a quadratic loss
    conjugate directions are. 0, which starts anew from the gradient, where that would take a
    negative beta (as in the authors' settings), and where the gradient's change along the
    direction is lost in rounding: after a step back to the iterate before, it is zero by
    construction. Arguments as for ``conjugate``.
    """
    axes, change = over_features(grad), before - grad
    dot = lambda a, b: jnp.sum(a * b, axis=axes)
    size = lambda v: jnp.sqrt(dot(v, v))
    along = dot(direction, change)
    clear = jnp.abs(along) > _ROUNDING * size(direction) * (size(grad) + size(before))
    beta = -dot(grad, change) / jnp.where(clear, along, 1)
    return jnp.where(clear, jnp.maximum(beta, 0), 0)


def _scaled(v: Array) -> tuple[Array, Array]:
    """``v [B, ...]`` with its largest entry one, and what it was divided by, ``[B, 1, ...]``."""
    largest = jnp.max(jnp.abs(v), axis=over_features(v), keepdims=True)
    unit = jnp.where(largest > 0, largest, 1)
    return v / unit, unit
