"""What a run computes, as JSON, so that two runs can be told apart."""

from __future__ import annotations

import contextlib
import hashlib
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from advjax import spec
from advjax.training.optimizers import Optimizer


def describe_network(module: Any, apply: Any = None) -> dict[str, Any]:
    """``{"name", "fields"}`` for a network of the zoo, ``{"foreign": text}`` for any other."""
    if module is not None:
        from advjax.models import describe

        try:
            return describe(module)
        except ValueError:
            return {"foreign": spec.text_of(module)}
    return {"foreign": spec.text_of(apply)}


def describe_data(data: Any) -> dict[str, Any] | None:
    """A data set's name, size and checksum."""
    if data is None:
        return None
    crc = 0
    for array in (data.x, data.y):
        crc = zlib.crc32(array.tobytes(), crc)
    return {"name": data.name, "split": data.split, "n": len(data), "crc32": f"{crc:08x}"}


def describe_optimizer(optimizer: optax.GradientTransformation, params: Any) -> Any:
    """An ``Optimizer``'s spec; any other by its program, which has the numbers in it, as a hash."""
    if isinstance(optimizer, Optimizer):
        with contextlib.suppress(spec.SpecError):  # it holds something without a name
            return spec.describe(optimizer, strict=True)

    def update(grads: Any, params: Any) -> Any:
        updates, state = optimizer.update(grads, optimizer.init(params), params)
        return optax.apply_updates(params, updates), state

    digest = hashlib.sha256(program_text(update, params, params).encode()).hexdigest()[:16]
    return {"is": "foreign", "value": f"an optax transformation of program sha256:{digest}"}


def program_text(function: Callable[..., Any], *args: Any) -> str:
    """What a function computes as text, with the numbers of the arrays that it closes over."""
    with jax.numpy_dtype_promotion("standard"):  # optax mixes counts and floats
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
