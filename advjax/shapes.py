"""Arrays that have one entry per example beside arrays that have an image per example."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advjax.pytrees import Array, ArrayLike


def over_features(x: Array) -> tuple[int, ...]:
    """All axes but that of the examples."""
    return tuple(range(1, x.ndim))


def aligned(value: ArrayLike, like: Array) -> Array:
    """What broadcasts to an image or to a batch of them, to the rank of ``like [B, ...]``."""
    value = value if isinstance(value, jax.Array) else np.asarray(value)
    return value.reshape((1,) * (like.ndim - value.ndim) + value.shape) if value.ndim else value


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
    return jnp.all(grad == 0, axis=over_features(grad))


def only(live: Array, new: Any, old: Any) -> Any:
    """The new state of the live examples, ``[B]`` bool, and the old one of the others.

    Scalars, and what is the same object in both, are the new state's.
    """

    def pick(new: Array, old: Array) -> Array:
        return new if new is old or not jnp.ndim(new) else jnp.where(widen(live, new), new, old)

    return jax.tree.map(pick, new, old)
