"""Convolution whose forward pass and gradients are fast on CPU, inside loops too.

XLA:CPU has fast code for an ordinary NHWC/HWIO convolution only. The gradients that autodiff writes
are convolutions with permuted layouts; outside loops XLA rewrites them, inside a loop body it does
not, and they run 3 to 300 times slower (jax issue 12868). Here both gradients are written as
ordinary convolutions with explicit transposes, which is also what XLA's own rewrite arrives at. The
price is forward-mode differentiation, which ``jax.custom_vjp`` does not have.

The forward pass (and the input gradient, which is one) takes one of a few equivalent forms by
shape; see ``_correlate``. Same sums, in another order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_Pair = tuple[int, int]
_Pads = tuple[_Pair, _Pair]


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> jax.Array:
    """``lax.conv_general_dilated`` with fast CPU gradients, for linen's ``nn.Conv``.

    The plain 2-D case (``[B, H, W, C]`` images, ``[h, w, C, F]`` kernel, any strides and padding,
    no groups, no dilation) takes the fast path when JAX's default backend is the CPU; everything
    else is ``lax.conv_general_dilated`` itself. Same values, reverse-mode gradients of any order;
    no forward mode on the fast path.
    """
    ones = (1, 1)
    plain = (
        lhs.ndim == rhs.ndim == 4
        and feature_group_count == batch_group_count == 1
        and tuple(lhs_dilation or ones) == tuple(rhs_dilation or ones) == ones
        and preferred_element_type is None
        and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
        == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _LAYOUT)
    )
    if not plain or jax.default_backend() != "cpu":
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            dimension_numbers,
            feature_group_count,
            batch_group_count,
            precision,
            preferred_element_type,
        )
    (sh, sw), (kh, kw) = window_strides, rhs.shape[:2]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], (kh, kw), (sh, sw), padding)
    (top, bottom), (left, right) = padding
    return _conv(lhs, rhs, (sh, sw), ((top, bottom), (left, right)), precision)


def _lax_conv(
    x: jax.Array, w: jax.Array, strides: _Pair, pads: Any, precision: Any, **kw: Any
) -> jax.Array:
    return lax.conv_general_dilated(
        x, w, strides, pads, dimension_numbers=_LAYOUT, precision=precision, **kw
    )


def _correlate(
    x: jax.Array, w: jax.Array, strides: _Pair, pads: _Pads, precision: Any
) -> jax.Array:
    """The convolution in the form that XLA:CPU runs fastest at these shapes.

    Measured per core (JAX 0.10, AVX-512), against 100 GFLOP/s where the library behind XLA is at
    its best: 16 channels and fewer on both sides are left to slower code (3 to 50), channels that
    are no multiple of 4 to scalar packing (42), single output channels waste the vector (8 to 16).
    """
    kernel, (channels, filters) = w.shape[:2], w.shape[2:]
    if kernel == strides == (1, 1) and not any(map(sum, pads)):
        return lax.dot_general(x, w[0, 0], (((3,), (0,)), ((), ())), precision=precision)
    if strides == (1, 1) and filters <= 2 and channels >= 8:
        return _by_taps(x, w, pads, precision)
    if strides[1] == 1 and channels <= 16 and filters <= 16 and filters % 4 == 0:
        width = x.shape[2] + sum(pads[1]) - kernel[1] + 1
        for pixels in (2, 3, 4, 6):
            if pixels * filters > 16 and width % pixels == 0:
                return _by_pixels(x, w, pixels, strides, pads, precision)
    if channels > 16 and channels % 4:
        more = ((0, 0), (0, 0), (0, 0), (0, -channels % 4))
        x, w = jnp.pad(x, more), jnp.pad(w, (*more[:2], more[3], more[2]))
    return _lax_conv(x, w, strides, pads, precision)


def _by_pixels(
    x: jax.Array, w: jax.Array, pixels: int, strides: _Pair, pads: _Pads, precision: Any
) -> jax.Array:
    """Several neighbouring pixels of a row at once, as so many times more filters."""
    shifted = [jnp.pad(w, ((0, 0), (i, pixels - 1 - i), (0, 0), (0, 0))) for i in range(pixels)]
    y = _lax_conv(x, jnp.concatenate(shifted, -1), (strides[0], pixels), pads, precision)
    return y.reshape(*y.shape[:2], y.shape[2] * pixels, w.shape[3])


def _by_taps(x: jax.Array, w: jax.Array, pads: _Pads, precision: Any) -> jax.Array:
    """One matrix product with all taps of the kernel, then their shifted sum."""
    (kh, kw, channels, filters), (batch, height, width, _) = w.shape, x.shape
    taps = w.transpose(2, 0, 1, 3).reshape(channels, -1)
    parts = lax.dot_general(x, taps, (((3,), (0,)), ((), ())), precision=precision)
    # Taps first, so that the sum below runs along the rows of the images.
    parts = parts.reshape(-1, taps.shape[1]).T.reshape(kh, kw, filters, batch, height, width)
    (top, bottom), (left, right) = pads
    edge = ((0, 0, 0), (0, 0, 0))
    total = sum(
        lax.pad(
            parts[i, j],
            jnp.zeros((), parts.dtype),
            (*edge, (top - i, bottom - kh + 1 + i, 0), (left - j, right - kw + 1 + j, 0)),
        )
        for i in range(kh)
        for j in range(kw)
    )
    return jnp.asarray(total).transpose(1, 2, 3, 0)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv(x: jax.Array, w: jax.Array, strides: _Pair, pads: _Pads, precision: Any) -> jax.Array:
    return _correlate(x, w, strides, pads, precision)


def _forward(
    x: jax.Array, w: jax.Array, strides: _Pair, pads: _Pads, precision: Any
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _conv(x, w, strides, pads, precision), (x, w)


def _backward(
    strides: _Pair, pads: _Pads, precision: Any, saved: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, w = saved
    return (
        _input_gradient(dy, w, x.shape[1:3], strides, pads, precision),
        _kernel_gradient(x, dy, w.shape[:2], strides, pads, precision),
    )


_conv.defvjp(_forward, _backward)


def _input_gradient(
    dy: jax.Array, w: jax.Array, size: tuple[int, ...], strides: _Pair, pads: _Pads, precision: Any
) -> jax.Array:
    """The full correlation of ``dy``, spread out by the strides, with the flipped kernel."""
    spread = [(n - 1) * s + 1 for n, s in zip(dy.shape[1:3], strides, strict=True)]
    low = [k - 1 - p[0] for k, p in zip(w.shape[:2], pads, strict=True)]
    high = [x - n - a + k - 1 for x, n, a, k in zip(size, spread, low, w.shape[:2], strict=True)]
    around = tuple(zip(low, high, strict=True))
    turned = w.transpose(0, 1, 3, 2)
    # Turning large kernels around is slow; turning the images around twice does the same.
    small = 2 * dy.size < w.size
    if small:
        dy, around = jnp.flip(dy, (1, 2)), tuple((b, a) for a, b in around)
    else:
        turned = jnp.flip(turned, (0, 1))
    if strides == (1, 1):
        dx = _conv(dy, turned, strides, around, precision)
    else:
        dx = _lax_conv(dy, turned, (1, 1), around, precision, lhs_dilation=strides)
    return jnp.flip(dx, (1, 2)) if small else dx


def _kernel_gradient(
    x: jax.Array,
    dy: jax.Array,
    kernel: tuple[int, ...],
    strides: _Pair,
    pads: _Pads,
    precision: Any,
) -> jax.Array:
    """The correlation of ``x`` with ``dy`` over the batch: channels as batch, batch as channels."""
    pads_ = [
        (p[0], k + (n - 1) * s - m - p[0])
        for p, k, n, s, m in zip(pads, kernel, dy.shape[1:3], strides, x.shape[1:3], strict=True)
    ]
    lhs, rhs = x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3)
    out = _lax_conv(lhs, rhs, (1, 1), pads_, precision, rhs_dilation=strides)
    return out.transpose(1, 2, 0, 3)
