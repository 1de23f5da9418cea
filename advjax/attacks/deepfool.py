"""DeepFool: step by step to the nearest of the linearised decision boundaries."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from advjax.answers import example_keys, fold_if_any, is_stochastic
from advjax.arguments import check_ball, check_count, check_goal
from advjax.attacks.core.boundaries import answer, by_logit, differentiated, nearest_plane, sides
from advjax.attacks.core.driver import Iterative
from advjax.attacks.core.judging import Tally
from advjax.attacks.core.rows import close_size
from advjax.balls import L2, Ball, Linf
from advjax.goals import Misclassify, Target
from advjax.losses import margin
from advjax.pytrees import Array, ArrayLike, Key, driver_only, pytree, replace, static
from advjax.shapes import widen
from advjax.types import Goal, Model

_ROUNDING = 1e-6  # of the largest logit
_SHORTEST = 1e-5  # of a step: on the boundary itself the exact step is zero and goes nowhere
_LONGEST = 1e6  # of a step, far out of any box: a vanishing gradient asks for infinity


@pytree
class _State:
    """Between two steps."""

    keys: Any  # [B] keys for a randomised model, else None
    x_adv: Array  # the point tested last; at the end the first adversarial one, as in the paper
    raised: Any  # [B, n] classes looked at where they are chosen, else None
    tally: Tally


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
      goal: what is wanted, see ``Targeted``. Towards a target every step goes to its boundary with
        the strongest other class, an extension.
    """

    ball: Ball
    steps: int = driver_only(default=50)
    overshoot: ArrayLike = 0.02
    classes: int | None = static(default=None)
    chunk: int | None = static(default=None)
    goal: Goal = Misclassify()

    def check(self) -> None:
        check_ball("DeepFool", self.ball, L2, Linf)
        check_count("DeepFool", "steps", self.steps, 0)
        check_count("DeepFool", "chunk", self.chunk, none=True)
        check_count("DeepFool", "classes", self.classes, 2, none=True)
        check_goal("DeepFool", self.goal, Misclassify, Target)

    def init(self, key: Key, model: Model, x: Array, y: Array, steps: Array) -> _State:
        del steps
        keys = example_keys(key, x.shape[0]) if is_stochastic(model) else None
        logits, judged = answer(self.goal, model, x, y, fold_if_any(keys, 0))
        raised = None
        if self.classes is not None and not self.goal.targeted:
            raised = by_logit(logits, y)[:, : min(self.classes, logits.shape[-1]) - 1]
        tally = Tally.start(x).spend(forwards=1).see(judged, 0)
        return _State(keys=keys, x_adv=x, raised=raised, tally=tally)

    def live(self, state: _State) -> Array:
        return state.tally.first_success < 0

    def fitting_size(self, rows: int, batch: int) -> int:
        # A step is K + 1 passes: carrying examples along costs more than a few compilations.
        return close_size(rows, batch, parts=8, smallest=2)

    def step(self, i: Array, state: _State, model: Model, x: Array, y: Array) -> _State:
        live, goal = self.live(state), self.goal
        drawn = fold_if_any(state.keys, 2 * i + 1)
        logits, _, pullback = differentiated(goal, model, state.x_adv, y, drawn)
        among = None if state.raised is None else state.raised.T
        raised, lowered = sides(goal, logits, y, among)
        plane = nearest_plane(self.ball, logits, pullback, raised, lowered, chunk=self.chunk)
        # A targeted example may be past this boundary and not yet there because of another one.
        length = jnp.clip(plane.distance, _SHORTEST, _LONGEST)
        if isinstance(self.ball, Linf):
            direction = jnp.sign(plane.slope)
        else:
            direction = self.ball.steepest(plane.slope)
        step = (1 + jnp.asarray(self.overshoot)) * widen(length, x) * direction
        x_adv = self.ball.apply(x, state.x_adv + step - x)
        # One forward pass more tells now who is done: the next step would, but differentiating.
        logits, judged = answer(goal, model, x_adv, y, fold_if_any(state.keys, 2 * i + 2))
        # Past the boundary by no more than rounding, another batch size would call it back.
        clear = goal.loss(margin, logits, y) > _ROUNDING * jnp.max(jnp.abs(logits), axis=-1)
        forwards, backwards = jnp.where(live, 2, 0), jnp.where(live, raised.shape[0], 0)
        tally = state.tally.spend(forwards, backwards).lose(live & (plane.size == 0))
        return replace(
            state,
            x_adv=jnp.where(widen(live, x), x_adv, state.x_adv),
            tally=tally.see(replace(judged, success=judged.success & clear), i + 1, live),
        )
