"""Projected gradient descent and the attacks that are configurations of it."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from advjax.answers import example_keys, fold_if_any, fold_in_each, is_stochastic
from advjax.arguments import check_ball, check_count, check_loss, check_number
from advjax.attacks.core.driver import Iterative
from advjax.attacks.core.judging import Judgement, Strongest, Tally, ask, ask_with_gradient
from advjax.balls import L0, Ball
from advjax.goals import Misclassify
from advjax.losses import cross_entropy
from advjax.pytrees import Array, ArrayLike, Key, driver_only, per_example, pytree, replace, static
from advjax.shapes import over_features, spread, vanished
from advjax.types import Goal, LossFn, Model

_START = 0  # what a key is folded with to draw the start; a draw of the model at step i uses i + 1


@pytree
class _State:
    """Between two steps: the iterate, the momentum, the best image so far and the tally."""

    taken: Array  # steps so far
    keys: Any  # [B] keys for a randomised model, else None
    x_adv: Array
    velocity: Any  # [B, ...] where there is momentum, else None
    best: Any  # Strongest where the best iterate is kept, else None
    tally: Tally


@pytree
class PGD(Iterative):
    """Projected gradient descent (Madry et al. 2018, section 2.1), in any ball.

    ``x <- box(x0 + project(x + step_size * steepest(gradient) - x0))``. A step follows the norm's
    own steepest direction: the sign in L-inf, the normalised gradient in L2, the largest
    coordinates in L1.

    Attributes:
      ball: the perturbations allowed.
      step_size: length of a step in the ball's norm, pixel units, scalar or ``[B]``; by default
        ``2.5 * eps / steps``, which can cross the ball from anywhere (Madry et al., section 5). In
        L0 it is how far one feature goes, by default ``2.5 / steps`` of the box.
      steps: number of steps, at least 0.
      random_start: start from a uniform draw of the ball instead of the image.
      start_in_box: cut that start to the image box. Fast adversarial training does not, it clips
        the result alone: where most pixels lie on a bound, as in MNIST, half of a cut start is
        the image itself, and training on one step learns to leak the label.
      momentum: decay of the accumulated gradient, each divided by its mean absolute value (Dong
        et al. 2018, algorithm 1); None for no momentum.
      best: return the best iterate seen (adversarial before not, then by loss) instead of the
        last one; costs one forward pass. The published figures are of the last one.
      loss: per-example loss ``(logits, y) -> [B]``; a named function, not a fresh lambda.
      goal: what is wanted, see ``Targeted``.
    """

    ball: Ball
    step_size: ArrayLike = per_example(default=None)
    steps: int = driver_only(default=40)
    random_start: bool = static(default=True)
    start_in_box: bool = static(default=True)
    momentum: ArrayLike = None
    best: bool = static(default=True)
    loss: LossFn = static(default=cross_entropy)
    goal: Goal = Misclassify()

    def check(self) -> None:
        check_ball("PGD", self.ball, finite=True)
        check_count("PGD", "steps", self.steps, 0)
        if self.step_size is None:
            lower, upper = self.ball.bounds
            across = np.max(upper - lower) if isinstance(self.ball, L0) else self.ball.eps
            object.__setattr__(self, "step_size", 2.5 * across / max(self.steps, 1))
        check_number("PGD", "step_size", self.step_size, zero=True)
        check_loss("PGD", self.loss, self.goal)

    def init(self, key: Key, model: Model, x: Array, y: Array, steps: Array) -> _State:
        del y, steps
        keys = example_keys(key, x.shape[0])
        x_adv = x
        if self.random_start:
            start = self.ball.sample(fold_in_each(keys, _START), x)
            x_adv = self.ball.apply(x, start) if self.start_in_box else x + start
        return _State(
            taken=jnp.zeros((), jnp.int32),
            keys=keys if is_stochastic(model) else None,
            x_adv=x_adv,
            velocity=None if self.momentum is None else jnp.zeros_like(x),
            best=Strongest.start(x_adv) if self.best else None,
            tally=Tally.start(x_adv),
        )

    def step(self, i: Array, state: _State, model: Model, x: Array, y: Array) -> _State:
        keys = fold_if_any(state.keys, i + 1)
        judged, grad = ask_with_gradient(self.goal, self.loss, model, state.x_adv, y, keys)
        state = self._keep_best(state, judged, i)
        lost, velocity = vanished(grad), state.velocity
        if velocity is not None:
            features = over_features(x)
            mean = jnp.mean(jnp.abs(grad), axis=features, keepdims=True)
            velocity = jnp.asarray(self.momentum) * velocity + grad / jnp.where(mean > 0, mean, 1)
            grad = velocity
        moved = state.x_adv + spread(self.step_size, x) * self.ball.steepest(grad, state.x_adv)
        return replace(
            state,
            taken=i + 1,
            x_adv=self.ball.apply(x, moved - x),
            velocity=velocity,
            tally=state.tally.spend(backwards=1).lose(lost),
        )

    def _keep_best(self, state: _State, judged: Judgement, i: Any) -> _State:
        """The state after its iterate has been judged, as iterate number i."""
        state = replace(state, tally=state.tally.spend(forwards=1).see(judged, i))
        if not self.best:
            return state
        return replace(state, best=state.best.keep(state.x_adv, judged))

    def last(self, state: _State, model: Model, x: Array, y: Array) -> _State:
        if not self.best:
            return state
        keys = fold_if_any(state.keys, state.taken + 1)
        _, judged = ask(self.goal, self.loss, model, state.x_adv, y, keys)
        return self._keep_best(state, judged, state.taken)

    def result(self, state: _State, x: Array) -> Array:
        del x
        return state.best.image if self.best else state.x_adv

    def scaled(self, factor: ArrayLike) -> PGD:
        return replace(
            self, ball=self.ball.scaled(factor), step_size=jnp.multiply(self.step_size, factor)
        )


def FGSM(
    *, ball: Ball, step_size: ArrayLike = None, random_start: bool = False, **fields: Any
) -> PGD:
    """The fast gradient sign method: one step (Goodfellow et al. 2015, section 4), in any ball.

    With ``random_start``, a larger ``step_size`` and ``start_in_box=False`` it is the FGSM of fast
    adversarial training (Wong et al. 2020, algorithm 3). Returns the step's end, whatever its loss.

    Args:
      ball: the perturbations allowed.
      step_size: length of the step; ``eps`` by default.
      random_start: start from a uniform draw of the ball.
      **fields: further fields of ``PGD``.
    """
    step_size = ball.eps if step_size is None else step_size
    fields = {"steps": 1, "best": False} | fields
    return PGD(ball=ball, step_size=step_size, random_start=random_start, **fields)


def BIM(*, ball: Ball, step_size: ArrayLike = None, steps: int = 10, **fields: Any) -> PGD:
    """The basic iterative method (Kurakin et al. 2017): PGD from the image itself.

    Args:
      ball: the perturbations allowed.
      step_size: length of a step; ``eps / steps`` by default.
      steps: number of steps.
      **fields: further fields of ``PGD``.
    """
    step_size = ball.eps / max(steps, 1) if step_size is None else step_size
    fields = {"random_start": False} | fields
    return PGD(ball=ball, step_size=step_size, steps=steps, **fields)


def MIM(*, ball: Ball, momentum: ArrayLike = 1.0, **fields: Any) -> PGD:
    """The momentum iterative method (Dong et al. 2018, algorithm 1): BIM with momentum.

    Args:
      ball: the perturbations allowed.
      momentum: decay of the accumulated gradient.
      **fields: further fields of ``BIM``.
    """
    return BIM(ball=ball, momentum=momentum, **fields)
