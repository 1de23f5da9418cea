"""What objectives share: the pieces of a loss, and the draws of one example kept apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from advjax.balls import concrete
from advjax.losses import cross_entropy
from advjax.training.apply import Bound
from advjax.types import Apply, Array, ArrayLike, Aux, Key, fold_in_each

# Tags that keep the draws of one example apart.
ATTACK, DROPOUT, NOISE = 0, 1, 2


def smoothed_cross_entropy(logits: Array, y: Array, smoothing: ArrayLike) -> Array:
    """Cross-entropy against ``(1 - s) one_hot(y) + s / K``, ``[B]`` (Szegedy et al. 2016)."""
    hard = cross_entropy(logits, y)
    logits = logits.astype(jnp.float32)
    uniform = jax.nn.logsumexp(logits, axis=-1) - jnp.mean(logits, axis=-1)
    return hard + smoothing * (uniform - hard)


def accuracy(logits: Array, y: Array) -> Array:
    """The share of images classified right, a scalar."""
    return jnp.mean(jnp.argmax(logits, axis=-1) == y, dtype=jnp.float32)


def check_fraction(name: str, value: Any) -> None:
    """Raises ValueError unless the number, where it is known, lies in [0, 1]."""
    value = concrete(value)
    if value is not None and not ((value >= 0) & (value <= 1)).all():
        raise ValueError(f"{name}: given {value.tolist()}; numbers from 0 to 1 are taken")


def frozen(apply: Apply, params: Any, stats: Any, key: Key | None = None) -> Bound:
    """The network as an attack sees it; no gradient flows to its parameters.

    In evaluation mode, or with the keys of dropout in training mode.
    """
    params = jax.lax.stop_gradient(params)
    return Bound(params=params, stats=stats, key=key, apply=apply, train=key is not None)


def training_pass(key: Key, apply: Apply, params: Any, stats: Any, x: Array) -> tuple[Array, Any]:
    """Logits and new stats of the pass that is differentiated."""
    return apply(params, stats, x, key=fold_in_each(key, DROPOUT), train=True)


def axis_of(apply: Apply) -> str | None:
    """The mapped axis that the batch is split over, where a mean over it is not the step's own."""
    return getattr(apply, "axis_name", None)


def batch_key(key: Key, apply: Apply) -> Key:
    """One key for the whole batch, the first example's, on every device that has a part of it."""
    axis = axis_of(apply)
    if axis is None:
        return key[0]
    first = jax.lax.all_gather(jax.random.key_data(key[0]), axis)[0]
    return jax.random.wrap_key_data(first, impl=jax.random.key_impl(key))


def attacked_loss(
    key: Key,
    apply: Apply,
    params: Any,
    stats: Any,
    batch: Mapping[str, Array],
    clean_weight: ArrayLike | None,
    label_smoothing: ArrayLike,
) -> tuple[Array, Aux]:
    """``alpha L(x) + (1 - alpha) L(x_adv)``, or ``L(x_adv)`` for None, with the accuracies."""
    x, x_adv, y = batch["x"], batch["x_adv"], batch["y"]
    if clean_weight is None:
        logits, stats = training_pass(key, apply, params, stats, x_adv)
        loss = jnp.mean(smoothed_cross_entropy(logits, y, label_smoothing))
        return loss, Aux(stats=stats, metrics={"robust_accuracy": accuracy(logits, y)})
    clean, robust, stats = paired_pass(key, apply, params, stats, x, x_adv)
    loss = clean_weight * jnp.mean(smoothed_cross_entropy(clean, y, label_smoothing)) + (
        1 - clean_weight
    ) * jnp.mean(smoothed_cross_entropy(robust, y, label_smoothing))
    metrics = {"robust_accuracy": accuracy(robust, y), "clean_accuracy": accuracy(clean, y)}
    return loss, Aux(stats=stats, metrics=metrics)


def paired_pass(
    key: Key, apply: Apply, params: Any, stats: Any, x: Array, x_adv: Array
) -> tuple[Array, Array, Any]:
    """Logits of both and new stats, from one pass of 2B images, so BatchNorm sees the mixture.

    The two alternate: an image's place in the batch is then the same however many devices share
    it, and so is its dropout.
    """
    both = jnp.stack([x, x_adv], axis=1).reshape(-1, *x.shape[1:])
    logits, stats = training_pass(key, apply, params, stats, both)
    return logits[0::2], logits[1::2], stats
