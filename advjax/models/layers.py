"""What the zoo's networks are built of: initialisers, ReLU, Dropout, BatchNorm, convolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers
from jax import lax

from advjax.models.conv import conv_general_dilated

INITIALISERS = ("torch", "he", "glorot", "truncated")


def kernel_init(name: str) -> Any:
    """A kernel initialiser by name.

    ``torch`` is PyTorch's default, uniform on ``+-1/sqrt(fan_in)``; ``he`` is normal with sigma
    ``sqrt(2/fan_in)``; ``glorot`` uniform, Keras's default; ``truncated`` normal, sigma .1, as in
    TensorFlow's tutorials.
    """
    if name == "torch":
        return initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    if name == "he":
        return initializers.he_normal()
    if name == "glorot":
        return initializers.glorot_uniform()
    if name == "truncated":
        return initializers.truncated_normal(0.1)
    raise ValueError(f"unknown initialiser {name!r}; taken are {', '.join(INITIALISERS)}")


def bias_init(name: str, fan_in: int) -> Any:
    """The bias initialiser that belongs to ``kernel_init(name)``."""
    if name == "torch":
        bound = fan_in**-0.5
        return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
            key, shape, dtype, -bound, bound
        )
    return initializers.constant(0.1 if name == "truncated" else 0.0)


def conv(
    x: jax.Array,
    features: int,
    kernel: int,
    stride: int = 1,
    padding: Any = "SAME",
    *,
    bias: bool = True,
    init: str = "he",
    dtype: Any = jnp.float32,
    name: str | None = None,
) -> jax.Array:
    """A square convolution inside a compact module; a number as padding is on every side."""
    return nn.Conv(
        features,
        (kernel, kernel),
        stride,
        padding,
        use_bias=bias,
        dtype=dtype,
        kernel_init=kernel_init(init),
        bias_init=bias_init(init, kernel * kernel * x.shape[-1]),
        conv_general_dilated=conv_general_dilated,
        name=name,
    )(x)


def dense(
    x: jax.Array,
    features: int,
    *,
    init: str = "he",
    dtype: Any = jnp.float32,
    name: str | None = None,
) -> jax.Array:
    """A fully connected layer inside a compact module."""
    return nn.Dense(
        features,
        dtype=dtype,
        kernel_init=kernel_init(init),
        bias_init=bias_init(init, x.shape[-1]),
        name=name,
    )(x)


def batch_norm(x: jax.Array, *, train: bool, axis_name: str | None, name: str | None = None) -> Any:
    """BatchNorm (momentum .9, epsilon 1e-5); trained on the statistics of the whole axis."""
    norm = nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        dtype=x.dtype,
        axis_name=axis_name,
        name=name,
    )
    with jax.numpy_dtype_promotion("standard"):  # flax's statistics are float32
        return norm(x)


class ReLU(nn.Module):
    """``max(x, 0)`` as a module without variables, where ``nn.intercept_methods`` can reach it."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.relu(x)


def relu(x: jax.Array) -> jax.Array:
    """``ReLU`` inside a compact module; a defence such as ``JumpReLU`` may put itself there."""
    return ReLU()(x)


class Dropout(nn.Module):
    """Dropout whose rate is data and whose draws belong to the examples.

    The rate is a scalar variable of the collection ``hyper``, so it can be traced, swept and
    vmapped. Example ``i`` of a batch draws from ``fold_in(make_rng("dropout"), i)``; over a mapped
    axis ``i`` counts on from device to device, so the draws do not depend on how many there are.

    Attributes:
      rate: the probability that a value is dropped, in [0, 1); the variable's first value.
      axis_name: the mapped axis the batch is split over, if any.
    """

    rate: float = 0.5
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        if not 0 <= self.rate < 1:
            raise ValueError(f"dropout rate {self.rate}; taken is 0 <= rate < 1")
        if self.is_initializing():
            self.variable("hyper", "rate", jnp.asarray, self.rate, jnp.float32)
            return x
        if not train:
            return x
        keep: Any = 1 - self.get_variable("hyper", "rate")
        first = 0 if self.axis_name is None else lax.axis_index(self.axis_name) * x.shape[0]
        key = self.make_rng("dropout")
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(x.shape[0]))
        kept = jax.vmap(lambda k: _bernoulli(k, keep, x.shape[1:]))(keys)
        return jnp.where(kept, x / keep.astype(x.dtype), 0)


def _bernoulli(key: jax.Array, p: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Booleans, true with probability ``p`` to 16 bits: two from each word that the key gives.

    Four times faster on a CPU than ``jax.random.bernoulli``, which draws 64 bits for each, and
    faster to compile; dropout was a third of a small network's step.
    """
    size = math.prod(shape)
    words = jax.random.bits(key, ((size + 1) // 2,), jnp.uint32)
    halves = jnp.stack([words & 0xFFFF, words >> 16]).reshape(-1)[:size].reshape(shape)
    return halves < (p * 65536 + 0.5).astype(jnp.uint32)


class Network(nn.Module):
    """What every network of the zoo has. Abstract: networks add layers, never to each other.

    Attributes:
      classes: how many logits.
      mean: subtracted from the pixels, one number or one per channel; nothing when empty.
      std: divides the pixels after that.
      dtype: what is computed in; parameters and logits are float32.
      axis_name: the mapped axis that a training batch is split over: BatchNorm statistics and
        Dropout draws are then those of the whole batch.
    """

    classes: int = 10
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    dtype: Any = jnp.float32
    axis_name: str | None = None

    def prepare(self, x: jax.Array) -> jax.Array:
        """Normalises ``[B, H, W, C]`` pixels in [0, 1] and casts them to ``dtype``."""
        for field, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (0, 1, x.shape[-1]):
                raise ValueError(
                    f"{field} has {len(values)} numbers, images {x.shape[-1]} channels; "
                    "expected one number or one per channel"
                )
        per_channel = (1,) * (x.ndim - 1) + (-1,)
        if len(self.mean):
            x = x - jnp.asarray(self.mean, x.dtype).reshape(per_channel)
        if len(self.std):
            x = x / jnp.asarray(self.std, x.dtype).reshape(per_channel)
        return x.astype(self.dtype)


def logits(x: jax.Array, classes: int, *, init: str = "he", name: str | None = None) -> jax.Array:
    """The last layer, computed and returned in float32."""
    return dense(x.astype(jnp.float32), classes, init=init, name=name)


def flatten(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], -1)
