"""What an attack on a classifier wants: another class than the label, a class, no alarm."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp

from advjax.pytrees import Array, pytree
from advjax.types import Goal, LossFn


@pytree
class Misclassify(Goal):
    """Any class but the label ``y``."""

    def loss(self, surrogate: LossFn, outputs: Array, y: Array) -> Array:
        return surrogate(outputs, y)

    def reached(self, outputs: Array, y: Array) -> Array:
        return jnp.argmax(outputs, axis=-1) != y


@pytree
class Target(Goal):
    """The class ``y`` itself."""

    targeted: ClassVar[bool] = True

    def loss(self, surrogate: LossFn, outputs: Array, y: Array) -> Array:
        return -surrogate(outputs, y)

    def reached(self, outputs: Array, y: Array) -> Array:
        return jnp.argmax(outputs, axis=-1) == y


@pytree
class Undetected(Goal):
    """Of a model whose last class means "detected": any class but that one and the label ``y``.

    The loss sees one logit for the two classes to leave, the larger of both: whatever raises it
    leaves both. See ``WithDetector`` (Carlini & Wagner, AISec 2017).

    Example:
      ``PGD(ball=Linf(0.1), goal=Undetected()).run(key, WithDetector(model, detector, 0.5), x, y)``
    """

    def loss(self, surrogate: LossFn, outputs: Array, y: Array) -> Array:
        own, detected = outputs[..., :-1], outputs[..., -1:]
        is_label = jax.nn.one_hot(y, own.shape[-1], dtype=bool)
        return surrogate(jnp.where(is_label, jnp.maximum(own, detected), own), y)

    def reached(self, outputs: Array, y: Array) -> Array:
        said = jnp.argmax(outputs, axis=-1)
        return (said != y) & (said != outputs.shape[-1] - 1)
