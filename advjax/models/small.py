"""Small networks: perceptron and the MNIST networks of the literature."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax

from advjax.models import layers
from advjax.models.layers import Network, flatten, relu
from advjax.models.pooling import max_pool


class MLP(Network):
    """A perceptron on the flattened input, ReLU between the layers.

    Those of virtual adversarial training on MNIST (Miyato et al. 2018) are of ``batch_norm=True``
    and ``hidden=(1200, 1200)``, with all labels ``hidden=(1200, 600, 300, 150)``.

    Attributes:
      hidden: the widths of the hidden layers.
      batch_norm: BatchNorm after every dense layer, that of the logits too, and before ReLU.
      dropout: rate after each hidden layer; None leaves the layers out.
      initialiser: ``torch``, ``he``, ``glorot`` or ``truncated``.
    """

    hidden: Sequence[int] = (256, 256)
    batch_norm: bool = False
    dropout: float | None = None
    initialiser: str = "he"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = flatten(self.prepare(x))
        for width in self.hidden:
            x = layers.dense(x, width, init=self.initialiser, dtype=self.dtype)
            x = relu(self._normalised(x, train))
            if self.dropout is not None:
                x = layers.Dropout(self.dropout, self.axis_name)(x, train=train)
        return self._normalised(layers.logits(x, self.classes, init=self.initialiser), train)

    def _normalised(self, x: jax.Array, train: bool) -> jax.Array:
        if not self.batch_norm:
            return x
        return layers.batch_norm(x, train=train, axis_name=self.axis_name)


class MNISTMadry(Network):
    """The MNIST network of Madry et al. (ICLR 2018), as in their mnist_challenge: conv 5x5x32,
    pool, conv 5x5x64, pool, fc 1024, fc 10; truncated normal initialisation, sigma .1, bias .1."""

    filters: Sequence[int] = (32, 64)
    width: int = 1024
    initialiser: str = "truncated"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = self.prepare(x)
        for filters in self.filters:
            x = layers.conv(x, filters, 5, init=self.initialiser, dtype=self.dtype)
            x = relu(max_pool(x, padding="SAME"))  # as relu first, on a quarter of the pixels
        x = relu(layers.dense(flatten(x), self.width, init=self.initialiser, dtype=self.dtype))
        return layers.logits(x, self.classes, init=self.initialiser)


class MNISTFast(Network):
    """The MNIST network of fast adversarial training (Wong, Rice, Kolter, ICLR 2020) and, before,
    of Wong and Kolter (ICML 2018): conv 4x4x16 stride 2, conv 4x4x32 stride 2, both padded by 1,
    fc 100, fc 10; PyTorch's default initialisation, which decides whether training takes off."""

    filters: Sequence[int] = (16, 32)
    width: int = 100
    initialiser: str = "torch"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = self.prepare(x)
        for filters in self.filters:
            x = relu(layers.conv(x, filters, 4, 2, 1, init=self.initialiser, dtype=self.dtype))
        x = relu(layers.dense(flatten(x), self.width, init=self.initialiser, dtype=self.dtype))
        return layers.logits(x, self.classes, init=self.initialiser)


class LeNet5(Network):
    """AdverTorch's "LeNet5" for MNIST: conv 3x3x32, pool, conv 3x3x64, pool, fc 200, fc 10, padding
    1, PyTorch's default initialisation. The flattened order is rows, columns, channels."""

    filters: Sequence[int] = (32, 64)
    width: int = 200
    initialiser: str = "torch"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = self.prepare(x)
        for filters in self.filters:
            x = layers.conv(x, filters, 3, 1, 1, init=self.initialiser, dtype=self.dtype)
            x = relu(max_pool(x))  # as relu first, on a quarter of the pixels
        x = relu(layers.dense(flatten(x), self.width, init=self.initialiser, dtype=self.dtype))
        return layers.logits(x, self.classes, init=self.initialiser)


class LectureCNN(Network):
    """The Keras tutorials' CNN of the lectures: 3x3 convolutions without padding of 32, 64 and 64
    filters, a pool after all but the last, fc 64, fc 10; Glorot initialisation."""

    filters: Sequence[int] = (32, 64, 64)
    width: int = 64
    dropout: float | None = None
    initialiser: str = "glorot"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = self.prepare(x)
        for i, filters in enumerate(self.filters):
            x = max_pool(x) if i else x
            x = relu(
                layers.conv(x, filters, 3, padding="VALID", init=self.initialiser, dtype=self.dtype)
            )
        x = relu(layers.dense(flatten(x), self.width, init=self.initialiser, dtype=self.dtype))
        if self.dropout is not None:
            x = layers.Dropout(self.dropout, self.axis_name)(x, train=train)
        return layers.logits(x, self.classes, init=self.initialiser)
