"""One patch that fools a model wherever it is put on whatever image."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from advjax.answers import example_keys, fold_in_each
from advjax.arguments import check_pictures, check_unbounded
from advjax.attacks.core.crafting import Crafted, Progress, check_counts, checked, craft
from advjax.attacks.core.judging import ask
from advjax.attacks.spatial import bilinear, pixel_positions
from advjax.balls import L2, Ball, concrete
from advjax.goals import Misclassify
from advjax.losses import cross_entropy
from advjax.pytrees import Array, ArrayLike, Key, pytree, replace, static
from advjax.types import Goal, LossFn, Model

_ADAM = optax.scale_by_adam()


@pytree
class Patch(Crafted):
    """A patch, to be put on images at random places (Brown et al. 2017, section 2).

    As an attack it draws one place for each image and asks what the model says; it looks at no
    gradient and for no better place. ``Restarts(patch, n=10)`` is the worst of ten places. Made
    by ``train_patch``, or from any pixels: a plain grey square is the control.

    Attributes:
      pixels: ``[h, h, C]`` inside the box; one channel serves all.
      ball: its box bounds the images and its norm measures them; it takes no eps and no mask.
      scale: smallest and largest side (of a circle: diameter), relative to the image's shorter
        side; drawn uniformly between the two.
      rotation: largest angle in degrees, either way; drawn uniformly.
      place: row and column, 0 to 1 each, between the first and the last position at which the
        patch is inside the image; None draws them uniformly.
      circle: whether the patch is the disc in its square.
      loss: what the record's loss is, ``(logits, y) -> [B]``.
      goal: what is wanted; however the patch was trained, ``Misclassify`` until ``with_goal``.
    """

    pixels: ArrayLike
    ball: Ball = L2()  # noqa: RUF009
    scale: ArrayLike = (0.4, 0.4)
    rotation: ArrayLike = 45.0
    place: ArrayLike = None
    circle: bool = static(default=False)
    loss: LossFn = static(default=cross_entropy)
    goal: Goal = Misclassify()

    def check(self) -> None:
        check_unbounded("Patch", self.ball)
        shape = jnp.shape(self.pixels)
        if len(shape) != 3 or shape[0] != shape[1] or 0 in shape:
            raise ValueError(f"Patch: given pixels of shape {shape}; expected [h, h, C]")
        scale = concrete(self.scale)
        if scale is not None and not (scale.shape == (2,) and 0 < scale[0] <= scale[1]):
            raise ValueError(
                f"Patch: given scale={scale.tolist()}; expected (low, high), 0 < low <= high"
            )
        place = concrete(self.place)
        if place is not None and not (place.shape == (2,) and (abs(place - 0.5) <= 0.5).all()):
            raise ValueError(f"Patch: given place={place.tolist()}; expected two of 0 to 1")

    def check_fits(self, x: Array) -> None:
        check_pictures("Patch", x)
        super().check_fits(x)
        channels = jnp.shape(self.pixels)[-1]
        if channels not in (1, x.shape[-1]):
            raise ValueError(
                f"Patch: given images of {x.shape[-1]} channels; expected the patch's {channels}"
            )

    def apply(self, key: Key, x: Array) -> Array:
        """The images ``[B, H, W, C]`` with the patch on each, at a place of its own.

        Differentiable in the pixels.

        Args:
          key: one key or ``[B]`` keys.
          x: ``[B, H, W, C]`` images.
        """
        return jax.vmap(self._on_one)(example_keys(key, x.shape[0]), x)

    def _on_one(self, key: Key, image: Array) -> Array:
        height, width = image.shape[:2]
        size = jnp.shape(self.pixels)[0]
        draw = jax.random.uniform(key, (4,), image.dtype)
        low, high = jnp.asarray(self.scale)
        side = (low + draw[0] * (high - low)) * min(height, width)
        angle = jnp.deg2rad((2 * draw[1] - 1) * self.rotation)
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        # Half of what it takes along an axis; one that is too large sits in the middle.
        half = side / 2 * (1.0 if self.circle else jnp.abs(cos) + jnp.abs(sin))
        place = draw[2:] if self.place is None else jnp.asarray(self.place)
        whole = jnp.asarray([height, width], jnp.float32)
        room = jnp.maximum(whole - 2 * half, 0)
        # Edges of pixels are at -1/2, 1/2, ...
        first = jnp.minimum(half, whole / 2) - 0.5
        centre = first + place * room
        rows, cols = pixel_positions(height, width)
        row, col = (rows - centre[0]) / side, (cols - centre[1]) / side
        row, col = cos * row + sin * col, cos * col - sin * row  # -1/2 to 1/2 on the patch
        pixels = jnp.asarray(self.pixels)
        painted = bilinear(pixels, (row + 0.5) * size - 0.5, (col + 0.5) * size - 0.5)
        # Its edge is one pixel of the image wide, so that its area is right at any angle.
        distance = jnp.hypot(row, col) if self.circle else jnp.maximum(jnp.abs(row), jnp.abs(col))
        cover = jnp.clip((0.5 - distance) * side + 0.5, 0, 1)[..., None]
        lower, upper = self.ball.box(image)
        mixed = (1 - cover) * image + cover * painted
        # Not jnp.clip, which would halve the gradient of every pixel at a bound.
        return jnp.where(mixed > upper, upper, jnp.where(mixed < lower, lower, mixed))

    def put(self, keys: Key, x: Array) -> Array:
        return self.apply(keys, x)

    def hits(
        self, key: Key, model: Model, x: ArrayLike, y: ArrayLike, *, draws: int = 10
    ) -> np.ndarray:
        """How many of ``draws`` places succeed, ``[B]`` counts.

        ``wilson(hits.sum(), B * draws)`` is an interval for these images; places on one image
        succeed together, so over images in general only ``draws=1`` makes the trials independent.

        Args:
          key: one key or ``[B]`` keys.
          model: ``model(x) -> logits [B, K]``.
          x: ``[B, H, W, C]`` images.
          y: ``[B]`` labels, or targets where the goal is one; leave images of the target out.
          draws: places tried on each image.
        """
        keys = example_keys(key, np.shape(x)[0])
        runs = (self.run(fold_in_each(keys, d), model, x, y).success for d in range(draws))
        return np.stack([np.asarray(run) for run in runs]).sum(axis=0, dtype=np.int32)

    def scaled(self, factor: ArrayLike) -> Patch:
        return replace(self, scale=jnp.multiply(self.scale, factor))


@functools.partial(jax.jit, static_argnums=7)
def _step(
    patch: Patch,
    adam: Any,
    learning_rate: Any,
    key: Key,
    model: Model,
    x: Array,
    y: Array,
    batch_size: int,
) -> tuple[tuple[Patch, Any], Array]:
    chosen, places, draws = jax.random.split(key, 3)
    rows = jax.random.randint(chosen, (batch_size,), 0, x.shape[0])
    x, y = x[rows], y[rows]
    keys = example_keys(draws, batch_size)

    def objective(pixels: Array) -> Array:
        covered = replace(patch, pixels=pixels).apply(places, x)
        return ask(patch.goal, patch.loss, model, covered, y, keys)[0] / batch_size

    value, grad = jax.value_and_grad(objective)(patch.pixels)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes counts and floats
        moved, adam = _ADAM.update(jnp.where(jnp.isfinite(grad), grad, 0), adam)
    pixels = patch.ball.clip(patch.pixels + learning_rate * moved)
    return (replace(patch, pixels=pixels), adam), value


def train_patch(
    key: Key,
    model: Model,
    x: ArrayLike,
    y: ArrayLike,
    *,
    goal: Goal = Misclassify(),  # noqa: B008
    size: int | None = None,
    scale: tuple[float, float] = (0.4, 0.4),
    rotation: float = 45.0,
    place: tuple[float, float] | None = None,
    circle: bool = False,
    ball: Ball = L2(),  # noqa: B008
    loss: LossFn = cross_entropy,
    steps: int = 500,
    batch_size: int = 64,
    learning_rate: float = 0.05,
    progress: Progress | None = None,
) -> Patch:
    """Trains a patch (Brown et al. 2017, section 2: expectation over images and places).

    Each step puts the patch on a fresh draw of images, each at a fresh place, angle and scale, and
    takes a step of Adam on its pixels, which stay in the box.

    Args:
      key: one key.
      model: ``model(x) -> logits [B, K]``.
      x: ``[N, H, W, C]`` images; without those of the target.
      y: ``[N]`` labels, or the targets where the goal is one; one for all will do.
      goal: what the training raises the loss of; the patch that it returns wants ``Misclassify``.
      size: the patch's side in its own pixels; by default as many as it covers at its largest.
      scale: smallest and largest side, as for ``Patch``; likewise ``rotation``, ``place``,
        ``circle`` and ``ball``.
      loss: per-example loss ``(logits, y) -> [B]``.
      steps: number of steps.
      batch_size: images of a step, drawn with replacement.
      learning_rate: Adam's, in pixel values.
      progress: called as ``progress(done, steps, loss)`` about fifty times; the loss is the
        step's mean, larger is better.

    Raises:
      TypeError: on a wrong dtype, or a model that cannot be called.
      ValueError: on a wrong shape, or images outside the box.
    """
    check_counts("train_patch", steps=steps, batch_size=batch_size, size=size or 1)
    model, x, y = checked(model, x, y, ball)
    check_pictures("train_patch", x)
    lower, upper = ball.bounds
    size = size or max(round(float(scale[1]) * min(x.shape[1:3])), 1)
    middle = jnp.broadcast_to((lower + upper) / 2, (size, size, x.shape[3]))
    patch = Patch(
        pixels=jnp.asarray(middle, jnp.float32),
        ball=ball,
        scale=scale,
        rotation=rotation,
        place=place,
        circle=circle,
        loss=loss,
        goal=goal,
    )
    rate = np.float32(learning_rate)
    step = lambda i, key, state: _step(*state, rate, key, model, x, y, batch_size)
    patch, _ = craft(key, steps, step, (patch, _ADAM.init(patch.pixels)), progress)
    return patch.with_goal(Misclassify())
