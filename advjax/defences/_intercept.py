"""A network called with a change at every layer of one kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn

from advjax.pytrees import Array

Change = Callable[[Callable[[Array], Array], Array], Array]


def call_changed(owner: str, model: Any, x: Array, layer: type[nn.Module], change: Change) -> Array:
    """``model(x)`` with ``change(call, input)`` in the place of ``call(input)`` of every ``layer``.

    The change sees the layers in the order in which they are called. It happens while the model is
    traced, so the model must not be behind a ``jit`` of its own.

    Raises:
      ValueError: if the model calls no such layer, so that nothing would be changed.
    """
    seen = 0

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        nonlocal seen
        if not isinstance(context.module, layer) or context.method_name != "__call__":
            return call(*args, **kwargs)
        seen += 1
        return change(lambda x: call(x, *args[1:], **kwargs), args[0])

    with nn.intercept_methods(intercept):
        out = model(x)
    if not seen:
        raise ValueError(
            f"{owner}: given {type(model).__name__} that calls no {layer.__module__}."
            f"{layer.__name__}; expected a linen network made of it, as those of the zoo are"
        )
    return out
