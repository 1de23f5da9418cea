"""Attacks made of attacks: the worst of several, restarts, targets, expectation over draws."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advjax.answers import as_model, draws_of, example_keys, fold_in_each, is_stochastic
from advjax.arguments import check_count
from advjax.attacks.core.rows import close_size, padded_rows, put_rows, take_rows
from advjax.attacks.core.wrap import Wrapper
from advjax.checks import is_traced
from advjax.goals import Misclassify, Target
from advjax.pytrees import Array, ArrayLike, Key, pytree, replace, static
from advjax.types import Attack, Goal, Loop, Model, Record, Stage, auto_loop

_TARGET = 2**32 - 1  # what a key is folded with to choose targets; no run of an attack uses it


def _choose(take: Array, new: Array, old: Array) -> Array:
    return jnp.where(take.reshape(take.shape + (1,) * (new.ndim - 1)), new, old)


@jax.jit
def worse(old: Record, new: Record, by_loss: ArrayLike) -> Record:
    """Per example the worse of two records for the model, with the costs of both.

    A success beats none; among equals the larger loss wins where ``by_loss`` says that the losses
    can be compared, else the older one. ``first_success`` is the first successful part's own.
    Where losses cannot be compared, a success is final: nothing is spent on the example after it.
    """
    take = new.success & ~old.success
    take |= jnp.asarray(by_loss, bool) & (new.success == old.success) & (new.loss > old.loss)
    pick = lambda name: _choose(take, getattr(new, name), getattr(old, name))
    over = old.success & ~jnp.asarray(by_loss, bool)
    add = lambda name: getattr(old, name) + jnp.where(over, 0, getattr(new, name))
    return Record(
        x_adv=pick("x_adv"),
        success=old.success | new.success,
        invalid=(old.invalid | new.invalid) & ~(old.success | new.success),
        loss=pick("loss"),
        distance=pick("distance"),
        forwards=add("forwards"),
        backwards=add("backwards"),
        first_success=jnp.where(old.first_success < 0, new.first_success, old.first_success),
        zero_gradient=add("zero_gradient"),
    )


def _tag(part: int, inner: int | None) -> int:
    """One number for an inner tag within a part; distinct for up to 65,535 inner tags."""
    return part if inner is None else (part + 1) * 2**16 + inner


def _worst_stage(
    stages: tuple[Stage, ...], keys: Key, model: Model, x: Array, y: Array, loop: Loop
) -> Record:
    """All stages in turn, as an evaluation runs them, so that both draw the same.

    Outside a trace each stage gets only the examples that still stand, in a batch of the smallest
    of a few fixed sizes.
    """
    out = None
    batch = x.shape[0]
    whole = is_traced(stages, keys, model, x, y) or len(x.devices()) > 1
    for tag, attack in stages:
        scalars = all(jnp.ndim(leaf) == 0 for leaf in jax.tree.leaves(attack))
        left = np.arange(batch)
        if out is not None and not whole and scalars:
            left = np.flatnonzero(~np.asarray(out.success))
            if not len(left):
                break
        size = close_size(len(left), batch)
        picked = np.resize(left, size)  # filled up by repeats
        some = (keys, x, y) if size == batch else take_rows((keys, x, y), picked)
        drawn = some[0] if tag is None else fold_in_each(some[0], tag)
        new = attack.solve(drawn, model, *some[1:], record=True, loop=loop)
        if out is None:
            out = new
        elif size == batch:
            out = worse(out, new, False)
        else:
            rows = padded_rows(left, size, batch)
            out = put_rows(out, worse(take_rows(out, picked), new, False), rows)
    assert out is not None  # every attack has a stage
    return out


@pytree
class Restarts(Wrapper):
    """The worst of ``n`` runs with different draws, per example.

    Run number r draws from ``fold_in(key_i, r)``: more restarts contain fewer, so the robust
    accuracy never rises with ``n``.
    """

    attack: Attack = dataclasses.field(kw_only=False)
    n: int = static(default=10)

    def check(self) -> None:
        super().check()
        check_count("Restarts", "n", self.n)

    def solve(
        self, key: Key, model: Model, x: Array, y: Array, *, record: bool, loop: Loop = auto_loop
    ) -> Record:
        del record
        keys = example_keys(key, x.shape[0])
        once = lambda r: self.attack.solve(
            fold_in_each(keys, r), model, x, y, record=True, loop=loop
        )
        if len(self.attack.stages()) > 1:
            return _worst_stage(self.stages(), keys, model, x, y, loop)
        if is_traced(self, key, model, x, y):
            return jax.lax.fori_loop(1, self.n, lambda r, old: worse(old, once(r), True), once(0))
        out = once(0)
        for r in range(1, self.n):
            out = worse(out, once(r), True)
        return out

    def stages(self) -> tuple[Stage, ...]:
        inner = self.attack.stages()
        return tuple((_tag(r, tag), attack) for r in range(self.n) for tag, attack in inner)


@pytree
class WorstOf(Attack):
    """The first of several attacks that succeeds, per example; the first one where none does."""

    attacks: tuple[Attack, ...] = dataclasses.field(kw_only=False)

    ball = None  # each part has its own

    def check(self) -> None:
        if not isinstance(self.attacks, tuple | list) or not self.attacks:
            raise ValueError(f"WorstOf: given {self.attacks!r}; expected a tuple of attacks")
        object.__setattr__(self, "attacks", tuple(self.attacks))

        for attack in self.attacks:
            if not isinstance(attack, Attack):
                raise TypeError(
                    f"WorstOf: given a part {type(attack).__name__}; expected advjax attacks"
                )

    @property
    def bounds(self) -> tuple[ArrayLike, ArrayLike]:
        return self.attacks[0].bounds

    @property
    def goal(self) -> Goal:
        return self.attacks[0].goal

    def parts(self) -> tuple[Attack, ...]:
        return self.attacks

    def solve(
        self, key: Key, model: Model, x: Array, y: Array, *, record: bool, loop: Loop = auto_loop
    ) -> Record:
        del record
        return _worst_stage(self.stages(), example_keys(key, x.shape[0]), model, x, y, loop)

    def with_goal(self, goal: Goal) -> WorstOf:
        return replace(self, attacks=tuple(attack.with_goal(goal) for attack in self.attacks))

    def scaled(self, factor: ArrayLike) -> WorstOf:
        return replace(self, attacks=tuple(attack.scaled(factor) for attack in self.attacks))

    def stages(self) -> tuple[Stage, ...]:
        return tuple(
            (_tag(part, tag), inner)
            for part, attack in enumerate(self.attacks)
            for tag, inner in attack.stages()
        )


ChooseTargets = Callable[[Key, Array, Array], Array]


def random_target(keys: Key, logits: Array, y: Array) -> Array:
    """Any class but the label, uniformly; ``[B]``."""
    classes = logits.shape[-1]
    shift = jax.vmap(lambda key: jax.random.randint(key, (), 1, classes))(keys)
    return (y + shift) % classes


def least_likely_target(keys: Key, logits: Array, y: Array) -> Array:
    """The class with the smallest logit that is not the label; ``[B]``."""
    del keys
    is_label = jax.nn.one_hot(y, logits.shape[-1], dtype=bool)
    return jnp.argmin(jnp.where(is_label, jnp.inf, logits), axis=-1).astype(jnp.int32)


@functools.partial(jax.jit, static_argnums=0)
def _targets(choose: ChooseTargets, keys: Key, model: Model, x: Array, y: Array) -> Array:
    keys = fold_in_each(keys, _TARGET)
    return choose(keys, draws_of(model, x, keys).mean(axis=0), y)


@pytree
class Targeted(Wrapper):
    """An attack towards a class: the labels given are the targets, success is reaching them.

    Attributes:
      attack: what to aim.
      choose: picks the targets from the true labels instead, ``(keys, logits, y) -> [B]``; for
        instance ``random_target`` or ``least_likely_target``.
    """

    attack: Attack = dataclasses.field(kw_only=False)
    choose: ChooseTargets | None = static(default=None)

    def solve(
        self, key: Key, model: Model, x: Array, y: Array, *, record: bool, loop: Loop = auto_loop
    ) -> Record:
        keys = example_keys(key, x.shape[0])
        aimed = self.attack.with_goal(Target())
        if self.choose is None:
            return aimed.solve(keys, model, x, y, record=record, loop=loop)
        y = _targets(self.choose, keys, model, x, y)
        out = aimed.solve(keys, model, x, y, record=record, loop=loop)
        return replace(out, forwards=out.forwards + 1) if record else out

    @property
    def goal(self) -> Goal:
        return Target() if self.choose is None else Misclassify()

    def with_goal(self, goal: Goal) -> Targeted:
        if not goal.targeted:
            raise ValueError(f"Targeted: given goal={goal!r}; expected Target()")
        return self


def every_target(
    attack: Attack, key: Key, model: Any, x: ArrayLike, y: ArrayLike
) -> tuple[Array, Record]:
    """The attack towards every class but the label, each run to its end.

    Args:
      attack: what to aim; one program serves all targets.
      key: one key or ``[B]`` keys; run number r draws from ``fold_in(key_i, r)``.
      model: ``model(x) -> logits [B, K]``.
      x: ``[B, ...]`` images.
      y: ``[B]`` true labels.

    Returns:
      the targets ``[K - 1, B]``, and a record whose arrays have the targets' axis in front.
    """
    model, keys = as_model(model), example_keys(key, np.shape(x)[0])
    draw = {"key": keys} if is_stochastic(model) else {}
    classes = jax.eval_shape(model, jnp.asarray(x), **draw).shape[-1]
    targets = (jnp.asarray(y)[None] + jnp.arange(1, classes)[:, None]) % classes
    aimed = Targeted(attack)
    records = [
        aimed.run(fold_in_each(keys, r), model, x, target) for r, target in enumerate(targets)
    ]
    return targets, jax.tree.map(lambda *leaves: jnp.stack(leaves), *records)


@pytree
class _Draws:
    """A randomised model answered in ``samples`` draws, ``chunk`` at once: logits ``[S, B, K]``."""

    model: Any
    samples: int = static()
    chunk: int = static()

    stochastic = True

    def __call__(self, x: Array, *, key: Key) -> Array:
        def answer(model: Any, x: Array, keys: Key) -> Array:
            many = jnp.broadcast_to(x, (self.chunk, *x.shape)).reshape((-1, *x.shape[1:]))
            return model(many, key=keys.reshape(-1)).reshape((self.chunk, x.shape[0], -1))

        keys = jax.vmap(fold_in_each, (None, 0))(key, jnp.arange(self.samples))  # [S, B]
        if self.chunk == self.samples:
            return answer(self.model, x, keys)
        # Computed again on the way back, so that one chunk's activations are held at a time.
        again = jax.checkpoint(answer, prevent_cse=False)
        parts = keys.reshape(-1, self.chunk, x.shape[0])
        logits = jax.lax.map(lambda part: again(self.model, x, part), parts)
        return logits.reshape((self.samples, x.shape[0], -1))


@pytree
class EOT(Wrapper):
    """Expectation over a randomised model's draws (Athalye et al. 2018, section 4.2).

    Each gradient is the mean over ``samples`` fresh draws per example; an image is adversarial
    where more than half of the draws are. The random transform of an input is a model too:
    ``Transformed(model, transform)``. A query of an attack that counts queries is answered by
    ``samples`` of the model's; the record counts the model's. ``success_over_draws`` tells how
    often an image succeeds, with an interval.

    Attributes:
      attack: what to run.
      samples: draws per example for each answer of the model.
      chunk: draws in one batch of the model, a divisor of ``samples``; None for all of them.
        Bounds the memory: the draws and results are the same, but every backward pass repeats its
        forward pass, which the record does not count.
    """

    attack: Attack = dataclasses.field(kw_only=False)
    samples: int = static(default=20)
    chunk: int | None = static(default=None)

    def check(self) -> None:
        super().check()
        check_count("EOT", "samples", self.samples)
        check_count("EOT", "chunk", self.chunk, none=True)
        if self.chunk is not None and self.samples % self.chunk:
            raise ValueError(
                f"EOT: given chunk={self.chunk} for {self.samples} samples; expected a divisor"
            )

    def solve(
        self, key: Key, model: Model, x: Array, y: Array, *, record: bool, loop: Loop = auto_loop
    ) -> Record:
        if not is_stochastic(model):
            raise ValueError(
                f"EOT: given {type(model).__name__}, which is not randomised; "
                "expected a model with stochastic = True"
            )
        chunk = self.chunk or self.samples
        draws: Any = _Draws(model=model, samples=self.samples, chunk=chunk)
        out = self.attack.solve(key, draws, x, y, record=record, loop=loop)
        if not record:
            return out
        cost = {name: getattr(out, name) * self.samples for name in ("forwards", "backwards")}
        return replace(out, **cost)
