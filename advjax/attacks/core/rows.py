"""Taking some examples out of a batch and putting them back."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

_SMALLEST = 8  # examples: fewer cost as much time and another compilation


def fitting_size(rows: int, batch: int) -> int:
    """The smallest of the batch's halves that holds so many rows: few sizes, few compilations."""
    size = batch
    while size // 2 >= max(rows, _SMALLEST):
        size //= 2
    return size


@jax.jit
def take_rows(tree: Any, rows: Any) -> Any:
    """Every array's given rows; scalars as they are."""
    return jax.tree.map(lambda leaf: leaf[rows] if leaf.ndim else leaf, tree)


@jax.jit
def put_rows(whole: Any, part: Any, rows: Any) -> Any:
    """The whole with the rows of a part written back; scalars are the part's."""
    put = lambda old, new: old.at[rows].set(new, mode="drop") if old.ndim else new
    return jax.tree.map(put, whole, part)


def close_size(rows: int, batch: int, parts: int = 16, smallest: int = _SMALLEST) -> int:
    """The smallest multiple of a sixteenth of the batch that holds so many rows: for long runs,
    where a compilation costs less than running a tenth more examples."""
    unit = max(-(-batch // parts), smallest)
    return min(-(-rows // unit) * unit, batch)


def padded_rows(rows: np.ndarray, size: int, batch: int) -> np.ndarray:
    """Rows for ``put_rows``, filled up to ``size`` with one outside the batch, which is dropped."""
    return np.concatenate([rows, np.full(size - len(rows), batch)]).astype(np.int32)
