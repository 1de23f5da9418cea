"""A labelled set in memory: uint8 at rest, float32 in [0, 1] when it is used."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_UNIT = np.float32(1 / 255)


def to_float(x: Any) -> jax.Array:
    """Images as float32 in [0, 1]: uint8 is divided by 255, floats pass. Traceable, any shape."""
    x = jnp.asarray(x)
    if x.dtype == jnp.uint8:
        # XLA turns a division by a constant into this product inside jit only: last bits differ.
        return x.astype(jnp.float32) * _UNIT
    return x.astype(jnp.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels. Objects compare by identity.

    Attributes:
      x: ``[N, H, W, C]`` uint8, or float32 in [0, 1] where uint8 would lose something (any rank of
        two or more). Grey images given as ``[N, H, W]`` get their channel axis.
      y: ``[N]`` int32 in ``[0, K)``.
      classes: the K class names; ``("0", "1", ...)`` when not given.
      name: what the set is called in reports.
      split: ``"train"``, ``"test"``, ...
      ids: ``[N]`` int32, which example of the whole set each is. Random draws follow the id, so
        an example gets the same attack in a subset as in the whole set. Default ``0 .. N-1``.

    Raises:
      ValueError: for images that are neither uint8 nor finite floats in [0, 1], for labels that
        are no class numbers, and for lengths that differ.
    """

    x: np.ndarray
    y: np.ndarray
    classes: tuple[str, ...] = ()
    name: str = "data"
    split: str = "train"
    ids: np.ndarray | None = None

    def __post_init__(self) -> None:
        x, y = _images(self.x, self.name), np.asarray(self.y)
        if y.ndim != 1 or len(y) != len(x):
            raise ValueError(
                f"{self.name}: given labels {y.shape}; expected one per image, [{len(x)}]"
            )
        if y.dtype.kind not in "iu" and not np.all(y == np.round(y)):
            raise ValueError(f"{self.name}: labels are class numbers 0, 1, ...; given {y.dtype}")
        highest = int(y.max()) if len(y) else -1
        classes = tuple(str(c) for c in self.classes) or tuple(map(str, range(highest + 1)))
        if len(y) and not (int(y.min()) >= 0 and highest < len(classes)):
            raise ValueError(
                f"{self.name}: labels run from {int(y.min())} to {highest}; "
                f"with {len(classes)} classes they are 0 to {len(classes) - 1}"
            )
        ids = np.arange(len(x)) if self.ids is None else np.asarray(self.ids)
        if ids.shape != y.shape or ids.dtype.kind not in "iu":
            raise ValueError(f"{self.name}: ids are [{len(x)}] integers; given {ids.shape}")
        object.__setattr__(self, "x", x)
        object.__setattr__(self, "y", y.astype(np.int32))
        object.__setattr__(self, "classes", classes)
        object.__setattr__(self, "ids", ids.astype(np.int32))

    def __len__(self) -> int:
        return len(self.x)

    def take(self, indices: Any) -> Dataset:
        """The examples at these positions (integers, a slice or a mask), with their ids."""
        indices = indices if isinstance(indices, slice) else np.asarray(indices)
        assert self.ids is not None
        return dataclasses.replace(
            self, x=self.x[indices], y=self.y[indices], ids=self.ids[indices]
        )

    def subset(self, n: int, seed: int = 0) -> Dataset:
        """``n`` random examples without replacement, in the order of the set; all if n >= N."""
        if n < 1:
            raise ValueError(f"a subset has at least 1 example; given n={n}")
        if n >= len(self):
            return self
        return self.take(np.sort(np.random.default_rng(seed).permutation(len(self))[:n]))


def _images(x: Any, name: str) -> np.ndarray:
    x = np.asarray(x)
    if x.ndim < 2:
        raise ValueError(f"{name}: images are [N, H, W, C], [N, H, W] or [N, D]; given {x.shape}")
    if x.ndim == 3:
        x = x[..., None]
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind != "f":
        raise ValueError(f"{name}: images are uint8, or floats in [0, 1]; given {x.dtype}")
    if not (np.all(x >= 0) and np.all(x <= 1)):  # NaN fails both
        raise ValueError(
            f"{name}: float images are in [0, 1]; given values from {x.min():.4g} to {x.max():.4g}"
        )
    x = x.astype(np.float32)
    as_bytes = np.round(x * 255).astype(np.uint8)
    # Floats that came from uint8 go back to it: a quarter of the memory, the same float32 images.
    return as_bytes if np.allclose(as_bytes * _UNIT, x, rtol=0, atol=1e-6) else x
