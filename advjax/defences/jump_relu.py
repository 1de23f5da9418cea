"""JumpReLU: activations below a threshold are cut off, in any trained network."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from advjax.answers import as_model
from advjax.arguments import check_number
from advjax.attacks.bpda import bpda
from advjax.defences._intercept import call_changed
from advjax.models.layers import ReLU
from advjax.pytrees import Array, ArrayLike, pytree, static

_BACKWARD = {"relu": jax.nn.relu, "identity": lambda x: x}


def jump_relu(x: Array, kappa: ArrayLike) -> Array:
    """``x`` above ``kappa``, else 0 (Erichson et al. 2020): a jump, no shift.

    Its gradient is 1 or 0, as that of the authors' code: the jump has none. With a kappa of 0 it is
    ReLU. NaN stays NaN.

    Args:
      x: activations.
      kappa: threshold, a number >= 0 or an array that broadcasts.
    """
    low = jnp.asarray(x, jnp.float32) <= jnp.asarray(kappa, jnp.float32)
    return jnp.where(low, jnp.zeros_like(x), x)


@pytree
class JumpReLU:
    """A trained network with JumpReLU for every ReLU (Erichson, Yao & Mahoney, ICPRAM 2020).

    The weights stay as they are: the network was trained with ReLU, which is kappa = 0. The
    threshold is in the units of the activations, so it differs from network to network; the
    published grids are 0 to 1.5 for LeNet on MNIST, 0 to .8 and 0 to .09 for AlexNet and ResNet on
    CIFAR-10.

    It masks gradients: where an activation is cut off none passes. What attacks it is the same
    network with another ``backward``, images crafted at kappa = 0, and attacks without gradients.

    Attributes:
      model: a ``Classifier`` of the zoo, or any model that calls ``advjax.models.layers.relu``.
      kappa: threshold >= 0, a leaf: a sweep is ``vmap`` over it, a new value is no new trace.
      backward: whose gradient an attack gets: ``"exact"`` the function's own, ``"relu"`` or
        ``"identity"`` theirs in its place, at every layer (BPDA, Athalye et al. 2018).
    """

    model: Any = dataclasses.field(kw_only=False)
    kappa: ArrayLike = dataclasses.field(kw_only=False)
    backward: str = static(default="exact")

    def check(self) -> None:
        object.__setattr__(self, "model", as_model(self.model))
        check_number("JumpReLU", "kappa", self.kappa, zero=True)
        if self.backward not in ("exact", *_BACKWARD):
            taken = "'exact', 'relu' or 'identity'"
            raise ValueError(f"JumpReLU: given backward={self.backward!r}; expected {taken}")

    def __call__(self, x: Array) -> Array:
        activation = jax.tree_util.Partial(jump_relu, kappa=self.kappa)
        if self.backward != "exact":
            activation = bpda(activation, _BACKWARD[self.backward])
        return call_changed("JumpReLU", self.model, x, ReLU, lambda _, x: activation(x))
