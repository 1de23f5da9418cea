"""The two networks of Gentric's 48x48 gender study, every axis of its sweep a field."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from advjax.models import layers
from advjax.models.layers import Network, flatten, relu
from advjax.models.pooling import max_pool


class _Convolution(nn.Module):
    """Convolution, BatchNorm if wanted, ReLU, Dropout if wanted."""

    filters: int
    kernel: int
    batch_norm: bool
    dropout: float | None
    initialiser: str
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = layers.conv(x, self.filters, self.kernel, init=self.initialiser, dtype=self.dtype)
        if self.batch_norm:
            x = layers.batch_norm(x, train=train, axis_name=self.axis_name)
        x = relu(x)
        if self.dropout is not None:
            x = layers.Dropout(self.dropout, self.axis_name)(x, train=train)
        return x


class ConvNet48(Network):
    """Blocks of 3x3 convolutions with a 2x2 pool after each, fc ``width``, fc ``classes``.

    The lecture's table has it dead from 8 convolutions on without BatchNorm (with, it seems, an
    initialisation such as ``glorot``); ``he`` is the modern one.

    Attributes:
      blocks: how many blocks; each halves the image.
      convs_per_block: convolutions in a block.
      filters: filters of every convolution.
      width: of the hidden fully connected layer.
      dropout: rate after every convolution; None leaves the layers out.
      batch_norm: BatchNorm between convolution and ReLU.
      initialiser: ``glorot`` (historical), ``truncated``, ``he`` (modern) or ``torch``.
    """

    classes: int = 2
    blocks: int = 4
    convs_per_block: int = 2
    filters: int = 16
    width: int = 50
    dropout: float | None = None
    batch_norm: bool = False
    initialiser: str = "glorot"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = self.prepare(x)
        for _ in range(self.blocks):
            for _ in range(self.convs_per_block):
                x = _Convolution(self.filters, 3, **_common(self))(x, train=train)
            x = max_pool(x)
        x = layers.dense(flatten(x), self.width, init=self.initialiser, dtype=self.dtype)
        return layers.logits(relu(x), self.classes, init=self.initialiser)


class DenseNet48(Network):
    """Dense blocks: every convolution sees all before it in its block; then a pool and a 1x1
    convolution to ``out_dim`` channels (also with ReLU and Dropout), fc ``width``, fc ``classes``.

    The lecture's diagram has 2 convolutions of 16 filters a block (59,160 parameters), its code
    listing 16 of 3.

    Attributes:
      blocks: how many blocks; each halves the image.
      convs_per_block: convolutions in a block.
      filters: the growth, filters of every 3x3 convolution.
      out_dim: channels after a block.
      width: of the hidden fully connected layer.
      dropout: rate after every convolution; None leaves the layers out.
      batch_norm: BatchNorm between convolution and ReLU.
      initialiser: ``glorot`` (historical), ``truncated``, ``he`` (modern) or ``torch``.
    """

    classes: int = 2
    blocks: int = 4
    convs_per_block: int = 2
    filters: int = 16
    out_dim: int = 32
    width: int = 50
    dropout: float | None = None
    batch_norm: bool = False
    initialiser: str = "glorot"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = self.prepare(x)
        for _ in range(self.blocks):
            for _ in range(self.convs_per_block):
                y = _Convolution(self.filters, 3, **_common(self))(x, train=train)
                x = jnp.concatenate([x, y], -1)
            x = _Convolution(self.out_dim, 1, **_common(self))(max_pool(x), train=train)
        x = layers.dense(flatten(x), self.width, init=self.initialiser, dtype=self.dtype)
        return layers.logits(relu(x), self.classes, init=self.initialiser)


def _common(net: ConvNet48 | DenseNet48) -> dict[str, Any]:
    shared = ("batch_norm", "dropout", "initialiser", "dtype", "axis_name")
    return {name: getattr(net, name) for name in shared}
