"""Transforms of the input in front of a model, and the same model with a gradient through them."""

from __future__ import annotations

import dataclasses
import io
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advjax.answers import as_model, is_stochastic
from advjax.arguments import check_count, check_number, check_pictures
from advjax.attacks.bpda import bpda
from advjax.balls import concrete
from advjax.pytrees import Array, ArrayLike, Key, pytree, replace, static


@pytree
class Preprocessed:
    """A model that sees every image through a transform: ``model(transform(x))``.

    Most such transforms have a gradient that is zero, missing or misleading, which is all that they
    defend with: attack ``adaptive()``. A transform that draws belongs into ``Transformed``.

    Attributes:
      model: ``model(x) -> logits [B, K]``; may be randomised.
      transform: ``x -> x`` on batches, a function or a callable pytree such as those below.
    """

    model: Any = dataclasses.field(kw_only=False)
    transform: Any = dataclasses.field(kw_only=False)

    def check(self) -> None:
        object.__setattr__(self, "model", as_model(self.model))
        object.__setattr__(self, "transform", as_model(self.transform))

    @property
    def stochastic(self) -> bool:
        return is_stochastic(self.model)

    def __call__(self, x: Array, **key: Any) -> Array:
        return self.model(self.transform(x), **key)

    def adaptive(self) -> Preprocessed:
        """The same answers, with the gradient of the identity for the transform's (BPDA, Athalye et
        al. 2018, section 4.1)."""
        return replace(self, transform=bpda(self.transform))


@pytree
class BitDepth:
    """Rounds pixels in [0, 1] to ``2^bits`` levels (Xu et al., NDSS 2018).

    Its gradient is zero everywhere.

    Attributes:
      bits: >= 1; the paper's are 1 on MNIST, 4 and 5 on CIFAR-10.
    """

    bits: ArrayLike = dataclasses.field(kw_only=False)

    def check(self) -> None:
        bits = concrete(self.bits)
        if bits is not None and not (bits >= 1).all():
            raise ValueError(f"BitDepth: given bits={bits.tolist()}; expected numbers >= 1")

    def __call__(self, x: Array) -> Array:
        steps = jnp.exp2(jnp.asarray(self.bits, x.dtype)) - 1
        return jnp.round(x * steps) / steps


@pytree
class MedianFilter:
    """The median of the pixels around each, per channel (Xu et al., NDSS 2018).

    As ``scipy.ndimage.median_filter``: the border is mirrored, an even window reaches further to
    the top left, and the upper one of two medians is taken.

    Attributes:
      window: side of the square window; the paper's are 2 and 3.
    """

    window: int = static(kw_only=False, default=2)

    def check(self) -> None:
        check_count("MedianFilter", "window", self.window)

    def __call__(self, x: Array) -> Array:
        check_pictures("MedianFilter", x)
        size, (height, width) = self.window, x.shape[1:3]
        edge = (size // 2, size - 1 - size // 2)
        around = jnp.pad(x, ((0, 0), edge, edge, (0, 0)), mode="symmetric")
        shifted = [
            around[:, i : i + height, j : j + width] for i in range(size) for j in range(size)
        ]
        return jnp.sort(jnp.stack(shifted), axis=0)[size * size // 2]


@pytree
class TotalVariation:
    """The image that minimises ``|z - x|^2 / 2 + weight TV(z)`` (Rudin, Osher & Fatemi 1992).

    Isotropic, per channel, by the fast gradient projection of the dual (Beck & Teboulle, IEEE TIP
    2009, section IV). The defence of Guo et al., ICLR 2018, also drops half of the
    pixels at random before, which is ``PixelDropout``; this is its minimisation alone, of all.

    Attributes:
      weight: > 0, in pixel units; larger is smoother.
      steps: of the minimisation.
    """

    weight: ArrayLike = dataclasses.field(kw_only=False, default=0.1)
    steps: int = static(default=50)

    def check(self) -> None:
        check_number("TotalVariation", "weight", self.weight)
        check_count("TotalVariation", "steps", self.steps)

    def __call__(self, x: Array) -> Array:
        check_pictures("TotalVariation", x)

        def image(dual: Array) -> Array:
            return x - self.weight * pull(dual)[0]

        def step(_: int, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            dual, ahead, t = carry
            moved = ahead + _differences(image(ahead)) / (8 * self.weight)
            # The square root of zero has no gradient; below 1 it changes nothing.
            length = jnp.sqrt(jnp.maximum(jnp.sum(moved**2, axis=0, keepdims=True), 1))
            new, faster = moved / length, (1 + jnp.sqrt(1 + 4 * t * t)) / 2
            return new, new + (t - 1) / faster * (new - dual), faster

        start, pull = jax.vjp(_differences, x)
        zero = jnp.zeros_like(start)
        dual, _, _ = jax.lax.fori_loop(0, self.steps, step, (zero, zero, jnp.ones((), x.dtype)))
        return image(dual)


@pytree
class PixelDropout:
    """Drops pixels at random and fills them in by total variation (Guo et al., ICLR 2018,
    arXiv 1711.00117, section 4.2).

    The image that minimises ``|kept (z - x)|^2 / 2 + weight TV(z)``, isotropic and per channel, by
    the primal-dual method (Chambolle & Pock, JMIV 2011, algorithm 1). Every pixel of every channel
    is kept or dropped by itself, as in the paper; what was dropped has no part in the answer.

    It draws, so it belongs into ``Transformed``, one image at a time:
    ``Transformed(model, PixelDropout())``; attack that with ``EOT``, whose gradient is the exact
    one, through the minimisation.

    Attributes:
      keep: share of the pixels that is kept, in [0, 1], a leaf; the paper's is .5.
      weight: > 0, in pixel units; larger is smoother. The paper's .03 stands beside a norm that is
        not squared.
      steps: of the minimisation.
    """

    keep: ArrayLike = dataclasses.field(kw_only=False, default=0.5)
    weight: ArrayLike = dataclasses.field(kw_only=False, default=0.03)
    steps: int = static(default=100)

    def check(self) -> None:
        keep = concrete(self.keep)
        if keep is not None and not ((keep >= 0) & (keep <= 1)).all():
            raise ValueError(f"PixelDropout: given keep={keep.tolist()}; expected 0 to 1")
        check_number("PixelDropout", "weight", self.weight)
        check_count("PixelDropout", "steps", self.steps)

    def __call__(self, key: Key, x: Array) -> Array:
        """The image ``[H, W, C]`` with its holes filled; the key is consumed."""
        check_pictures("PixelDropout", x[None])
        kept = jax.random.bernoulli(key, self.keep, x.shape)
        return _filled_in(x[None], kept[None], self.weight, self.steps)[0]


def _filled_in(x: Array, kept: Array, weight: ArrayLike, steps: int) -> Array:
    """``[B, H, W, C]`` that minimise ``|kept (z - x)|^2 / 2 + weight TV(z)``."""
    # It converges where primal * dual is at most 1 / 8, the differences' squared norm. With .1, 100
    # steps end within .2 % of the minimum on MNIST and CIFAR-10 at weights .03 and .1.
    primal = 0.1 / (weight * 8**0.5)
    dual = 1 / (8 * primal * weight)  # of a dual at most 1 long, without the weight
    count = jnp.maximum(jnp.sum(kept, axis=(1, 2), keepdims=True), 1)
    mean = jnp.sum(jnp.where(kept, x, 0), axis=(1, 2), keepdims=True) / count.astype(x.dtype)
    start = jnp.where(kept, x, mean)
    zero, pull = jax.vjp(_differences, jnp.zeros_like(x))

    def step(_: int, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        z, ahead, flow = carry
        moved = flow + dual * _differences(ahead)
        # The square root of zero has no gradient; below 1 it changes nothing.
        flow = moved / jnp.sqrt(jnp.maximum(jnp.sum(moved**2, axis=0, keepdims=True), 1))
        back = z - primal * weight * pull(flow)[0]
        new = jnp.where(kept, (back + primal * x) / (1 + primal), back)
        return new, 2 * new - z, flow

    return jax.lax.fori_loop(0, steps, step, (start, start, zero))[0]


def _differences(x: Array) -> Array:
    """``[2, B, H, W, C]``, to the next pixel below and to the right; 0 at the last."""
    down = jnp.pad(x[:, 1:] - x[:, :-1], ((0, 0), (0, 1), (0, 0), (0, 0)))
    right = jnp.pad(x[:, :, 1:] - x[:, :, :-1], ((0, 0), (0, 0), (0, 1), (0, 0)))
    return jnp.stack([down, right])


@pytree
class JPEG:
    """JPEG compression, there and back (Dziugaite et al. 2016; Guo et al., ICLR 2018).

    The real codec, Pillow's, on the host: 8-bit pixels, colours at half the resolution. Each call
    leaves the device and comes back, so keep to one device (``advjax.types.runs_on_host``). It has
    no gradient; differentiating it raises a TypeError: ``bpda(JPEG())`` or
    ``Preprocessed.adaptive``.

    Attributes:
      quality: 1 to 100, a leaf; 75 is the usual one.
    """

    quality: ArrayLike = dataclasses.field(kw_only=False, default=75)
    on_host = True

    def check(self) -> None:
        quality = concrete(self.quality)
        if quality is not None and not ((quality >= 1) & (quality <= 100)).all():
            raise ValueError(f"JPEG: given quality={quality.tolist()}; expected 1 to 100")

    def __call__(self, x: Array) -> Array:
        check_pictures("JPEG", x)
        if x.shape[-1] not in (1, 3):
            raise ValueError(f"JPEG: given {x.shape[-1]} channels; expected 1 or 3")
        return _jpeg(jnp.asarray(self.quality), x)


@jax.custom_jvp
def _jpeg(quality: Array, x: Array) -> Array:
    out = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.pure_callback(_through_pillow, out, quality, x, vmap_method="broadcast_all")


@_jpeg.defjvp
def _no_gradient(primals: Any, tangents: Any) -> Any:
    del primals, tangents
    raise TypeError(
        "JPEG: given to something that differentiates it, but the codec on the host has no "
        "gradient; expected bpda(JPEG()) or Preprocessed.adaptive()"
    )


def _through_pillow(quality: Any, x: Any) -> np.ndarray:
    from PIL import Image

    quality, x = np.asarray(quality), np.asarray(x)  # under vmap with the mapped axes in front
    pixels = np.rint(255 * np.clip(np.nan_to_num(x), 0, 1)).astype(np.uint8)
    pixels = pixels.reshape(-1, *x.shape[-3:])
    each = np.broadcast_to(quality[..., None], x.shape[:-3]).reshape(-1)
    out = np.empty_like(pixels)
    for i in range(math.prod(x.shape[:-3])):
        memory = io.BytesIO()
        image = Image.fromarray(pixels[i, ..., 0] if x.shape[-1] == 1 else pixels[i])
        image.save(memory, "JPEG", quality=round(float(each[i])))
        out[i] = np.asarray(Image.open(memory)).reshape(out[i].shape)
    return (out / np.float32(255)).astype(x.dtype).reshape(x.shape)
