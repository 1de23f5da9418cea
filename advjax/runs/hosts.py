"""Several processes, on one machine or many, that train one run together (``jax.distributed``).

Every process computes the same run: the same first state, the same decisions from the same metrics,
the same evaluations on its own devices. The first one, the coordinator, alone has the run's folder.
What only one of them can know, where a resumed run stands and that a signal has come, is broadcast,
at steps that all of them reach.
"""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np


def join(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    patience_s: int = 100,
) -> None:
    """Makes this process one of several; before anything else has used a device.

    Under SLURM, Open MPI, Kubernetes and on TPU pods nothing has to be given.

    Args:
      coordinator: ``address:port`` of the first process.
      processes: how many there are.
      process: which one this is, from 0.
      patience_s: seconds without a sign of life of one process after which the others end, each
        with an error; the run resumes from its last checkpoint.

    Raises:
      ValueError: if only some of the three are given.
    """
    given = [coordinator, processes, process]
    if any(v is None for v in given) and any(v is not None for v in given):
        raise ValueError(
            f"given coordinator={coordinator}, processes={processes}, process={process}; expected "
            "all three, or none where the environment tells them"
        )
    jax.distributed.initialize(
        coordinator, processes, process, heartbeat_timeout_seconds=patience_s
    )


def is_distributed() -> bool:
    """Whether other processes take part."""
    return jax.process_count() > 1


def is_coordinator() -> bool:
    """Whether this is the process that has the folder and reports."""
    return jax.process_index() == 0


def any_of(flag: bool) -> bool:
    """Whether it is true in any process; all of them have to ask."""
    from jax.experimental.multihost_utils import process_allgather

    return bool(np.any(process_allgather(np.asarray(flag))))


def broadcast(value: Any) -> Any:
    """The first process's value, JSON-able, in all of them."""
    text = json.dumps(value).encode() if is_coordinator() else b""
    size = int(_first(np.asarray(len(text), np.int32)))
    buffer = np.zeros(size, np.uint8)
    if is_coordinator():
        buffer[:] = np.frombuffer(text, np.uint8)
    return json.loads(_first(buffer).tobytes())


def broadcast_arrays(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The first process's arrays in all of them; the others give arrays of the same shapes."""
    return {name: _first(array) for name, array in sorted(arrays.items())}


def _first(array: np.ndarray) -> np.ndarray:
    from jax.experimental.multihost_utils import broadcast_one_to_all

    return np.asarray(broadcast_one_to_all(array)).astype(array.dtype)
