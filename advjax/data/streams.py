"""What training batches are made of, and the batch of a step as a function of key and step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advjax.data.batches import batch_indices
from advjax.data.dataset import Dataset, to_float
from advjax.pytrees import Array, Key

# Folded into the run's key for the orders of the two image streams; no step gets this far.
_ORDER, _UNLABELLED_ORDER = np.uint32(0xFFFFFFFF), np.uint32(0xFFFFFFFE)


@dataclasses.dataclass(frozen=True, eq=False)
class Streams:
    """The images of a training, checked: the labelled ones and what goes with them.

    Attributes:
      train: the labelled images.
      unlabelled: a second stream of images, of the same shape; its labels are not used.
      neighbours: ``(index [N, n] integers, weights [N, n])``: the neighbours of each labelled image
        among the N labelled images, from N on among the unlabelled ones; -1 or weight 0 for none.

    Raises:
      ValueError: for images of another shape, and an index or weights that do not fit.
    """

    train: Dataset
    unlabelled: Dataset | None = None
    neighbours: tuple[Any, Any] | None = None

    def __post_init__(self) -> None:
        check_shape("unlabelled", self.unlabelled, self.train)
        if self.neighbours is not None:
            pool = 0 if self.unlabelled is None else len(self.unlabelled)
            both = _neighbours(*self.neighbours, len(self.train), pool)
            object.__setattr__(self, "neighbours", both)

    def arrays(self) -> dict[str, np.ndarray]:
        """By name: what lies on the devices, and what ``Batches`` takes."""
        arrays = {"x": self.train.x, "y": self.train.y}
        if self.unlabelled is not None:
            arrays["unlabelled"] = self.unlabelled.x
        if self.neighbours is not None:
            index, weights = self.neighbours
            arrays["neighbours"] = np.maximum(index, 0)
            arrays["weights"] = np.where(index < 0, np.float32(0), weights)
        return arrays

    def hold_out(self, share: float, seed: int) -> tuple[Streams, Dataset]:
        """What is left of the labelled images, and the share of them that the seed draws.

        Neighbours that are held out are none any more.

        Raises:
          ValueError: for a share that leaves no image on one of the sides.
        """
        n = len(self.train)
        held = round(share * n)
        if not 0 < held < n:
            raise ValueError(
                f"validation={share} of {n} training images; expected a share that leaves some on "
                "both sides"
            )
        order = np.random.default_rng(seed).permutation(n)
        rest = np.sort(order[held:])
        validation = dataclasses.replace(self.train.take(np.sort(order[:held])), split="validation")
        neighbours = None
        if self.neighbours is not None:
            index, weights = (a[rest] for a in self.neighbours)
            new = np.arange(-held, max(index.max() + 1, n) - held, dtype=np.int32)
            new[order[:held]], new[rest] = -1, np.arange(len(rest))
            neighbours = (np.where(index < 0, -1, new[index]), weights)
        return Streams(self.train.take(rest), self.unlabelled, neighbours), validation


@dataclasses.dataclass(frozen=True)
class Batches:
    """``batches(key, step, data, places) -> batch``, a pure and traceable function.

    Attributes:
      size: B, labelled images a batch.
      augment: ``augment(keys [B], x [B, ...]) -> x``, or None.
      unlabelled_ratio: k, unlabelled images to a labelled one.
    """

    size: int
    augment: Any = None
    unlabelled_ratio: int = 1

    def __call__(
        self, key: Key, step: int | Array, data: Mapping[str, Array], places: Array
    ) -> dict[str, Array]:
        """The part of a step's batch at some places.

        The example at place i is augmented by ``fold_in(fold_in(key, step), B + i)``, its j-th
        unlabelled one by ``2 B + k i + j``; orders are ``batch_indices``, one for each stream.

        Args:
          key: the run's key, the same for every step; not consumed.
          step: which batch, from 0.
          data: the arrays of ``Streams.arrays``.
          places: ``[b]`` of the places 0 to B - 1, those of one device.

        Returns:
          ``x [b, ...]`` float images, ``y [b]``, and where the data has them ``unlabelled
          [b k, ...]``, ``neighbours [b, n, ...]`` (never augmented) and ``weights [b, n]``.
        """
        order = jax.random.fold_in(key, _ORDER)
        drawn = jax.random.fold_in(key, step)
        x, n = data["x"], data["x"].shape[0]
        indices = batch_indices(order, step, n, self.size)[places]
        images = self._augmented(drawn, self.size + places, to_float(x[indices]))
        batch = {"x": images, "y": data["y"][indices]}
        if "unlabelled" in data:
            pool, k = data["unlabelled"], self.unlabelled_ratio
            order = jax.random.fold_in(key, _UNLABELLED_ORDER)
            each = (k * places[:, None] + np.arange(k)[None]).ravel()
            images = to_float(pool[batch_indices(order, step, pool.shape[0], k * self.size)[each]])
            batch["unlabelled"] = self._augmented(drawn, 2 * self.size + each, images)
        if "neighbours" in data:
            # A row's absent neighbours have weight 0; which image stands there does not matter.
            index = data["neighbours"][indices]
            images = to_float(x[jnp.minimum(index, n - 1)])
            if "unlabelled" in data:
                further = to_float(data["unlabelled"][jnp.maximum(index - n, 0)])
                here = index.reshape(index.shape + (1,) * (x.ndim - 1)) < n
                images = jnp.where(here, images, further)
            batch["neighbours"], batch["weights"] = images, data["weights"][indices]
        return batch

    def _augmented(self, key: Key, draws: Array, images: Array) -> Array:
        if self.augment is None:
            return images
        return self.augment(jax.vmap(jax.random.fold_in, (None, 0))(key, draws), images)


def check_shape(name: str, other: Any, train: Dataset) -> None:
    """Raises ValueError where another set's images have another shape."""
    if isinstance(other, Dataset) and other.x.shape[1:] != train.x.shape[1:]:
        raise ValueError(
            f"{name} images are {other.x.shape[1:]}, training images {train.x.shape[1:]}"
        )


def _neighbours(index: Any, weights: Any, n: int, unlabelled: int) -> tuple[np.ndarray, np.ndarray]:
    """The two as int32 and float32, checked."""
    index, weights = np.asarray(index), np.asarray(weights)
    if index.ndim != 2 or len(index) != n or index.dtype.kind not in "iu" or not index.size:
        raise ValueError(
            f"neighbours: given an index of {index.dtype}{list(index.shape)}; "
            f"expected whole numbers [{n}, n], one row for each training image"
        )
    if index.min() < -1 or index.max() >= n + unlabelled:
        raise ValueError(
            f"neighbours: the index runs from {index.min()} to {index.max()}; expected -1 for none "
            f"and 0 to {n + unlabelled - 1}, for {n} training and {unlabelled} unlabelled images"
        )
    if weights.shape != index.shape or not np.all((weights >= 0) & np.isfinite(weights)):
        raise ValueError(
            f"neighbours: given weights {list(weights.shape)}; expected finite numbers >= 0 of the "
            f"index's shape {list(index.shape)}"
        )
    return index.astype(np.int32), weights.astype(np.float32)
