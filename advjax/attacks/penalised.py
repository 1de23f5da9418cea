"""The penalised attack: an additive change, trained like a weight."""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from advjax.attacks._checks import check_count, check_number, check_per_example
from advjax.attacks._closest import Closest
from advjax.attacks._iterate import Iterative, Judgement, Loop, auto_loop, judge, outcome
from advjax.attacks._rows import widen
from advjax.attacks._tradeoff import (
    Adam,
    on_mask,
    over_features,
)
from advjax.balls import L1, L2, Ball, Linf
from advjax.losses import cross_entropy, margin
from advjax.types import (
    Array,
    ArrayLike,
    Key,
    Record,
    example_keys,
    fold_in_each,
    is_stochastic,
    pytree,
    replace,
    static,
)

Penalty = Literal["l1", "l2", "linf"]
# Two means and a maximum differ much in strength. These shape the change of 8x8 and 28x28 digits; a
# network with a small gradient needs less, which the falling weight finds.
_WEIGHTS = {
    "l1": lambda features: 3.5 * math.sqrt(features),
    "l2": lambda features: 100.0,
    "linf": lambda features: 5.0,
}


@pytree
class _State:
    """Between two iterations; every array has the batch first."""

    keys: Any  # [B] keys for a randomised model, else None
    goal: Array  # [B] the class whose cross-entropy is lowered
    change: Array
    weight: Array  # [B]
    adam: Adam
    closest: Closest  # by the penalty
    taken: Array
    zero_gradient: Array
    probabilities: Array


@pytree
class Penalised(Iterative):
    """A change trained by Adam against the cross-entropy of a wrong class and its own size.

    Minimises ``cross_entropy(model(x + d), wrong class) + weight * penalty(d)`` over the change d
    alone, from no change at all, cut to the box after every step (Szegedy et al. 2014, section 4.1,
    in the penalised form; with Adam and these penalties as in Gentric's course). The wrong class is
    the target where the attack is targeted, else the clean image's most likely class but its label.
    Once the image is adversarial by ``confidence`` the cross-entropy rests, and the penalty alone
    goes on to shape the change until the class is back. The image with the smallest penalty of all
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
      targeted: labels are targets; see ``Targeted``.
      loop: who iterates; ``auto_loop``, ``host_loop``, ``device_loop`` or your own.
    """

    ball: Ball = L2()
    penalty: Penalty | None = static(default=None)
    weight: ArrayLike = None
    step_size: ArrayLike = 1e-3
    steps: int = static(default=1000)
    confidence: ArrayLike = 0.0
    targeted: bool = static(default=False)
    loop: Loop = static(default=auto_loop)

    def check(self) -> None:
        if not isinstance(self.ball, Ball):
            raise TypeError(f"Penalised: given ball={self.ball!r}; a ball such as L2() is taken")
        if self.penalty is None:
            own = {Linf: "linf", L2: "l2", L1: "l1"}.get(type(self.ball))
            object.__setattr__(self, "penalty", own)
        if self.penalty not in _WEIGHTS:
            raise ValueError(
                f"Penalised: given penalty={self.penalty!r} and {type(self.ball).__name__}; "
                "a penalty 'l1', 'l2' or 'linf' is taken"
            )
        check_count("Penalised", "steps", self.steps, 0)
        for name in ("weight", "step_size"):
            if getattr(self, name) is not None:
                check_number("Penalised", name, getattr(self, name))
        check_number("Penalised", "confidence", self.confidence, zero=True)

    def check_fits(self, x: Array) -> None:
        check_per_example(
            x,
            eps=self.ball.eps,
            weight=1 if self.weight is None else self.weight,
            confidence=self.confidence,
        )

    def init(self, key: Key, model: Any, x: Array, y: Array) -> _State:
        keys = example_keys(key, x.shape[0]) if is_stochastic(model) else None
        closest = Closest.start(x)
        none = jnp.zeros_like(closest.first_success)
        weight = self.weight
        if weight is None:
            weight = _WEIGHTS[str(self.penalty)](math.prod(x.shape[1:]))
        goal = y
        if not self.targeted:
            logits = model(x) if keys is None else model(x, key=fold_in_each(keys, 1))
            logits = jnp.mean(logits.reshape((-1,) + logits.shape[-2:]), axis=0)
            is_label = jax.nn.one_hot(y, logits.shape[-1], dtype=bool)
            goal = jnp.argmax(jnp.where(is_label, -jnp.inf, logits), axis=-1).astype(y.dtype)
        return _State(
            keys=keys,
            goal=goal,
            change=jnp.zeros_like(x),
            weight=jnp.zeros_like(none, dtype=jnp.float32) + jnp.asarray(weight),
            adam=Adam.start(x, none),
            closest=closest,
            taken=none,
            zero_gradient=none,
            probabilities=none == 0,
        )

    def step(self, i: Array, state: _State, model: Any, x: Array, y: Array) -> _State:
        image = x + state.change
        drawn: Any = None if state.keys is None else fold_in_each(state.keys, i + 2)

        def towards_goal(image: Array) -> tuple[Array, Judgement]:
            logits = model(image) if drawn is None else model(image, key=drawn)
            answer = lambda _: logits  # to two questions, for one pass of the model
            _, judged = judge(margin, self.targeted, answer, image, y, None)
            return judge(cross_entropy, True, answer, image, state.goal, None)[0], judged

        (_, judged), rise = jax.value_and_grad(towards_goal, has_aux=True)(image)
        convincing = judged.success & (judged.loss >= jnp.asarray(self.confidence))
        closest = state.closest.keep(image, convincing, self._size(state.change), i)

        rise = on_mask(self.ball, jnp.where(jnp.isfinite(rise), rise, 0), jnp.zeros_like(x))
        weighted = lambda change: jnp.sum(state.weight * self._size(change))
        grad = jax.grad(weighted)(state.change) - jnp.where(widen(convincing, x), 0, rise)
        direction, adam = state.adam.step(grad)
        moved = x + on_mask(self.ball, state.change, jnp.zeros_like(x))
        moved = jnp.clip(moved - jnp.asarray(self.step_size) * direction, *self.bounds)
        less = state.weight * 0.5 ** (10 * jnp.asarray(self.step_size))
        return _State(
            keys=state.keys,
            goal=state.goal,
            change=on_mask(self.ball, moved - x, jnp.zeros_like(x)),
            weight=state.weight
            if self.weight is not None
            else jnp.where(closest.found, state.weight, less),
            adam=adam,
            closest=closest,
            taken=state.taken + 1,
            zero_gradient=state.zero_gradient + jnp.all(rise == 0, axis=over_features(x)),
            probabilities=state.probabilities & judged.probabilities,
        )

    def _size(self, change: Array) -> Array:
        """The penalty, ``[B]``."""
        axes = over_features(change)
        if self.penalty == "l2":
            return jnp.mean(change**2, axis=axes)
        if self.penalty == "l1":
            return jnp.mean(jnp.abs(change), axis=axes)
        return jnp.max(jnp.abs(change), axis=axes)

    def finish(self, state: _State, model: Any, x: Array, y: Array, *, record: bool) -> Record:
        best = state.closest.image
        closest = replace(state.closest, distance=self.ball.size(best - x))
        return outcome(
            self,
            model,
            x,
            y,
            closest.within(self.ball, x),
            None if state.keys is None else fold_in_each(state.keys, 0),
            record=record,
            loss=margin,
            forwards=state.taken + (not self.targeted),
            backwards=state.taken,
            first_success=state.closest.first_success,
            zero_gradient=state.zero_gradient,
        )

    def doubts(self, state: _State) -> Array:
        return state.probabilities

    def pieces(self) -> Penalised:
        return replace(self, steps=0, loop=auto_loop)
