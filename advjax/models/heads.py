"""One network, several answers: heads on shared features, and the reversed gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from advjax.models import layers
from advjax.models.layers import Network, flatten, relu
from advjax.models.pooling import max_pool


@jax.custom_vjp
def _reversed(x: jax.Array, factor: jax.Array) -> jax.Array:
    del factor
    return x


_reversed.defvjp(
    lambda x, factor: (x, factor),
    lambda factor, out: (-factor.astype(out.dtype) * out, jnp.zeros_like(factor)),
)


def reverse_gradient(x: jax.Array, factor: Any) -> jax.Array:
    """x itself, whose gradient comes back multiplied by ``-factor`` (Ganin & Lempitsky 2015).

    Args:
      x: any array.
      factor: a number, traced or not; no gradient flows to it.
    """
    return _reversed(x, jnp.asarray(factor, jnp.float32))


class ReverseGradient(nn.Module):
    """``reverse_gradient`` as a layer whose factor is data.

    The factor is the scalar variable ``reversal`` of the collection ``hyper``, so that an objective
    such as ``DANN`` sets it at every step.

    Attributes:
      factor: the variable's first value.
    """

    factor: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        factor = self.variable("hyper", "reversal", jnp.asarray, self.factor, jnp.float32)
        return reverse_gradient(x, factor.value)


class Heads(Network):
    """Several heads on shared features; by default the network of DANN for digits.

    conv 5x5x32, pool, conv 5x5x48, pool; the head ``label`` is fc 100, fc 100, fc classes, the head
    ``domain``, behind a reversed gradient, fc 100, fc 1 (Ganin & Lempitsky 2015, figure 4).

    A training pass returns every head's output by its name, ``{"label": [B, K], ...}``, and any
    other pass those of one head, so that in evaluation it is a network like all others.

    Attributes:
      filters: of the 5x5 convolutions, each followed by ReLU and a 2x2 pool.
      hidden: the widths of the hidden layers of ``label``, which has ``classes`` outputs.
      others: the other heads, ``(name, widths)``; the last width is the number of outputs.
      reverse: names of the heads behind a reversed gradient.
      answer: the head that answers in evaluation.
      initialiser: ``torch``, ``he``, ``glorot`` or ``truncated``.
    """

    filters: Sequence[int] = (32, 48)
    hidden: Sequence[int] = (100, 100)
    others: Sequence[tuple[str, Sequence[int]]] = (("domain", (100, 1)),)
    reverse: Sequence[str] = ("domain",)
    answer: str = "label"
    initialiser: str = "he"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> Any:
        heads = {"label": (*self.hidden, self.classes), **dict(self.others)}
        unknown = sorted({self.answer, *self.reverse} - heads.keys())
        if unknown:
            raise ValueError(f"heads: given {', '.join(unknown)}; taken are {', '.join(heads)}")
        x = self.prepare(x)
        for filters in self.filters:
            x = relu(layers.conv(x, filters, 5, init=self.initialiser, dtype=self.dtype))
            x = max_pool(x)
        x = flatten(x)
        needed = train or self.is_initializing()
        outputs = {
            name: self._head(name, widths, x)
            for name, widths in heads.items()
            if needed or name == self.answer
        }
        return outputs if train else outputs[self.answer]

    def _head(self, name: str, widths: Sequence[int], x: jax.Array) -> jax.Array:
        if name in self.reverse:
            x = ReverseGradient(name=f"{name}_reverse")(x)
        for i, width in enumerate(widths[:-1]):
            layer = f"{name}_{i}"
            x = relu(layers.dense(x, width, init=self.initialiser, dtype=self.dtype, name=layer))
        return layers.logits(x, widths[-1], init=self.initialiser, name=f"{name}_out")
