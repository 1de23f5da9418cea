"""Ensemble adversarial training: images crafted on other, finished models too."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax

from advjax.answers import as_model, fold_in_each
from advjax.attacks import Attack
from advjax.pytrees import Array, ArrayLike, Key, pytree
from advjax.training.objectives._shared import (
    Scheduled,
    attacked_loss,
    batch_key,
    check_fraction,
    frozen,
)
from advjax.types import ATTACK, Aux, Net

_SOURCE = 3  # the tag of the draw of the batch's source


@pytree
class EnsembleAdversarial(Scheduled):
    """Adversarial training on attacks of several models (Tramer et al. 2018, section 3.4).

    Each batch is attacked on one model: the network that is trained, in evaluation mode, or one of
    the given ones, which stay as they are; which of them is drawn anew for every batch, all being
    equally likely. The loss is that of Kurakin et al. 2017,
    ``alpha L(x) + (1 - alpha) L(x_adv)`` in one pass of 2B images, with alpha = 1/2.

    Metrics: ``robust_accuracy`` on the attacked batch (much of it transferred, and so higher than
    white-box) and, unless ``clean_weight`` is None, ``clean_accuracy``.

    Attributes:
      attack: any attack; published is ``FGSM``. It is the same for all models.
      models: the finished models, at least one; their weights are data.
      clean_weight: alpha in [0, 1]; None for adversarial images alone.
      label_smoothing: as in ``Standard``; the attack keeps the hard labels.
    """

    attack: Attack = dataclasses.field(kw_only=False)
    models: tuple[Any, ...] = ()
    clean_weight: ArrayLike | None = 0.5
    label_smoothing: ArrayLike = 0.0
    eps_schedule = None  # no field: the attack stays as it is

    def check(self) -> None:
        check_fraction("label_smoothing", self.label_smoothing)
        check_fraction("clean_weight", self.clean_weight)
        if not self.models:
            raise ValueError(
                "EnsembleAdversarial: given no models; expected at least one finished model"
            )
        object.__setattr__(self, "models", tuple(map(as_model, self.models)))

    def craft(self, net: Net, batch: Mapping[str, Array]) -> dict[str, Array]:
        sources = (frozen(net), *self.models)
        drawn = jax.random.randint(jax.random.fold_in(batch_key(net), _SOURCE), (), 0, len(sources))
        on = [partial(self._attacked, model) for model in sources]
        x_adv = jax.lax.switch(drawn, on, fold_in_each(net.key, ATTACK), batch["x"], batch["y"])
        return {**batch, "x_adv": jax.lax.stop_gradient(x_adv)}

    def _attacked(self, model: Any, key: Key, x: Array, y: Array) -> Array:
        return self.attack(key, model, x, y)

    def loss(self, net: Net, batch: Mapping[str, Array]) -> tuple[Array, Aux]:
        return attacked_loss(net, batch, self.clean_weight, self.label_smoothing)
