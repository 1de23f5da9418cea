"""Rotations and translations: the worst of a grid or of random draws."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advjax.attacks._checks import check_count, check_per_example, check_pictures, check_unbounded
from advjax.attacks._iterate import Iterative, Loop, LossFn, auto_loop, judge, outcome
from advjax.attacks._rows import widen
from advjax.attacks.oracle import Scores
from advjax.balls import L2, Ball, concrete
from advjax.losses import cross_entropy
from advjax.types import (
    Array,
    ArrayLike,
    Key,
    Record,
    example_keys,
    fold_in_each,
    is_stochastic,
    pytree,
    replace,
    static,
)


def bilinear(image: Array, rows: Array, cols: Array, fill: ArrayLike = None) -> Array:
    """The image between its pixels; differentiable in the image and in the positions.

    Args:
      image: ``[H, W, C]``.
      rows: where to look, pixels from the centre of the first row; any shape.
      cols: likewise from the first column; the same shape.
      fill: colour around the image, a number or one per channel; None repeats its edge.

    Returns:
      ``[*rows.shape, C]``.
    """
    if fill is not None:  # one pixel of frame is enough: farther positions are clipped to it
        height, width, channels = image.shape
        frame = jnp.broadcast_to(jnp.asarray(fill, image.dtype), (height + 2, width + 2, channels))
        image = frame.at[1:-1, 1:-1].set(image)
        rows, cols = rows + 1, cols + 1
    height, width, channels = image.shape
    rows, cols = jnp.clip(rows, 0, height - 1), jnp.clip(cols, 0, width - 1)
    top = jnp.clip(jnp.floor(rows).astype(jnp.int32), 0, max(height - 2, 0))
    left = jnp.clip(jnp.floor(cols).astype(jnp.int32), 0, max(width - 2, 0))
    bottom, right = jnp.minimum(top + 1, height - 1), jnp.minimum(left + 1, width - 1)
    down, across = (rows - top)[..., None], (cols - left)[..., None]
    flat = image.reshape(-1, channels)
    upper = flat[top * width + left] * (1 - across) + flat[top * width + right] * across
    lower = flat[bottom * width + left] * (1 - across) + flat[bottom * width + right] * across
    return upper * (1 - down) + lower * down


def pixel_positions(height: int, width: int) -> tuple[Array, Array]:
    """Rows and columns of all pixels, each ``[H, W]``."""
    rows, cols = np.mgrid[:height, :width].astype(np.float32)
    return jnp.asarray(rows), jnp.asarray(cols)


def rotate_and_shift(
    x: Array, degrees: Array, down: Array, right: Array, fill: ArrayLike = 0.0
) -> Array:
    """Images turned about their centre, counter-clockwise as displayed, and then shifted.

    Args:
      x: ``[B, H, W, C]``.
      degrees: ``[B]`` angles.
      down: ``[B]`` pixels; likewise ``right``.
      fill: colour of what comes in from outside, a number or one per channel.
    """
    height, width = x.shape[1:3]
    rows, cols = pixel_positions(height, width)
    middle_row, middle_col = (height - 1) / 2, (width - 1) / 2

    def one(image: Array, degrees: Array, down: Array, right: Array) -> Array:
        cos, sin = jnp.cos(jnp.deg2rad(degrees)), jnp.sin(jnp.deg2rad(degrees))
        row, col = rows - middle_row - down, cols - middle_col - right
        source_rows = middle_row + cos * row + sin * col
        source_cols = middle_col - sin * row + cos * col
        return bilinear(image, source_rows, source_cols, fill)

    return jax.vmap(one)(x, degrees, down, right)


@pytree
class _State:
    """Between two transformations: the worst image so far and the tallies."""

    keys: Any  # [B] keys where something is drawn, else None
    taken: Array
    x_adv: Array
    loss: Array
    success: Array
    forwards: Array
    first_success: Array
    probabilities: Array


@pytree
class Spatial(Iterative):
    """The worst rotation and translation (Engstrom et al. 2019, section 3.2: grid, worst-of-k).

    Images turn about their centre and are then shifted; bilinear sampling, the box's lower end
    around them. The image kept is the first that fools the model, else the one of largest loss.
    Needs no gradients. One step is one transformation, one forward pass.

    Attributes:
      ball: its box bounds the images and its norm measures them; it takes no eps and no mask.
      max_shift: largest shift along either axis in pixels, scalar or ``[B]``.
      max_rotation: largest angle in degrees, either way, scalar or ``[B]``.
      shifts: points of the grid along each axis, evenly spaced over ``[-max, max]``.
      rotations: angles of the grid; ``rotations * shifts**2`` steps in all. The identity, where
        the grid has it, is tried first, then the farthest points, which fool most.
      draws: number of transformations drawn uniformly, for each image its own, in place of the
        grid; None for the grid.
      early_stop: leave an image at its first success instead of looking for the largest loss.
      loss: per-example loss ``(logits, y) -> [B]``; a named function, not a fresh lambda.
      targeted: labels are targets and the loss is lowered; see ``Targeted``.
      loop: who iterates; ``auto_loop``, ``host_loop``, ``device_loop`` or your own.
    """

    ball: Ball = L2()  # noqa: RUF009
    max_shift: ArrayLike = 3.0
    max_rotation: ArrayLike = 30.0
    shifts: int = static(default=5)
    rotations: int = static(default=5)
    draws: int | None = static(default=None)
    early_stop: bool = static(default=True)
    loss: LossFn = static(default=cross_entropy)
    targeted: bool = static(default=False)
    loop: Loop = static(default=auto_loop)

    def check(self) -> None:
        check_unbounded("Spatial", self.ball)
        for name in ("max_shift", "max_rotation"):
            value = concrete(getattr(self, name))
            if value is not None and not ((value >= 0).all() and np.isfinite(value).all()):
                raise ValueError(
                    f"Spatial: given {name}={value.tolist()}; finite numbers >= 0 are taken"
                )
        check_count("Spatial", "shifts", self.shifts)
        check_count("Spatial", "rotations", self.rotations)
        check_count("Spatial", "draws", self.draws, none=True)

    @property
    def steps(self) -> int:
        """Number of transformations."""
        return self.rotations * self.shifts**2 if self.draws is None else self.draws

    def check_fits(self, x: Array) -> None:
        check_pictures("Spatial", x)
        check_per_example(x, max_shift=self.max_shift, max_rotation=self.max_rotation)

    def init(self, key: Key, model: Any, x: Array, y: Array) -> _State:
        drawn = self.draws is not None or is_stochastic(model)
        none = jnp.zeros_like(y)
        return _State(
            keys=example_keys(key, x.shape[0]) if drawn else None,
            taken=jnp.zeros((), jnp.int32),
            x_adv=x,
            loss=jnp.full_like(none, -jnp.inf, dtype=x.dtype),
            success=none > 0,
            forwards=none,
            first_success=none - 1,
            probabilities=none == 0,
        )

    def _transformed(self, i: Array, state: _State, x: Array) -> Array:
        if self.draws is None:
            unit = jnp.asarray(_grid(self.rotations, self.shifts))[i]
            unit = jnp.broadcast_to(unit, (x.shape[0], 3))
        else:
            draw = lambda key: jax.random.uniform(key, (3,), x.dtype, -1, 1)
            unit = jax.vmap(draw)(fold_in_each(state.keys, 2 * i))
        angle, down, right = unit[:, 0], unit[:, 1], unit[:, 2]
        return rotate_and_shift(
            x,
            angle * self.max_rotation,
            down * self.max_shift,
            right * self.max_shift,
            self.ball.bounds[0],
        )

    def step(self, i: Array, state: _State, model: Any, x: Array, y: Array) -> _State:
        moved = self._transformed(i, state, x)
        keys: Any = fold_in_each(state.keys, 2 * i + 1) if is_stochastic(model) else None
        _, judged = judge(self.loss, self.targeted, Scores(model), moved, y, keys)
        live = self.live(state)
        live = jnp.ones_like(state.success) if live is None else live
        worse = (judged.success & ~state.success) | (
            (judged.success == state.success) & (judged.loss > state.loss)
        )
        worse &= live
        first = jnp.where(live & judged.success & (state.first_success < 0), i, state.first_success)
        return replace(
            state,
            taken=state.taken + 1,
            x_adv=jnp.where(widen(worse, x), moved, state.x_adv),
            loss=jnp.where(worse, judged.loss, state.loss),
            success=jnp.where(live, state.success | judged.success, state.success),
            forwards=state.forwards + live,
            first_success=first.astype(jnp.int32),
            probabilities=state.probabilities & (judged.probabilities | ~live),
        )

    def live(self, state: _State) -> Array | None:
        return ~state.success if self.early_stop else None

    def finish(self, state: _State, model: Any, x: Array, y: Array, *, record: bool) -> Record:
        keys: Any = fold_in_each(state.keys, 2 * state.taken + 1) if is_stochastic(model) else None
        return outcome(
            self,
            model,
            x,
            y,
            state.x_adv,
            keys,
            record=record,
            loss=self.loss,
            forwards=state.forwards,
            backwards=0,
            first_success=state.first_success,
        )

    def doubts(self, state: _State) -> Array:
        return state.probabilities

    def pieces(self) -> Spatial:
        return replace(self, draws=None if self.draws is None else 1, loop=auto_loop)

    def scaled(self, factor: ArrayLike) -> Spatial:
        return replace(
            self,
            max_shift=jnp.multiply(self.max_shift, factor),
            max_rotation=jnp.multiply(self.max_rotation, factor),
        )


@functools.lru_cache(maxsize=32)
def _grid(rotations: int, shifts: int) -> np.ndarray:
    """``[rotations * shifts**2, 3]`` in ``[-1, 1]``: angle, down, right."""
    along = lambda n: np.linspace(-1, 1, n) if n > 1 else np.zeros(1)
    points = np.stack(
        np.meshgrid(along(rotations), along(shifts), along(shifts), indexing="ij"), axis=-1
    ).reshape(-1, 3)
    far = np.sum(points**2, axis=1)
    return points[np.argsort(-np.where(far == 0, np.inf, far), kind="stable")].astype(np.float32)
