"""A model behind a random transform of its input, as a randomised model."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from advjax.answers import as_model, fold_in_each, is_stochastic
from advjax.pytrees import Array, Key, pytree


@pytree
class Transformed:
    """A model that sees every image through a transform drawn for it: ``model(transform(key, x))``.

    Noise, crops, resizing or any other preprocessing that draws: as a defence, or as what happens
    to an image before a camera. ``EOT`` attacks the expectation over the draws (and ``bpda``
    gives a transform without a gradient one); ``evaluate`` counts over them.

    Attributes:
      model: ``model(x) -> logits [B, K]``; may be randomised itself.
      transform: ``(key, x) -> x`` for one image: a function, or a pytree such as
        ``jax.tree_util.Partial(function, sigma)``, whose numbers are then data.
    """

    model: Any = dataclasses.field(kw_only=False)
    transform: Any = dataclasses.field(kw_only=False)
    stochastic = True

    def check(self) -> None:
        object.__setattr__(self, "model", as_model(self.model))
        if not callable(self.transform):
            given = type(self.transform).__name__
            raise TypeError(f"Transformed: given {given}; expected a function (key, x) -> x")
        transform = self.transform
        if jax.tree_util.all_leaves([transform]):  # a function, no pytree
            transform = jax.tree_util.Partial(transform)
        as_array = lambda leaf: jnp.float32(leaf) if isinstance(leaf, int | float) else leaf
        object.__setattr__(self, "transform", jax.tree.map(as_array, transform))

    def __call__(self, x: Array, *, key: Key) -> Array:
        seen = jax.vmap(self.transform)(fold_in_each(key, 0), x)
        if is_stochastic(self.model):
            return self.model(seen, key=fold_in_each(key, 1))
        return self.model(seen)
