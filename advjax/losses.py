"""Losses per example, ``[B]``; an untargeted attack raises them, a targeted one lowers them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from advjax.pytrees import Array


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


_TINY = 1e-12  # keeps a spread of zero, all logits equal, from dividing by zero


def _largest_logits(logits: Array, n: int) -> list[Array]:
    """The ``n`` largest logits, largest first, each ``[B]``."""
    _, order = jax.lax.top_k(jax.lax.stop_gradient(logits), n)
    # Sums over one-hot rows have a dense gradient; that of indexing is a scatter.
    picked = jax.nn.one_hot(order, logits.shape[-1], dtype=bool)
    values = jnp.sum(jnp.where(picked, logits[..., None, :], 0), axis=-1)
    return [values[..., i] for i in range(n)]


def dlr(logits: Array, y: Array) -> Array:
    """Difference of logits ratio: ``margin / (largest - third largest logit)``.

    Croce & Hein 2020, section 4.1, equation 6. The same for ``a * logits + b`` with any a > 0, so
    no confidence can hide the gradient. Correct is -1 to 0, wrong is above 0. Same shapes as
    ``cross_entropy``.

    With two classes it is the ``margin`` itself, in the units of the logits: nothing but its sign
    is the same for all ``a * logits + b``, and a sign has no gradient.
    """
    logits = logits.astype(jnp.float32)
    if logits.shape[-1] < 3:
        return margin(logits, y)
    first, _, third = _largest_logits(logits, 3)
    return margin(logits, y) / (first - third + _TINY)


def targeted_dlr(logits: Array, y: Array, target: Array) -> Array:
    """The target's logit minus the label's, in units of the spread of the largest logits.

    Croce & Hein 2020, section 4.2, equation 7: the spread is the largest logit minus the mean of
    the third and the fourth. Like ``dlr`` the same for all ``a * logits + b``; an attack raises it.
    With three classes the spread is the largest logit minus the mean of the other two; with two it
    is one, as in ``dlr``.

    Args:
      logits: ``[B, K]``.
      y: ``[B]`` labels.
      target: ``[B]`` classes to reach.

    Returns:
      ``[B]``, positive where the target beats the label.
    """
    logits = logits.astype(jnp.float32)
    classes = logits.shape[-1]
    of = lambda which: jnp.sum(jnp.where(jax.nn.one_hot(which, classes, dtype=bool), logits, 0), -1)
    gain = of(target) - of(y)
    if classes < 3:
        return gain
    first, *_, third, fourth = _largest_logits(logits, min(classes, 4))
    return gain / (first - (third + fourth) / 2 + _TINY)


def kl_divergence(p: Array, q: Array) -> Array:
    """``KL(softmax(p) || softmax(q))`` of logits ``[B, K]``, per example ``[B]``, in float32."""
    log_p = jax.nn.log_softmax(p.astype(jnp.float32))
    log_q = jax.nn.log_softmax(q.astype(jnp.float32))
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
