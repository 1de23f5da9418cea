"""Taking some examples out of a batch and putting them back."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advjax.pytrees import Array, ArrayLike

_SMALLEST = 8  # examples: fewer cost as much time and another compilation


def fitting_size(rows: int, batch: int) -> int:
    """The smallest of the batch's halves that holds so many rows: few sizes, few compilations."""
    size = batch
    while size // 2 >= max(rows, _SMALLEST):
        size //= 2
    return size


@jax.jit
def take_rows(tree: Any, rows: Any) -> Any:
    """Every array's given rows; scalars as they are."""
    return jax.tree.map(lambda leaf: leaf[rows] if leaf.ndim else leaf, tree)


@jax.jit
def put_rows(whole: Any, part: Any, rows: Any) -> Any:
    """The whole with the rows of a part written back; scalars are the part's."""
    put = lambda old, new: old.at[rows].set(new, mode="drop") if old.ndim else new
    return jax.tree.map(put, whole, part)


def close_size(rows: int, batch: int, parts: int = 16, smallest: int = _SMALLEST) -> int:
    """The smallest multiple of a sixteenth of the batch that holds so many rows: for long runs,
    where a compilation costs less than running a tenth more examples."""
    unit = max(-(-batch // parts), smallest)
    return min(-(-rows // unit) * unit, batch)


def padded_rows(rows: np.ndarray, size: int, batch: int) -> np.ndarray:
    """Rows for ``put_rows``, filled up to ``size`` with one outside the batch, which is dropped."""
    return np.concatenate([rows, np.full(size - len(rows), batch)]).astype(np.int32)


def widen(value: Array, like: Array) -> Array:
    """``[B]`` values, shaped to broadcast over ``like [B, ...]``."""
    return value.reshape(value.shape + (1,) * (like.ndim - 1))


def spread(value: ArrayLike, like: Array) -> Array:
    """A scalar or ``[B]`` value, of the type of ``like`` and shaped to broadcast over it."""
    value = jnp.asarray(value, like.dtype)
    return widen(value, like) if value.ndim else value


def row(x: Array) -> Array:
    """``[B]``: one feature of each example, for arrays like it: its sharding is the batch's."""
    return x[(slice(None),) + (0,) * (x.ndim - 1)]


def vanished(grad: Array) -> Array:
    """``[B]`` bool: the examples whose gradient ``[B, ...]`` is zero."""
    return jnp.all(grad == 0, axis=tuple(range(1, grad.ndim)))


def only(live: Array, new: Any, old: Any) -> Any:
    """The new state of the live examples, ``[B]`` bool, and the old one of the others.

    Scalars, and what is the same object in both, are the new state's.
    """

    def pick(new: Array, old: Array) -> Array:
        return new if new is old or not jnp.ndim(new) else jnp.where(widen(live, new), new, old)

    return jax.tree.map(pick, new, old)
