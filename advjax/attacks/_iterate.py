"""What every attack is, and the one driver of those that iterate."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advjax.attacks._cores import in_parts
from advjax.checks import (
    check_batch,
    is_traced,
    looks_like_probabilities,
    warn_probabilities,
)
from advjax.types import (
    Array,
    ArrayLike,
    Key,
    Record,
    as_model,
    is_stochastic,
    pytree,
)

Body = Callable[[Any, Any], Any]
Loop = Callable[[int, Body, Any], Any]
Stage = tuple[int | None, "Attack"]


class Attack(abc.ABC):
    """A way to make images that a model gets wrong; a frozen pytree.

    Numbers are leaves: another eps or another checkpoint is never another compilation, and
    ``vmap`` over them is a sweep. To change an attack, wrap it.
    """

    def __call__(self, key: Key, model: Any, x: ArrayLike, y: ArrayLike) -> Array:
        """Adversarial images ``[B, ...]``.

        Args:
          key: one key (example i then draws from ``fold_in(key, i)``) or ``[B]`` keys.
          model: ``model(x) -> logits [B, K]``: a callable pytree or a function.
          x: ``[B, ...]`` float images inside the box.
          y: ``[B]`` integer labels; the targets where the attack is targeted.

        Raises:
          TypeError: on a wrong dtype, or a model that cannot be called.
          ValueError: on a wrong shape, images outside the box, labels out of range, or an eps that
            fits neither one example nor all of them.
        """
        return self._checked(key, model, x, y, record=False).x_adv

    def run(self, key: Key, model: Any, x: ArrayLike, y: ArrayLike) -> Record:
        """The same attack with the whole record of what happened; arguments as for a call."""
        return self._checked(key, model, x, y, record=True)

    def _checked(self, key: Key, model: Any, x: Any, y: Any, *, record: bool) -> Record:
        model = as_model(model)
        lower, upper = self.bounds
        x, y = check_batch(model, x, y, lower=lower, upper=upper)
        self.check_fits(x)
        return self.solve(key, model, x, y, record=record)

    @property
    @abc.abstractmethod
    def bounds(self) -> tuple[ArrayLike, ArrayLike]:
        """The image box this attack stays in."""

    def check_fits(self, x: Array) -> None:
        """Raises ValueError where a per-example number does not fit the batch."""
        del x

    @abc.abstractmethod
    def solve(self, key: Key, model: Any, x: Array, y: Array, *, record: bool) -> Record:
        """The attack itself, on checked arguments; ``record=False`` promises ``x_adv`` alone."""

    @abc.abstractmethod
    def aimed(self) -> Attack:
        """The targeted form: labels are targets, success is reaching them."""

    @abc.abstractmethod
    def scaled(self, factor: ArrayLike) -> Attack:
        """The attack with its budget (and its step) multiplied."""

    def stages(self) -> tuple[Stage, ...]:
        """``(tag, attack)`` parts whose worst case per example is this attack.

        A part with a tag draws from ``fold_in_each(keys, tag)``. An evaluation runs the parts one
        by one and drops the examples that are already fooled.
        """
        return ((None, self),)


@pytree
class Judgement:
    """A model's answer, each ``[B]``; ``probabilities`` are doubts about its logits."""

    loss: Array
    success: Array
    probabilities: Array


LossFn = Callable[[Array, Array], Array]


def judge(
    loss: LossFn, targeted: bool, model: Any, x: Array, y: Array, keys: Key
) -> tuple[Array, Judgement]:
    """The sum over examples of the loss to raise, and the judgement per example.

    Logits ``[S, B, K]`` are S draws of a randomised model: the loss is averaged over them and an
    example counts as a success where more than half of them are.
    """
    logits = model(x, key=keys) if is_stochastic(model) else model(x)
    draws = logits.reshape((-1,) + logits.shape[-2:])
    losses = jnp.mean(jax.vmap(loss, (0, None))(draws, y), axis=0)
    losses = -losses if targeted else losses
    reached = jnp.argmax(draws, axis=-1) == y
    success = jnp.mean(reached if targeted else ~reached, axis=0, dtype=jnp.float32) > 0.5
    return jnp.sum(losses), Judgement(
        loss=losses, success=success, probabilities=looks_like_probabilities(draws).all(axis=0)
    )


def host_loop(n: int, body: Body, state: Any) -> Any:
    """The loop in Python over a compiled step: compiles fastest, and on CPU runs fastest for
    models whose convolution gradients XLA compiles badly inside a device loop."""
    for i in range(n):
        state = body(np.int32(i), state)
    return state


def device_loop(n: int, body: Body, state: Any) -> Any:
    """``lax.fori_loop``: one program on the device, nothing goes back to the host."""
    return jax.lax.fori_loop(0, n, body, state)


def auto_loop(n: int, body: Body, state: Any) -> Any:
    """``host_loop`` on a CPU outside a trace, ``device_loop`` elsewhere."""
    return device_loop(n, body, state)


class Iterative(Attack):
    """An attack as three pure methods, ``init``, ``step`` and ``finish``, and one driver."""

    steps: int
    loop: Loop

    @abc.abstractmethod
    def init(self, key: Key, model: Any, x: Array, y: Array) -> Any:
        """The state before the first step."""

    @abc.abstractmethod
    def step(self, i: Array, state: Any, model: Any, x: Array, y: Array) -> Any:
        """The state after one more step."""

    @abc.abstractmethod
    def finish(self, state: Any, model: Any, x: Array, y: Array, *, record: bool) -> Record:
        """What the attack returns."""

    @abc.abstractmethod
    def pieces(self) -> Iterative:
        """The attack as ``init``, ``step`` and ``finish`` see it when the host drives them.

        Whatever only the loop needs may be left out, so that, say, another number of steps uses
        the same compiled pieces.
        """

    @abc.abstractmethod
    def doubts(self, state: Any) -> Array:
        """``[B]`` bool: the model's outputs looked like probabilities at every step."""

    def solve(self, key: Key, model: Any, x: Array, y: Array, *, record: bool) -> Record:
        traced = is_traced(self, key, model, x, y)
        on_cpu = jax.default_backend() == "cpu"
        by_host = self.loop is host_loop or (self.loop is auto_loop and on_cpu)
        if traced or not by_host:
            out, doubts = _whole(self, key, model, x, y, record)
        else:
            pieces = self.pieces()

            def drive(key: Key, x: Array, y: Array) -> tuple[Record, Array]:
                body = lambda i, state: _step(pieces, i, state, model, x, y)
                state = host_loop(self.steps, body, _init(pieces, key, model, x, y))
                return _finish(pieces, state, model, x, y, record)

            if self.steps and all(jnp.ndim(leaf) == 0 for leaf in jax.tree.leaves(self)):
                what = (jax.tree.structure((pieces, model)), record)
                out, doubts = in_parts(drive, what, key, x, y)
            else:  # a number per example or a mask belongs to the batch as it is
                out, doubts = drive(key, x, y)
        if not traced and self.steps:
            _warn_once(model, x, doubts)
        return out


# The compiled pieces are module-level, so that every attack object shares their caches.
@jax.jit
def _init(attack: Iterative, key: Key, model: Any, x: Array, y: Array) -> Any:
    return attack.init(key, model, x, y)


# The state is not donated: without a random start it holds the caller's own images.
@jax.jit
def _step(attack: Iterative, i: Any, state: Any, model: Any, x: Array, y: Array) -> Any:
    return attack.step(i, state, model, x, y)


@functools.partial(jax.jit, static_argnums=5)
def _finish(
    attack: Iterative, state: Any, model: Any, x: Array, y: Array, record: bool
) -> tuple[Record, Array]:
    return attack.finish(state, model, x, y, record=record), attack.doubts(state)


@functools.partial(jax.jit, static_argnums=5)
def _whole(
    attack: Iterative, key: Key, model: Any, x: Array, y: Array, record: bool
) -> tuple[Record, Array]:
    body = lambda i, state: attack.step(i, state, model, x, y)
    loop = device_loop if attack.loop is host_loop else attack.loop
    state = loop(attack.steps, body, attack.init(key, model, x, y))
    return attack.finish(state, model, x, y, record=record), attack.doubts(state)


_vetted: set[Any] = set()


def _warn_once(model: Any, x: Array, doubts: Array) -> None:
    """Looks at the doubts once per structure of model: each look waits for the device."""
    structure = jax.tree.structure(model)
    if structure in _vetted:
        return
    _vetted.add(structure)
    if np.asarray(doubts).all():
        warn_probabilities(x.shape[0])
