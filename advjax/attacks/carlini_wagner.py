"""The L2 attack of Carlini & Wagner."""

from __future__ import annotations

import jax.numpy as jnp

from advjax.answers import fold_if_any
from advjax.arguments import check_ball, check_count
from advjax.attacks.core.penalty import ConstantSearch, Descent, Penalty, PenaltyState, Seen
from advjax.balls import L2, Ball
from advjax.goals import Misclassify
from advjax.pytrees import Array, ArrayLike, driver_only, per_example, pytree, static
from advjax.shapes import over_features, row
from advjax.types import Goal, Model


@pytree
class _Search:
    descent: Descent
    constant: ConstantSearch


@pytree
class CarliniWagner(Penalty):
    """The smallest L2 perturbation by penalties (Carlini & Wagner 2017, section V-A and VI-A).

    Adam minimises ``|image - x|^2 + c * max(confidence - margin, 0)`` over w, with the image
    ``(tanh(w) + 1) / 2`` inside the box; c is searched per example. The nearest convincing image of
    all searches and iterations is returned, the clean image where there is none. An example whose
    search gets nowhere any more begins its next one at once, whatever its neighbours do.

    Attributes:
      ball: an ``L2`` ball, by default without a limit; with a finite ``eps`` an image farther away
        is pulled back to it.
      steps: most iterations of one search, at least 1 (the paper: 10,000). A pixel on a bound of
        the box takes about 300 to come away from it at the default step.
      searches: number of searches, at least 1; that many times ``steps`` iterations at most.
      step_size: Adam's step, in tanh space; positive.
      c: the first search's constant, positive, scalar or ``[B]``.
      confidence: the margin in logits by which the image must be adversarial (kappa), at least 0.
      abort_early: end a search that gets nowhere: every tenth of ``steps`` its lowest objective
        must have fallen by 0.01 %.
      goal: what is wanted, see ``Targeted``.
    """

    ball: Ball = L2()
    steps: int = driver_only(default=1000)
    searches: int = static(default=9)
    step_size: ArrayLike = 0.01
    c: ArrayLike = per_example(default=1e-3)
    confidence: ArrayLike = per_example(default=0.0)
    abort_early: bool = static(default=True)
    goal: Goal = Misclassify()

    def check(self) -> None:
        check_ball("CarliniWagner", self.ball, L2, expected="an L2 ball")
        for name in ("steps", "searches"):
            check_count("CarliniWagner", name, getattr(self, name))
        self.check_numbers("step_size", "c")

    @property
    def most_steps(self) -> int:
        return self.steps * self.searches

    def begin(self, x: Array, y: Array) -> _Search:
        del y
        return _Search(
            descent=Descent.start(x, self.ball), constant=ConstantSearch.start(self.c, row(x))
        )

    def look(self, i: Array, state: PenaltyState, model: Model, x: Array, y: Array) -> Seen:
        image = state.search.descent.image(i, x, self.ball)
        return self.ask(model, image, x, y, fold_if_any(state.keys, i + 1))

    def move(self, seen: Seen, state: PenaltyState, x: Array) -> tuple[_Search, Array]:
        search: _Search = state.search
        c = search.constant.c
        down = 2 * seen.change - seen.pull(c)
        descent, wait = search.descent.step(down, self.step_size, self.ball)
        objective = jnp.sum(seen.change**2, axis=over_features(x)) + c * seen.short
        over, constant = search.constant.after(
            objective, seen.judged.success, state.steps, self.abort_early, wait
        )
        descent = descent.again(over, x, self.ball)
        return _Search(descent=descent, constant=constant), constant.done >= self.searches
