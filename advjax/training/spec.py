"""``Training``: everything that decides what a run computes, in one frozen record."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from advjax.data import Dataset
from advjax.training.apply import Bound, LinenApply
from advjax.training.checkpoint import arrays_of
from advjax.training.step import AXIS
from advjax.types import Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """The whole of a training run. The network is given as a linen module, or as ``apply`` with its
    first ``params`` (and ``stats``).

    Attributes:
      module: a flax linen module, of the zoo or your own.
      apply: instead of a module, a hashable ``Apply`` (``advjax.types``).
      params: first parameters; drawn from the seed for a module when None.
      stats: the other first variables; for a module, the collections besides ``"params"``.
      objective: ``Standard()``, ``Madry(attack=...)`` or your own ``Objective``.
      optimizer: an optax transformation; gradient clipping, weight decay and its mask and the
        learning-rate schedule are part of its chain.
      train: the training set; it lies on the devices, uint8 where it can.
      test: what the run is judged on while it goes on, to tell the best step; None for none.
        Choosing the best step on a set makes the best figure on that set optimistic.
      epochs: passes over the training set; the ragged last batch of each is left out.
      steps: number of steps, instead of epochs.
      batch_size: images a step, over all devices together.
      augment: ``augment(keys [B], x [B, ...]) -> x``, such as ``advjax.data.Augment``.
      seed: decides every draw of the run.
      ema_decay: decay of the averaged parameters that are then evaluated and returned, in
        [0, 1); None for the parameters themselves.
      evaluate_every: steps between evaluations; an epoch when None. The last step is always
        evaluated.
      evaluate_examples: how many test images, drawn by the seed, an evaluation uses; None for all.
      attacks: name to attack, for the evaluations. Best is the step of the highest worst-case
        accuracy over them, of the highest clean accuracy when there are none.
      checkpoint_every_s: seconds between checkpoints; each evaluation makes one too. It has no
        influence on results.
      log_every: steps whose metrics are fetched at once; NaN is found then, at its exact step.
      loss_limit: a loss above this counts as divergence.
    """

    objective: Any
    optimizer: optax.GradientTransformation
    train: Dataset
    test: Dataset | None = None
    module: Any = None
    apply: Callable[..., Any] | None = None
    params: Any = None
    stats: Any = None
    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 128
    augment: Any = None
    seed: int = 0
    ema_decay: float | None = None
    evaluate_every: int | None = None
    evaluate_examples: int | None = 1000
    attacks: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    checkpoint_every_s: float = 60.0
    log_every: int = 50
    loss_limit: float = 1e6

    def __post_init__(self) -> None:
        if (self.module is None) == (self.apply is None):
            raise ValueError("a module or apply with params is taken, exactly one of the two")
        if self.apply is not None and self.params is None:
            raise ValueError("apply was given without params; its first parameters are taken too")
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                f"given epochs={self.epochs}, steps={self.steps}; exactly one of them is taken"
            )
        for name in ("epochs", "steps", "batch_size", "evaluate_every", "evaluate_examples"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}={value!r}; a whole number of at least 1 is taken")
        if self.batch_size > len(self.train):
            raise ValueError(
                f"batch_size={self.batch_size}; the training set has {len(self.train)} examples"
            )
        if self.log_every < 1:
            raise ValueError(f"log_every={self.log_every}; at least 1 is taken")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay}; 0 <= ema_decay < 1 is taken")
        if self.test is not None and self.test.x.shape[1:] != self.train.x.shape[1:]:
            raise ValueError(
                f"test images are {self.test.x.shape[1:]}, training images {self.train.x.shape[1:]}"
            )
        if self.attacks and self.test is None:
            raise ValueError("attacks were given without test images to attack")

    @property
    def steps_per_epoch(self) -> int:
        return len(self.train) // self.batch_size

    @property
    def total_steps(self) -> int:
        return self.steps if self.steps is not None else (self.epochs or 0) * self.steps_per_epoch

    def evaluates_at(self, step: int) -> bool:
        """Whether the state after this many steps is evaluated."""
        every = self.evaluate_every or self.steps_per_epoch
        return self.test is not None and (step % every == 0 or step == self.total_steps)

    def network(self) -> Callable[..., Any]:
        """The ``Apply`` of a training step, which runs inside the mapped axis."""
        if self.module is None:
            assert self.apply is not None
            return self.apply
        module = self.module
        if any(f.name == "axis_name" for f in dataclasses.fields(module)):
            module = module.clone(axis_name=AXIS)
        return LinenApply(module, axis_name=AXIS)

    def variables(self, key: Any) -> tuple[Any, Any]:
        """The first ``(params, stats)``."""
        if self.params is not None:
            return self.params, {} if self.stats is None else self.stats
        from advjax.models import init

        variables = dict(init(self.module, key, self.train.x.shape[1:]))
        params = variables.pop("params", {})
        return params, variables if self.stats is None else self.stats

    def model(self, params: Any, stats: Any) -> Any:
        """The evaluated model: a ``Classifier`` for a module."""
        if self.module is None:
            assert self.apply is not None
            return Bound(params=params, stats=stats, apply=self.apply)
        from advjax.models import Classifier

        return Classifier(self.module, {"params": params, **stats})

    def describe(self) -> dict[str, Any]:
        """JSON-able: every field that results depend on, so that two runs can be told apart.

        An optimiser is known by what it computes, as a hash; callables by their names.
        """
        return {
            "network": describe_network(self.module, self.apply),
            "input_shape": list(self.train.x.shape[1:]),
            "classes": list(self.train.classes),
            "params": "drawn from the seed" if self.params is None else _crc(self.params),
            "objective": _describe(self.objective),
            "optimizer": _fingerprint(self.optimizer, self.params_shape()),
            "train": _describe_data(self.train),
            "test": None if self.test is None else _describe_data(self.test),
            "steps": self.total_steps,
            "batch_size": self.batch_size,
            "augment": _describe(self.augment),
            "seed": self.seed,
            "ema_decay": self.ema_decay,
            "evaluate_every": self.evaluate_every or self.steps_per_epoch,
            "evaluate_examples": self.evaluate_examples,
            "attacks": {name: _describe(attack) for name, attack in self.attacks.items()},
        }

    def params_shape(self) -> Any:
        """The parameters' shapes, without drawing them."""
        return jax.eval_shape(lambda: self.variables(jax.random.key(0))[0])


def describe_network(module: Any, apply: Any = None) -> dict[str, Any]:
    """``{"name", "fields"}`` for a network of the zoo, ``{"foreign": text}`` for any other."""
    if module is not None:
        from advjax.models import describe

        try:
            return describe(module)
        except ValueError:
            return {"foreign": _show(module)}
    return {"foreign": _show(apply)}


def _show(value: Any) -> str:
    text = value.__qualname__ if hasattr(value, "__qualname__") else repr(value)
    return re.sub(r" at 0x[0-9a-f]+", "", " ".join(text.split()))


def _describe(value: Any) -> Any:
    """A pytree of settings as nested JSON, so that two can be compared field by field."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"is": type(value).__name__, **fields}
    if isinstance(value, (list, tuple)):
        return [_describe(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (np.ndarray, np.generic, jax.Array)) and np.size(value) <= 16:
        return np.asarray(value).tolist()
    if isinstance(value, (np.ndarray, jax.Array)):
        return _crc(value)
    return _show(value)


def _crc(tree: Any) -> str:
    total = 0
    for name, array in sorted(arrays_of(tree).items()):
        total = zlib.crc32(array.tobytes(), zlib.crc32(name.encode(), total))
    return f"crc32:{total:08x}"


def _describe_data(data: Dataset) -> dict[str, Any]:
    crc = 0
    for array in (data.x, data.y):
        crc = zlib.crc32(array.tobytes(), crc)
    return {"name": data.name, "split": data.split, "n": len(data), "crc32": f"{crc:08x}"}


def _fingerprint(optimizer: optax.GradientTransformation, params: Any) -> str:
    """A hash of the update's program, which has the learning rates and schedules in it."""

    def update(grads: Any, params: Any) -> Any:
        updates, state = optimizer.update(grads, optimizer.init(params), params)
        return optax.apply_updates(params, updates), state

    text = str(jax.make_jaxpr(update)(params, params))
    text = re.sub(r" at 0x[0-9a-f]+", "", text)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()[:16]


def root_keys(seed: int) -> tuple[Array, Array, Array]:
    """The keys of the initialisation, of the steps and of the evaluations."""
    key = jax.random.key(seed)
    init, steps, evaluations = (jax.random.fold_in(key, jnp.uint32(i)) for i in range(3))
    return init, steps, evaluations
