"""Rotations and translations: the worst of a grid or of random draws."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advjax.answers import example_keys, fold_if_any, fold_in_each, is_stochastic
from advjax.arguments import check_count, check_pictures, check_unbounded
from advjax.attacks.core.driver import Iterative
from advjax.attacks.core.judging import Tally, ask
from advjax.attacks.core.oracle import Scores
from advjax.balls import L2, Ball, concrete
from advjax.goals import Misclassify
from advjax.losses import cross_entropy
from advjax.pytrees import Array, ArrayLike, Key, driver_only, per_example, pytree, replace, static
from advjax.shapes import row, widen
from advjax.types import Goal, LossFn, Model


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
    down = (rows - top.astype(rows.dtype))[..., None]
    across = (cols - left.astype(cols.dtype))[..., None]
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
    """Between two transformations: the worst image so far and the tally."""

    keys: Any  # [B] keys where something is drawn, else None
    x_adv: Array
    loss: Array
    tally: Tally


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
      goal: what is wanted, see ``Targeted``.
    """

    ball: Ball = L2()  # noqa: RUF009
    max_shift: ArrayLike = per_example(default=3.0)
    max_rotation: ArrayLike = per_example(default=30.0)
    shifts: int = static(default=5)
    rotations: int = static(default=5)
    draws: int | None = driver_only(default=None)
    early_stop: bool = static(default=True)
    loss: LossFn = static(default=cross_entropy)
    goal: Goal = Misclassify()
    drawn: bool = static(init=False, default=False)  # all that a step needs to know of ``draws``

    def check(self) -> None:
        check_unbounded("Spatial", self.ball)
        for name in ("max_shift", "max_rotation"):
            value = concrete(getattr(self, name))
            if value is not None and not ((value >= 0).all() and np.isfinite(value).all()):
                raise ValueError(
                    f"Spatial: given {name}={value.tolist()}; expected finite numbers >= 0"
                )
        check_count("Spatial", "shifts", self.shifts)
        check_count("Spatial", "rotations", self.rotations)
        check_count("Spatial", "draws", self.draws, none=True)
        object.__setattr__(self, "drawn", self.draws is not None)

    @property
    def steps(self) -> int:
        """Number of transformations."""
        return self.rotations * self.shifts**2 if self.draws is None else self.draws

    def check_fits(self, x: Array) -> None:
        check_pictures("Spatial", x)
        super().check_fits(x)

    def init(self, key: Key, model: Model, x: Array, y: Array, steps: Array) -> _State:
        return _State(
            keys=example_keys(key, x.shape[0]) if self.drawn or is_stochastic(model) else None,
            x_adv=x,
            loss=jnp.full_like(row(x), -jnp.inf),
            tally=Tally.start(x),
        )

    def _transformed(self, i: Array, state: _State, x: Array) -> Array:
        if not self.drawn:
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

    def step(self, i: Array, state: _State, model: Model, x: Array, y: Array) -> _State:
        moved = self._transformed(i, state, x)
        keys = fold_if_any(state.keys, 2 * i + 1)
        _, judged = ask(self.goal, self.loss, Scores(model), moved, y, keys)
        found = state.tally.found
        live = ~found | (not self.early_stop)
        worse = live & (
            (judged.success & ~found) | ((judged.success == found) & (judged.loss > state.loss))
        )
        return replace(
            state,
            x_adv=jnp.where(widen(worse, x), moved, state.x_adv),
            loss=jnp.where(worse, judged.loss, state.loss),
            tally=state.tally.spend(forwards=live).see(judged, i, live),
        )

    def live(self, state: _State) -> Array | None:
        return ~state.tally.found if self.early_stop else None

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
