"""One perturbation that fools a model on most images."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advjax.answers import as_model, draws_of, example_keys, fold_in_each
from advjax.arguments import check_ball
from advjax.attacks.core.crafting import Crafted, Progress, check_counts, checked, craft
from advjax.attacks.core.judging import ask
from advjax.balls import L2, Ball, Linf
from advjax.checks import check_images
from advjax.goals import Misclassify
from advjax.losses import cross_entropy
from advjax.pytrees import Array, ArrayLike, Key, pytree, replace, static
from advjax.types import Attack, Goal, LossFn, Model, Record


@pytree
class Universal(Crafted):
    """One perturbation for all images (Moosavi-Dezfooli et al. 2017).

    As an attack it adds ``delta`` and asks what the model says. Made by ``train_universal`` or
    ``train_universal_deepfool``; a random ``delta`` of the same size is the control.

    Attributes:
      delta: the shape of one image, or broadcast to it; what of it leaves ball or box is cut.
      ball: the perturbations allowed.
      loss: what the record's loss is, ``(logits, y) -> [B]``.
      goal: what is wanted; however delta was trained, ``Misclassify`` until ``with_goal``.
    """

    delta: ArrayLike
    ball: Ball
    loss: LossFn = static(default=cross_entropy)
    goal: Goal = Misclassify()

    def check(self) -> None:
        _check_ball("Universal", self.ball)

    def check_fits(self, x: Array) -> None:
        super().check_fits(x)
        shape = jnp.shape(self.delta)
        pairs = zip(shape[::-1], x.shape[:0:-1], strict=False)
        if len(shape) >= x.ndim or any(own not in (1, given) for own, given in pairs):
            raise ValueError(
                f"Universal: given images of shape {x.shape[1:]}; expected delta's, {shape}"
            )

    def apply(self, x: Array) -> Array:
        """The images ``[B, ...]`` with the perturbation on each, inside ball and box."""
        return self.ball.apply(x, jnp.broadcast_to(jnp.asarray(self.delta), x.shape))

    def fooled(self, key: Key, model: Model, x: ArrayLike, *, batch_size: int = 500) -> np.ndarray:
        """``[B]`` bool: the model's answer changes, right or wrong as it was.

        The mean is the fooling rate of the papers, which look at no labels.

        Args:
          key: one key or ``[B]`` keys; only a randomised model draws from them.
          model: ``model(x) -> logits [B, K]``.
          x: ``[B, ...]`` images.
          batch_size: images at a time.
        """
        model, x = as_model(model), check_images(x)
        self.check_fits(x)
        keys = example_keys(key, x.shape[0])
        parts = _in_parts(x.shape[0], batch_size)
        found = [np.asarray(_changed(self, keys[rows], model, x[rows]))[:n] for rows, n in parts]
        return np.concatenate(found)

    def put(self, keys: Key, x: Array) -> Array:
        del keys
        return self.apply(x)

    def scaled(self, factor: ArrayLike) -> Universal:
        return replace(self, ball=self.ball.scaled(factor), delta=jnp.multiply(self.delta, factor))


def _check_ball(name: str, ball: Any) -> None:
    check_ball(name, ball, finite=True)
    if jnp.ndim(ball.eps):
        raise ValueError(f"{name}: given eps of shape {jnp.shape(ball.eps)}; expected a scalar")


def _in_parts(total: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Rows of equal parts, the last one padded by repeats, and how many count."""
    size = min(size, total)
    for start in range(0, total, size):
        yield (start + np.arange(size)) % total, min(size, total - start)


@jax.jit
def _answer(model: Model, x: Array, keys: Key) -> Array:
    return jnp.argmax(draws_of(model, x, keys).mean(axis=0), axis=-1).astype(jnp.int32)


@jax.jit
def _changed(universal: Universal, keys: Key, model: Model, x: Array) -> Array:
    clean = _answer(model, x, fold_in_each(keys, 0))
    return clean != _answer(model, universal.apply(x), fold_in_each(keys, 1))


@functools.partial(jax.jit, static_argnums=7)
def _climb(
    universal: Universal,
    step_size: Any,
    cap: Any,
    key: Key,
    model: Model,
    x: Array,
    y: Array,
    batch_size: int,
) -> tuple[Universal, Array]:
    chosen, draws = jax.random.split(key)
    rows = jax.random.randint(chosen, (batch_size,), 0, x.shape[0])
    x, y = x[rows], y[rows]
    keys = example_keys(draws, batch_size)
    capped = lambda logits, y: jnp.minimum(universal.loss(logits, y), cap)
    loss = universal.loss if universal.goal.targeted else capped
    # The gradient at the image cut to the box, not through the cut: where many pixels lie on a
    # bound, delta would else stay on the wrong side of it, from where no gradient leads back.
    moved = universal.ball.clip(x + universal.delta[None])
    total = lambda shift: ask(universal.goal, loss, model, moved + shift[None], y, keys)[0]
    value, grad = jax.value_and_grad(total)(jnp.zeros_like(x[0]))
    grad, ball = jnp.where(jnp.isfinite(grad), grad, 0), universal.ball
    moved = ball.project(universal.delta[None] + step_size * ball.steepest(grad[None]))[0]
    return replace(universal, delta=moved), value / batch_size


def train_universal(
    key: Key,
    model: Model,
    x: ArrayLike,
    y: ArrayLike | None = None,
    *,
    ball: Ball = Linf(10 / 255),  # noqa: B008
    goal: Goal = Misclassify(),  # noqa: B008
    loss: LossFn = cross_entropy,
    cap: float = np.inf,
    steps: int = 500,
    batch_size: int = 100,
    step_size: float | None = None,
    progress: Progress | None = None,
) -> Universal:
    """Projected gradient steps on the summed loss of mini-batches (Shafahi et al. 2020, sec. 4).

    A step follows the ball's steepest direction, the sign in L-inf, and gets shorter linearly.
    Stronger than ``train_universal_deepfool`` and many times cheaper: one forward and one backward
    pass for each image of a step.

    Args:
      key: one key.
      model: ``model(x) -> logits [B, K]``.
      x: ``[N, ...]`` images.
      y: ``[N]`` labels, or the targets (one for all will do); by default the model's answers.
      ball: the perturbations allowed.
      goal: what the training raises the loss of; what it returns wants ``Misclassify``.
      loss: per-example loss ``(logits, y) -> [B]``.
      cap: no image counts for more than this, lest a few fooled ones outweigh the rest; only
        where the loss is raised.
      steps: number of steps.
      batch_size: images of a step, drawn with replacement.
      step_size: length of the first step in the ball's norm; by default ``eps / 10``.
      progress: called as ``progress(done, steps, loss)`` about fifty times; the loss is the
        step's mean, larger is better.

    Raises:
      TypeError: on a wrong dtype, or a model that cannot be called.
      ValueError: on a wrong shape, or images outside the box.
    """
    _check_ball("train_universal", ball)
    check_counts("train_universal", steps=steps, batch_size=batch_size)
    if goal.targeted and y is None:
        raise ValueError(f"train_universal: given goal={goal!r} and no y; expected the targets")
    model, x, y, keys = _data(key, model, x, y, ball)
    step_size = ball.eps / 10 if step_size is None else step_size
    universal = Universal(delta=jnp.zeros_like(x[0]), ball=ball, loss=loss, goal=goal)

    def step(i: int, key: Key, universal: Universal) -> tuple[Universal, Array]:
        length = np.float32(step_size * (1 - i / steps))
        return _climb(universal, length, np.float32(cap), key, model, x, y, batch_size)

    return craft(keys, steps, step, universal, progress).with_goal(Misclassify())


def train_universal_deepfool(
    key: Key,
    model: Model,
    x: ArrayLike,
    *,
    ball: Ball = Linf(10 / 255),  # noqa: B008
    attack: Attack | None = None,
    rate: float = 0.8,
    passes: int = 10,
    batch_size: int = 1,
    progress: Progress | None = None,
) -> Universal:
    """The published algorithm (Moosavi-Dezfooli et al. 2017, algorithm 1).

    For every image that the perturbation does not fool, the smallest change that sends the
    perturbed image over the boundary is added, and the sum is projected on the ball; changes that
    did not get there are left out. Ends after a pass when ``rate`` of the images are fooled, and
    returns the perturbation after the pass that fooled most: it does not grow steadily. The paper
    takes the images one by one. Here ``batch_size`` of them are attacked together and the *mean*
    of their changes is added, which with one is the same and with many moves less in a pass.

    Args:
      key: one key.
      model: ``model(x) -> logits [B, K]``.
      x: ``[N, ...]`` images, visited in a new random order in each pass.
      ball: the perturbations allowed.
      attack: finds the smallest change; by default the authors' ``DeepFool(ball=L2(), steps=10,
        classes=10)`` with overshoot 0.02, in this box.
      rate: fooling rate to stop at, the paper's ``1 - delta``.
      passes: most passes over the images.
      batch_size: images attacked together.
      progress: called as ``progress(passes done, passes, fooling rate)``.

    Raises:
      TypeError: on a wrong dtype, or a model that cannot be called.
      ValueError: on a wrong shape, or images outside the box.
    """
    name = "train_universal_deepfool"
    _check_ball(name, ball)
    check_counts(name, passes=passes, batch_size=batch_size)
    if attack is None:
        from advjax.attacks.deepfool import DeepFool

        box = L2(lower=ball.lower, upper=ball.upper, mask=ball.mask)
        attack = DeepFool(ball=box, steps=10, classes=10)
    model, x, y, keys = _data(key, model, x, None, ball)
    universal = Universal(delta=jnp.zeros_like(x[0]), ball=ball)
    best, most = universal, -1.0
    total, batch_size = x.shape[0], min(batch_size, x.shape[0])
    for turn in range(passes):
        fresh = jax.random.fold_in(keys, np.int32(turn))
        order = np.asarray(jax.random.permutation(fresh, total))
        for start in range(0, total - batch_size + 1, batch_size):
            rows = order[start : start + batch_size]
            drawn = example_keys(jax.random.fold_in(fresh, np.int32(1 + start)), batch_size)
            unfooled, moved = _look(universal, drawn, model, x[rows], y[rows])
            if not np.asarray(unfooled).any():
                continue
            record = attack.solve(fold_in_each(drawn, 1), model, moved, y[rows], record=True)
            universal = _add(universal, record, moved, unfooled)
        found = universal.fooled(fresh, model, x).mean()
        if found > most:
            best, most = universal, found
        if progress is not None:
            progress(turn + 1, passes, float(found))
        if found >= rate:
            break
    return best


@jax.jit
def _look(universal: Universal, keys: Key, model: Any, x: Array, y: Array) -> tuple[Array, Array]:
    moved = universal.apply(x)
    return _answer(model, moved, fold_in_each(keys, 0)) == y, moved


@jax.jit
def _add(universal: Universal, record: Record, moved: Array, unfooled: Array) -> Universal:
    counts = (unfooled & record.success).astype(moved.dtype)
    change = jnp.tensordot(counts, record.x_adv - moved, 1) / jnp.maximum(jnp.sum(counts), 1)
    delta = universal.ball.project((universal.delta + change)[None])[0]
    return replace(universal, delta=delta)


def _data(key: Key, model: Any, x: Any, y: Any, ball: Ball) -> tuple[Model, Array, Array, Key]:
    """The checked model, images and labels, by default the model's answers, and a fresh key."""
    model, x = as_model(model), check_images(x)
    own, rest = jax.random.split(key)
    if y is None:
        keys, total = example_keys(own, x.shape[0]), x.shape[0]
        found = [_answer(model, x[rows], keys[rows])[:n] for rows, n in _in_parts(total, 500)]
        y = jnp.concatenate(found)
    return *checked(model, x, y, ball), rest
