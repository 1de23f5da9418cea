"""The L-inf attack of Carlini & Wagner."""

from __future__ import annotations

import jax.numpy as jnp

from advjax.answers import fold_if_any
from advjax.arguments import check_ball, check_count
from advjax.attacks.core.penalty import Descent, Penalty, PenaltyState, Progress, Seen
from advjax.balls import Ball, Linf
from advjax.goals import Misclassify
from advjax.pytrees import Array, ArrayLike, driver_only, per_example, pytree, static
from advjax.shapes import over_features, row, widen
from advjax.types import Goal, Model


@pytree
class _Search:
    descent: Descent
    c: Array
    enough: Array  # the c of the last success
    tau: Array  # the change of a pixel that costs nothing
    failed: Array  # the largest tau at which no c succeeded
    progress: Progress  # with the present c


@pytree
class CarliniWagnerLinf(Penalty):
    """The smallest L-inf perturbation by penalties (Carlini & Wagner 2017, section VI-C).

    Adam minimises ``c * max(confidence - margin, 0) + sum(max(|d| - tau, 0))`` in tanh space. On
    success tau becomes ``shrink`` times the distance reached, and the search goes on from there;
    else c is doubled, and beyond ``largest_c`` that tau has failed. The authors end at the first
    failure, within ``1 - shrink`` of the answer; here tau is then bisected down to ``tolerance``.
    The nearest convincing image of all iterations is returned, the clean one where there is none.

    Attributes:
      ball: a ``Linf`` ball, by default without a limit; with a finite ``eps`` an image farther
        away is pulled back to it.
      steps: most iterations in all, at least 0; an example that is done sooner spends fewer.
      attempt: most iterations with one tau and one c (the paper: 1000).
      step_size: Adam's step, in tanh space; positive.
      c: the first constant, positive, scalar or ``[B]``; ``largest_c`` the last one.
      shrink: factor of tau after a success, between 0 and 1.
      tolerance: the relative gap, between the last success and the largest tau that failed, at
        which the search ends; ``1 - shrink`` or more is the authors' rule.
      confidence: the margin in logits by which the image must be adversarial (kappa), at least 0.
      abort_early: end an attempt that gets nowhere: every tenth of ``attempt`` its lowest
        objective must have fallen by 0.01 %.
      goal: what is wanted, see ``Targeted``.
    """

    ball: Ball = Linf()
    steps: int = driver_only(default=10_000)
    attempt: ArrayLike = 200
    step_size: ArrayLike = 5e-3
    c: ArrayLike = per_example(default=1e-5)
    largest_c: ArrayLike = 20.0
    shrink: ArrayLike = 0.9
    tolerance: ArrayLike = 0.01
    confidence: ArrayLike = per_example(default=0.0)
    abort_early: bool = static(default=True)
    goal: Goal = Misclassify()

    def check(self) -> None:
        check_ball("CarliniWagnerLinf", self.ball, Linf, expected="a Linf ball")
        check_count("CarliniWagnerLinf", "steps", self.steps, 0)
        self.check_numbers("attempt", "step_size", "c", "largest_c", "shrink", "tolerance")

    def begin(self, x: Array, y: Array) -> _Search:
        del y
        zero = jnp.zeros_like(row(x))
        lower, upper = self.bounds
        return _Search(
            descent=Descent.start(x, self.ball),
            c=zero + jnp.asarray(self.c),
            enough=zero + jnp.asarray(self.c),
            tau=zero + jnp.max(upper - lower),
            failed=zero,
            progress=Progress.start(zero),
        )

    def look(self, i: Array, state: PenaltyState, model: Model, x: Array, y: Array) -> Seen:
        image = state.search.descent.image(i, x, self.ball)
        return self.ask(model, image, x, y, fold_if_any(state.keys, i + 1))

    def move(self, seen: Seen, state: PenaltyState, x: Array) -> tuple[_Search, Array]:
        search: _Search = state.search
        c, closest = search.c, state.closest
        excess = jnp.maximum(jnp.abs(seen.change) - widen(search.tau, x), 0)
        grad = jnp.where(excess > 0, jnp.sign(seen.change), 0) - seen.pull(c)
        descent, wait = search.descent.step(grad, self.step_size, self.ball)

        objective = jnp.sum(excess, axis=over_features(x)) + c * seen.short
        reached = seen.judged.success & (objective <= 1e-4 * c)
        over, progress = search.progress.after(objective, self.attempt, self.abort_early, wait)
        gave_up = over & ~reached
        beyond = gave_up & (2 * c > jnp.asarray(self.largest_c))  # this tau has failed
        failed = jnp.where(beyond, jnp.maximum(search.failed, search.tau), search.failed)
        enough = jnp.where(reached, c, search.enough)
        nearest = jnp.where(closest.found, closest.distance, 0)
        tau = jnp.where(failed > 0, (failed + nearest) / 2, jnp.asarray(self.shrink) * nearest)
        # An attempt may also come nearer than its tau, or than one that was thought to fail.
        done = beyond & ~closest.found
        done |= (failed > 0) & (nearest <= (1 + jnp.asarray(self.tolerance)) * failed)
        anew = reached | beyond
        onward = jnp.where(widen(reached, x), seen.image, closest.image)
        new = _Search(
            descent=descent.again(anew, onward, self.ball),
            c=jnp.where(beyond, enough, jnp.where(gave_up, 2 * c, c)),
            enough=enough,
            tau=jnp.where(anew, tau, search.tau),
            failed=failed,
            progress=progress.again(reached | over),
        )
        return new, done
