"""Residual networks: ResNet-18/34/50 and the pre-activation ResNet-18 of adversarial training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from advjax.models import layers
from advjax.models.layers import Network, relu
from advjax.models.pooling import max_pool

STEMS = ("cifar", "imagenet")


class _Block(nn.Module):
    """A residual block with BatchNorm after its convolutions, as in He et al., CVPR 2016.

    ``bottleneck``: 1x1, 3x3 (with the stride) and 1x1 to four times the filters; else two 3x3.
    """

    filters: int
    stride: int
    bottleneck: bool
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        def unit(x: jax.Array, filters: int, kernel: int, stride: int = 1) -> jax.Array:
            x = _conv(x, filters, kernel, stride, self.dtype)
            return layers.batch_norm(x, train=train, axis_name=self.axis_name)

        if self.bottleneck:
            out = 4 * self.filters
            y = relu(unit(x, self.filters, 1))
            y = relu(unit(y, self.filters, 3, self.stride))
            y = unit(y, out, 1)
        else:
            out = self.filters
            y = relu(unit(x, self.filters, 3, self.stride))
            y = unit(y, self.filters, 3)
        if x.shape[-1] != out or self.stride != 1:
            x = unit(x, out, 1, self.stride)
        return relu(x + y)


class _PreActBlock(nn.Module):
    """A residual block with BatchNorm and ReLU before its convolutions (He et al., ECCV 2016); a
    convolution on the shortcut sees the activated input and has no BatchNorm."""

    filters: int
    stride: int
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = relu(layers.batch_norm(x, train=train, axis_name=self.axis_name))
        if x.shape[-1] != self.filters or self.stride != 1:
            x = _conv(y, self.filters, 1, self.stride, self.dtype)
        y = _conv(y, self.filters, 3, self.stride, self.dtype)
        y = relu(layers.batch_norm(y, train=train, axis_name=self.axis_name))
        return x + _conv(y, self.filters, 3, 1, self.dtype)


class ResNet(Network):
    """ResNet-18, -34 and -50, with PyTorch's paddings.

    Attributes:
      stages: blocks in each stage; all but the first halve the image and double the filters.
      bottleneck: three-convolution blocks (ResNet-50) or two-convolution blocks.
      stem: ``cifar`` (3x3) or ``imagenet`` (7x7 stride 2, 3x3 max-pool stride 2).
      width: filters of the first stage.
    """

    stages: Sequence[int] = (2, 2, 2, 2)
    bottleneck: bool = False
    stem: str = "cifar"
    width: int = 64

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = stem(self, self.prepare(x), self.width, train=train, norm=True)
        for i, blocks in enumerate(self.stages):
            for j in range(blocks):
                stride = 2 if i and not j else 1
                block = _Block(
                    self.width * 2**i, stride, self.bottleneck, self.dtype, self.axis_name
                )
                x = block(x, train=train)
        return layers.logits(x.mean((1, 2)), self.classes, init="torch")


class PreActResNet(Network):
    """PreAct-ResNet-18 for small images, the usual network of fast adversarial training.

    Attributes:
      stages: blocks in each stage; all but the first halve the image and double the filters.
      width: filters of the first stage.
      final_norm: BatchNorm and ReLU before the mean, as in fast_adversarial (11,172,170
        parameters); without, the network of the kuangliu collection (11,171,146).
    """

    stages: Sequence[int] = (2, 2, 2, 2)
    width: int = 64
    final_norm: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = _conv(self.prepare(x), self.width, 3, 1, self.dtype)
        for i, blocks in enumerate(self.stages):
            for j in range(blocks):
                stride = 2 if i and not j else 1
                block = _PreActBlock(self.width * 2**i, stride, self.dtype, self.axis_name)
                x = block(x, train=train)
        if self.final_norm:
            x = relu(layers.batch_norm(x, train=train, axis_name=self.axis_name))
        return layers.logits(x.mean((1, 2)), self.classes, init="torch")


def stem(net: Any, x: jax.Array, filters: int, *, train: bool, norm: bool) -> jax.Array:
    """The first layers by ``net.stem``; ``norm``: BatchNorm and ReLU in the cifar stem as well."""
    if net.stem not in STEMS:
        raise ValueError(f"unknown stem {net.stem!r}; taken are {', '.join(STEMS)}")
    large = net.stem == "imagenet"
    x = _conv(x, filters, 7, 2, net.dtype) if large else _conv(x, filters, 3, 1, net.dtype)
    if large or norm:
        x = relu(layers.batch_norm(x, train=train, axis_name=net.axis_name))
    return max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))) if large else x


def _conv(x: jax.Array, filters: int, kernel: int, stride: int, dtype: Any) -> jax.Array:
    return layers.conv(x, filters, kernel, stride, kernel // 2, bias=False, dtype=dtype)
