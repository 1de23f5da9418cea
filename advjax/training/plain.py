"""Users' objectives that say nothing of the contract: any callable of the right arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from advjax.pytrees import Array, Key, pytree, static
from advjax.types import Apply, Aux, Net, Objective


@pytree
class _Plain(Objective):
    """A user's callable pytree as an objective: the one place where its hooks are looked for."""

    objective: Any
    function: Any = static(default=None)  # instead of that, one that is no pytree

    @property
    def _given(self) -> Any:
        return self.objective if self.function is None else self.function

    @property
    def replays(self) -> int:  # type: ignore[override]
        return getattr(self._given, "replays", 1)

    @property
    def carries(self) -> bool:
        return getattr(self._given, "carries", hasattr(self._given, "start"))

    def __call__(
        self, key: Key, apply: Apply, params: Any, stats: Any, batch: Mapping[str, Array]
    ) -> tuple[Array, Aux]:
        return self._given(key, apply, params, stats, batch)

    def loss(self, net: Net, batch: Mapping[str, Array]) -> tuple[Array, Aux]:
        return self(net.key, net.apply, net.params, net.stats, batch)

    def at(self, step: Array) -> Objective:
        at = getattr(self._given, "at", None)
        return self if at is None else as_objective(at(step))

    def threat(self) -> Any:
        return getattr(getattr(self._given, "attack", None), "ball", None)

    def start(self, shape: tuple[int, ...]) -> Any:
        return self._given.start(shape) if self.carries else None

    def advance(self, carry: Any, gradient: Any) -> Any:
        return self._given.advance(carry, gradient)


def as_objective(objective: Any) -> Objective:
    """Any callable pytree or plain function as an ``Objective`` with every hook.

    Raises:
      TypeError: if it is not callable.
    """
    if isinstance(objective, _Plain) or (
        isinstance(objective, Objective) and type(objective).__call__ is Objective.__call__
    ):
        return objective
    if not callable(objective):
        raise TypeError(
            f"given {type(objective).__name__}; expected an objective, "
            "objective(key, apply, params, stats, batch) -> (loss, Aux)"
        )
    leaves = jax.tree.leaves(objective)
    if len(leaves) == 1 and leaves[0] is objective:  # no pytree: a function
        return _Plain(objective=None, function=objective)
    return _Plain(objective=objective)
