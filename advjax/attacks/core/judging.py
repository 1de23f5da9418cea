"""Whether a model's answer reaches an attack's goal, and what was spent until it did."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from advjax.answers import draws_of
from advjax.checks import looks_like_probabilities
from advjax.pytrees import Array, ArrayLike, Key, pytree, replace
from advjax.shapes import row, widen
from advjax.types import Attack, Goal, LossFn, Model, Record

FINAL = 2**32 - 5  # what a key is folded with for the last judgement; no step of an attack uses it


@pytree
class Judgement:
    """Whether a model's answer reaches a goal, each ``[B]``.

    Attributes:
      loss: the goal's, larger is nearer to it; the mean over draws.
      success: more than half of the draws reach it, and all are finite.
      invalid: an answer is not finite.
      probabilities: the answer looks like probabilities instead of logits.
    """

    loss: Array
    success: Array
    invalid: Array
    probabilities: Array


def judge(goal: Goal, loss: LossFn, draws: Array, y: Array) -> Judgement:
    """What the answers ``[S, B, K]``, S draws of a model, mean for a goal."""
    invalid = ~jnp.all(jnp.isfinite(draws), axis=(0, -1))
    reached = jax.vmap(goal.reached, (0, None))(draws, y)
    votes = jnp.mean(reached, axis=0, dtype=jnp.float32)
    losses = jax.vmap(functools.partial(goal.loss, loss), (0, None))(draws, y)
    return Judgement(
        loss=jnp.mean(losses, axis=0),
        success=(votes > 0.5) & ~invalid,
        invalid=invalid,
        probabilities=looks_like_probabilities(draws).all(axis=0),
    )


def ask(
    goal: Goal, loss: LossFn, model: Model, x: Array, y: Array, keys: Key | None
) -> tuple[Array, Judgement]:
    """The sum over examples of the loss to raise, and the judgement of images ``[B, ...]``."""
    judged = judge(goal, loss, draws_of(model, x, keys), y)
    return jnp.sum(judged.loss), judged


def ask_with_gradient(
    goal: Goal, loss: LossFn, model: Model, x: Array, y: Array, keys: Key | None
) -> tuple[Judgement, Array]:
    """The judgement of images, and the loss's gradient ``[B, ...]``, zero where not finite."""
    value_and_grad = jax.value_and_grad(lambda x: ask(goal, loss, model, x, y, keys), has_aux=True)
    (_, judged), grad = value_and_grad(x)
    return judged, jnp.where(jnp.isfinite(grad), grad, 0)


@pytree
class Strongest:
    """The most adversarial image found so far, per example: adversarial before not, then by loss.

    Attributes:
      image: ``[B, ...]``; the first one until a loss is known.
      loss: ``[B]``, minus infinity until then.
      success: ``[B]`` bool, whether it is adversarial.
    """

    image: Array
    loss: Array
    success: Array

    @classmethod
    def start(cls, image: Array) -> Strongest:
        """Nothing judged yet."""
        first = row(image)
        return cls(
            image=image,
            loss=jnp.full_like(first, -jnp.inf),
            success=jnp.zeros_like(first, dtype=bool),
        )

    def keep(self, image: Array, judged: Judgement, live: Array | None = None) -> Strongest:
        """With these images where they are stronger, of those ``live [B]`` alone if given."""
        success = judged.success if live is None else judged.success & live
        better = (success & ~self.success) | (
            (judged.success == self.success) & (judged.loss > self.loss)
        )
        if live is not None:
            better &= live
        return Strongest(
            image=jnp.where(widen(better, image), image, self.image),
            loss=jnp.where(better, judged.loss, self.loss),
            success=self.success | success,
        )


@pytree
class Tally:
    """What an attack has spent and seen so far, each ``[B]``.

    Attributes:
      forwards: int32; likewise ``backwards``, ``first_success`` and ``zero_gradient`` as in
        ``Record``.
      probabilities: bool, all answers looked like probabilities; None where they may.
    """

    forwards: Array
    backwards: Array
    first_success: Array
    zero_gradient: Array
    probabilities: Array | None

    @classmethod
    def start(cls, x: Array, *, doubts: bool = True) -> Tally:
        """Nothing yet; ``doubts`` whether answers that look like probabilities are a mistake."""
        none = jnp.zeros_like(row(x), dtype=jnp.int32)
        return cls(
            forwards=none,
            backwards=none,
            first_success=none - 1,
            zero_gradient=none,
            probabilities=none == 0 if doubts else None,
        )

    @property
    def found(self) -> Array:
        """``[B]`` bool: who has been adversarial."""
        return self.first_success >= 0

    def spend(self, forwards: ArrayLike = 0, backwards: ArrayLike = 0) -> Tally:
        """With so many passes more, scalars or ``[B]``; ``where(live, n, 0)`` for some."""
        return replace(
            self,
            forwards=self.forwards + _count(forwards),
            backwards=self.backwards + _count(backwards),
        )

    def hit(self, success: Array, i: ArrayLike) -> Tally:
        """With who is adversarial ``[B]`` at iteration i, scalar or ``[B]``."""
        first = jnp.where((self.first_success < 0) & success, i, self.first_success)
        return replace(self, first_success=first.astype(jnp.int32))

    def see(self, judged: Judgement, i: ArrayLike, live: Array | None = None) -> Tally:
        """With the judgement of iteration i's images, of those ``live [B]`` alone if given."""
        success, looks = judged.success, self.probabilities
        if live is not None:
            success &= live
        if looks is not None:
            looks &= judged.probabilities if live is None else judged.probabilities | ~live
        return replace(self.hit(success, i), probabilities=looks)

    def lose(self, lost: Array) -> Tally:
        """With an iteration whose gradient did not reach the images ``[B]``, bool or a number."""
        return replace(self, zero_gradient=self.zero_gradient + _count(lost))


def _count(number: ArrayLike) -> Array:
    return jnp.asarray(number).astype(jnp.int32)


def outcome(
    attack: Attack,
    model: Model,
    x: Array,
    y: Array,
    x_adv: Array,
    keys: Key | None,
    *,
    record: bool,
    loss: LossFn,
    tally: Tally,
    late: ArrayLike | None = None,
) -> Record:
    """The record of an attack that ends at ``x_adv``, after one more, judging, forward pass.

    Args:
      attack: gives ball and goal.
      keys: ``[B]`` keys for a randomised model, not used before; may be None for another.
      record: whether anything but ``x_adv`` is wanted.
      loss: what the record's loss is.
      tally: what was spent and seen.
      late: the iteration that an example gets which the final judgement alone finds to succeed;
        its ``forwards``, where an iteration is one, by default.
    """
    ball = attack.ball
    assert ball is not None
    # A start outside the box may be the best iterate of an attack, or the only one.
    x_adv = ball.clip(x_adv)
    if not record:
        unknown: Any = None
        return Record(x_adv=x_adv, **dict.fromkeys(_COSTLY, unknown))
    judged = judge(attack.goal, loss, draws_of(model, x_adv, keys), y)
    first, late = tally.first_success, tally.forwards if late is None else late
    return Record(
        x_adv=x_adv,
        success=judged.success,
        invalid=judged.invalid,
        loss=judged.loss,
        distance=ball.size(x_adv - x),
        forwards=tally.forwards + 1,
        backwards=tally.backwards,
        first_success=jnp.where(judged.success & (first < 0), late, first),
        zero_gradient=tally.zero_gradient,
    )


_COSTLY = tuple(name for name in Record.__dataclass_fields__ if name != "x_adv")
