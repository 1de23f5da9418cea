"""Steps that move few pixels."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from advjax.types import Array


def changed(delta: Array) -> Array:
    """``[B]`` how many features are not zero, as floats."""
    return jnp.sum(delta != 0, axis=tuple(range(1, delta.ndim)), dtype=delta.dtype)


def signs_of_largest(grad: Array, n: Array) -> Array:
    """The signs of the ``n [B]`` largest entries, shared out so that they sum to one in size.

    Entries equal to the last of them count too; those that are zero never do.
    """
    flat = jnp.abs(grad).reshape(grad.shape[0], -1)
    bits = jax.lax.bitcast_convert_type(flat.astype(jnp.float32), jnp.int32)

    def refine(j: Array, threshold: Array) -> Array:
        tried = threshold | (1 << (30 - j))
        return jnp.where(jnp.sum(bits >= tried[:, None], axis=1) >= n, tried, threshold)

    # Floats above zero are in the order of their bits: 31 passes find the n-th largest exactly.
    threshold = jax.lax.fori_loop(0, 31, refine, jnp.zeros_like(bits[:, 0]))
    chosen = (bits >= threshold[:, None]) & (bits > 0)
    share = chosen / jnp.maximum(jnp.sum(chosen, axis=1, keepdims=True), 1)
    return jnp.sign(grad) * share.reshape(grad.shape).astype(grad.dtype)
