"""Frozen dataclasses as pytrees: numbers are data, structure is static, and a field says which."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar, dataclass_transform

import jax
import numpy as np
from jax.tree_util import GetAttrKey, register_pytree_with_keys

Array = jax.Array
Key = jax.Array
ArrayLike = Any  # whatever jnp.asarray accepts
T = TypeVar("T")


def static(**kwargs: Any) -> Any:
    """A dataclass field that is structure (compared, hashed, a new trace), not a pytree leaf."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


def driver_only(**kwargs: Any) -> Any:
    """A static field that the loop around an algorithm reads and the algorithm itself does not.

    ``without_driver_fields`` leaves it out: another number of steps is then the same program.
    """
    return dataclasses.field(metadata={"static": True, "driver": True}, **kwargs)


def per_example(*, image: bool = False, **kwargs: Any) -> Any:
    """A field of ``Settings`` that is one number, or ``[B]`` numbers, one per example.

    Args:
      image: it broadcasts to an image, or is ``[B, ...]``, one per example.
      **kwargs: as for ``dataclasses.field``.
    """
    return dataclasses.field(metadata={"per_example": "image" if image else "number"}, **kwargs)


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
    frozen_default=True,
    kw_only_default=True,
    field_specifiers=(static, driver_only, per_example, dataclasses.field),
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


def without_driver_fields(obj: T) -> T:
    """A copy whose ``driver_only`` fields are None, so that objects that differ there are equal."""
    out: T = object.__new__(type(obj))
    for field in dataclasses.fields(obj):  # type: ignore[arg-type]
        value = None if field.metadata.get("driver") else getattr(obj, field.name)
        if isinstance(value, Settings):
            value = without_driver_fields(value)
        object.__setattr__(out, field.name, value)
    return out


class Settings:
    """What is set by numbers, of which some may be one per example: attacks, balls and goals.

    Which ones is said on the field, by ``per_example``; settings inside settings are looked at,
    other pytrees (models, tables of weights) are not.
    """

    def check_fits(self, x: Array) -> None:
        """Raises ValueError where a number per example does not fit the batch ``[B, ...]``."""
        for inner in _inner(self):  # first: a step size may follow from the ball's eps
            inner.check_fits(x)
        for field, value in _fields_with_values(self):
            kind, shape = field.metadata.get("per_example"), np.shape(value)
            if kind == "number" and shape not in ((), (x.shape[0],)):
                raise ValueError(
                    f"{field.name}: given shape {shape}; expected a scalar or [{x.shape[0]}], "
                    "one per image"
                )
            if kind == "image" and not _broadcasts(shape, x.shape):
                raise ValueError(
                    f"{field.name}: given shape {shape}; expected one that broadcasts to the "
                    f"images, {tuple(x.shape)}"
                )

    def varies(self, n: int, rank: int) -> bool:
        """Whether a number is one per example, of ``n`` images of so many axes."""
        own = any(_is_per_example(f, v, n, rank) for f, v in _fields_with_values(self))
        return own or any(inner.varies(n, rank) for inner in _inner(self))

    def take(self: S, positions: np.ndarray, n: int, rank: int) -> S:
        """The settings of some of ``n`` examples: what is one per example, at these positions."""

        def taken(field: Any, value: Any) -> Any:
            if isinstance(value, Settings):
                return value.take(positions, n, rank)
            if _holds_settings(value):
                return tuple(inner.take(positions, n, rank) for inner in value)
            return value[positions] if _is_per_example(field, value, n, rank) else value

        changes = {f.name: taken(f, v) for f, v in _fields_with_values(self)}
        out = object.__new__(type(self))
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = changes.get(field.name, getattr(self, field.name))
            object.__setattr__(out, field.name, value)
        return out


S = TypeVar("S", bound=Settings)


def _fields_with_values(settings: Settings) -> list[tuple[Any, Any]]:
    """The fields that are set, with their values."""
    fields: Any = dataclasses.fields(settings)  # type: ignore[arg-type]
    named = [(field, getattr(settings, field.name)) for field in fields]
    return [(field, value) for field, value in named if value is not None]


def _inner(settings: Settings) -> list[Settings]:
    values = [value for _, value in _fields_with_values(settings)]
    groups = [v if _holds_settings(v) else (v,) for v in values]
    return [v for group in groups for v in group if isinstance(v, Settings)]


def _holds_settings(value: Any) -> bool:
    return isinstance(value, tuple) and any(isinstance(v, Settings) for v in value)


def _is_per_example(field: Any, value: Any, n: int, rank: int) -> bool:
    kind = field.metadata.get("per_example")
    ranks = {"number": 1, "image": rank}
    return kind is not None and np.ndim(value) == ranks[kind] and np.shape(value)[0] == n


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, to) == tuple(to)
    except ValueError:
        return False
