"""Data: labelled image sets in memory, batches of indices, augmentation on the device."""

from advjax.data.augment import Augment
from advjax.data.batches import batch_indices, batches, epoch_order, steps_per_epoch
from advjax.data.dataset import Dataset, to_float
from advjax.data.sources import load

__all__ = [
    "Augment",
    "Dataset",
    "batch_indices",
    "batches",
    "epoch_order",
    "load",
    "steps_per_epoch",
    "to_float",
]
