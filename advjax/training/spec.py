"""``Training``: everything that decides what a run computes, in one frozen record."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from advjax.data import Dataset
from advjax.data.streams import Batches, Streams, check_shape
from advjax.pytrees import Array
from advjax.runs.state import Average, EqualAverage, MovingAverage, TrainState, create_state
from advjax.spec import FORMAT, checksum, describe
from advjax.training.apply import Bound, LinenApply
from advjax.training.describe import describe_data, describe_network, describe_optimizer
from advjax.training.plain import as_objective
from advjax.training.step import AXIS, Step, make_step
from advjax.types import Objective

_COUNTS = ("epochs", "steps", "batch_size", "evaluate_every", "evaluate_examples", "patience",
           "swa_start", "unlabelled_ratio", "log_every")  # fmt: skip


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
      test: what the run is evaluated on while it goes on; None for none. Without ``validation`` it
        also tells the best step, which makes the best figure on it optimistic.
      validation: what tells the best step and when to stop early, never the test set: a
        ``Dataset``, or the share of the training set, drawn by the seed, that is held out for it
        (``train`` is then what is left). It is evaluated as ``test`` is, beside it.
      unlabelled: a second stream of images, of the training images' shape; its labels are not
        used. A batch's ``unlabelled`` are ``[B * unlabelled_ratio, ...]`` of them, in an order of
        its own, augmented like the others; those that go with the example at place i are at
        ``i * unlabelled_ratio`` and after it.
      unlabelled_ratio: unlabelled images to a labelled one.
      neighbours: ``(index [N, n] integers, weights [N, n])``: the neighbours of each training image
        among the N training images, from N on among the unlabelled ones; -1 or weight 0 for none.
        A batch's ``neighbours`` (``[B, n, ...]`` images, never augmented) and ``weights``
        (``[B, n]``) are those of its images.
      epochs: passes over the training set; the ragged last batch of each is left out. With an
        objective that replays every minibatch m times, m of them are one pass.
      steps: number of steps, instead of epochs.
      batch_size: images a step, over all devices together.
      augment: ``augment(keys [B], x [B, ...]) -> x``, such as ``advjax.data.Augment``.
      seed: decides every draw of the run.
      ema_decay: decay of the averaged parameters that are then evaluated and returned, in
        [0, 1); None for the parameters themselves.
      swa_start: instead of that, epochs after which parameters are averaged with equal weights,
        once an epoch (stochastic weight averaging, Izmailov et al. 2018). The running statistics
        of BatchNorm are averaged alike, not measured again on the training set as they do.
      evaluate_every: steps between evaluations; an epoch when None. The last step is always
        evaluated.
      evaluate_examples: how many test images, drawn by the seed, an evaluation uses; None for all.
      attacks: name to attack, for the evaluations. Best is the step of the highest worst-case
        accuracy over them, of the highest clean accuracy when there are none.
      patience: evaluations without a new best, by ``validation``, after which the run stops; None
        to go on. Adversarial training overfits: Rice et al. 2020 lose 9 points without.
      watch: an attack on a batch of training images, drawn by the seed, at the end of every epoch
        and on the parameters themselves, to notice catastrophic overfitting (Wong et al. 2020:
        PGD of 5 steps of a quarter of eps). None for none. Without test and validation images,
        best is the model of the last of these checks that was passed.
      watch_drop: the run stops when that accuracy falls by more than this from one epoch to the
        next.
      checkpoint_every_s: seconds between checkpoints; each evaluation makes one too. It has no
        influence on results.
      log_every: steps whose metrics are fetched at once; NaN is found then, at its exact step.
      loss_limit: a loss above this counts as divergence.
    """

    objective: Any
    optimizer: optax.GradientTransformation
    train: Dataset
    test: Dataset | None = None
    validation: Dataset | float | None = None
    unlabelled: Dataset | None = None
    unlabelled_ratio: int = 1
    neighbours: tuple[Any, Any] | None = None
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
    swa_start: int | None = None
    evaluate_every: int | None = None
    evaluate_examples: int | None = 1000
    attacks: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    patience: int | None = None
    watch: Any = None
    watch_drop: float = 0.2
    checkpoint_every_s: float = 60.0
    log_every: int = 50
    loss_limit: float = 1e6

    def __post_init__(self) -> None:
        as_objective(self.objective)  # refuses what is none
        self._check_one_of_each()
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}={value!r}; expected a whole number of at least 1")
        self._check_data()
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay}; expected 0 <= ema_decay < 1")
        if not 0 <= self.watch_drop <= 1:
            raise ValueError(f"watch_drop={self.watch_drop}; expected a share from 0 to 1")

    def _check_one_of_each(self) -> None:
        if (self.module is None) == (self.apply is None):
            raise ValueError("expected a module or apply with params, exactly one of the two")
        if self.apply is not None and self.params is None:
            raise ValueError("apply was given without params; expected its first parameters too")
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                f"given epochs={self.epochs}, steps={self.steps}; expected exactly one of them"
            )
        if self.ema_decay is not None and self.swa_start is not None:
            raise ValueError(
                f"given ema_decay={self.ema_decay}, swa_start={self.swa_start}; expected one"
            )

    def _check_data(self) -> None:
        """Checks the images, and holds out the validation set where a share is given."""
        streams = Streams(self.train, self.unlabelled, self.neighbours)
        if isinstance(self.validation, (int, float)):
            streams, validation = streams.hold_out(self.validation, self.seed)
            object.__setattr__(self, "validation", validation)
        object.__setattr__(self, "train", streams.train)
        object.__setattr__(self, "neighbours", streams.neighbours)
        for name in ("test", "validation"):
            check_shape(name, getattr(self, name), self.train)
        if self.batch_size > len(self.train):
            raise ValueError(
                f"batch_size={self.batch_size}; the training set has {len(self.train)} examples"
            )
        size = self.unlabelled_ratio * self.batch_size
        if self.unlabelled is not None and size > len(self.unlabelled):
            raise ValueError(
                f"a batch takes {size} unlabelled images; there are {len(self.unlabelled)}"
            )
        if self.attacks and not self.judging():
            raise ValueError("attacks were given without test or validation images to attack")
        if self.patience is not None and self.validation is None:
            raise ValueError(
                f"patience={self.patience} was given without validation images; "
                "early stopping does not look at the test set"
            )

    @property
    def steps_per_epoch(self) -> int:
        return len(self.train) // self.batch_size

    @property
    def total_steps(self) -> int:
        return self.steps if self.steps is not None else (self.epochs or 0) * self.steps_per_epoch

    def judging(self) -> dict[str, Dataset]:
        """What evaluations use, by what goes before the names of their metrics."""
        sets = {"": self.test, "validation/": self.validation}
        n = self.evaluate_examples
        return {
            prefix: data if n is None else data.subset(n, self.seed)
            for prefix, data in sets.items()
            if isinstance(data, Dataset)
        }

    @property
    def steps_per_evaluation(self) -> int:
        return self.evaluate_every or self.steps_per_epoch

    @property
    def full_objective(self) -> Objective:
        """The objective with every hook of the contract."""
        return as_objective(self.objective)

    def first_state(self, key: Any, init_key: Any) -> TrainState:
        """The state before the first step; ``key`` is what the steps draw from."""
        params, stats = self.variables(init_key)
        return create_state(
            params,
            stats,
            self.optimizer,
            key,
            averaged=self.average() is not None,
            carry=self.full_objective.start((self.batch_size, *self.train.x.shape[1:])),
        )

    def average(self) -> Average | None:
        """How the averaged parameters follow a step, if there are any."""
        if self.swa_start is not None:
            every = self.steps_per_epoch
            return EqualAverage(self.swa_start * every, every)
        return None if self.ema_decay is None else MovingAverage(self.ema_decay)

    def step(self) -> Step:
        """The training step on one device, see ``make_step``."""
        return make_step(self.network(), self.optimizer, self.batches(), self.average())

    def batches(self) -> Batches:
        """The batch of a step as a function of key and step."""
        return Batches(self.batch_size, self.augment, self.unlabelled_ratio)

    def arrays(self) -> dict[str, np.ndarray]:
        """What batches are made of, by name: images, labels, and what else there is."""
        return Streams(self.train, self.unlabelled, self.neighbours).arrays()

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

        Objects are as ``advjax.spec`` writes them. What ``optimizer(...)`` made is told by name,
        any other optimiser by its program, as a hash; closures are known by their names.
        """
        return {
            "spec": FORMAT,
            "network": describe_network(self.module, self.apply),
            "input_shape": list(self.train.x.shape[1:]),
            "classes": list(self.train.classes),
            "params": "drawn from the seed" if self.params is None else checksum(self.params),
            "objective": describe(self.objective),
            "optimizer": describe_optimizer(self.optimizer, self.params_shape()),
            "train": describe_data(self.train),
            "test": describe_data(self.test),
            "validation": describe_data(self.validation),
            "unlabelled": describe_data(self.unlabelled),
            "unlabelled_ratio": None if self.unlabelled is None else self.unlabelled_ratio,
            "neighbours": None if self.neighbours is None else checksum(self.neighbours),
            "steps": self.total_steps,
            "batch_size": self.batch_size,
            "augment": describe(self.augment),
            "seed": self.seed,
            "ema_decay": self.ema_decay,
            "swa_start": self.swa_start,
            "evaluate_every": self.steps_per_evaluation,
            "evaluate_examples": self.evaluate_examples,
            "attacks": {name: describe(attack) for name, attack in self.attacks.items()},
            "patience": self.patience,
            "watch": describe(self.watch),
            "watch_drop": None if self.watch is None else self.watch_drop,
        }

    def params_shape(self) -> Any:
        """The parameters' shapes, without drawing them."""
        return jax.eval_shape(lambda: self.variables(jax.random.key(0))[0])


def root_keys(seed: int) -> tuple[Array, Array, Array]:
    """The keys of the initialisation, of the steps and of the evaluations."""
    key = jax.random.key(seed)
    init, steps, evaluations = (jax.random.fold_in(key, jnp.uint32(i)) for i in range(3))
    return init, steps, evaluations
