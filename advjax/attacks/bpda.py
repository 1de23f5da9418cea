"""Backward pass differentiable approximation: a gradient for what has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from advjax.answers import as_model
from advjax.pytrees import Array, pytree


@pytree
class _BPDA:
    """Goes forward through one function and backward through another."""

    forward: Any
    backward: Any  # None for the identity

    def __call__(self, x: Array) -> Array:
        return _through(self.forward, self.backward, x)


@jax.custom_vjp
def _through(forward: Any, backward: Any, x: Array) -> Array:
    del backward
    return forward(x)


def _forward(forward: Any, backward: Any, x: Array) -> tuple[Array, tuple[Any, Any, Array]]:
    out = forward(x)
    like: Any = x if backward is None else jax.eval_shape(lambda x: backward(x), x)
    if (out.shape, out.dtype) != (like.shape, like.dtype):
        raise ValueError(
            f"bpda: given a forward function from {x.dtype}{list(x.shape)} to "
            f"{out.dtype}{list(out.shape)}, and a backward one to {like.dtype}{list(like.shape)}; "
            "expected equal shapes and types"
        )
    return out, (forward, backward, x)


def _backward(kept: tuple[Any, Any, Array], out: Array) -> tuple[None, Any, Array]:
    _, backward, x = kept
    if backward is None:
        return None, None, out
    _, pull = jax.vjp(lambda backward, x: backward(x), backward, x)
    return None, *pull(out)


_through.defvjp(_forward, _backward)


def bpda(
    forward: Callable[[Array], Array], backward: Callable[[Array], Array] | None = None
) -> Any:
    """``forward`` with the gradient of ``backward`` (Athalye et al. 2018, section 4.1).

    For a defence that breaks the gradient: rounding, a thermometer code, JPEG, a generator that is
    optimised. ``model(bpda(defence)(x))`` has the values of the defended model and a gradient that
    an attack can follow. ``forward`` is never differentiated, so it may leave JAX
    (``jax.pure_callback``). It works under ``jit`` and ``vmap``, with reverse mode alone.

    Args:
      forward: what is computed, ``x -> g(x)``: a function or a callable pytree.
      backward: a differentiable function whose gradient stands for the one of ``forward``, with
        an output of the same shape and type; by default the identity, for ``g(x)`` like x.

    Returns:
      A callable pytree ``x -> g(x)``, to be used by itself or as a part of a model.
    """
    return _BPDA(
        forward=as_model(forward), backward=None if backward is None else as_model(backward)
    )
