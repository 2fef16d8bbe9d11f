"""The pixels of images: bytes and floats, channels, sizes.

Images are uint8 (..., H, W, C) with 1 to 4 channels, which Pillow calls L, LA, RGB and RGBA, or floating point in [-1, 1].
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinydiff.backend import array_module, is_float
from tinydiff.dispatch import accelerated
from tinydiff.errors import InputError, RunFailed


def to_float(images: Any) -> Any:
    """uint8 images of any shape, as float32 in [-1, 1] on the same device: byte k is k / 127.5 - 1, correctly rounded.
    TypeError for another dtype."""
    if images.dtype != np.uint8:
        raise TypeError(f"to_float takes uint8, not {images.dtype}")
    x = images.astype(np.float32)
    x *= 2
    x -= 255  # exact up to here, so the division is the only rounding
    x /= 255
    return x


@accelerated
def gather_batch(images: Any, indices: Any, mirrored: Any = None) -> Any:
    """The images of a batch as the network sees them, float32 (B, H, W, C) in [-1, 1], see `to_float`.

    images: uint8 (N, H, W, C). indices: int64 (B,), not checked. mirrored: bool (B,), which of the batch are mirrored from
    left to right; None for none.
    """
    batch = images[indices]
    if mirrored is not None:
        batch[mirrored] = batch[mirrored, :, ::-1]
    return to_float(batch)


def to_bytes(x: Any) -> Any:
    """Floats x in [-1, 1] of any shape, as uint8 on the same device: round((x + 1) 127.5), clipped to 0..255. Undoes
    `to_float`.

    TypeError unless x is floating point. RunFailed where x holds NaN, which no byte can represent.
    """
    if not is_float(x.dtype):
        raise TypeError(f"to_bytes takes floating-point images, not {x.dtype}")
    xp = array_module(x)
    if xp.isnan(x).any():
        raise RunFailed(
            f"the images hold NaN in {int(xp.isnan(x).sum())} of {x.size} values; "
            "if a model drew them, its training went wrong: a lower learning rate is the first thing to try"
        )
    return xp.rint(xp.clip((x + 1) * 127.5, 0, 255)).astype(np.uint8)


def convert_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """uint8 images (N, H, W, C) -> (N, H, W, channels): grey is repeated to colour, colour becomes luma (ITU-R 601, as
    in Pillow).

    InputError for a change other than 1 to 3 or 3 to 1 channels.
    """
    have = images.shape[-1]
    if have == channels:
        return images
    if (have, channels) == (1, 3):
        return np.repeat(images, 3, axis=-1)
    if (have, channels) == (3, 1):
        weights = np.array([19595, 38470, 7471], np.uint32)  # of 65536
        grey = np.empty((*images.shape[:-1], 1), np.uint8)
        for target, image in zip(grey, images, strict=True):  # one by one: the products take four bytes each
            target[..., 0] = (image @ weights + 0x8000) >> 16
        return grey
    raise InputError(f"images of {have} channels cannot be made into {channels}: only 1 and 3 convert to each other")


def fit(picture: Any, size: int) -> Any:
    """A Pillow picture with its middle square scaled to `size` pixels a side (antialiased bicubic)."""
    from PIL import Image

    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return picture.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """uint8 images (N, H, W, C) -> (N, size, size, C) by `fit`, channel by channel; the array itself where nothing
    changes."""
    from PIL import Image

    n, height, width, channels = images.shape
    if height == width == size:
        return images
    out = np.empty((n, size, size, channels), np.uint8)
    for i in range(n):
        for c in range(channels):
            out[i, :, :, c] = fit(Image.fromarray(np.ascontiguousarray(images[i, :, :, c])), size)
    return out


def without_alpha(picture: Any) -> Any:
    """The picture on white, without its alpha channel."""
    from PIL import Image

    if picture.mode not in ("LA", "RGBA"):
        return picture
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture.convert("RGBA")).convert(picture.mode[:-1])
