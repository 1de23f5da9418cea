"""What every attack is, and the one driver of those that iterate."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from advjax.attacks._checks import check_per_example
from advjax.attacks._cores import in_parts
from advjax.attacks._rows import fitting_size, padded_rows, put_rows, take_rows
from advjax.balls import Ball
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
    replace,
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
    loss: LossFn, targeted: bool, model: Any, x: Array, y: Array, keys: Any
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


def outcome(
    attack: Any,
    model: Any,
    x: Array,
    y: Array,
    x_adv: Array,
    keys: Key | None,
    *,
    record: bool,
    loss: LossFn,
    forwards: ArrayLike,
    backwards: ArrayLike,
    first_success: ArrayLike = -1,
    last: ArrayLike | None = None,
    zero_gradient: ArrayLike = 0,
) -> Record:
    """The record of an attack that ends at ``x_adv``, after one more, judging, forward pass.

    Args:
      attack: has ``ball`` and ``targeted``.
      keys: ``[B]`` keys for a randomised model, not used before; may be None for another.
      record: whether anything but ``x_adv`` is wanted.
      loss: what the record's loss is.
      forwards: spent so far, scalar or ``[B]``; likewise ``backwards`` and ``zero_gradient``.
      first_success: scalar or ``[B]``.
      last: the iteration that an example gets which the final judgement alone finds to succeed;
        its ``forwards``, where an iteration is one, by default.
    """
    # A start outside the box may be the best iterate of an attack, or the only one.
    x_adv = jnp.clip(x_adv, *attack.ball.bounds)
    if not record:
        unknown: Any = None
        return Record(x_adv=x_adv, **dict.fromkeys(_COSTLY, unknown))
    _, judged = judge(loss, attack.targeted, model, x_adv, y, keys)
    count = lambda n: jnp.broadcast_to(jnp.asarray(n, jnp.int32), judged.success.shape)
    late = judged.success & (count(first_success) < 0)
    return Record(
        x_adv=x_adv,
        success=judged.success,
        loss=judged.loss,
        distance=attack.ball.size(x_adv - x),
        forwards=count(forwards) + 1,
        backwards=count(backwards),
        first_success=jnp.where(
            late, count(forwards if last is None else last), count(first_success)
        ),
        zero_gradient=count(zero_gradient),
    )


_COSTLY = tuple(name for name in Record.__dataclass_fields__ if name != "x_adv")


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
    """An attack as three pure methods, ``init``, ``step`` and ``finish``, and one driver.

    Attributes:
      ball: the perturbations allowed; without eps where the smallest one is looked for.
      targeted: labels are targets and success is reaching them.
      loop: who iterates; ``auto_loop``, ``host_loop``, ``device_loop`` or your own.
    """

    ball: Ball
    targeted: bool
    loop: Loop

    if TYPE_CHECKING:  # a static field, or a property where it follows from something else

        @property
        def steps(self) -> int:
            """Number of steps."""

    @property
    def bounds(self) -> tuple[ArrayLike, ArrayLike]:
        return self.ball.bounds

    def check_fits(self, x: Array) -> None:
        check_per_example(x, eps=self.ball.eps)

    def aimed(self) -> Any:
        return replace(self, targeted=True)

    def scaled(self, factor: ArrayLike) -> Any:
        return replace(self, ball=self.ball.scaled(factor))

    @abc.abstractmethod
    def init(self, key: Key, model: Any, x: Array, y: Array) -> Any:
        """The state before the first step."""

    @abc.abstractmethod
    def step(self, i: Array, state: Any, model: Any, x: Array, y: Array) -> Any:
        """The state after one more step."""

    @abc.abstractmethod
    def finish(self, state: Any, model: Any, x: Array, y: Array, *, record: bool) -> Record:
        """What the attack returns."""

    def pieces(self) -> Any:
        """The attack as ``init``, ``step`` and ``finish`` see it when the host drives them.

        Whatever only the loop needs may be left out, so that, say, another number of steps uses
        the same compiled pieces.
        """
        return replace(self, loop=auto_loop)

    def doubts(self, state: Any) -> Array | None:
        """``[B]`` bool: the model's outputs looked like probabilities; None where not looked."""
        del state
        return None

    def live(self, state: Any) -> Array | None:
        """``[B]`` bool: the examples that another step may still change; None for all of them.

        An attack that has it keeps every array of its state batch-first, or a scalar, and its
        step leaves the others as they are: outside a trace the driver drops them from the batch.
        """
        del state
        return None

    def fitting_size(self, rows: int, batch: int) -> int:
        """In what batch so many live examples go on; every size is another compilation."""
        return fitting_size(rows, batch)

    def solve(self, key: Key, model: Any, x: Array, y: Array, *, record: bool) -> Record:
        traced = is_traced(self, key, model, x, y)
        own_loop = self.loop not in (auto_loop, host_loop)
        if traced or own_loop:
            out, doubts = _whole(self, key, model, x, y, record)
        else:
            by_host = self.loop is host_loop or jax.default_backend() == "cpu"
            pieces = self.pieces()
            scalars = all(jnp.ndim(leaf) == 0 for leaf in jax.tree.leaves(self))

            def drive(
                key: Key, x: Array, y: Array, steps: int = self.steps
            ) -> tuple[Record, Array | None]:
                state = _init(pieces, key, model, x, y)
                state = _drive(pieces, steps, by_host, scalars, state, model, x, y)
                return _finish(pieces, state, model, x, y, record)

            if self.steps and by_host and scalars:
                what = (jax.tree.structure((pieces, model)), record)
                out, doubts = in_parts(drive, functools.partial(drive, steps=1), what, key, x, y)
            else:  # a number per example or a mask belongs to the batch as it is
                out, doubts = drive(key, x, y)
        if not traced and self.steps and doubts is not None:
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
def _init(attack: Iterative, key: Key, model: Any, x: Array, y: Array) -> Any:
    return attack.init(key, model, x, y)


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


@functools.partial(jax.jit, static_argnums=5)
def _finish(
    attack: Iterative, state: Any, model: Any, x: Array, y: Array, record: bool
) -> tuple[Record, Array | None]:
    return attack.finish(state, model, x, y, record=record), attack.doubts(state)


@functools.partial(jax.jit, static_argnums=5)
def _whole(
    attack: Iterative, key: Key, model: Any, x: Array, y: Array, record: bool
) -> tuple[Record, Array | None]:
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
