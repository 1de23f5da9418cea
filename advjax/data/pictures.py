"""PNG and JPEG bytes to arrays."""

from __future__ import annotations

import io
from typing import Any

import numpy as np


def decode(
    data: bytes, what: str, size: tuple[int, int] | None = None, channels: int | None = None
) -> np.ndarray:
    """The picture as ``[H, W, C]`` uint8.

    Args:
      data: the file's bytes.
      what: the file's name, for the error.
      size: ``(height, width)`` to resize to (bilinear, antialiased); its own when ``None``.
      channels: 1 (grey) or 3 (RGB); 1 for grey pictures and 3 for others when ``None``.

    Raises:
      ValueError: when the bytes are no readable picture, in one line naming ``what``.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            picture: Any = ImageOps.exif_transpose(image)
            if (
                picture.mode.startswith("I") or picture.mode == "F"
            ):  # 16-bit grey: Pillow would clip
                high = 65535 if picture.mode.startswith("I") else 1
                grey = np.asarray(picture, np.float32) * (255 / high)
                picture = Image.fromarray(np.clip(np.round(grey), 0, 255).astype(np.uint8))
            if channels is None:
                channels = 1 if picture.mode in ("1", "L", "LA") else 3
            mode = "L" if channels == 1 else "RGB"
            if picture.mode != mode:
                picture = picture.convert(mode)
            if size is not None and picture.size != (size[1], size[0]):
                picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
            array = np.asarray(picture)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        reason = "unknown or broken picture" if "cannot identify image" in reason else reason
        raise ValueError(f"{what} is no readable image: {reason}") from error
    return array[..., None] if array.ndim == 2 else array
