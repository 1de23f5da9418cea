"""MART: adversarial training that minds which images are wrong already."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from advjax.arguments import check_number
from advjax.attacks import PGD
from advjax.losses import cross_entropy
from advjax.pytrees import Array, ArrayLike, pytree, static
from advjax.training.objectives._shared import (
    Scheduled,
    accuracies,
    both_passes,
    check_pgd,
    frozen,
    pgd_from_noise,
)
from advjax.types import Aux, Net


def boosted_cross_entropy(logits: Array, y: Array) -> Array:
    """``-log p_y - log(1 - max of the other p)``, ``[B]`` (Wang et al. 2020).

    The second logarithm is of ``1.0001 - p + 1e-12``, as in the authors' code.
    """
    p = jax.nn.softmax(logits.astype(jnp.float32))
    others = jnp.where(jax.nn.one_hot(y, logits.shape[-1], dtype=bool), -1, p)
    return cross_entropy(logits, y) - jnp.log(1.0001 - jnp.max(others, axis=-1) + 1e-12)


def weighted_divergence(clean: Array, robust: Array, y: Array) -> Array:
    """``KL(p(x) || p(x')) (1 - p_y(x))``, ``[B]`` (Wang et al. 2020).

    Images that are right and sure of it count little. The constants, ``1.0000001 - p_y`` and
    ``log(p(x') + 1e-12)``, are those of the authors' code.
    """
    log_p = jax.nn.log_softmax(clean.astype(jnp.float32))
    p, q = jnp.exp(log_p), jax.nn.softmax(robust.astype(jnp.float32))
    divergence = jnp.sum(p * (log_p - jnp.log(q + 1e-12)), axis=-1)
    label = jnp.sum(jnp.where(jax.nn.one_hot(y, p.shape[-1], dtype=bool), p, 0), axis=-1)
    return divergence * (1.0000001 - label)


@pytree
class MART(Scheduled):
    """Misclassification aware adversarial training (Wang et al. 2020, algorithm 1).

    ``boosted_cross_entropy(x') + beta KL(p(x) || p(x')) (1 - p_y(x))``, where PGD on the
    cross-entropy finds x' from ``x + sigma N(0, 1)`` on the network in evaluation mode; the last
    iterate is taken. The weight is differentiated too, as in the authors' code.

    Published: on CIFAR-10 ``PGD(ball=Linf(eps=.031), step_size=.007, steps=10)``.

    Metrics: ``clean_accuracy`` and ``robust_accuracy``.

    Attributes:
      attack: ball, loss, steps and step size of the search; its own start is not used.
      beta: weight of the divergence, at least 0; 5 as in the authors' script.
      sigma: standard deviation of the start, in pixel units.
      eps_schedule: as in ``TRADES``. Short trainings need one: ``experiments/objectives.py``.
      paired: as in ``TRADES``.
    """

    attack: PGD = dataclasses.field(kw_only=False)
    beta: ArrayLike = 5.0
    sigma: ArrayLike = 1e-3
    eps_schedule: Callable[[Array], ArrayLike] | None = static(default=None)
    paired: bool = static(default=False)

    def check(self) -> None:
        check_pgd("MART", self.attack)
        check_number("MART", "beta", self.beta, zero=True)
        check_number("MART", "sigma", self.sigma, zero=True)

    def craft(self, net: Net, batch: Mapping[str, Array]) -> dict[str, Array]:
        x, y = batch["x"], batch["y"]
        x_adv = pgd_from_noise(net.key, self.attack, frozen(net), x, y, self.sigma)
        return {**batch, "x_adv": x_adv}

    def loss(self, net: Net, batch: Mapping[str, Array]) -> tuple[Array, Aux]:
        x, x_adv, y = batch["x"], batch["x_adv"], batch["y"]
        clean, robust, stats = both_passes(net, x, x_adv, self.paired)
        loss = jnp.mean(
            boosted_cross_entropy(robust, y) + self.beta * weighted_divergence(clean, robust, y)
        )
        return loss, Aux(stats=stats, metrics=accuracies(clean, robust, y))
