"""The contracts that every part of advjax agrees on.

Conventions: images are ``[B, H, W, C]`` float32 in ``[0, 1]`` (any rank of two or more works),
labels int32 ``[B]``, logits ``[B, K]``. Losses, distances and flags are per example, ``[B]``.
Keys are ``jax.random.key``, come first and are consumed: one key, or ``[B]`` keys, one per example.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypeVar, dataclass_transform, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import GetAttrKey, register_pytree_with_keys

Array = jax.Array
Key = jax.Array
ArrayLike = Any  # whatever jnp.asarray takes
T = TypeVar("T")


@runtime_checkable
class Model(Protocol):
    """A callable pytree: its arrays are data, so a new checkpoint is never a new trace.

    ``model(x)`` takes ``[B, ...]`` images and returns ``[B, K]`` float logits. A randomised model
    sets ``stochastic = True`` and is called ``model(x, key=keys)`` with ``[B]`` keys.
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


def static(**kwargs: Any) -> Any:
    """A dataclass field that is structure (compared, hashed, a new trace), not a pytree leaf."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


def _as_leaf(value: Any) -> Any:
    """Numbers as float32 arrays: ``1``, ``1.0``, ``np.float32(1)`` are one trace, not three."""
    if isinstance(value, (bool, np.bool_)):
        return value
    if isinstance(value, (int, float, np.number)):
        return np.asarray(value, np.float32)
    if isinstance(value, (list, tuple)) and value:
        numbers = all(isinstance(v, (int, float, np.number)) for v in value)
        return np.asarray(value, np.float32) if numbers else value
    if isinstance(value, np.ndarray) and value.dtype.kind in "iuf":
        return value.astype(np.float32)
    return value


def _show(value: Any) -> str:
    if isinstance(value, np.ndarray | np.generic) and value.ndim == 0:
        return f"{value.item():.6g}"
    if callable(value) and hasattr(value, "__name__"):
        return value.__name__
    return repr(value)


@dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(static, dataclasses.field)
)
def pytree(cls: type[T]) -> type[T]:
    """Makes a class a frozen, keyword-only dataclass and a pytree.

    Fields are leaves unless made with ``static``; numbers among the leaves are float32 arrays.
    ``None`` is structure. A field made with ``dataclasses.field(kw_only=False)`` is positional.
    A method ``check`` runs after construction, never when JAX rebuilds the object. Objects compare
    by identity: comparing arrays has no single truth value.
    """
    cls = dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    leaves = tuple(f.name for f in fields if not f.metadata.get("static"))
    statics = tuple(f.name for f in fields if f.metadata.get("static"))
    generated_init = cls.__init__

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        generated_init(self, *args, **kwargs)
        for name in leaves:
            object.__setattr__(self, name, _as_leaf(getattr(self, name)))
        check = getattr(self, "check", None)
        if check is not None:
            check()

    def __repr__(self: Any) -> str:
        shown = ", ".join(f"{f.name}={_show(getattr(self, f.name))}" for f in fields)
        return f"{type(self).__name__}({shown})"

    def flatten(self: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return tuple(getattr(self, n) for n in leaves), tuple(getattr(self, n) for n in statics)

    def flatten_with_keys(self: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return tuple((GetAttrKey(n), getattr(self, n)) for n in leaves), tuple(
            getattr(self, n) for n in statics
        )

    def unflatten(aux: tuple[Any, ...], children: Iterable[Any]) -> Any:
        # Not through __init__: JAX unflattens with tracers and with placeholder objects.
        self = object.__new__(cls)
        for name, value in zip(leaves, children, strict=True):
            object.__setattr__(self, name, value)
        for name, value in zip(statics, aux, strict=True):
            object.__setattr__(self, name, value)
        return self

    setattr(cls, "__init__", __init__)  # noqa: B010
    setattr(cls, "__repr__", __repr__)  # noqa: B010
    register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def replace(obj: T, **changes: Any) -> T:
    """A copy of a frozen pytree with some fields changed."""
    return dataclasses.replace(obj, **changes)  # type: ignore[type-var]


@pytree
class Aux:
    """What an objective returns beside the loss.

    Attributes:
      stats: the network's new non-parameter variables, to be kept for the next step.
      metrics: name to scalar, averaged over the batch (and over devices by the caller).
    """

    stats: Any
    metrics: Any


@pytree
class Record:
    """What an attack did, per example.

    Attributes:
      x_adv: ``[B, ...]`` adversarial images inside ball and box.
      success: ``[B]`` bool, judged by a forward pass on ``x_adv``.
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
    loss: Array
    distance: Array
    forwards: Array
    backwards: Array
    first_success: Array
    zero_gradient: Array


@pytree
class _Function:
    """A plain function as a model; equal functions are one trace."""

    function: Callable[[Array], Array] = static()

    def __call__(self, x: Array) -> Array:
        return self.function(x)


@pytree
class _Mixed:
    """A callable pytree some of whose leaves are no arrays (activation functions, flags)."""

    arrays: tuple[Any, ...]
    others: tuple[Any, ...] = static()
    treedef: Any = static()

    @property
    def whole(self) -> Any:
        leaves = [b if a is None else a for a, b in zip(self.arrays, self.others, strict=True)]
        return jax.tree.unflatten(self.treedef, leaves)

    @property
    def stochastic(self) -> bool:
        return is_stochastic(self.whole)

    @property
    def on_host(self) -> bool:
        return runs_on_host(self.whole)

    def __call__(self, x: Array, **options: Any) -> Array:
        logits: Array = self.whole(x, **options)
        return logits


def as_model(model: Any) -> Any:
    """Any callable as a pytree that crosses ``jit`` as data.

    Takes a callable pytree (``Classifier``, ``nnx.Module``, Equinox module, ``Partial``) or a plain
    function. A function that closes over weights works, but its weights are constants of the
    compiled program: another checkpoint is another compilation.

    Raises:
      TypeError: if ``model`` is not callable.
    """
    if not callable(model):
        raise TypeError(f"a model is a callable, model(x) -> logits; given {type(model).__name__}")
    leaves, treedef = jax.tree.flatten(model)
    if len(leaves) == 1 and leaves[0] is model:
        return _Function(function=model)
    is_array = [isinstance(leaf, (jax.Array, np.ndarray, np.number)) for leaf in leaves]
    if all(is_array):
        return model
    return _Mixed(
        arrays=tuple(leaf if a else None for leaf, a in zip(leaves, is_array, strict=True)),
        others=tuple(None if a else leaf for leaf, a in zip(leaves, is_array, strict=True)),
        treedef=treedef,
    )


def is_stochastic(model: Any) -> bool:
    """Whether the model wants ``key=``: it says so with ``stochastic = True``."""
    return bool(getattr(model, "stochastic", False))


def runs_on_host(tree: Any) -> bool:
    """Whether anything in a pytree (a model, an attack) calls back: it says ``on_host = True``."""
    calls = lambda node: getattr(node, "on_host", False) is True
    return any(map(calls, jax.tree.leaves(tree, is_leaf=calls)))


def example_keys(key: Key, ids: int | Array) -> Key:
    """``[B]`` keys: example i's is ``fold_in(key, id_i)``. ``[B]`` keys pass through.

    Args:
      key: one key, or ``[B]`` keys.
      ids: how many examples, or their ``[B]`` ids.
    """
    ids = jnp.arange(ids) if isinstance(ids, int) else jnp.asarray(ids)
    if jnp.ndim(key) == 0:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, ids)
    if key.shape != ids.shape:
        raise ValueError(f"given keys of shape {key.shape}; one key or {ids.shape} keys are taken")
    return key


def fold_in_each(keys: Key, data: int | Array) -> Key:
    """``[B]`` keys, each folded with the same number."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, data)
