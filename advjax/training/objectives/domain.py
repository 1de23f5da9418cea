"""Networks with several heads: domain-adversarial training, and several tasks at once.

A training pass of the network returns a mapping of heads, ``{"label": [B, K], ...}``;
``advjax.models.heads.Heads`` is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from advjax.arguments import check_number
from advjax.losses import cross_entropy
from advjax.pytrees import Array, ArrayLike, pytree, replace, static
from advjax.training.objectives._shared import accuracy, check_batch
from advjax.types import Aux, Net, Objective


def dann_factor(progress: ArrayLike, gamma: ArrayLike = 10.0) -> Array:
    """``2 / (1 + exp(-gamma p)) - 1``, from 0 to 1 (Ganin & Lempitsky 2015).

    Args:
      progress: p, the share of training that is done, 0 to 1.
      gamma: how fast it grows.
    """
    return jnp.tanh(jnp.asarray(gamma, jnp.float32) * progress / 2)


def dann_learning_rate(
    progress: ArrayLike, initial: ArrayLike = 0.01, alpha: ArrayLike = 10.0, beta: ArrayLike = 0.75
) -> Array:
    """``initial / (1 + alpha p)^beta`` (Ganin & Lempitsky 2015).

    ``optax.sgd(lambda step: dann_learning_rate(step / total), momentum=.9)`` is their optimiser.
    """
    return initial / (1 + alpha * jnp.asarray(progress, jnp.float32)) ** beta


@pytree
class DANN(Objective):
    """Domain-adversarial training (Ganin et al. 2016).

    ``cross_entropy(label of x) + weight (domain loss of x + domain loss of u)``: a head ``domain``
    with one output learns to tell the labelled domain's images x from the unlabelled one's, u, and
    behind its reversed gradient the features learn that it cannot. All images go through the
    network in one pass.

    The network's training pass returns ``{"label": [B, K], "domain": [B, 1], ...}``, and its
    variables have one or more named ``reversal``, the factors of its reversed gradients, such as
    ``ReverseGradient`` has; the objective sets them. The batch's ``unlabelled`` ``[b k, ...]`` are
    k images of the other domain for each labelled one.

    Metrics: ``clean_accuracy`` on x, ``domain_accuracy``, the mean of both domains' (a half is what
    is wanted), and ``domain_loss``.

    Attributes:
      factor: what the reversed gradient is multiplied by, at least 0.
      weight: of the domain loss, at least 0.
      total_steps: if given, the factor is multiplied by ``dann_factor(step / total_steps)``.
    """

    factor: ArrayLike = 1.0
    weight: ArrayLike = 1.0
    total_steps: ArrayLike | None = None

    def check(self) -> None:
        check_number("DANN", "factor", self.factor, zero=True)
        check_number("DANN", "weight", self.weight, zero=True)
        if self.total_steps is not None:
            check_number("DANN", "total_steps", self.total_steps)

    def at(self, step: Array) -> DANN:
        """The objective of one step, the schedule evaluated."""
        if self.total_steps is None:
            return self
        factor = self.factor * dann_factor(jnp.asarray(step, jnp.float32) / self.total_steps)
        return replace(self, factor=factor, total_steps=None)

    def loss(self, net: Net, batch: Mapping[str, Array]) -> tuple[Array, Aux]:
        check_batch("DANN", batch, "unlabelled")
        x, y, u = batch["x"], batch["y"], batch["unlabelled"]
        # An image's place, and so its dropout, is the same however many devices share the batch.
        grouped = jnp.concatenate([x[:, None], u.reshape(len(x), -1, *x.shape[1:])], axis=1)
        images = grouped.reshape(-1, *x.shape[1:])
        stats = _set_reversal(net.stats, self.factor)
        heads, stats = replace(net, stats=stats)(images)
        label, domain = _head(heads, "label"), _head(heads, "domain")
        if domain.shape[1:] != (1,):
            raise ValueError(f"DANN: given a domain head {domain.shape}; expected one output")
        label = label.reshape(*grouped.shape[:2], -1)[:, 0]
        domain = domain.astype(jnp.float32).reshape(grouped.shape[:2])  # positive says u
        source, target = domain[:, 0], domain[:, 1:]
        domain_loss = jnp.mean(jax.nn.softplus(source)) + jnp.mean(jax.nn.softplus(-target))
        loss = jnp.mean(cross_entropy(label, y)) + self.weight * domain_loss
        told = jnp.mean(source < 0, dtype=jnp.float32) + jnp.mean(target > 0, dtype=jnp.float32)
        metrics = {
            "clean_accuracy": accuracy(label, y),
            "domain_accuracy": told / 2,
            "domain_loss": domain_loss,
        }
        return loss, Aux(stats=stats, metrics=metrics)


@pytree
class MultiTask(Objective):
    """Mean cross-entropy of several heads: ``label``, and others whose labels follow from it.

    The network's training pass returns a mapping of heads (Caruana 1997). Several tasks on one data
    set are one labelling: the class is their combination, and a table says for every class what
    it is in a task, ``tables={"parity": (0, 1, 0, 1, ...)}``.

    Metrics: ``clean_accuracy`` of ``label``, and ``<name>_accuracy`` of every other head.

    Attributes:
      weight: of the sum of the other heads' losses, at least 0.
      tables: pairs of a head's name and its labels, one for each class; a mapping is taken too.
    """

    weight: ArrayLike = 1.0
    tables: Any = static()

    def check(self) -> None:
        check_number("MultiTask", "weight", self.weight, zero=True)
        tables = tuple((name, tuple(labels)) for name, labels in dict(self.tables).items())
        if not tables or not all(isinstance(v, int) for _, labels in tables for v in labels):
            raise ValueError(
                f"MultiTask: given tables={self.tables!r}; expected head names with integers"
            )
        object.__setattr__(self, "tables", tables)

    def loss(self, net: Net, batch: Mapping[str, Array]) -> tuple[Array, Aux]:
        heads, stats = net(batch["x"])
        y, label = batch["y"], _head(heads, "label")
        loss = jnp.mean(cross_entropy(label, y))
        metrics = {"clean_accuracy": accuracy(label, y)}
        for name, labels in self.tables:
            if len(labels) != label.shape[-1]:
                raise ValueError(
                    f"MultiTask: given {len(labels)} labels of {name}; "
                    f"expected {label.shape[-1]}, one per class"
                )
            task = jnp.asarray(labels, jnp.int32)[y]
            loss += self.weight * jnp.mean(cross_entropy(_head(heads, name), task))
            metrics[f"{name}_accuracy"] = accuracy(heads[name], task)
        return loss, Aux(stats=stats, metrics=metrics)


def _head(heads: Any, name: str) -> Array:
    if not isinstance(heads, Mapping) or name not in heads:
        given = ", ".join(heads) if isinstance(heads, Mapping) else type(heads).__name__
        raise TypeError(f"the network returned {given}; expected a mapping with the head {name}")
    return heads[name]


def _set_reversal(stats: Any, factor: ArrayLike) -> Any:
    """The variables with every one named ``reversal`` at the factor."""
    found = []

    def put(path: Any, value: Array) -> Array:
        if getattr(path[-1], "key", None) != "reversal":
            return value
        found.append(path)
        return jnp.asarray(factor, value.dtype)

    stats = jax.tree.map_with_path(put, stats)
    if not found:
        raise ValueError("DANN: given a network without a variable named reversal; expected one")
    return stats
