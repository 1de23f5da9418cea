"""The L-inf attack of Carlini & Wagner."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from advjax.attacks._checks import check_count, check_number, check_per_example
from advjax.attacks._closest import Closest
from advjax.attacks._iterate import Loop, auto_loop
from advjax.attacks._rows import only, widen
from advjax.attacks._tradeoff import (
    Adam,
    Attempts,
    Progress,
    convinces,
    into_tanh,
    leaving_a_bound,
    margin_and_gradient,
    on_mask,
    out_of_tanh,
    over_features,
)
from advjax.balls import Ball, Linf
from advjax.types import (
    Array,
    ArrayLike,
    Key,
    example_keys,
    is_stochastic,
    pytree,
    replace,
    static,
)


@pytree
class _State:
    """Between two iterations; every array has the batch first."""

    keys: Any  # [B] keys for a randomised model, else None
    w: Array  # the image in tanh space
    adam: Adam
    c: Array
    enough: Array  # the c of the last success
    tau: Array  # the change of a pixel that costs nothing
    failed: Array  # the largest tau at which no c succeeded
    progress: Progress  # with the present c
    closest: Closest
    over: Array
    taken: Array
    zero_gradient: Array
    probabilities: Array


@pytree
class CarliniWagnerLinf(Attempts):
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
      targeted: labels are targets; see ``Targeted``.
      loop: who iterates; ``auto_loop``, ``host_loop``, ``device_loop`` or your own.
    """

    ball: Ball = Linf()
    steps: int = static(default=10_000)
    attempt: ArrayLike = 200
    step_size: ArrayLike = 5e-3
    c: ArrayLike = 1e-5
    largest_c: ArrayLike = 20.0
    shrink: ArrayLike = 0.9
    tolerance: ArrayLike = 0.01
    confidence: ArrayLike = 0.0
    abort_early: bool = static(default=True)
    targeted: bool = static(default=False)
    loop: Loop = static(default=auto_loop)

    def check(self) -> None:
        name = "CarliniWagnerLinf"
        if not isinstance(self.ball, Linf):
            raise TypeError(f"{name}: given ball={self.ball!r}; a Linf ball is taken")
        check_count(name, "steps", self.steps, 0)
        for field in ("attempt", "step_size", "c", "largest_c", "shrink", "tolerance"):
            check_number(name, field, getattr(self, field))
        check_number(name, "confidence", self.confidence, zero=True)

    def check_fits(self, x: Array) -> None:
        check_per_example(x, eps=self.ball.eps, c=self.c, confidence=self.confidence)

    def init(self, key: Key, model: Any, x: Array, y: Array) -> _State:
        del y
        closest = Closest.start(x)
        none = jnp.zeros_like(closest.first_success)
        zero = jnp.zeros_like(none, dtype=jnp.float32)
        lower, upper = self.bounds
        return _State(
            keys=example_keys(key, x.shape[0]) if is_stochastic(model) else None,
            w=into_tanh(x, self.ball),
            adam=Adam.start(x, none),
            c=zero + jnp.asarray(self.c),
            enough=zero + jnp.asarray(self.c),
            tau=zero + jnp.max(upper - lower),
            failed=zero,
            progress=Progress.start(none),
            closest=closest,
            over=none > 0,
            taken=none,
            zero_gradient=none,
            probabilities=none == 0,
        )

    def step(self, i: Array, state: _State, model: Any, x: Array, y: Array) -> _State:
        image, slope = out_of_tanh(state.w, x, self.ball)
        # The first image is the clean one, to the bit: it may be adversarial already.
        image = jnp.where(widen(state.taken == 0, x), x, image)
        judged, rise = margin_and_gradient(self.targeted, model, image, y, state.keys, i + 1)
        success = convinces(judged, self.confidence)
        closest = state.closest.keep(image, success, self.ball.size(image - x), i)

        features, c, change = over_features(x), state.c, image - x
        short = jnp.asarray(self.confidence) - judged.loss
        excess = jnp.maximum(jnp.abs(change) - widen(state.tau, x), 0)
        pull = widen(jnp.where(short > 0, c, 0), x)
        grad = jnp.where(excess > 0, jnp.sign(change), 0) - pull * rise
        direction, adam = state.adam.step(slope * on_mask(self.ball, grad, jnp.zeros_like(x)))
        w = state.w - jnp.asarray(self.step_size) * direction

        objective = jnp.sum(excess, axis=features) + c * jnp.maximum(short, 0)
        reached = success & (objective <= 1e-4 * c)
        wait = leaving_a_bound(state.w, direction)
        over, progress = state.progress.after(objective, self.attempt, self.abort_early, wait)
        gave_up = over & ~reached
        beyond = gave_up & (2 * c > jnp.asarray(self.largest_c))  # this tau has failed
        failed = jnp.where(beyond, jnp.maximum(state.failed, state.tau), state.failed)
        enough = jnp.where(reached, c, state.enough)
        nearest = jnp.where(closest.found, closest.distance, 0)
        tau = jnp.where(failed > 0, (failed + nearest) / 2, jnp.asarray(self.shrink) * nearest)
        # An attempt may also come nearer than its tau, or than one that was thought to fail.
        done = beyond & ~closest.found
        done |= (failed > 0) & (nearest <= (1 + jnp.asarray(self.tolerance)) * failed)
        anew = reached | beyond
        new = _State(
            keys=None,
            w=jnp.where(
                widen(anew, x),
                into_tanh(jnp.where(widen(reached, x), image, closest.image), self.ball),
                w,
            ),
            adam=adam.forget(anew),
            c=jnp.where(beyond, enough, jnp.where(gave_up, 2 * c, c)),
            enough=enough,
            tau=jnp.where(anew, tau, state.tau),
            failed=failed,
            progress=progress.again(reached | over),
            closest=closest,
            over=done,
            taken=state.taken + 1,
            zero_gradient=state.zero_gradient
            + jnp.all(on_mask(self.ball, rise, jnp.zeros_like(x)) == 0, axis=features),
            probabilities=state.probabilities & judged.probabilities,
        )
        held = only(self.live(state), new, replace(state, keys=None))
        return replace(held, keys=state.keys)
