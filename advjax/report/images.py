"""Pictures: to and from PNG, and perturbations made visible."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from advjax.data import to_float
from advjax.data.pictures import decode
from advjax.files import whole_file


def load_image(path: str | os.PathLike[str], shape: Sequence[int]) -> np.ndarray:
    """A PNG or JPEG as a model takes it: ``[H, W, C]`` float32 in [0, 1].

    Args:
      path: the file; turned upright by its EXIF mark, made grey or RGB, and resized (bilinear,
        antialiased) where it has another size.
      shape: the model's input shape ``(H, W, C)``, C 1 or 3.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is no readable picture, or the shape is not that of one; one line.
    """
    if len(shape) != 3 or shape[2] not in (1, 3):
        raise ValueError(f"shape: given {tuple(shape)}; pictures are (H, W, 1) or (H, W, 3)")
    height, width, channels = shape
    picture = decode(_read(path), os.fspath(path), (height, width), channels)
    return np.asarray(to_float(picture))


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """``(height, width)`` of a picture file, upright; errors as for ``load_image``."""
    height, width = decode(_read(path), os.fspath(path)).shape[:2]
    return height, width


def amplified(
    x: Any, x_adv: Any, factor: float | None = 50.0, *, absolute: bool = False
) -> np.ndarray:
    """The change ``x_adv - x``, multiplied to be seen, as an image of the same shape.

    Args:
      x: images in [0, 1].
      x_adv: changed images of the same shape.
      factor: what the change is multiplied by; ``None``: by ``amplification(x, x_adv)``.
      absolute: black is no change and white a large one; otherwise middle grey is no change,
        lighter is more and darker is less.
    """
    x, x_adv = np.asarray(x, np.float32), np.asarray(x_adv, np.float32)
    if x.shape != x_adv.shape:
        raise ValueError(f"images: given shapes {x.shape} and {x_adv.shape}; expected equal ones")
    change = (x_adv - x) * np.float32(amplification(x, x_adv) if factor is None else factor)
    return np.clip(np.abs(change) if absolute else 0.5 + change, 0, 1)


def amplification(x: Any, x_adv: Any) -> float:
    """The round number up to 50 that shows the largest change without cutting it off."""
    largest = float(np.max(np.abs(np.asarray(x_adv) - np.asarray(x)), initial=0))
    if largest == 0:
        return 50.0
    return next(
        f for f in (50.0, 20.0, 10.0, 5.0, 2.0, 1.0, 0.5) if f * largest <= 0.501 or f == 0.5
    )


def png_bytes(x: Any) -> bytes:
    """An image in [0, 1], ``[H, W]`` or ``[H, W, C]`` with C 1 or 3, as the bytes of a PNG.

    Values are rounded to 256 levels: what a PNG holds is not bit for bit what was attacked.

    Raises:
      ValueError: for another shape, or values that are not finite.
    """
    from PIL import Image

    x = np.asarray(x, np.float32)
    if x.ndim not in (2, 3) or (x.ndim == 3 and x.shape[2] not in (1, 3)) or x.size == 0:
        raise ValueError(f"image: given shape {x.shape}; expected [H, W], [H, W, 1] or [H, W, 3]")
    if not np.isfinite(x).all():
        raise ValueError("image: given values that are not finite; expected 0 to 1")
    levels = np.round(np.clip(x, 0, 1) * 255).astype(np.uint8)
    levels = levels[..., 0] if levels.ndim == 3 and levels.shape[2] == 1 else levels
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def save_png(path: str | os.PathLike[str], x: Any) -> None:
    """Writes an image in [0, 1] as a PNG, whole or not at all; errors as for ``png_bytes``."""
    data = png_bytes(x)
    with whole_file(path) as file:
        file.write(data)


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"no image {os.fspath(path)}") from None
    except OSError as error:
        raise ValueError(f"{os.fspath(path)} is no readable image: {error.strerror}") from error
