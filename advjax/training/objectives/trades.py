"""TRADES: accuracy on clean images, and the same answer next to them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from advjax.arguments import check_number
from advjax.attacks import PGD
from advjax.losses import cross_entropy, kl_divergence
from advjax.pytrees import Array, ArrayLike, pytree, replace, static
from advjax.training.objectives._shared import (
    Scheduled,
    accuracies,
    both_passes,
    check_pgd,
    frozen,
    pgd_from_noise,
)
from advjax.types import Aux, Net


@pytree
class _Beside:
    """A model that answers for the clean images too: ``[B, 2K]``, their logits first."""

    model: Any
    clean: Array

    def __call__(self, x: Array) -> Array:
        return jnp.concatenate([self.clean, self.model(x)], axis=-1)


def _away(logits: Array, y: Array) -> Array:
    """What TRADES's attack raises, on the logits of ``_Beside``."""
    del y
    return kl_divergence(*jnp.split(logits, 2, axis=-1))


@pytree
class TRADES(Scheduled):
    """``cross_entropy(x) + beta KL(p(x) || p(x'))`` (Zhang et al. 2019, algorithm 1).

    The neighbour x' maximises the same divergence: PGD from ``x + sigma N(0, 1)``, for at x itself
    its gradient is zero, on the network in evaluation mode; expected the last iterate. Through both
    ``p(x)`` and ``p(x')`` the loss is differentiated.

    Published: on CIFAR-10 beta 6 with ``PGD(ball=Linf(eps=.031), step_size=.007, steps=10)``; on
    MNIST ``PGD(ball=Linf(eps=.3), step_size=.01, steps=40)``, where their code has beta 1.

    Metrics: ``clean_accuracy``, ``robust_accuracy`` and ``kl``, the mean divergence.

    Attributes:
      attack: ball, steps and step size of the search; its own loss and start are not used.
      beta: weight of the divergence, at least 0.
      sigma: standard deviation of the start, in pixel units.
      eps_schedule: as in ``Madry``: step -> factor on the attack's budget and step size; None for
        the attack as it is.
      paired: both halves go through the network in one pass of 2B images, so that BatchNorm sees
        the mixture, instead of a pass each as published. The same without BatchNorm and dropout.
    """

    attack: PGD = dataclasses.field(kw_only=False)
    beta: ArrayLike = 6.0
    sigma: ArrayLike = 1e-3
    eps_schedule: Callable[[Array], ArrayLike] | None = static(default=None)
    paired: bool = static(default=False)

    def check(self) -> None:
        check_pgd("TRADES", self.attack)
        check_number("TRADES", "beta", self.beta, zero=True)
        check_number("TRADES", "sigma", self.sigma, zero=True)

    def craft(self, net: Net, batch: Mapping[str, Array]) -> dict[str, Array]:
        x, model = batch["x"], frozen(net)
        attack = replace(self.attack, loss=_away)
        beside = _Beside(model=model, clean=model(x))
        x_adv = pgd_from_noise(net.key, attack, beside, x, batch["y"], self.sigma)
        return {**batch, "x_adv": x_adv}

    def loss(self, net: Net, batch: Mapping[str, Array]) -> tuple[Array, Aux]:
        x, x_adv, y = batch["x"], batch["x_adv"], batch["y"]
        clean, robust, stats = both_passes(net, x, x_adv, self.paired)
        divergence = jnp.mean(kl_divergence(clean, robust))
        loss = jnp.mean(cross_entropy(clean, y)) + self.beta * divergence
        metrics = {**accuracies(clean, robust, y), "kl": divergence}
        return loss, Aux(stats=stats, metrics=metrics)
