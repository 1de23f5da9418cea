"""Asking a model: any callable as data, the keys that its draws follow, and its answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advjax.pytrees import Array, Key, pytree, static


@pytree
class _Function:
    """A plain function as a model; equal functions are one trace."""

    function: Callable[[Array], Array] = static()

    def __call__(self, x: Array) -> Array:
        return self.function(x)


@pytree
class _Mixed:
    """A callable pytree some of whose leaves are no arrays (activation functions, flags)."""

    arrays: tuple[Any, ...]
    others: tuple[Any, ...] = static()
    treedef: Any = static()

    @property
    def whole(self) -> Any:
        leaves = [b if a is None else a for a, b in zip(self.arrays, self.others, strict=True)]
        return jax.tree.unflatten(self.treedef, leaves)

    @property
    def stochastic(self) -> bool:
        return is_stochastic(self.whole)

    @property
    def on_host(self) -> bool:
        return runs_on_host(self.whole)

    def __call__(self, x: Array, **options: Any) -> Array:
        logits: Array = self.whole(x, **options)
        return logits


def as_model(model: Any) -> Any:
    """Any callable as a pytree that crosses ``jit`` as data.

    Takes a callable pytree (``Classifier``, ``nnx.Module``, Equinox module, ``Partial``) or a plain
    function. A function that closes over weights works, but its weights are constants of the
    compiled program: another checkpoint is another compilation.

    Raises:
      TypeError: if ``model`` is not callable.
    """
    if not callable(model):
        raise TypeError(f"a model is a callable, model(x) -> logits; given {type(model).__name__}")
    leaves, treedef = jax.tree.flatten(model)
    if len(leaves) == 1 and leaves[0] is model:
        return _Function(function=model)
    is_array = [isinstance(leaf, (jax.Array, np.ndarray, np.number)) for leaf in leaves]
    if all(is_array):
        return model
    return _Mixed(
        arrays=tuple(leaf if a else None for leaf, a in zip(leaves, is_array, strict=True)),
        others=tuple(None if a else leaf for leaf, a in zip(leaves, is_array, strict=True)),
        treedef=treedef,
    )


def is_stochastic(model: Any) -> bool:
    """Whether the model wants ``key=``: it says so with ``stochastic = True``."""
    return bool(getattr(model, "stochastic", False))


def runs_on_host(tree: Any) -> bool:
    """Whether anything in a pytree (a model, an attack) calls back: it says ``on_host = True``."""
    calls = lambda node: getattr(node, "on_host", False) is True
    return any(map(calls, jax.tree.leaves(tree, is_leaf=calls)))


def answer_of(model: Any, x: Array, keys: Key | None) -> Array:
    """What a model says of images ``[B, ...]``; ``[B]`` keys, used by a randomised one alone."""
    answer: Array = model(x, key=keys) if is_stochastic(model) else model(x)
    return answer


def draws_of(model: Any, x: Array, keys: Key | None) -> Array:
    """A model's answers ``[S, B, K]``: one draw, or the S draws that a randomised one gives.

    Args:
      model: a callable pytree.
      x: ``[B, ...]`` images.
      keys: ``[B]`` keys, used by a randomised model alone; None for another.
    """
    logits = answer_of(model, x, keys)
    return logits.reshape((-1, *logits.shape[-2:]))


def example_keys(key: Key, ids: int | Array) -> Key:
    """``[B]`` keys: example i's is ``fold_in(key, id_i)``. ``[B]`` keys pass through.

    Args:
      key: one key, or ``[B]`` keys.
      ids: how many examples, or their ``[B]`` ids.
    """
    ids = jnp.arange(ids) if isinstance(ids, int) else jnp.asarray(ids)
    if jnp.ndim(key) == 0:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, ids)
    if key.shape != ids.shape:
        raise ValueError(f"given keys of shape {key.shape}; expected one key or {ids.shape} keys")
    return key


def fold_in_each(keys: Key, data: int | Array) -> Key:
    """``[B]`` keys, each folded with the same number."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, data)


def fold_if_any(keys: Key | None, data: int | Array) -> Key | None:
    """``fold_in_each``, or None where nothing is drawn."""
    return None if keys is None else fold_in_each(keys, data)
