"""Data parallelism by ``jax.pmap``: the one path, for one device as for many.

The state crosses with ``in_axes=None`` and ``out_axes=None``: it stays replicated, is never
stacked, and its buffers are donated. Only what goes by place in the batch is split: the places
themselves, and the state's carry. With several processes (``jax.distributed``) the devices are
those of all of them, and each process holds what lies on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from advjax.pytrees import Array, replace
from advjax.runs.state import TrainState
from advjax.training.step import AXIS, Step


def parallel(step: Step, devices: Sequence[jax.Device]) -> Callable[..., Any]:
    """The step over all devices; takes and returns what ``step`` does, donating the state."""

    def apart(state: TrainState, carry: Any, *rest: Any) -> tuple[TrainState, Any, Any]:
        state, metrics = step(replace(state, carry=carry), *rest)
        return replace(state, carry=None), state.carry, metrics

    mapped = jax.pmap(
        apart,
        axis_name=AXIS,
        in_axes=(None, 0, 0, None, None),
        out_axes=(None, 0, None),
        donate_argnums=(0, 1),
        devices=devices,
    )

    def call(state: TrainState, places: Array, objective: Any, data: Any) -> tuple[TrainState, Any]:
        carry = state.carry
        shared = state if carry is None else replace(state, carry=None)
        shared, carry, metrics = mapped(shared, carry, places, objective, data)
        return shared if carry is None else replace(shared, carry=carry), metrics

    return call


def own(devices: Sequence[jax.Device]) -> list[jax.Device]:
    """Those of the devices that belong to this process."""
    return [d for d in devices if d.process_index == jax.process_index()]


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """A copy of every array on every device of this process.

    A real copy: ``device_put`` would share memory with its argument on the first device, and
    donating the state would then delete the caller's arrays.
    """
    return _put(tree, devices, PartitionSpec())


def split(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Arrays ``[B, ...]`` by place in the batch as ``[D, B / D, ...]``, one row on each device; a
    process has the rows of its own devices."""
    mine = np.asarray([d.process_index == jax.process_index() for d in devices])
    rows = lambda v: jnp.reshape(v, (len(devices), -1, *jnp.shape(v)[1:]))[mine]
    return _put(jax.tree.map(rows, tree), devices, PartitionSpec(AXIS))


def _put(tree: Any, devices: Sequence[jax.Device], spec: PartitionSpec) -> Any:
    sharding = NamedSharding(Mesh(np.asarray(own(devices)), (AXIS,)), spec)
    return jax.tree.map(lambda v: jax.device_put(jnp.array(v, copy=True), sharding), tree)


def place(state: TrainState, devices: Sequence[jax.Device]) -> TrainState:
    """A copy of the state on the devices: the carry split, the rest on every one."""
    shared = replicate(replace(state, carry=None), devices)
    return replace(shared, carry=split(state.carry, devices))


def gather(state: TrainState) -> TrainState:
    """The placed state with its carry in one piece, ``[B, ...]``, however many devices share it."""
    whole = lambda v: jnp.asarray(np.asarray(v).reshape(-1, *v.shape[2:]))
    return replace(state, carry=jax.tree.map(whole, state.carry))


def positions(batch_size: int, devices: Sequence[jax.Device]) -> Array:
    """``[D, batch_size / D]`` places in the global batch, one row on each device, of which a
    process has its own.

    Raises:
      ValueError: if the devices cannot share the batch equally.
    """
    if batch_size % len(devices):
        raise ValueError(
            f"batch_size={batch_size} on {len(devices)} devices; "
            f"expected a multiple of {len(devices)} (or fewer devices)"
        )
    return split(np.arange(batch_size, dtype=np.int32), devices)
