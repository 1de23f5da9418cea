"""Data: labelled image sets in memory, batches of indices, augmentation on the device."""

from advjax import _faces
from advjax.data.augment import Augment as Augment
from advjax.data.batches import batch_indices as batch_indices
from advjax.data.batches import batches as batches
from advjax.data.batches import epoch_order as epoch_order
from advjax.data.batches import steps_per_epoch as steps_per_epoch
from advjax.data.dataset import Dataset as Dataset
from advjax.data.dataset import to_float as to_float
from advjax.data.sources import load as load

_faces.declare(__name__)
