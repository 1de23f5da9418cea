"""What a run computes, as JSON, so that two runs can be told apart."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from advjax.runs.checkpoint import arrays_of


def describe_network(module: Any, apply: Any = None) -> dict[str, Any]:
    """``{"name", "fields"}`` for a network of the zoo, ``{"foreign": text}`` for any other."""
    if module is not None:
        from advjax.models import describe

        try:
            return describe(module)
        except ValueError:
            return {"foreign": _show(module)}
    return {"foreign": _show(apply)}


def _show(value: Any) -> str:
    text = value.__qualname__ if hasattr(value, "__qualname__") else repr(value)
    return re.sub(r" at 0x[0-9a-f]+", "", " ".join(text.split()))


def describe_settings(value: Any) -> Any:
    """A pytree of settings as nested JSON, so that two can be compared field by field."""
    if isinstance(value, nn.Module):
        return describe_network(value)
    if isinstance(value, Mapping):
        weights = all(isinstance(v, (np.ndarray, jax.Array)) for v in jax.tree.leaves(value))
        return (
            checksum(value) if weights else {str(n): describe_settings(v) for n, v in value.items()}
        )
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            f.name: describe_settings(getattr(value, f.name)) for f in dataclasses.fields(value)
        }
        return {"is": type(value).__name__, **fields}
    if isinstance(value, (list, tuple)):
        return [describe_settings(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (np.ndarray, np.generic, jax.Array)) and np.size(value) <= 16:
        return np.asarray(value).tolist()
    if isinstance(value, (np.ndarray, jax.Array)):
        return checksum(value)
    return _show(value)


def checksum(tree: Any) -> str:
    """Of a tree's arrays and their names."""
    total = 0
    for name, array in sorted(arrays_of(tree).items()):
        total = zlib.crc32(array.tobytes(), zlib.crc32(name.encode(), total))
    return f"crc32:{total:08x}"


def describe_data(data: Any) -> dict[str, Any] | None:
    """A data set's name, size and checksum."""
    if data is None:
        return None
    crc = 0
    for array in (data.x, data.y):
        crc = zlib.crc32(array.tobytes(), crc)
    return {"name": data.name, "split": data.split, "n": len(data), "crc32": f"{crc:08x}"}


def describe_optimizer(optimizer: optax.GradientTransformation, params: Any) -> str:
    """A hash of the update's program, which has the learning rates and schedules in it."""

    def update(grads: Any, params: Any) -> Any:
        updates, state = optimizer.update(grads, optimizer.init(params), params)
        return optax.apply_updates(params, updates), state

    text = program_text(update, params, params)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()[:16]


def program_text(function: Callable[..., Any], *args: Any) -> str:
    """What a function computes as text, with the numbers of the arrays that it closes over."""
    program = jax.make_jaxpr(function)(*args)
    text = re.sub(r" at 0x[0-9a-f]+", "", str(program))
    return "\n".join([text, *map(repr, _constants(program))])


def _constants(program: ClosedJaxpr | Jaxpr) -> Iterator[tuple[Any, ...]]:
    """Shape, type and hash of the arrays in a program, of which its text has the names alone."""
    arrays = []
    if isinstance(program, ClosedJaxpr):
        arrays, program = list(program.consts), program.jaxpr
    for equation in program.eqns:
        arrays += [v.val for v in equation.invars if isinstance(v, Literal) and np.ndim(v.val)]
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
            if _is_program(inner):
                yield from _constants(inner)
    for array in arrays:
        plain = np.asarray(jax.random.key_data(array) if _is_key(array) else array)
        yield plain.shape, str(plain.dtype), hashlib.sha256(plain.tobytes()).hexdigest()


def _is_program(value: Any) -> bool:
    return isinstance(value, (ClosedJaxpr, Jaxpr))


def _is_key(array: Any) -> bool:
    return isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
