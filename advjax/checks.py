"""Checks at the public entries: one line that says what was given and what is expected."""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advjax.answers import example_keys, is_stochastic
from advjax.pytrees import Array, ArrayLike
from advjax.shapes import aligned

# Un-normalising or storing images as float16 leaves them a few ulp outside the box.
_TOLERANCE = 1e-5


def is_traced(*values: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


@jax.jit
def _extremes(x: Array, y: Array, lower: ArrayLike, upper: ArrayLike) -> Array:
    below, above = jnp.max(aligned(lower, x) - x), jnp.max(x - aligned(upper, x))
    found = [below, above, jnp.min(x), jnp.max(x), jnp.min(y), jnp.max(y)]
    return jnp.stack([jnp.asarray(value, jnp.float32) for value in found])


@functools.lru_cache(maxsize=256)
def _logits_shape(treedef: Any, leaves: tuple[Any, ...], x: Any) -> tuple[int, ...]:
    def call(leaves: Any, x: Array) -> Array:
        model = jax.tree.unflatten(treedef, leaves)
        if is_stochastic(model):
            return model(x, key=example_keys(jax.random.key(0), x.shape[0]))
        return model(x)

    out = jax.eval_shape(call, leaves, x)
    if not isinstance(out, jax.ShapeDtypeStruct):
        raise TypeError(f"the model returned {type(out).__name__}; expected a logits array [B, K]")
    return out.shape


def classes_of(model: Any, x: Array) -> int:
    """How many classes the model tells apart; traces it once per structure and shape.

    Raises:
      ValueError: if the model does not return ``[B, K]`` logits with K of at least 2.
    """
    leaves, treedef = jax.tree.flatten(model)
    shapes = tuple(jax.ShapeDtypeStruct(np.shape(v), jax.dtypes.result_type(v)) for v in leaves)
    shape = _logits_shape(treedef, shapes, jax.ShapeDtypeStruct(x.shape, x.dtype))
    if len(shape) != 2 or shape[0] != x.shape[0] or shape[1] < 2:
        raise ValueError(
            f"the model returned shape {shape} for {x.shape[0]} images; "
            "expected logits [B, K] with K >= 2"
        )
    return shape[1]


def check_images(x: Any) -> Array:
    """Float images ``[B, ...]`` as a float32 array; raises on another dtype or rank."""
    shape, dtype = np.shape(x), np.dtype(getattr(x, "dtype", None) or np.asarray(x).dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        hint = " (divide by 255)" if dtype == np.uint8 else ""
        raise TypeError(f"images: given {dtype}; expected floats in the box{hint}")
    if len(shape) < 2 or math.prod(shape) == 0:
        raise ValueError(f"images: given shape {shape}; expected [B, ...] with B >= 1")
    return jnp.asarray(x, jnp.float32)


def check_labels(y: Any, batch: int) -> Array:
    """Integer labels ``[B]`` as an int32 array; raises on another dtype or shape."""
    shape, dtype = np.shape(y), np.dtype(getattr(y, "dtype", None) or np.asarray(y).dtype)
    if dtype.kind not in "iu":
        raise TypeError(f"labels: given {dtype}; expected integers")
    if shape != (batch,):
        raise ValueError(f"labels: given shape {shape}; expected [{batch}], one per image")
    return jnp.asarray(y, jnp.int32)


def check_batch(
    model: Any, x: Any, y: Any, *, lower: ArrayLike = 0.0, upper: ArrayLike = 1.0
) -> tuple[Array, Array]:
    """Images and labels as arrays, after checking all that can be known before compiling.

    Values are looked at only outside a trace; that costs one small device-to-host copy.

    Raises:
      TypeError: on a wrong dtype.
      ValueError: on a wrong rank or shape, images outside the box or NaN, labels out of range.
    """
    x = check_images(x)
    y = check_labels(y, x.shape[0])
    if is_traced(model, x, y, lower, upper):
        return x, y
    classes = classes_of(model, x)
    below, above, low, high, first, last = np.asarray(_extremes(x, y, lower, upper)).tolist()
    if not max(below, above) <= _TOLERANCE:  # so that NaN fails too
        raise ValueError(
            f"images: given values from {low:.6g} to {high:.6g}; "
            f"expected {np.asarray(lower).tolist()} to {np.asarray(upper).tolist()}"
        )
    if first < 0 or last >= classes:
        raise ValueError(
            f"labels: given {first:.0f} to {last:.0f}; "
            f"expected 0 to {classes - 1}, the model's classes"
        )
    return x, y


def looks_like_probabilities(logits: Array) -> Array:
    """Per row, bool: it lies in [0, 1] and sums to one, as a softmax's output does."""
    sums = jnp.sum(logits, axis=-1)
    return jnp.all((logits >= 0) & (logits <= 1), axis=-1) & (jnp.abs(sums - 1) < 1e-3)


def warn_probabilities(batch: int) -> None:
    warnings.warn(
        f"the model returns probabilities, not logits: all {batch} rows lie in [0, 1] and sum "
        "to 1. Attacks through a softmax are weak; return the values before it",
        stacklevel=4,
    )
