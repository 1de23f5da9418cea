"""The classifier of a finished or unfinished run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advjax.runs import folder as folders
from advjax.runs.checkpoint import (
    CheckpointError,
    DamagedCheckpointError,
    compare_shapes,
    named,
    read,
    shapes_of,
    steps_in,
)


def read_config(run_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """``config.json`` of a training: ``{"format", "training", "config"}``, checked.

    Raises:
      RunError: if there is none or it is not one that ``fit`` wrote.
    """
    config = folders.read_config(run_dir)
    training = config["training"]
    shape, classes = training.get("input_shape"), training.get("classes")
    if not (
        isinstance(training.get("network"), dict)
        and isinstance(shape, list)
        and all(isinstance(n, int) and n > 0 for n in shape)
        and isinstance(classes, list)
        and all(isinstance(c, str) for c in classes)
    ):
        raise folders.RunError(
            f"{Path(run_dir) / 'config.json'} is damaged, or not of a classifier: 'network', "
            "'input_shape' or 'classes' is missing or odd"
        )
    return config


def load_classifier(
    run_dir: str | os.PathLike[str], which: str = "best", *, module: Any = None
) -> Any:
    """The ``Classifier`` of a run, with the parameters that its evaluations used.

    A damaged checkpoint is passed over for the one before it when ``which`` is ``"last"``.

    Args:
      run_dir: the run folder.
      which: ``"best"``, ``"last"`` or a step that has a checkpoint.
      module: the network; needed when the run's was not of the zoo.

    Raises:
      RunError: if the folder is no run, or its network is unknown and ``module`` is None.
      CheckpointError: if there is no such checkpoint, it is damaged, or it is of another
        architecture.
      ValueError: for any other ``which``.
    """
    from advjax.models import Classifier, create

    description = read_config(run_dir)["training"]
    if module is None:
        network = description["network"]
        if not isinstance(network.get("name"), str) or not isinstance(network.get("fields"), dict):
            raise folders.RunError(
                f"{run_dir} trained a network that is not of the zoo "
                f"({network.get('foreign', 'unknown')}); expected its module as module="
            )
        module = create(network["name"], **network["fields"])
    folder = Path(run_dir).absolute() / "checkpoints"
    arrays, step = _arrays(folder, which)
    prefix = "ema/" if any(n.startswith("ema/") for n in arrays) else ""
    params, stats = f"{prefix}params/", f"{prefix}stats/"
    held = {
        "params/" + n.removeprefix(params): a for n, a in arrays.items() if n.startswith(params)
    }
    held |= {n.removeprefix(stats): a for n, a in arrays.items() if n.startswith(stats)}
    images = jax.ShapeDtypeStruct((1, *description["input_shape"]), jnp.float32)
    wanted = jax.eval_shape(module.init, jax.random.key(0), images)
    compare_shapes(f"checkpoint {folder / str(step)}", shapes_of(held), shapes_of(named(wanted)))
    variables: dict[str, Any] = {}
    for name, array in held.items():
        *path, leaf = name.split("/")
        node = variables
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = jnp.asarray(array)
    return Classifier(module, variables)


def _arrays(folder: Path, which: str | int) -> tuple[dict[str, np.ndarray], int]:
    """The arrays of the checkpoint that was asked for, and its step."""
    if isinstance(which, int):
        return read(folder, which)[0], which
    if which not in ("best", "last"):
        raise ValueError(f"which={which!r}; expected 'best', 'last' or a step")
    refused: list[str] = []
    for step in reversed(steps_in(folder)):
        try:
            arrays, record = read(folder, step)
        except DamagedCheckpointError as error:
            refused.append(str(error))
            continue
        best = record["position"].get("best")
        if which == "last" or best is None or best["step"] == step:
            return arrays, step
        return read(folder, best["step"])[0], best["step"]
    raise CheckpointError(refused[0] if refused else f"{folder} holds no checkpoint yet")
