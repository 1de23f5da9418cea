"""The L2 attack of Carlini & Wagner."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from advjax.attacks._checks import check_count, check_number, check_per_example
from advjax.attacks._closest import Closest, KeepsClosest
from advjax.attacks._iterate import Iterative, Loop, auto_loop
from advjax.attacks._rows import only, widen
from advjax.attacks._tradeoff import (
    Adam,
    ConstantSearch,
    convinces,
    into_tanh,
    leaving_a_bound,
    margin_and_gradient,
    on_mask,
    out_of_tanh,
    over_features,
)
from advjax.balls import L2, Ball
from advjax.types import (
    Array,
    ArrayLike,
    Key,
    Record,
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
    search: ConstantSearch
    closest: Closest
    taken: Array
    zero_gradient: Array
    probabilities: Array


@pytree
class CarliniWagner(KeepsClosest):
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
      targeted: labels are targets; see ``Targeted``.
      length: as ``steps``, where the loop knows only the whole number; leave it.
      loop: who iterates; ``auto_loop``, ``host_loop``, ``device_loop`` or your own.
    """

    ball: Ball = L2()
    steps: int = static(default=1000)
    searches: int = static(default=9)
    step_size: ArrayLike = 0.01
    c: ArrayLike = 1e-3
    confidence: ArrayLike = 0.0
    abort_early: bool = static(default=True)
    targeted: bool = static(default=False)
    length: ArrayLike = None
    loop: Loop = static(default=auto_loop)

    def check(self) -> None:
        if not isinstance(self.ball, L2):
            raise TypeError(f"CarliniWagner: given ball={self.ball!r}; an L2 ball is taken")
        for name in ("steps", "searches"):
            check_count("CarliniWagner", name, getattr(self, name))
        for name in ("step_size", "c"):
            check_number("CarliniWagner", name, getattr(self, name))
        check_number("CarliniWagner", "confidence", self.confidence, zero=True)

    def check_fits(self, x: Array) -> None:
        check_per_example(x, eps=self.ball.eps, c=self.c, confidence=self.confidence)

    def init(self, key: Key, model: Any, x: Array, y: Array) -> _State:
        del y
        closest = Closest.start(x)
        none = jnp.zeros_like(closest.first_success)
        return _State(
            keys=example_keys(key, x.shape[0]) if is_stochastic(model) else None,
            w=into_tanh(x, self.ball),
            adam=Adam.start(x, none),
            search=ConstantSearch.start(self.c, none),
            closest=closest,
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

        features, c = over_features(x), state.search.c
        short = jnp.asarray(self.confidence) - judged.loss
        pull = widen(jnp.where(short > 0, c, 0), x)
        grad = slope * on_mask(self.ball, 2 * (image - x) - pull * rise, jnp.zeros_like(x))
        direction, adam = state.adam.step(grad)
        w = state.w - jnp.asarray(self.step_size) * direction

        objective = jnp.sum((image - x) ** 2, axis=features) + c * jnp.maximum(short, 0)
        wait = leaving_a_bound(state.w, direction)
        over, search = state.search.after(objective, success, self._length, self.abort_early, wait)
        new = _State(
            keys=None,
            w=jnp.where(widen(over, x), into_tanh(x, self.ball), w),
            adam=adam.forget(over),
            search=search,
            closest=closest,
            taken=state.taken + 1,
            zero_gradient=state.zero_gradient
            + jnp.all(on_mask(self.ball, rise, jnp.zeros_like(x)) == 0, axis=features),
            probabilities=state.probabilities & judged.probabilities,
        )
        held = only(self.live(state), new, replace(state, keys=None))
        return replace(held, keys=state.keys)

    @property
    def _length(self) -> ArrayLike:
        return self.steps if self.length is None else self.length

    def live(self, state: _State) -> Array:
        return (state.search.done < self.searches) & (state.closest.distance > 0)

    def solve(self, key: Key, model: Any, x: Array, y: Array, *, record: bool) -> Record:
        whole = replace(self, steps=self.steps * self.searches, length=self._length)
        return Iterative.solve(whole, key, model, x, y, record=record)

    def pieces(self) -> CarliniWagner:
        return replace(self, steps=1, loop=auto_loop)
