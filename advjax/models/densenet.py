"""DenseNet-BC and DenseNet-121 (Huang et al., CVPR 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from advjax.models import layers
from advjax.models.layers import Network, relu
from advjax.models.pooling import avg_pool
from advjax.models.resnet import stem


class DenseNet(Network):
    """Dense blocks of bottleneck layers (BN, ReLU, 1x1, BN, ReLU, 3x3), compressed in between.

    Attributes:
      blocks: layers in each block.
      growth: channels that every layer adds.
      first: channels of the stem; twice the growth when None.
      bottleneck: filters of the 1x1 convolution, in units of ``growth``.
      compression: the share of the channels that a transition keeps.
      stem: ``cifar`` (3x3 without BatchNorm) or ``imagenet`` (7x7 stride 2, BN, ReLU, max-pool 3x3
        stride 2).
      dropout: rate after every 3x3 convolution; None leaves the layers out.
    """

    blocks: Sequence[int] = (16, 16, 16)
    growth: int = 12
    first: int | None = None
    bottleneck: int = 4
    compression: float = 0.5
    stem: str = "cifar"
    dropout: float | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        def unit(x: jax.Array, filters: int, kernel: int) -> jax.Array:
            x = relu(layers.batch_norm(x, train=train, axis_name=self.axis_name))
            return layers.conv(
                x, filters, kernel, padding=kernel // 2, bias=False, dtype=self.dtype
            )

        x = stem(self, self.prepare(x), self.first or 2 * self.growth, train=train, norm=False)
        for i, count in enumerate(self.blocks):
            for _ in range(count):
                y = unit(unit(x, self.bottleneck * self.growth, 1), self.growth, 3)
                if self.dropout is not None:
                    y = layers.Dropout(self.dropout, self.axis_name)(y, train=train)
                x = jnp.concatenate([x, y], -1)
            if i + 1 < len(self.blocks):
                x = avg_pool(unit(x, int(x.shape[-1] * self.compression), 1))
        x = relu(layers.batch_norm(x, train=train, axis_name=self.axis_name))
        return layers.logits(x.mean((1, 2)), self.classes, init="torch")
