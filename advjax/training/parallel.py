"""Data parallelism by ``jax.pmap``: the one path, for one device as for many.

The state crosses with ``in_axes=None`` and ``out_axes=None``: it stays replicated, is never
stacked, and its buffers are donated. Only the places in the batch are split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from advjax.training.step import AXIS, Step
from advjax.types import Array


def parallel(step: Step, devices: Sequence[jax.Device]) -> Callable[..., Any]:
    """The step over all devices; takes and returns what ``step`` does, donating the state."""
    return jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, 0, None, None, None),
        out_axes=(None, None),
        donate_argnums=(0,),
        devices=devices,
    )


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """A copy of every array on every device.

    A real copy: ``device_put`` would share memory with its argument on the first device, and
    donating the state would then delete the caller's arrays.
    """
    sharding = NamedSharding(Mesh(np.asarray(devices), (AXIS,)), PartitionSpec())
    return jax.tree.map(lambda v: jax.device_put(jax.numpy.array(v, copy=True), sharding), tree)


def positions(batch_size: int, devices: Sequence[jax.Device]) -> Array:
    """``[D, batch_size / D]`` places in the global batch, one row on each device.

    Raises:
      ValueError: if the devices cannot share the batch equally.
    """
    if batch_size % len(devices):
        raise ValueError(
            f"batch_size={batch_size} on {len(devices)} devices; "
            f"a multiple of {len(devices)} is taken (or fewer devices)"
        )
    rows = np.arange(batch_size, dtype=np.int32).reshape(len(devices), -1)
    sharding = NamedSharding(Mesh(np.asarray(devices), (AXIS,)), PartitionSpec(AXIS))
    return jax.device_put(rows, sharding)


def steps_in_flight(devices: Sequence[jax.Device]) -> int:
    """How many steps may be handed to the devices before the first of them has to be done.

    Enough to keep a device busy. CPU devices of one process share a thread pool: a second step's
    all-reduce can take the threads that the first one's is waiting for, and neither ends.
    """
    several_cpus = len(devices) > 1 and devices[0].platform == "cpu"
    return 1 if several_cpus else 4
