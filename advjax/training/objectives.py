"""Training losses as pytrees: ``objective(keys, apply, params, stats, batch) -> (loss, Aux)``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from advjax.attacks import Attack
from advjax.balls import concrete
from advjax.losses import cross_entropy
from advjax.training.apply import Bound
from advjax.types import Apply, Array, ArrayLike, Aux, Key, fold_in_each, pytree, replace, static

# Tags that keep the draws of one example apart.
_ATTACK, _DROPOUT = 0, 1


def smoothed_cross_entropy(logits: Array, y: Array, smoothing: ArrayLike) -> Array:
    """Cross-entropy against ``(1 - s) one_hot(y) + s / K``, ``[B]`` (Szegedy et al. 2016)."""
    hard = cross_entropy(logits, y)
    logits = logits.astype(jnp.float32)
    uniform = jax.nn.logsumexp(logits, axis=-1) - jnp.mean(logits, axis=-1)
    return hard + smoothing * (uniform - hard)


def _accuracy(logits: Array, y: Array) -> Array:
    return jnp.mean(jnp.argmax(logits, axis=-1) == y, dtype=jnp.float32)


def _check_fraction(name: str, value: Any) -> None:
    value = concrete(value)
    if value is not None and not ((value >= 0) & (value <= 1)).all():
        raise ValueError(f"{name}: given {value.tolist()}; numbers from 0 to 1 are taken")


@pytree
class Standard:
    """Mean cross-entropy on the images as they are.

    Metrics: ``clean_accuracy``.

    Attributes:
      label_smoothing: the share of every target that is spread over all classes, in [0, 1].
    """

    label_smoothing: ArrayLike = 0.0

    def check(self) -> None:
        _check_fraction("label_smoothing", self.label_smoothing)

    def __call__(
        self, key: Key, apply: Apply, params: Any, stats: Any, batch: Mapping[str, Array]
    ) -> tuple[Array, Aux]:
        x, y = batch["x"], batch["y"]
        logits, stats = apply(params, stats, x, key=fold_in_each(key, _DROPOUT), train=True)
        loss = jnp.mean(smoothed_cross_entropy(logits, y, self.label_smoothing))
        return loss, Aux(stats=stats, metrics={"clean_accuracy": _accuracy(logits, y)})


@pytree
class Madry:
    """Adversarial training: the loss at the worst point found (Madry et al. 2018, eq. 2.1).

    Each batch is attacked with the current parameters, and the one training pass is made on what
    comes out; no gradient flows through the attack. Training needs the images only, so an attack
    that keeps the best of its iterates (``best=True``) spends a forward pass on judging the last.

    The attacked network is in evaluation mode: running BatchNorm statistics, no dropout. With
    ``craft_train`` it is the very network that the loss then sees: statistics of the batch (the
    images of a batch then change each other's attack), and one dropout mask, the training pass's
    own, for all of the attack's steps; the statistics of crafting are thrown away.

    Configurations: fast-AT (Wong et al. 2020) is
    ``Madry(attack=FGSM(ball=Linf(eps=.3), step_size=.375, random_start=True,
    start_in_box=False))``; the mixture of
    Goodfellow et al. 2015 (section 6) is ``clean_weight=.5`` with ``FGSM(ball=Linf(eps=.25))``.

    Metrics: ``robust_accuracy`` on the attacked batch; with a clean weight also
    ``clean_accuracy``.

    Attributes:
      attack: any attack.
      clean_weight: None for adversarial images alone, or alpha in [0, 1] for
        ``alpha L(x) + (1 - alpha) L(x_adv)``. Both halves go through the network in one pass of 2B
        images, so that BatchNorm sees the mixture (Kurakin et al. 2017, section 3).
      label_smoothing: as in ``Standard``; the attack keeps the hard labels.
      eps_schedule: step (a traced int32 scalar, from 0) -> factor on the attack's budget and
        step size, for instance an optax schedule that ends at 1. None for the attack as it is.
      craft_train: see above.
    """

    attack: Attack = dataclasses.field(kw_only=False)
    clean_weight: ArrayLike | None = None
    label_smoothing: ArrayLike = 0.0
    eps_schedule: Callable[[Array], ArrayLike] | None = static(default=None)
    craft_train: bool = static(default=False)

    def check(self) -> None:
        _check_fraction("label_smoothing", self.label_smoothing)
        _check_fraction("clean_weight", self.clean_weight)

    def at(self, step: Array) -> Madry:
        """The objective of one step: the schedule is evaluated and gone."""
        if self.eps_schedule is None:
            return self
        attack = self.attack.scaled(self.eps_schedule(step))
        return replace(self, attack=attack, eps_schedule=None)

    def __call__(
        self, key: Key, apply: Apply, params: Any, stats: Any, batch: Mapping[str, Array]
    ) -> tuple[Array, Aux]:
        x, y = batch["x"], batch["y"]
        dropout = fold_in_each(key, _DROPOUT)
        # Stopping here as well keeps the attack's own passes out of what is differentiated.
        frozen = Bound(
            params=jax.lax.stop_gradient(params),
            stats=stats,
            key=dropout if self.craft_train else None,
            apply=apply,
            train=self.craft_train,
        )
        x_adv = jax.lax.stop_gradient(self.attack(fold_in_each(key, _ATTACK), frozen, x, y))
        if self.clean_weight is None:
            logits, stats = apply(params, stats, x_adv, key=dropout, train=True)
            loss = jnp.mean(smoothed_cross_entropy(logits, y, self.label_smoothing))
            return loss, Aux(stats=stats, metrics={"robust_accuracy": _accuracy(logits, y)})
        # Clean and attacked alternate: an image's place in the batch is then the same however
        # many devices share it, and so is its dropout.
        both = jnp.stack([x, x_adv], axis=1).reshape(-1, *x.shape[1:])
        logits, stats = apply(params, stats, both, key=dropout, train=True)
        clean, robust = logits[0::2], logits[1::2]
        loss = self.clean_weight * jnp.mean(
            smoothed_cross_entropy(clean, y, self.label_smoothing)
        ) + (1 - self.clean_weight) * jnp.mean(
            smoothed_cross_entropy(robust, y, self.label_smoothing)
        )
        metrics = {"robust_accuracy": _accuracy(robust, y), "clean_accuracy": _accuracy(clean, y)}
        return loss, Aux(stats=stats, metrics=metrics)
