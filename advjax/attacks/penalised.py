"""The penalised attack: an additive change, trained like a weight."""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp

from advjax.answers import draws_of, fold_if_any
from advjax.arguments import check_ball, check_count, check_goal
from advjax.attacks.core.judging import Judgement, judge
from advjax.attacks.core.penalty import Adam, Penalty, PenaltyState, Seen
from advjax.balls import L1, L2, Ball, Linf
from advjax.goals import Misclassify, Target
from advjax.losses import cross_entropy, margin
from advjax.pytrees import Array, ArrayLike, Key, driver_only, per_example, pytree, replace, static
from advjax.shapes import over_features, row, widen
from advjax.types import Goal, Model

# Two means and a maximum differ much in strength. These shape the change of 8x8 and 28x28 digits; a
# network with a small gradient needs less, which the falling weight finds.
_WEIGHTS = {
    "l1": lambda features: 3.5 * math.sqrt(features),
    "l2": lambda features: 100.0,
    "linf": lambda features: 5.0,
}


@pytree
class _Search:
    aim: Array  # [B] the class whose cross-entropy is lowered
    change: Array
    weight: Array  # [B]
    adam: Adam


@pytree
class Penalised(Penalty):
    """A change trained by Adam against the cross-entropy of a wrong class and its own size.

    Minimises ``cross_entropy(model(x + d), wrong class) + weight * penalty(d)`` over the change d
    alone, from no change at all, cut to the box after every step (Szegedy et al. 2014, section 4.1,
    in the penalised form; with Adam and these penalties as in Gentric's course). The wrong class is
    the target where the attack is targeted, else the clean image's most likely class but its label.
    Once the image is adversarial by ``confidence`` the penalty alone is lowered, which goes on to
    shape the change, until the class is back. The image with the smallest penalty of all
    convincing ones is returned; the clean image where there is none.

    Attributes:
      ball: what the record's distance is measured in, its box, and the ``mask`` of a local change;
        with a finite ``eps`` an image farther away is pulled back to it.
      penalty: ``"l1"``, the mean of ``|d|``: few pixels change; ``"l2"``, the mean of ``d^2``: all
        of them a little; ``"linf"``, the maximum of ``|d|``: all of them alike. By default the
        ball's norm.
      weight: of the penalty, positive, scalar or ``[B]``. By default 3.5 times the root of the
        number of features for L1, 100 for L2, 5 for L-inf, and half as much for every 0.1 that a
        pixel could have gone in vain, until the image is adversarial for the first time.
      step_size: Adam's step in pixel units, positive.
      steps: number of steps, at least 0.
      confidence: the margin in logits by which the image must be adversarial, at least 0.
      goal: what is wanted, see ``Targeted``.
    """

    ball: Ball = L2()
    penalty: Literal["l1", "l2", "linf"] | None = static(default=None)
    weight: ArrayLike = per_example(default=None)
    step_size: ArrayLike = 1e-3
    steps: int = driver_only(default=1000)
    confidence: ArrayLike = per_example(default=0.0)
    goal: Goal = Misclassify()

    def check(self) -> None:
        check_ball("Penalised", self.ball, expected="a ball such as L2()")
        if self.penalty is None:
            own = {Linf: "linf", L2: "l2", L1: "l1"}.get(type(self.ball))
            object.__setattr__(self, "penalty", own)
        if self.penalty not in _WEIGHTS:
            raise ValueError(
                f"Penalised: given penalty={self.penalty!r} and {type(self.ball).__name__}; "
                "expected a penalty 'l1', 'l2' or 'linf'"
            )
        check_count("Penalised", "steps", self.steps, 0)
        self.check_numbers("step_size", *(() if self.weight is None else ("weight",)))
        check_goal("Penalised", self.goal, Misclassify, Target)

    def begin(self, x: Array, y: Array) -> _Search:
        weight = self.weight
        if weight is None:
            weight = _WEIGHTS[str(self.penalty)](math.prod(x.shape[1:]))
        return _Search(
            aim=y,
            change=jnp.zeros_like(x),
            weight=jnp.zeros_like(row(x)) + jnp.asarray(weight),
            adam=Adam.start(x),
        )

    def init(self, key: Key, model: Model, x: Array, y: Array, steps: Array) -> PenaltyState:
        state = super().init(key, model, x, y, steps)
        if self.goal.targeted:
            return state
        logits = jnp.mean(draws_of(model, x, fold_if_any(state.keys, 1)), axis=0)
        is_label = jax.nn.one_hot(y, logits.shape[-1], dtype=bool)
        aim = jnp.argmax(jnp.where(is_label, -jnp.inf, logits), axis=-1).astype(y.dtype)
        return replace(
            state, search=replace(state.search, aim=aim), tally=state.tally.spend(forwards=1)
        )

    def look(self, i: Array, state: PenaltyState, model: Model, x: Array, y: Array) -> Seen:
        search: _Search = state.search

        def towards_aim(image: Array) -> tuple[Array, Judgement]:
            draws = draws_of(model, image, fold_if_any(state.keys, i + 2))
            aimed = judge(Target(), cross_entropy, draws, search.aim)
            return jnp.sum(aimed.loss), judge(self.goal, margin, draws, y)

        image = x + search.change
        (_, judged), rise = jax.value_and_grad(towards_aim, has_aux=True)(image)
        return self.seen(judged, jnp.where(jnp.isfinite(rise), rise, 0), image, search.change)

    def move(self, seen: Seen, state: PenaltyState, x: Array) -> tuple[_Search, Array]:
        search: _Search = state.search
        weighted = lambda change: jnp.sum(search.weight * self.size(change))
        grad = jax.grad(weighted)(search.change)
        grad -= jnp.where(widen(seen.judged.success, x), 0, seen.rise)
        direction, adam = search.adam.step(grad)
        moved = x + self.ball.on_mask(search.change)
        moved = self.ball.clip(moved - jnp.asarray(self.step_size) * direction)
        weight = search.weight
        if self.weight is None:
            less = weight * 0.5 ** (10 * jnp.asarray(self.step_size))
            weight = jnp.where(state.closest.found, weight, less)
        change = self.ball.on_mask(moved - x)
        return replace(search, change=change, weight=weight, adam=adam), state.over

    def size(self, change: Array) -> Array:
        """The penalty, ``[B]``."""
        axes = over_features(change)
        if self.penalty == "l2":
            return jnp.mean(change**2, axis=axes)
        if self.penalty == "l1":
            return jnp.mean(jnp.abs(change), axis=axes)
        return jnp.max(jnp.abs(change), axis=axes)

    def live(self, state: PenaltyState) -> None:
        """All of them: a change is shaped until the last step."""
        del state
