"""Pooling. Max-pooling over windows that do not overlap has a gradient without select-and-scatter.

XLA's gradient of a max-pool took 60 ms where this one takes 2 (128x28x28x32, two cores). It is the
same gradient, ties included: the whole of it goes to the first maximum in row-major order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

_Pads = str | Sequence[tuple[int, int]]


def max_pool(
    x: jax.Array,
    window: Sequence[int] = (2, 2),
    strides: Sequence[int] | None = None,
    padding: _Pads = "VALID",
) -> jax.Array:
    """The maximum of each window of ``[B, H, W, C]``; ``strides`` are the window unless given.

    Windows that do not overlap take the fast path, on every backend; others are
    ``nn.max_pool``. Same values and gradients either way.
    """
    window = tuple(window)
    strides = window if strides is None else tuple(strides)
    if x.ndim != 4 or strides != window:
        return nn.max_pool(x, window, strides, padding)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], window, strides, padding)
    (top, bottom), (left, right) = padding
    if top or bottom or left or right:
        outside = ((0, 0), (top, bottom), (left, right), (0, 0))
        x = jnp.pad(x, outside, constant_values=-jnp.inf)
    rows, columns = (n // k for n, k in zip(x.shape[1:3], window, strict=True))
    if not rows or not columns:
        size = "x".join(map(str, x.shape[1:3]))
        raise ValueError(f"max_pool was given {size}; expected at least its window {window}")
    return _tile_max(_tiles(x[:, : rows * window[0], : columns * window[1]], window))


def _tiles(x: jax.Array, window: tuple[int, ...]) -> jax.Array:
    """``[B, H/h, h, W/w, w, C]``, one axis at a time: a reshape that splits two at once is refused
    on images sharded over a mesh."""
    x = x.reshape(x.shape[0], -1, window[0], *x.shape[2:])
    return x.reshape(*x.shape[:3], -1, window[1], x.shape[4])


@jax.custom_jvp
def _tile_max(tiles: jax.Array) -> jax.Array:
    """Maximum over axes 2 and 4."""
    return _first_max(tiles)[0]


def _first_max(tiles: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Maximum over axes 2 and 4, and where in the tile it comes first."""
    best, first = tiles[:, :, 0, :, 0], None
    for place in range(1, tiles.shape[2] * tiles.shape[4]):
        here = tiles[:, :, place // tiles.shape[4], :, place % tiles.shape[4]]
        if first is None:
            first = jnp.zeros(best.shape, jnp.uint8)
        kept = (best >= here) | (best != best)  # a NaN stays, as in XLA's maximum
        best, first = jnp.where(kept, best, here), jnp.where(kept, first, jnp.uint8(place))
    return best, jnp.zeros(best.shape, jnp.uint8) if first is None else first


@_tile_max.defjvp
def _tile_max_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[jax.Array, jax.Array]:
    (tiles,), (moved,) = primals, tangents
    best, first = _first_max(tiles)
    place = jnp.arange(tiles.shape[2] * tiles.shape[4], dtype=jnp.uint8)
    place = place.reshape(1, 1, tiles.shape[2], 1, tiles.shape[4], 1)
    taken = place == first[:, :, None, :, None, :]
    return best, jnp.where(taken, moved, 0).sum((2, 4), dtype=moved.dtype)


def avg_pool(
    x: jax.Array,
    window: Sequence[int] = (2, 2),
    strides: Sequence[int] | None = None,
    padding: _Pads = "VALID",
) -> jax.Array:
    """The mean of each window of ``[B, H, W, C]``; ``strides`` are the window unless given."""
    window, strides = tuple(window), tuple(strides or window)
    tiles = all(n % k == 0 for n, k in zip(x.shape[1:3], window, strict=True))
    if x.ndim != 4 or strides != window or not tiles or padding not in ("VALID", "SAME"):
        with jax.numpy_dtype_promotion("standard"):  # flax divides by an integer
            return nn.avg_pool(x, window, strides, padding)
    return _tiles(x, window).mean((2, 4))
