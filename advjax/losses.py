"""Losses per example, ``[B]``; an untargeted attack raises them, a targeted one lowers them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from advjax.types import Array


def _label_and_others(logits: Array, y: Array) -> tuple[Array, Array]:
    """The label's logit ``[B]`` and all logits with the label's at minus infinity ``[B, K]``."""
    is_label = jax.nn.one_hot(y, logits.shape[-1], dtype=bool)
    label = jnp.sum(jnp.where(is_label, logits, 0), axis=-1)
    return label, jnp.where(is_label, -jnp.inf, logits)


def cross_entropy(logits: Array, y: Array) -> Array:
    """``-log softmax(logits)[y]``, in float32.

    Written as ``softplus(logsumexp of the others - label)``: a confident example's gradient stays
    above zero down to a margin of 87, where ``softmax - one_hot`` is exactly zero from 17 on and
    leaves sign attacks nothing to follow.

    Args:
      logits: ``[B, K]``.
      y: ``[B]`` labels.

    Returns:
      ``[B]`` losses, at least 0.
    """
    label, others = _label_and_others(logits.astype(jnp.float32), y)
    return jax.nn.softplus(jax.nn.logsumexp(others, axis=-1) - label)


def margin(logits: Array, y: Array) -> Array:
    """Largest other logit minus the label's: positive exactly where the label loses.

    Carlini & Wagner 2017 (section V-A, f6) without the floor. Same shapes as ``cross_entropy``.
    """
    label, others = _label_and_others(logits.astype(jnp.float32), y)
    return jnp.max(others, axis=-1) - label
