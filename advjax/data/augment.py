"""Random crops, flips and cutout on the device, one key per example."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from advjax.pytrees import pytree, static


@pytree
class Augment:
    """``augment(keys [B], x [B, H, W, C]) -> x``: an example's draws depend on its key alone.

    Applied in the order crop, flip, cutout. With everything off it returns ``x`` itself.

    Attributes:
      crop: pixels of black added on each side before cutting a random window of the old size.
      flip: mirrors left and right with probability 1/2.
      cutout: side of a black square centred on a random pixel and cut off at the border (DeVries
        and Taylor, arXiv 1708.04552).
    """

    crop: int = static(default=0)
    flip: bool = static(default=False)
    cutout: int = static(default=0)

    def check(self) -> None:
        for name in ("crop", "cutout"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"{name} is a number of pixels, 0 or more; given {value!r}")

    def __call__(self, keys: jax.Array, x: jax.Array) -> jax.Array:
        if not (self.crop or self.flip or self.cutout):
            return x
        if x.ndim != 4:
            raise ValueError(f"augmentation takes [B, H, W, C] images; given {x.shape}")
        return jax.vmap(self._one)(keys, x)

    def _one(self, key: jax.Array, x: jax.Array) -> jax.Array:
        height, width, _ = x.shape
        u = jax.random.uniform(key, (5,))  # one draw for all: each draw costs compile time
        if self.crop:
            c = self.crop
            top, left = (u[:2] * (2 * c + 1)).astype(jnp.int32)
            padded = jnp.pad(x, ((c, c), (c, c), (0, 0)))
            x = jax.lax.dynamic_slice(padded, (top, left, 0), x.shape)
        if self.flip:
            x = jnp.where(u[2] < 0.5, x[:, ::-1], x)
        if self.cutout:
            top = (u[3] * height).astype(jnp.int32) - self.cutout // 2
            left = (u[4] * width).astype(jnp.int32) - self.cutout // 2
            row, column = jnp.arange(height) - top, jnp.arange(width) - left
            rows = (row >= 0) & (row < self.cutout)
            columns = (column >= 0) & (column < self.cutout)
            x = jnp.where((rows[:, None] & columns[None])[..., None], 0, x)
        return x
