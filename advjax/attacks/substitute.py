"""Substitute models, trained on the labels that an oracle tells."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advjax.answers import answer_of, as_model, example_keys
from advjax.arguments import check_count
from advjax.attacks.core.oracle import Labels
from advjax.checks import check_images, classes_of
from advjax.losses import cross_entropy
from advjax.pytrees import Array, ArrayLike, Key, pytree
from advjax.shapes import aligned

_INIT, _TRAIN, _CHOOSE, _ASK = range(4)  # what the key of a substitute is folded with


@pytree
class Perceptron:
    """Dense layers with ReLU between them on the flattened image: the default substitute."""

    weights: tuple[Array, ...]
    biases: tuple[Array, ...]

    @classmethod
    def init(cls, key: Key, features: int, classes: int, hidden: tuple[int, ...]) -> Perceptron:
        """He-normal weights, zero biases."""
        widths = (features, *hidden, classes)
        keys = jax.random.split(key, len(widths) - 1)
        draw = jax.nn.initializers.he_normal()
        weights = tuple(draw(k, (a, b)) for k, a, b in zip(keys, widths, widths[1:], strict=False))
        return cls(weights=weights, biases=tuple(jnp.zeros(b) for b in widths[1:]))

    def __call__(self, x: Array) -> Array:
        x = x.reshape(x.shape[0], -1)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = jax.nn.relu(x @ weight + bias[None])
        return x @ self.weights[-1] + self.biases[-1][None]


@dataclasses.dataclass(frozen=True, eq=False)
class Substitute:
    """A model that imitates an oracle, and what it cost.

    Attributes:
      model: ``model(x) -> logits [B, K]``, differentiable.
      x: ``[Q, ...]`` float32, every image that the oracle was asked about, in that order.
      y: ``[Q]`` int32, its answers.
      queries: labels asked for before each training; they sum to Q.
      agreement: after each training, the share of the images asked about so far that the
        substitute gives the oracle's class.
    """

    model: Any
    x: np.ndarray
    y: np.ndarray
    queries: tuple[int, ...]
    agreement: tuple[float, ...]


def train_substitute(
    oracle: Labels | Callable[[Array], Array],
    x: ArrayLike,
    *,
    key: Key,
    classes: int,
    substitute: Any = None,
    rounds: int = 6,
    step_size: float = 0.1,
    period: int = 3,
    reservoir: int | None = None,
    reservoir_from: int = 3,
    max_queries: int = 9600,
    epochs: int = 10,
    batch_size: int = 128,
    optimizer: Any = None,
    box: tuple[float, float] = (0.0, 1.0),
    on_round: Callable[[Substitute], None] | None = None,
) -> Substitute:
    """Trains a substitute for a model known by its answers alone (Papernot et al. 2017, alg. 1).

    Each round adds, for every image x asked about so far, ``x + lambda * sign(gradient of the
    substitute's logit of the oracle's class)``, cut to the box, asks the oracle for its class, and
    goes on training the substitute on all of them. ``lambda`` is ``step_size``, with the other sign
    in every second ``period`` of rounds (section 4.4). 150 images and 6 rounds are 9,600 queries.

    Args:
      oracle: images ``[B, ...]`` to classes ``[B]`` and nothing else: ``Labels(model)``, or any
        function, of JAX or not. It sees each image once; equal images may be asked about twice.
      x: ``[N, ...]`` first images in the box, which are asked about too.
      key: one key; consumed.
      classes: how many the oracle tells apart.
      substitute: the model to train, a callable pytree whose float leaves are its parameters; by
        default a perceptron of 200 and 200 hidden units.
      rounds: augmentations; there is one training more.
      step_size: length of an augmentation's step in pixel units.
      period: rounds after which the step changes its sign.
      reservoir: most images to augment in a round, drawn without replacement; None for all. With it
        the queries grow by a sum instead of doubling (section 4.4).
      reservoir_from: the first round, counted from 0, in which ``reservoir`` counts.
      max_queries: the last round augments as many images as it leaves.
      epochs: passes over the images of each training.
      batch_size: examples a training step.
      optimizer: an optax transformation, started afresh in each training; Adam 1e-3 by default.
      box: smallest and largest pixel.
      on_round: called with the substitute after each training.

    Raises:
      TypeError: where ``oracle`` answers with anything but integers.
      ValueError: on settings out of range, more first images than ``max_queries``, images outside
        the box, or answers that are not one class of ``classes`` per image.
    """
    for name, value, least in (
        ("classes", classes, 2),
        ("rounds", rounds, 0),
        ("period", period, 1),
        ("reservoir", 1 if reservoir is None else reservoir, 1),
        ("reservoir_from", reservoir_from, 0),
        ("epochs", epochs, 0),
        ("batch_size", batch_size, 1),
    ):
        whole = int(value) if isinstance(value, np.integer) else value
        check_count("train_substitute", name, whole, least)
    first = _checked_images(x, max_queries, box)
    if substitute is None:
        features = math.prod(first.shape[1:])
        draw = jax.random.fold_in(key, _INIT)
        substitute = Perceptron.init(draw, features, classes, (200, 200))
    model = as_model(substitute)
    if classes_of(model, jnp.asarray(first[:1])) != classes:
        raise ValueError(f"train_substitute: the substitute has not the {classes} classes given")
    optimizer = _adam() if optimizer is None else optimizer
    plan = _plan(len(first), rounds, reservoir, reservoir_from, max_queries)
    images = np.zeros((sum(plan), *first.shape[1:]), np.float32)
    labels = np.zeros(sum(plan), np.int32)
    asker = jax.random.fold_in(key, _ASK)

    def ask(at: int, asked: np.ndarray) -> None:
        images[at : at + len(asked)] = asked
        labels[at : at + len(asked)] = _answers(oracle, asker, at, asked, classes)

    size, agreement = len(first), list[float]()
    ask(0, first)
    known = size
    for r, new in enumerate(plan):
        if r > 0:
            drawn = np.arange(known)
            if new < known:
                chooser = jax.random.fold_in(jax.random.fold_in(key, _CHOOSE), r)
                drawn = np.asarray(jax.random.permutation(chooser, known))[:new]
            step = np.float32(step_size * (-1) ** ((r - 1) // period))
            for start in range(0, new, size):  # of one shape, so that there is one compilation
                part = drawn[start : start + size]
                rows = np.resize(part, size)
                made = _augmented(model, images[rows], labels[rows], step, *map(np.float32, box))
                ask(known + start, np.asarray(made)[: len(part)])
            known += new
        trainer = jax.random.fold_in(jax.random.fold_in(key, _TRAIN), r)
        model, agreed = _train(
            model, images, labels, np.int32(known), trainer, np.int32(epochs), optimizer, batch_size
        )
        agreement.append(float(agreed))
        found = Substitute(
            model=model,
            x=images[:known],
            y=labels[:known],
            queries=tuple(plan[: r + 1]),
            agreement=tuple(agreement),
        )
        if on_round is not None:
            on_round(found)
    return found


def _checked_images(x: ArrayLike, most: int, box: tuple[float, float]) -> np.ndarray:
    images = np.asarray(check_images(x))
    if len(images) > most:
        raise ValueError(
            f"train_substitute: given {len(images)} first images; expected at most "
            f"max_queries={most}"
        )
    if not (np.all(images >= box[0] - 1e-5) and np.all(images <= box[1] + 1e-5)):
        raise ValueError(
            f"train_substitute: given values from {images.min():.6g} to {images.max():.6g}; "
            f"expected {box[0]:g} to {box[1]:g}"
        )
    return images


def _plan(first: int, rounds: int, reservoir: int | None, begin: int, most: int) -> list[int]:
    """How many labels are asked for before each training."""
    plan = [first]
    for r in range(rounds):
        known = sum(plan)
        drawn = known if reservoir is None or r < begin else reservoir
        plan.append(min(known, drawn, most - known))
    return [new for new in plan if new > 0]


@functools.cache
def _adam() -> Any:
    import optax

    return optax.adam(1e-3)  # one object: the optimiser is structure, compared by identity


_ask = jax.jit(answer_of)


def _answers(oracle: Any, key: Key, asked_before: int, x: np.ndarray, classes: int) -> np.ndarray:
    """The oracle's classes ``[B]``; exactly the B images given are sent to it."""
    keys = example_keys(key, jnp.arange(asked_before, asked_before + len(x)))
    ask = _ask if isinstance(oracle, Labels) else answer_of
    y = np.asarray(ask(oracle, jnp.asarray(x), keys))
    if y.shape != (len(x),):
        raise ValueError(
            f"oracle: answered with shape {y.shape}; expected classes [{len(x)}], "
            "which Labels(model) makes of scores"
        )
    if y.dtype.kind not in "iu":
        raise TypeError(f"oracle: answered with {y.dtype}; expected integers")
    if y.min() < 0 or y.max() >= classes:
        raise ValueError(
            f"oracle: answered {y.min()} to {y.max()}; expected the classes 0 to {classes - 1}"
        )
    return y


@jax.jit
def _augmented(
    model: Any, x: Array, y: Array, step: Array, lower: ArrayLike, upper: ArrayLike
) -> Array:
    def label_logits(x: Array) -> Array:
        return jnp.sum(jnp.take_along_axis(model(x), y[:, None], axis=1))

    uphill = jnp.sign(jnp.nan_to_num(jax.grad(label_logits)(x)))
    return jnp.clip(x + step * uphill, aligned(lower, x), aligned(upper, x))


@functools.partial(jax.jit, static_argnames=("optimizer", "batch_size"))
def _train(
    model: Any,
    x: Array,
    y: Array,
    n: Array,
    key: Key,
    epochs: Array,
    optimizer: Any,
    batch_size: int,
) -> tuple[Any, Array]:
    """The model trained on the first n examples, and its accuracy on them; one trace for all n."""
    x, y = jnp.asarray(x), jnp.asarray(y)
    leaves, treedef = jax.tree.flatten(model)
    where = [i for i, v in enumerate(leaves) if jnp.issubdtype(jnp.result_type(v), jnp.floating)]
    params = [leaves[i] for i in where]
    capacity = x.shape[0]
    batches = (n + batch_size - 1) // batch_size

    def rebuilt(params: Any) -> Any:
        new = dict(zip(where, params, strict=True))
        return jax.tree.unflatten(treedef, [new.get(i, leaf) for i, leaf in enumerate(leaves)])

    def loss(params: Any, rows: Array, weight: Array) -> Array:
        losses = cross_entropy(rebuilt(params)(x[rows]), y[rows])
        return jnp.sum(weight * losses) / jnp.sum(weight)

    def epoch(e: Array, carry: Any) -> Any:
        drawn = jax.random.uniform(jax.random.fold_in(key, e), (capacity,))
        order = jnp.argsort(jnp.where(jnp.arange(capacity) < n, drawn, jnp.inf))

        def step(b: Array, carry: Any) -> Any:
            params, state = carry
            position = b * batch_size + jnp.arange(batch_size)
            rows = order[jnp.minimum(position, capacity - 1)]
            grads = jax.grad(loss)(params, rows, (position < n).astype(x.dtype))
            with jax.numpy_dtype_promotion("standard"):  # optax mixes counts and floats
                updates, state = optimizer.update(grads, state, params)
            return jax.tree.map(lambda p, u: p + u.astype(p.dtype), params, updates), state

        return jax.lax.fori_loop(0, batches, step, carry)

    params, _ = jax.lax.fori_loop(0, epochs, epoch, (params, optimizer.init(params)))
    model = rebuilt(params)

    def agreeing(b: Array, total: Array) -> Array:
        position = b * batch_size + jnp.arange(batch_size)
        rows = jnp.minimum(position, capacity - 1)
        right = (jnp.argmax(model(x[rows]), axis=-1) == y[rows]) & (position < n)
        return total + jnp.sum(right)

    agreed = jax.lax.fori_loop(0, batches, agreeing, jnp.zeros((), jnp.int32))
    return model, agreed / n
