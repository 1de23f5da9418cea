"""TRADES: accuracy on clean images, and the same answer next to them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from advjax.attacks import PGD
from advjax.arguments import check_number
from advjax.losses import cross_entropy, kl_divergence
from advjax.training.objectives._shared import (
    ATTACK,
    NOISE,
    accuracy,
    frozen,
    paired_pass,
    training_pass,
)
from advjax.training.objectives.crafting import Crafting
from advjax.types import Apply, Array, ArrayLike, Aux, Key, fold_in_each, pytree, replace, static

_SECOND = 3  # the tag of a second pass, whose dropout is its own


def check_pgd(objective: str, attack: Any) -> None:
    """Raises unless the attack is an untargeted ``PGD``, whose start and loss can be chosen."""
    if not isinstance(attack, PGD) or attack.goal.targeted:
        raise TypeError(f"{objective}: given attack={attack!r}; an untargeted PGD is taken")


def scheduled(objective: Any, step: Array) -> Any:
    """The objective with its ``attack`` as ``eps_schedule`` says it is at the step."""
    if objective.eps_schedule is None:
        return objective
    attack = objective.attack.scaled(objective.eps_schedule(step))
    return replace(objective, attack=attack, eps_schedule=None)


def pgd_from_noise(key: Key, attack: PGD, model: Any, x: Array, y: Array, sigma: Any) -> Array:
    """The last iterate of the attack from ``x + sigma N(0, 1)``, whatever start it has itself."""
    attack = replace(attack, random_start=False, best=False)
    draw = lambda k: jax.random.normal(k, x.shape[1:], x.dtype)
    noise = jax.vmap(draw)(fold_in_each(key, NOISE))
    state = attack.init(fold_in_each(key, ATTACK), model, x, y)
    state = replace(state, x_adv=x + sigma * noise)
    step = lambda i, state: attack.step(i, state, model, x, y)
    state = jax.lax.fori_loop(0, attack.steps, step, state)
    return jax.lax.stop_gradient(attack.finish(state, model, x, y, record=False).x_adv)


def both_passes(
    paired: bool, key: Key, apply: Apply, params: Any, stats: Any, x: Array, x_adv: Array
) -> tuple[Array, Array, Any]:
    """Logits of clean and perturbed images and the new stats.

    As published a pass each, so that BatchNorm normalises either by its own statistics and the
    running ones take in first the clean, then the perturbed batch; ``paired`` is one pass of both.
    """
    if paired:
        return paired_pass(key, apply, params, stats, x, x_adv)
    clean, stats = training_pass(key, apply, params, stats, x)
    robust, stats = training_pass(fold_in_each(key, _SECOND), apply, params, stats, x_adv)
    return clean, robust, stats


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
class TRADES(Crafting):
    """``cross_entropy(x) + beta KL(p(x) || p(x'))`` (Zhang et al. 2019, algorithm 1).

    The neighbour x' maximises the same divergence: PGD from ``x + sigma N(0, 1)``, for at x itself
    its gradient is zero, on the network in evaluation mode; the last iterate is taken. Through both
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

    def at(self, step: Array) -> TRADES:
        """The objective of one step: the schedule is evaluated and gone."""
        return scheduled(self, step)

    def craft(
        self, key: Key, apply: Apply, params: Any, stats: Any, batch: Mapping[str, Array]
    ) -> dict[str, Array]:
        x, model = batch["x"], frozen(apply, params, stats)
        attack = replace(self.attack, loss=_away)
        beside = _Beside(model=model, clean=model(x))
        x_adv = pgd_from_noise(key, attack, beside, x, batch["y"], self.sigma)
        return {**batch, "x_adv": x_adv}

    def loss(
        self, key: Key, apply: Apply, params: Any, stats: Any, batch: Mapping[str, Array]
    ) -> tuple[Array, Aux]:
        x, x_adv, y = batch["x"], batch["x_adv"], batch["y"]
        clean, robust, stats = both_passes(self.paired, key, apply, params, stats, x, x_adv)
        divergence = jnp.mean(kl_divergence(clean, robust))
        loss = jnp.mean(cross_entropy(clean, y)) + self.beta * divergence
        metrics = {
            "clean_accuracy": accuracy(clean, y),
            "robust_accuracy": accuracy(robust, y),
            "kl": divergence,
        }
        return loss, Aux(stats=stats, metrics=metrics)
