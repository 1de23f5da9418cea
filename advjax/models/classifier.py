"""From modules and weights to models: ``model(x) -> logits`` with the weights as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from advjax.pytrees import pytree


@partial(jax.tree_util.register_dataclass, data_fields=["variables"], meta_fields=["module"])
@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """A linen module and its variables as one model, in evaluation mode.

    The module is structure and the variables are data: equal modules with other weights are the
    same trace, however freshly they were built.

    Attributes:
      module: the network; modules compare by their fields.
      variables: what ``init`` or training returned, ``{"params": ..., ...}``.
    """

    module: nn.Module
    variables: Any

    def __call__(self, x: jax.Array) -> jax.Array:
        out: Any = self.module.apply(self.variables, x)
        return out


@pytree
class PerExample:
    """A model of one image, ``model([H, W, C]) -> [K]``, as a model of batches."""

    model: Any = dataclasses.field(kw_only=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.vmap(self.model)(x)


def init(module: nn.Module, key: jax.Array, x_shape: Sequence[int]) -> Any:
    """The module's first variables, drawn from ``key``.

    Args:
      module: a linen module that takes ``[B, ...]`` float32 inputs.
      key: a ``jax.random.key``.
      x_shape: the shape of one example, ``(H, W, C)`` or ``(D,)``, or of a batch of them.
    """
    shape = tuple(x_shape)
    if len(shape) in (1, 3):
        shape = (1, *shape)
    if len(shape) not in (2, 4):
        raise ValueError(
            f"x_shape {tuple(x_shape)}; expected (H, W, C), (D,) or one of these after a batch size"
        )
    return _init(module, key, (1, *shape[1:]))


@partial(jax.jit, static_argnums=(0, 2))
def _init(module: nn.Module, key: jax.Array, shape: tuple[int, ...]) -> Any:
    return module.init(key, jnp.zeros(shape, jnp.float32))
