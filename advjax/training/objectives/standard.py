"""Training on the images as they are."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp

from advjax.pytrees import Array, ArrayLike, pytree
from advjax.training.objectives._shared import accuracy, check_fraction, smoothed_cross_entropy
from advjax.types import Aux, Net, Objective


@pytree
class Standard(Objective):
    """Mean cross-entropy on the images as they are.

    Metrics: ``clean_accuracy``.

    Attributes:
      label_smoothing: the share of every target that is spread over all classes, in [0, 1].
    """

    label_smoothing: ArrayLike = 0.0

    def check(self) -> None:
        check_fraction("label_smoothing", self.label_smoothing)

    def loss(self, net: Net, batch: Mapping[str, Array]) -> tuple[Array, Aux]:
        x, y = batch["x"], batch["y"]
        logits, stats = net(x)
        loss = jnp.mean(smoothed_cross_entropy(logits, y, self.label_smoothing))
        return loss, Aux(stats=stats, metrics={"clean_accuracy": accuracy(logits, y)})
