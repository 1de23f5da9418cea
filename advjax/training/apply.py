"""A network as training sees it, and the model an attack sees while training goes on."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from advjax.pytrees import Array, Key, pytree, static


def _takes_train(module_type: Any) -> bool:
    return "train" in inspect.signature(module_type.__call__).parameters


@dataclasses.dataclass(frozen=True)
class LinenApply:
    """A flax linen module as an ``Apply``; equal modules are equal, so they share one trace.

    ``train`` is passed on when the module's ``__call__`` takes it. Every collection but
    ``"params"`` is ``stats``: mutable in training, untouched otherwise.

    Attributes:
      module: any linen module, ``module(x) -> logits [B, K]``.
      axis_name: the mapped axis that a training batch is split over, None outside training.
    """

    module: Any
    axis_name: str | None = None

    def __call__(
        self, params: Any, stats: Any, x: Array, *, key: Key | None = None, train: bool = False
    ) -> tuple[Array, Any]:
        """Logits ``[B, K]`` and the new stats.

        Args:
          params: the collection ``"params"``.
          stats: the other collections, ``{name: variables}``.
          x: ``[B, ...]`` images.
          key: what dropout draws from: one key, or ``[B]`` keys, one per example, of which the
            first of the whole batch is taken on every device.
          train: batch statistics and dropout instead of running statistics and none.
        """
        variables = {"params": params, **stats}
        flag = {"train": train} if _takes_train(type(self.module)) else {}
        if not train:
            return self.module.apply(variables, x, **flag), stats
        rngs = {} if key is None else {"dropout": self._dropout_key(key)}
        if not stats:
            return self.module.apply(variables, x, rngs=rngs, **flag), stats
        return self.module.apply(variables, x, rngs=rngs, mutable=list(stats), **flag)

    def _dropout_key(self, key: Key) -> Key:
        if self.axis_name is None:
            return key[0] if key.ndim else key
        if key.ndim:
            first = jax.lax.all_gather(jax.random.key_data(key[0]), self.axis_name)[0]
            key = jax.random.wrap_key_data(first, impl=jax.random.key_impl(key))
        if hasattr(self.module, "axis_name"):
            return key  # its Dropout counts examples over the axis
        # A foreign Dropout draws by local position: without this, all devices would draw the same.
        return jax.random.fold_in(key, jax.lax.axis_index(self.axis_name))


@pytree
class Bound:
    """An ``Apply`` with its variables: ``model(x) -> logits``.

    Attributes:
      params: the parameters.
      stats: every other variable.
      key: what dropout draws from in training mode; the same draw at every call.
      apply: the network.
      train: batch statistics and dropout; False for running statistics and none.
    """

    params: Any
    stats: Any
    key: Any = None
    apply: Callable[..., Any] = static()
    train: bool = static(default=False)

    def __call__(self, x: Array) -> Array:
        if not self.train:
            return self.apply(self.params, self.stats, x)[0]
        return self.apply(self.params, self.stats, x, key=self.key, train=True)[0]


def check_stats(old: Any, new: Any) -> None:
    """Raises where one training pass changed what the stats are rather than their values."""
    shape = lambda v: (jnp.shape(v), jnp.result_type(v))
    before = {jax.tree_util.keystr(p): shape(v) for p, v in jax.tree.leaves_with_path(old)}
    after = {jax.tree_util.keystr(p): shape(v) for p, v in jax.tree.leaves_with_path(new)}
    for name in before.keys() | after.keys():
        if before.get(name) != after.get(name):
            raise TypeError(
                f"a training pass turned the variable {name} from {before.get(name)} to "
                f"{after.get(name)}; variables keep their shapes and dtypes"
            )
