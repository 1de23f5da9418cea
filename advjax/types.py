"""The contracts that every part of advjax agrees on.

Conventions: images are ``[B, H, W, C]`` float32 in ``[0, 1]`` (any rank of two or more works),
labels int32 ``[B]``, logits ``[B, K]``. Losses, distances and flags are per example, ``[B]``.
Keys are ``jax.random.key``, come first and are consumed: one key, or ``[B]`` keys, one per example.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import jax

from advjax.answers import as_model, fold_in_each
from advjax.checks import check_batch
from advjax.losses import margin
from advjax.pytrees import Array, ArrayLike, Key, Settings, pytree

if TYPE_CHECKING:
    from advjax.balls import Ball

LossFn = Callable[[Array, Array], Array]
"""``(logits [B, K], y [B]) -> [B]``."""

Loop = Callable[[int, Callable[[Any, Any], Any], Any], Any]
"""``(n, body, state) -> state`` after ``state = body(i, state)`` for i from 0 to n - 1."""

Stage = tuple[int | None, "Attack"]


@runtime_checkable
class Model(Protocol):
    """A callable pytree: its arrays are data, so a new checkpoint is never a new trace.

    ``model(x)`` takes ``[B, ...]`` images and returns ``[B, K]`` float logits. A randomised model
    sets ``stochastic = True`` and is called ``model(x, key=keys)`` with ``[B]`` keys; one that
    answers in S draws returns ``[S, B, K]``. A model that calls back to the host sets
    ``on_host = True``. ``advjax.answers`` alone reads these two, and asks.
    """

    def __call__(self, x: Array, /) -> Array: ...


class Apply(Protocol):
    """A network as training sees it: hashable, equal for equal networks.

    Returns ``logits [B, K]`` and the new ``stats`` (BatchNorm statistics and every other variable
    that is no parameter; returned unchanged when ``train`` is false).
    """

    def __call__(
        self, params: Any, stats: Any, x: Array, *, key: Key | None = None, train: bool = False
    ) -> tuple[Array, Any]: ...


ATTACK, DROPOUT, NOISE = 0, 1, 2  # tags that keep the draws of one example apart


@dataclasses.dataclass(frozen=True)
class Net:
    """The network of one training step, its variables and the keys of the step, bound once.

    Attributes:
      key: ``[B]`` keys, one per example of the batch.
      apply: the network.
      params: its parameters.
      stats: its other variables.
    """

    key: Key
    apply: Apply
    params: Any
    stats: Any

    def __call__(self, x: Array) -> tuple[Array, Any]:
        """Logits ``[B, K]`` and new stats of a pass in training mode."""
        keys = fold_in_each(self.key, DROPOUT)
        return self.apply(self.params, self.stats, x, key=keys, train=True)

    @property
    def axis(self) -> str | None:
        """The mapped axis that the batch is split over, where a mean over it is not the step's."""
        return axis_of(self.apply)


def axis_of(apply: Apply) -> str | None:
    """The mapped axis that a network's batch is split over, if it says one (``axis_name``)."""
    return getattr(apply, "axis_name", None)


class Objective:
    """A training loss that is also a pytree: beta and the inner eps sweep and vmap.

    Here is every hook that a training or an objective around another one asks for; ``loss`` is the
    only one that has to be written. ``advjax.training.plain.as_objective`` makes one of any other
    callable pytree, with the hooks that it has.

    A loss may have two phases: ``craft`` finds the worst inputs, ``loss`` is of what was found.
    ``AWP`` looks at the loss of the same crafted inputs at two places of the parameters.

    Attributes:
      replays: m, how many steps in a row get the same minibatch.
    """

    replays = 1

    def __call__(
        self, key: Key, apply: Apply, params: Any, stats: Any, batch: Mapping[str, Array]
    ) -> tuple[Array, Aux]:
        """The mean loss over the batch, and an ``Aux``.

        Args:
          key: ``[B]`` keys, one per example.
          apply: the network.
          params: its parameters.
          stats: its other variables.
          batch: ``x`` (``[B, ...]`` images), ``y`` (``[B]``), whatever else the training has
            (``unlabelled``, ``neighbours`` and ``weights``), and ``carry`` for one that carries.
        """
        net = Net(key, apply, params, stats)
        return self.loss(net, self.craft(net, batch))

    def at(self, step: Array) -> Objective:
        """The objective of one step (a traced int32 scalar, from 0), its schedules evaluated."""
        del step
        return self

    def craft(self, net: Net, batch: Mapping[str, Array]) -> dict[str, Array]:
        """The batch with what the loss needs added to it (``x_adv``); no gradient flows."""
        del net
        return dict(batch)

    def loss(self, net: Net, batch: Mapping[str, Array]) -> tuple[Array, Aux]:
        """The mean loss of a crafted batch; the net has the keys that crafting had."""
        raise NotImplementedError(f"{type(self).__name__}: expected a method loss(net, batch)")

    def threat(self) -> Any:
        """The ball whose perturbations are trained against; None without one."""
        return None

    @property
    def carries(self) -> bool:
        """Whether a state goes from step to step: whether ``start`` is written."""
        return type(self).start is not Objective.start

    def start(self, shape: tuple[int, ...]) -> Any:
        """The carry before the first step, leaves ``[B, ...]`` for images of shape ``[B, ...]``."""
        del shape
        return None

    def advance(self, carry: Any, gradient: Any) -> Any:
        """The next carry, by the gradient (to the carry) of the loss summed over the examples."""
        del gradient
        return carry


@pytree
class Aux:
    """What an objective returns beside the loss.

    Attributes:
      stats: the network's new non-parameter variables, to be kept for the next step.
      metrics: name to scalar, averaged over the batch (and over devices by the caller).
    """

    stats: Any
    metrics: Any


class Goal(Settings, abc.ABC):
    """What an attack wants of a model's output, per example; a frozen pytree.

    ``advjax.goals`` has those of classifiers. An output that is not finite reaches no goal; whoever
    asks the model sees to that, a goal need not.
    """

    targeted: ClassVar[bool] = False
    """Whether ``y`` says what is to be reached, instead of what is true."""

    @abc.abstractmethod
    def loss(self, surrogate: LossFn, outputs: Array, y: Array) -> Array:
        """``[B]``, larger is nearer to the goal.

        Args:
          surrogate: the differentiable loss of the attack, ``(outputs, y) -> [B]``, which grows
            as the outputs leave ``y``.
          outputs: one draw of the model's answer, ``[B, K]`` logits of a classifier.
          y: ``[B]``.
        """

    @abc.abstractmethod
    def reached(self, outputs: Array, y: Array) -> Array:
        """``[B]`` bool; arguments as for ``loss``."""


@pytree
class Record:
    """What an attack did, per example.

    Attributes:
      x_adv: ``[B, ...]`` adversarial images inside ball and box.
      success: ``[B]`` bool, judged by a forward pass on ``x_adv``.
      invalid: ``[B]`` bool, the model's answer on ``x_adv`` is not finite: neither a success nor
        a failure.
      loss: ``[B]`` the attack's loss at ``x_adv``; larger is more adversarial.
      distance: ``[B]`` the ball's norm of ``x_adv - x``.
      forwards: ``[B]`` int32, forward passes spent on the example.
      backwards: ``[B]`` int32, backward passes spent on the example.
      first_success: ``[B]`` int32, the first iteration whose image was adversarial, the first query
        of an attack that counts queries; -1 if none was.
      zero_gradient: ``[B]`` int32, iterations at which no gradient reached the image.
    """

    x_adv: Array
    success: Array
    invalid: Array
    loss: Array
    distance: Array
    forwards: Array
    backwards: Array
    first_success: Array
    zero_gradient: Array


def device_loop(n: int, body: Callable[[Any, Any], Any], state: Any) -> Any:
    """``lax.fori_loop``: one program on the device, nothing goes back to the host."""
    return jax.lax.fori_loop(0, n, body, state)


def auto_loop(n: int, body: Callable[[Any, Any], Any], state: Any) -> Any:
    """``host_loop`` on a CPU outside a trace, ``device_loop`` elsewhere."""
    return device_loop(n, body, state)


class Attack(Settings, abc.ABC):
    """A way to make images that a model gets wrong; a frozen pytree.

    Numbers are leaves: another eps or another checkpoint is never another compilation, and
    ``vmap`` over them is a sweep. Which of them may be one per example is said by ``per_example``.
    To change an attack, wrap it.
    """

    def __call__(
        self, key: Key, model: Model, x: ArrayLike, y: ArrayLike, *, loop: Loop = auto_loop
    ) -> Array:
        """Adversarial images ``[B, ...]``.

        Args:
          key: one key (example i then draws from ``fold_in(key, i)``) or ``[B]`` keys.
          model: ``model(x) -> logits [B, K]``: a callable pytree or a function.
          x: ``[B, ...]`` float images inside the box.
          y: ``[B]`` integer labels; the targets where the attack's goal is targeted.
          loop: runs the attack's steps; ``auto_loop``, ``host_loop``, ``device_loop`` or your own.

        Raises:
          TypeError: on a wrong dtype, or a model that cannot be called.
          ValueError: on a wrong shape, images outside the box, labels out of range, or an eps that
            fits neither one example nor all of them.
        """
        return self._checked(key, model, x, y, record=False, loop=loop).x_adv

    def run(
        self, key: Key, model: Model, x: ArrayLike, y: ArrayLike, *, loop: Loop = auto_loop
    ) -> Record:
        """The same attack with the whole record of what happened; arguments as for a call."""
        return self._checked(key, model, x, y, record=True, loop=loop)

    def _checked(
        self, key: Key, model: Model, x: Any, y: Any, *, record: bool, loop: Loop
    ) -> Record:
        model = as_model(model)
        lower, upper = self.bounds
        x, y = check_batch(model, x, y, lower=lower, upper=upper)
        self.check_fits(x)
        return self.solve(key, model, x, y, record=record, loop=loop)

    @abc.abstractmethod
    def solve(
        self,
        key: Key,
        model: Model,
        x: Array,
        y: Array,
        *,
        record: bool,
        loop: Loop = auto_loop,
    ) -> Record:
        """The attack itself, on checked arguments; ``record=False`` promises ``x_adv`` alone."""

    if TYPE_CHECKING:  # fields, class attributes, or properties where they follow from others

        @property
        def ball(self) -> Ball | None:
            """The perturbations that it stays in; None where no norm limits it."""

        @property
        def goal(self) -> Goal:
            """What it wants of the model, as the caller sees it: whether ``y`` are targets."""

        @property
        def loss(self) -> LossFn:
            """The loss of its record; ``margin`` where the attack has no other."""

    else:
        loss = property(lambda self: margin)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        annotated = [base.__dict__.get("__annotations__", {}) for base in cls.__mro__]
        declared = {name for names in annotated for name in names}
        missing = [n for n in ("ball", "goal") if n not in declared and not hasattr(cls, n)]
        if missing:
            raise TypeError(
                f"{cls.__name__}: an attack without {' and '.join(missing)}; expected a field, a "
                "class attribute or a property (ball = None where no norm limits it)"
            )

    @property
    @abc.abstractmethod
    def bounds(self) -> tuple[ArrayLike, ArrayLike]:
        """The image box it stays in."""

    @abc.abstractmethod
    def with_goal(self, goal: Goal) -> Attack:
        """The attack with another goal."""

    @abc.abstractmethod
    def scaled(self, factor: ArrayLike) -> Attack:
        """The attack with its budget (and its step) multiplied."""

    def parts(self) -> tuple[Attack, ...]:
        """The attacks directly inside this one."""
        return ()

    def stages(self) -> tuple[Stage, ...]:
        """``(tag, attack)`` parts whose worst case per example is this attack.

        A part with a tag draws from ``fold_in_each(keys, tag)``. An evaluation runs the parts one
        by one and drops the examples that are already fooled.
        """
        return ((None, self),)

    def walk(self) -> tuple[Attack, ...]:
        """This attack and all attacks inside it, outermost first."""
        return (self, *(inner for part in self.parts() for inner in part.walk()))
