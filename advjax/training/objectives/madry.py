"""Adversarial training: the loss at the worst point that an attack finds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax

from advjax.answers import fold_in_each
from advjax.attacks import Attack
from advjax.pytrees import Array, ArrayLike, pytree, static
from advjax.training.objectives._shared import Scheduled, attacked_loss, check_fraction, frozen
from advjax.types import ATTACK, DROPOUT, Aux, Net


@pytree
class Madry(Scheduled):
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
        check_fraction("label_smoothing", self.label_smoothing)
        check_fraction("clean_weight", self.clean_weight)

    def craft(self, net: Net, batch: Mapping[str, Array]) -> dict[str, Array]:
        dropout = fold_in_each(net.key, DROPOUT) if self.craft_train else None
        model = frozen(net, dropout)
        x_adv = self.attack(fold_in_each(net.key, ATTACK), model, batch["x"], batch["y"])
        # Stopping here as well keeps the attack's own passes out of what is differentiated.
        return {**batch, "x_adv": jax.lax.stop_gradient(x_adv)}

    def loss(self, net: Net, batch: Mapping[str, Array]) -> tuple[Array, Aux]:
        return attacked_loss(net, batch, self.clean_weight, self.label_smoothing)
