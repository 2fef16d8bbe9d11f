"""The built-in data set: the digits 0 to 9 in Pillow's own font, no two alike, made without a download."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from tinydiff.data.dataset import Dataset
from tinydiff.errors import InputError
from tinydiff.random import DATA_ORDER, Generator

COUNT = 8_000
SIZE = 28
SMALLEST, LARGEST = 8, 256  # pixels a side: a digit must be legible, and the whole set must fit in memory

_EM = 240  # font size of the master drawings, in pixels
_CANVAS = 280
_BLUR = 0.025 * _EM  # standard deviation of the blur that lets a threshold set the stroke weight
_STEP = 0xFFFFFFFE  # the step of the data-order stream that no epoch reaches


def draw_glyphs(count: int = COUNT, image_size: int = SIZE, seed: int = 0) -> Dataset:
    """`count` grey digits of `image_size` pixels a side, white on black, labelled 0..9, equally many of each.

    Every digit is turned (up to 12 degrees), sheared, stretched, shifted without being cut, and given a stroke weight
    between light and black. The same seed gives the same pictures, and a larger set begins with the digits of a smaller
    one. InputError for a size outside 8..256 or a count below 1.
    """
    if not SMALLEST <= image_size <= LARGEST:
        raise InputError(f"glyphs comes in image sizes from {SMALLEST} to {LARGEST} pixels, not {image_size}")
    if count < 1:
        raise InputError(f"glyphs needs a count of at least 1, not {count}")
    from PIL import Image

    masters = [_master(digit) for digit in range(10)]
    u = Generator(seed).at(DATA_ORDER, _STEP).uniform((count, 7), np.float64)
    oversampling = max(1, min(3, round(96 / image_size)))
    fine = image_size * oversampling
    labels = np.arange(count, dtype=np.int64) % 10
    images = np.empty((count, image_size, image_size, 1), np.uint8)
    for i in range(count):
        blurred, half_width, half_height = masters[labels[i]]
        coefficients = _placement(u[i], half_width, half_height, fine)
        picture = blurred.transform((fine, fine), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
        picture = picture.point(_inking(int(u[i, 6] * 32))).reduce(oversampling)
        images[i, :, :, 0] = np.asarray(picture)
    return Dataset(images, labels, [str(d) for d in range(10)], name="glyphs", source="glyphs")


@cache
def _master(digit: int) -> tuple[Any, float, float]:
    """A digit drawn large in the middle of its canvas and blurred; half its width and half its height."""
    from PIL import Image, ImageDraw, ImageFilter, ImageFont

    try:
        font = ImageFont.load_default(_EM)
    except ImportError as error:
        raise InputError("glyphs needs a Pillow with FreeType support, which its wheels have") from error
    left, top, right, bottom = font.getmask(str(digit)).getbbox()
    width, height = right - left, bottom - top
    canvas = Image.new("L", (_CANVAS, _CANVAS))
    box = font.getbbox(str(digit))
    corner = ((_CANVAS - width) / 2 - box[0] - left, (_CANVAS - height) / 2 - box[1] - top)
    ImageDraw.Draw(canvas).text(corner, str(digit), 255, font)
    return canvas.filter(ImageFilter.GaussianBlur(_BLUR)), width / 2, height / 2


@cache
def _inking(level: int) -> list[int]:
    """A tone curve, level 0..31: a soft threshold on the blurred drawing. The higher it is, the thinner the strokes."""
    threshold = 255 * (0.14 + 0.52 * level / 31)
    return [max(0, min(255, round(128 + (value - threshold) * 6))) for value in range(256)]


def _placement(u: np.ndarray, half_width: float, half_height: float, fine: int) -> tuple[float, ...]:
    """Six uniforms -> the affine map from the picture of `fine` pixels a side to the master, as Pillow takes it."""
    turn = math.radians(24 * (u[0] - 0.5))
    shear = 0.4 * (u[1] - 0.15)  # little to the left, where a 7 becomes a 1
    tall = (0.58 + 0.2 * u[2]) * fine / (2 * half_height)
    wide = tall * (0.8 + 0.45 * u[3])
    cos, sin = math.cos(turn), math.sin(turn)
    # Forward, about the centre: p = R(turn) [[wide, -shear * tall], [0, tall]] master.
    a, b = cos * wide, -cos * shear * tall - sin * tall
    c, d = sin * wide, -sin * shear * tall + cos * tall
    room = 0.43 * fine  # from the centre; the rest is for the thickest stroke and the edge of the picture
    reach_x = abs(a) * half_width + abs(b) * half_height
    reach_y = abs(c) * half_width + abs(d) * half_height
    fit = min(1.0, room / reach_x, room / reach_y)
    a, b, c, d = a * fit, b * fit, c * fit, d * fit
    x = fine / 2 + (2 * u[4] - 1) * min(0.12 * fine, room - fit * reach_x)
    y = fine / 2 + (2 * u[5] - 1) * min(0.12 * fine, room - fit * reach_y)
    determinant = a * d - b * c
    a, b, c, d = d / determinant, -b / determinant, -c / determinant, a / determinant
    middle = _CANVAS / 2
    return a, b, middle - a * x - b * y, c, d, middle - c * x - d * y
