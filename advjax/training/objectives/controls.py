"""Regularisers that look like defences; the table shows what they are worth."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from advjax.arguments import check_number
from advjax.losses import cross_entropy
from advjax.pytrees import Array, ArrayLike, pytree, replace
from advjax.training.objectives._shared import Around, accuracy, noise_like
from advjax.training.objectives.standard import Standard
from advjax.types import Aux, Net, Objective


class Regularised(Around):
    """An objective and a weighted term added to its loss. Abstract.

    Attributes:
      objective: any objective; its crafting is the crafting of the whole.
      weight: of the term.
    """

    objective: Any
    weight: ArrayLike

    def check(self) -> None:
        check_number(type(self).__name__, "weight", self.weight, zero=True)
        super().check()

    @abc.abstractmethod
    def term(self, net: Net, batch: Mapping[str, Array]) -> dict[str, Array]:
        """``{name: mean of the term over the batch}``, one entry."""

    def loss(self, net: Net, batch: Mapping[str, Array]) -> tuple[Array, Aux]:
        loss, aux = self.inner.loss(net, batch)
        term = self.term(net, batch)
        (value,) = term.values()
        return loss + self.weight * value, replace(aux, metrics={**aux.metrics, **term})


def input_gradient(net: Net, x: Array, y: Array) -> Array:
    """Each image's gradient of its cross-entropy, ``[B, ...]``, differentiable once more.

    The network is that of the training pass, with its dropout and the statistics of this batch.
    """
    return jax.grad(lambda x: jnp.sum(cross_entropy(net(x)[0], y)))(x)


@pytree
class GradientPenalty(Regularised):
    """An objective plus ``weight ||gradient of the cross-entropy at x||^2``.

    Input gradient regularisation (Ross & Doshi-Velez 2018; double backpropagation, Drucker & LeCun
    1992). The gradient is of the clean images, through the training pass's own
    network; it costs one more pass, twice backward.

    Metrics: the objective's, and ``gradient_penalty``, the mean squared length.

    Attributes:
      objective: what it is added to.
      weight: in units of 1 / (squared loss per squared pixel), at least 0.
    """

    objective: Any = dataclasses.field(kw_only=False, default_factory=Standard)
    weight: ArrayLike = 1.0

    def term(self, net: Net, batch: Mapping[str, Array]) -> dict[str, Array]:
        x = batch["x"]
        grad = input_gradient(net, x, batch["y"])
        return {"gradient_penalty": jnp.sum(grad**2) / x.shape[0]}


@pytree
class LogitSqueezing(Objective):
    """Cross-entropy and ``weight ||logits||^2`` on noisy images (Kannan et al. 2018).

    It fools attacks by gradients more than it defends (Mosbach et al. 2018).

    Metrics: ``clean_accuracy``, on the noisy images, and ``squared_logits``.

    Attributes:
      weight: of the mean squared length of the logits, at least 0.
      sigma: standard deviation of the noise on every image, in pixel units, at least 0.
    """

    weight: ArrayLike = 0.5
    sigma: ArrayLike = 0.5

    def check(self) -> None:
        check_number("LogitSqueezing", "weight", self.weight, zero=True)
        check_number("LogitSqueezing", "sigma", self.sigma, zero=True)

    def craft(self, net: Net, batch: Mapping[str, Array]) -> dict[str, Array]:
        x = batch["x"]
        return {**batch, "x_noisy": x + self.sigma * noise_like(net.key, x)}

    def loss(self, net: Net, batch: Mapping[str, Array]) -> tuple[Array, Aux]:
        y = batch["y"]
        logits, stats = net(batch["x_noisy"])
        squared = jnp.mean(jnp.sum(logits.astype(jnp.float32) ** 2, axis=-1))
        loss = jnp.mean(cross_entropy(logits, y)) + self.weight * squared
        metrics = {"clean_accuracy": accuracy(logits, y), "squared_logits": squared}
        return loss, Aux(stats=stats, metrics=metrics)
