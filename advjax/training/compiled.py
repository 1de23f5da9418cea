"""What of a training is compiled, and what is data: trainings of one program share one step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import numpy as np

from advjax.training.describe import program_text
from advjax.training.parallel import parallel
from advjax.training.spec import Training


def program_of(training: Training) -> Hashable:
    """A key that is equal for two trainings whose steps are one program.

    The numbers of the objective, the seed, dropout rates, the images, the first parameters, and
    what the optimiser keeps in its state are data. An optimiser's other numbers are part of its
    program: ``optax.inject_hyperparams(optax.sgd)(learning_rate=lr)`` keeps them in its state.
    """
    module = training.module
    if module is not None and getattr(module, "dropout", None) is not None:
        module = module.clone(dropout=0.5)  # a variable holds the rate
    shape = lambda tree: tuple(
        (path, np.shape(leaf), np.result_type(leaf)) for path, leaf in _leaves(tree)
    )
    params = training.params_shape()
    state = jax.eval_shape(training.optimizer.init, params)
    return (
        module,
        training.apply,
        jax.tree.structure(training.full_objective),
        # What the optimiser's state holds is an argument of its update.
        program_text(training.optimizer.update, params, state, params),
        _values(training.augment),
        shape(training.arrays()),
        tuple(jax.tree.leaves(jax.tree.map(lambda s: (s.shape, s.dtype), params))),
        training.batch_size,
        training.total_steps,
        training.average(),
        training.unlabelled_ratio,
    )


def compiled_step(training: Training, devices: Sequence[jax.Device]) -> Callable[..., Any]:
    """``parallel(training.step())``, the same one for every training of one program."""
    return _compiled(_Keyed(program_of(training), training), tuple(devices), None)


def compiled_steps(
    training: Training, devices: Sequence[jax.Device], shared: bool
) -> Callable[..., Any]:
    """The step of several trainings of one program at once, mapped over states and objectives.

    Args:
      training: any of them.
      devices: what each batch is split over.
      shared: whether all train on the same arrays, which are then not mapped.
    """
    return _compiled(_Keyed(program_of(training), training), tuple(devices), shared)


class _Keyed:
    """A training that is equal to every other of its program, until its step has been made: what
    is kept has no data."""

    def __init__(self, key: Hashable, training: Training) -> None:
        self.key = key
        self.training: Training | None = training

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Keyed) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@functools.lru_cache(maxsize=8)
def _compiled(
    keyed: _Keyed, devices: tuple[jax.Device, ...], shared: bool | None
) -> Callable[..., Any]:
    assert keyed.training is not None
    step: Any = keyed.training.step()
    keyed.training = None
    if shared is not None:
        data = None if shared else 0
        step = jax.vmap(step, in_axes=(0, None, 0, data))
    return parallel(step, devices)


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree.leaves_with_path(tree)]


def _values(tree: Any) -> Hashable:
    """A pytree's structure and values; what is neither number nor array stands for itself."""
    numbers = (bool, int, float, np.ndarray, np.generic, jax.Array)
    values = tuple(
        np.asarray(leaf).tobytes() if isinstance(leaf, numbers) else leaf
        for leaf in jax.tree.leaves(tree)
    )
    return jax.tree.structure(tree), values
