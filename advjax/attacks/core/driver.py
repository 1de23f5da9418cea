"""The one driver of attacks that iterate, and their ending."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from advjax.answers import fold_in_each, is_stochastic
from advjax.attacks.core.judging import FINAL, outcome
from advjax.attacks.core.rows import fitting_size, padded_rows, put_rows, take_rows
from advjax.attacks.core.threads import in_parts
from advjax.balls import Ball
from advjax.checks import is_traced, warn_probabilities
from advjax.pytrees import Array, ArrayLike, Key, replace, without_driver_fields
from advjax.types import Attack, Goal, Loop, LossFn, Model, Record, auto_loop, device_loop

Body = Callable[[Any, Any], Any]


def host_loop(n: int, body: Body, state: Any) -> Any:
    """The loop in Python over a compiled step: compiles fastest, and on CPU runs fastest for
    models whose convolution gradients XLA compiles badly inside a device loop."""
    for i in range(n):
        state = body(np.int32(i), state)
    return state


class Iterative(Attack):
    """An attack as pure methods, ``init``, ``step`` and ``result``, and one driver.

    Its state is a pytree that has ``tally``, and ``keys``: ``[B]`` keys, or None where neither the
    attack nor the model draws. Every array has the batch first, or is a scalar.

    Attributes:
      ball: the perturbations allowed; without eps where the smallest one is looked for.
      goal: what the attack wants.
      steps: number of steps (``driver_only``), or a property where it follows from other fields.
    """

    ball: Ball
    goal: Goal

    if TYPE_CHECKING:

        @property
        def steps(self) -> int:
            """Number of steps."""

    @property
    def bounds(self) -> tuple[ArrayLike, ArrayLike]:
        return self.ball.bounds

    def with_goal(self, goal: Goal) -> Any:
        return replace(self, goal=goal)

    def scaled(self, factor: ArrayLike) -> Any:
        return replace(self, ball=self.ball.scaled(factor))

    @abc.abstractmethod
    def init(self, key: Key, model: Model, x: Array, y: Array, steps: Array) -> Any:
        """The state before the first step; ``steps`` is how many there will be, int32."""

    @abc.abstractmethod
    def step(self, i: Array, state: Any, model: Model, x: Array, y: Array) -> Any:
        """The state after one more step, number i."""

    def last(self, state: Any, model: Model, x: Array, y: Array) -> Any:
        """The state after what follows the last step, such as a look at where it led."""
        del model, x, y
        return state

    def result(self, state: Any, x: Array) -> Array:
        """The images ``[B, ...]`` that the attack ends at; the state's ``x_adv`` by default."""
        del x
        x_adv: Array = state.x_adv
        return x_adv

    def record_loss(self, state: Any) -> LossFn:
        """The loss of the record."""
        del state
        return self.loss

    def late(self, state: Any) -> ArrayLike:
        """The number of the last look, for a success that only the final judgement finds."""
        forwards: Array = state.tally.forwards
        return forwards

    def live(self, state: Any) -> Array | None:
        """``[B]`` bool: the examples that another step may still change; None for all of them.

        The step of an attack that has it leaves the others as they are: outside a trace the driver
        drops them from the batch.
        """
        del state
        return None

    def fitting_size(self, rows: int, batch: int) -> int:
        """In what batch so many live examples go on; every size is another compilation."""
        return fitting_size(rows, batch)

    @property
    def most_steps(self) -> int:
        """How often the driver steps at most: ``steps``, but where these are of one of several
        searches."""
        return self.steps

    def solve(
        self, key: Key, model: Model, x: Array, y: Array, *, record: bool, loop: Loop = auto_loop
    ) -> Record:
        traced = is_traced(self, key, model, x, y)
        steps, most = np.int32(self.steps), self.most_steps
        if traced or loop not in (auto_loop, host_loop):
            out, doubts = _whole(self, key, model, x, y, record, loop)
        else:
            by_host = loop is host_loop or jax.default_backend() == "cpu"
            pieces = without_driver_fields(self)
            scalars = all(jnp.ndim(leaf) == 0 for leaf in jax.tree.leaves(self))

            def drive(
                key: Key, x: Array, y: Array, most: int = most
            ) -> tuple[Record, Array | None]:
                state = _init(pieces, key, model, x, y, steps)
                state = _drive(pieces, most, by_host, scalars, state, model, x, y)
                return _finish(pieces, state, model, x, y, record)

            if most and by_host and scalars:
                what = (jax.tree.structure((pieces, model)), record)
                out, doubts = in_parts(drive, functools.partial(drive, most=1), what, key, x, y)
            else:  # a number per example or a mask belongs to the batch as it is
                out, doubts = drive(key, x, y)
        if not traced and most and doubts is not None:
            _warn_once(model, x, doubts)
        return out


_CHECKS = 64  # how often, in a whole run, the driver looks who is still live


def _drive(
    pieces: Iterative,
    steps: int,
    by_host: bool,
    compact: bool,
    state: Any,
    model: Any,
    x: Array,
    y: Array,
) -> Any:
    """The state after all steps; stops early, and drops finished examples, where it may."""

    def advance(i: int, n: int, state: Any) -> Any:
        if by_host:
            body = lambda j, state: _step(pieces, np.int32(i + j), state, model, x, y)
            return host_loop(n, body, state)
        return _steps(pieces, np.int32(i), np.int32(i + n), state, model, x, y)

    live = _live(pieces, state)
    if live is None:
        return advance(0, steps, state)
    compact = compact and len(x.devices()) == 1
    batch = x.shape[0]
    whole, rows = state, np.arange(batch)  # rows of the whole that the state's first rows are
    i = 0
    while i < steps:
        left = np.flatnonzero(np.asarray(_live(pieces, state))[: len(rows)])
        if not len(left):
            break
        size = pieces.fitting_size(len(left), batch)
        if compact and size < x.shape[0]:
            whole = put_rows(whole, state, padded_rows(rows, x.shape[0], batch))
            rows = rows[left]
            picked = np.resize(left, size)  # padded by repeats
            state, x, y = take_rows((state, x, y), picked)
        # Often at first, when the easy examples fall.
        n = min(max(i, 1), -(-steps // _CHECKS), steps - i)
        state = advance(i, n, state)
        i += n
    return (
        put_rows(whole, state, padded_rows(rows, x.shape[0], batch)) if len(rows) < batch else state
    )


# The compiled pieces are module-level, so that every attack object shares their caches.
@jax.jit
def _init(attack: Iterative, key: Key, model: Any, x: Array, y: Array, steps: Any) -> Any:
    return attack.init(key, model, x, y, jnp.asarray(steps))


# The state is not donated: without a random start it holds the caller's own images.
@jax.jit
def _step(attack: Iterative, i: Any, state: Any, model: Any, x: Array, y: Array) -> Any:
    return attack.step(i, state, model, x, y)


@jax.jit
def _steps(
    attack: Iterative, first: Any, end: Any, state: Any, model: Any, x: Array, y: Array
) -> Any:
    body = lambda i, state: attack.step(i, state, model, x, y)
    return jax.lax.fori_loop(first, end, body, state)


@jax.jit
def _live(attack: Iterative, state: Any) -> Array | None:
    return attack.live(state)


def _ended(
    attack: Iterative, state: Any, model: Any, x: Array, y: Array, record: bool
) -> tuple[Record, Array | None]:
    """The record, and ``[B]`` whether all answers looked like probabilities."""
    state = attack.last(state, model, x, y)
    keys = fold_in_each(state.keys, FINAL) if is_stochastic(model) else None
    out = outcome(
        attack,
        model,
        x,
        y,
        attack.result(state, x),
        keys,
        record=record,
        loss=attack.record_loss(state),
        tally=state.tally,
        late=attack.late(state),
    )
    looks = state.tally.probabilities
    return out, None if looks is None else looks & (state.tally.forwards > 0)


_finish = jax.jit(_ended, static_argnums=5)


@functools.partial(jax.jit, static_argnums=(5, 6))
def _whole(
    attack: Iterative, key: Key, model: Any, x: Array, y: Array, record: bool, loop: Loop
) -> tuple[Record, Array | None]:
    body = lambda i, state: attack.step(i, state, model, x, y)
    loop = device_loop if loop is host_loop else loop
    state = attack.init(key, model, x, y, jnp.asarray(attack.steps, jnp.int32))
    return _ended(attack, loop(attack.most_steps, body, state), model, x, y, record)


_vetted: set[Any] = set()


def _warn_once(model: Any, x: Array, doubts: Array) -> None:
    """Looks at the doubts once per structure of model: each look waits for the device."""
    structure = jax.tree.structure(model)
    if structure in _vetted:
        return
    _vetted.add(structure)
    if np.asarray(doubts).all():
        warn_probabilities(x.shape[0])
