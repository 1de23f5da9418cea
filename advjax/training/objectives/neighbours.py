"""Adversarial regularisation with the neighbour rule of Neural Structured Learning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from advjax.answers import fold_in_each
from advjax.arguments import check_count, check_number
from advjax.balls import L1, L2, Linf
from advjax.losses import cross_entropy
from advjax.pytrees import Array, ArrayLike, pytree, static
from advjax.shapes import aligned, over_features
from advjax.training.objectives._shared import accuracies, both_passes, frozen
from advjax.types import DROPOUT, NOISE, Aux, Net, Objective

Norm = Literal["l2", "infinity", "l1"]
_BALLS: dict[str, Any] = {"l2": L2, "infinity": Linf, "l1": L1}
_SMALLEST = 1e-6  # shorter gradients are not lengthened to one


def maximize_within_unit_norm(grad: Array, norm: Norm) -> Array:
    """The step of length one along which a linear function with this gradient grows fastest.

    As ``nsl.lib.maximize_within_unit_norm``: l2 divides by the length over all features of an
    example, but never by less than 1e-6; infinity takes the sign; l1 shares the step evenly among
    the entries of largest magnitude. A gradient of zero gives zero.

    Args:
      grad: ``[B, ...]``, finite.
      norm: of the step.
    """
    axes = over_features(grad)
    if norm == "infinity":
        return jnp.sign(grad)
    if norm == "l2":
        squared = jnp.sum(grad**2, axis=axes, keepdims=True)
        return grad * jax.lax.rsqrt(jnp.maximum(squared, _SMALLEST**2))
    if norm == "l1":
        magnitude = jnp.abs(grad)
        largest = magnitude == jnp.max(magnitude, axis=axes, keepdims=True)
        count = jnp.sum(largest, axis=axes, keepdims=True).astype(grad.dtype)
        return jnp.where(largest, jnp.sign(grad), 0) / count
    raise ValueError(f"given norm={norm!r}; expected 'l2', 'infinity' or 'l1'")


@pytree
class AdversarialRegularization(Objective):
    """``cross_entropy(x) + multiplier cross_entropy(x')`` at an adversarial neighbour x'.

    Adversarial regularisation of Neural Structured Learning, ``nsl.keras``: by default x' is one
    step of ``maximize_within_unit_norm`` along the gradient; with more iterations the change is
    projected on the ball of radius eps after each, then cut to the clip values. Entries of the
    gradient that are not finite count as zero. The network is in training mode, with the dropout
    of the pass on x; the two passes are apart, each with its own BatchNorm statistics. Gradients
    are of the sum of the losses, where NSL's are of their mean: that matters to gradients shorter
    than 1e-6 alone.

    The tutorial on MNIST: ``AdversarialRegularization(step=.2, norm="infinity")``.

    Metrics: ``clean_accuracy`` and ``robust_accuracy``, on x'.

    Attributes:
      multiplier: weight of the neighbour's loss, at least 0.
      step: length of a step in the norm, in pixel units.
      norm: ``"l2"``, ``"infinity"`` or ``"l1"``.
      iterations: number of steps.
      eps: radius of the ball, in pixel units; None for no limit.
      mask: numbers in [0, 1] that the gradient is multiplied by, broadcastable to the images; None
        for no mask.
      lower: smallest pixel value of x', broadcastable to the images; None for no limit.
      upper: largest pixel value of x'; likewise.
      random_start: start from a uniform draw of the ball of radius eps, or ``step`` without one.
    """

    multiplier: ArrayLike = 0.2
    step: ArrayLike = 0.001
    norm: Norm = static(default="l2")
    iterations: int = static(default=1)
    eps: ArrayLike | None = None
    mask: ArrayLike | None = None
    lower: ArrayLike | None = None
    upper: ArrayLike | None = None
    random_start: bool = static(default=False)

    def check(self) -> None:
        name = "AdversarialRegularization"
        check_number(name, "multiplier", self.multiplier, zero=True)
        check_number(name, "step", self.step, zero=True)
        check_count(name, "iterations", self.iterations)
        if self.eps is not None:
            check_number(name, "eps", self.eps, zero=True)
        if self.norm not in _BALLS:
            raise ValueError(f"{name}: given norm={self.norm!r}; expected 'l2', 'infinity' or 'l1'")

    def craft(self, net: Net, batch: Mapping[str, Array]) -> dict[str, Array]:
        x, y = batch["x"], batch["y"]
        model = frozen(net, fold_in_each(net.key, DROPOUT))
        gradient = jax.grad(lambda x: jnp.sum(cross_entropy(model(x), y)))
        ball = _BALLS[self.norm]
        limits = [None if v is None else aligned(v, x) for v in (self.lower, self.upper)]

        def move(_: Any, delta: Array) -> Array:
            grad = gradient(x + delta)
            grad = jnp.where(jnp.isfinite(grad), grad, 0)
            if self.mask is not None:
                grad = grad * aligned(self.mask, grad)
            delta = delta + self.step * maximize_within_unit_norm(grad, self.norm)
            if self.eps is not None:
                delta = ball(self.eps).project(delta)
            return jnp.clip(x + delta, *limits) - x

        delta = jnp.zeros_like(x)
        if self.random_start:
            radius = self.step if self.eps is None else self.eps
            delta = ball(radius).sample(fold_in_each(net.key, NOISE), x)
        delta = jax.lax.fori_loop(0, self.iterations, move, delta)
        return {**batch, "x_adv": jax.lax.stop_gradient(x + delta)}

    def loss(self, net: Net, batch: Mapping[str, Array]) -> tuple[Array, Aux]:
        x, x_adv, y = batch["x"], batch["x_adv"], batch["y"]
        clean, robust, stats = both_passes(net, x, x_adv, False)
        loss = jnp.mean(cross_entropy(clean, y) + self.multiplier * cross_entropy(robust, y))
        return loss, Aux(stats=stats, metrics=accuracies(clean, robust, y))
