"""Where the error sits, drawn in characters and as a PNG."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np

from tinydiff.gradcheck.numeric import largest

SHADES = " ░▒▓█"
_WIDE, _HIGH = 48, 12


def relative_error(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """|got - expected| over the largest element of either, in 0..1 and more; NaN where not known."""
    scale = max(largest(got), largest(expected)) or 1.0
    error = np.abs(got - expected) / scale
    return np.where(np.isnan(expected), np.nan, np.where(np.isnan(error), np.inf, error))


def draw(got: np.ndarray, expected: np.ndarray) -> list[str]:
    """Lines of text: the largest error over all other axes, on the two axes (one, none) that show most of it."""
    if expected.ndim == 0 or expected.size <= 1:
        return []
    error = relative_error(got, expected)
    known = ~np.isnan(error)
    places = known_lines(known)
    part = error[np.ix_(*places)]
    axes = panel_axes(part)
    plane = _panel(part, axes)
    plane = plane[None] if plane.ndim == 1 else plane
    plane = _shrunk(plane, _HIGH, _WIDE)
    top = np.nanmax(np.where(np.isinf(plane), np.nan, plane)) if np.isfinite(plane).any() else 1.0
    wrong = int(np.sum(error > max(1e-6 * (top or 1), 1e-12)))
    names = f"axis {axes[0]}" if len(axes) == 1 else f"rows: axis {axes[0]}, columns: axis {axes[1]}"
    of = f"{int(known.sum())} elements are wrong"
    if not known.all():
        of = f"{int(known.sum())} sampled elements are wrong, of {error.size} in all"
        names += "; of both, only what was sampled is shown" if len(axes) > 1 else "; only what was sampled is shown"
    lines = [f"where ({names}; blank is right, █ the largest error): {wrong} of {of}"]
    border = "+" + "-" * plane.shape[1] + "+"
    lines.append(border)
    for row in plane:
        lines.append("|" + "".join(_shade(e / (top or 1)) for e in row) + "|")
    return [*lines, border]


def known_lines(known: np.ndarray) -> list[np.ndarray]:
    """For each axis, the indices at which anything is known."""
    return [
        np.flatnonzero(known.any(tuple(a for a in range(known.ndim) if a != axis))) if known.any() else np.arange(n)
        for axis, n in enumerate(known.shape)
    ]


def panel_axes(error: np.ndarray) -> tuple[int, ...]:
    """The one or two axes along which the error varies most, in order; of images the rows and columns come first."""
    long = [a for a in range(error.ndim) if error.shape[a] > 1]
    if len(long) <= 2:
        return tuple(long) or (0,)

    def variation(a: int) -> float:
        profile = _panel(error, (a,))
        profile = profile[np.isfinite(profile)]
        return float(np.ptp(profile)) if profile.size else 0.0

    best = sorted(long, key=lambda a: (-round(variation(a), 6), a))[:2]
    return tuple(sorted(best))


def _panel(error: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    others = tuple(a for a in range(error.ndim) if a not in axes)
    return np.max(np.where(np.isnan(error), -1, error), axis=others) if others else error


def _shrunk(plane: np.ndarray, high: int, wide: int) -> np.ndarray:
    """The plane in at most high x wide cells, each the largest of its block."""
    for axis, most in ((0, high), (1, wide)):
        n = plane.shape[axis]
        if n > most:
            starts = np.unique(np.arange(most) * n // most)
            plane = np.maximum.reduceat(plane, starts, axis=axis)
    return plane


def _shade(e: float) -> str:
    if np.isnan(e) or e < 0:
        return "?"
    if e <= 1e-6:
        return SHADES[0]
    return SHADES[1 + min(3, int(e * 4))] if np.isfinite(e) else "!"


def save_png(path: str | Path | BinaryIO, got: np.ndarray, expected: np.ndarray, title: str) -> None:
    """Three panels side by side: backward's gradient and the right one (blue negative, red positive), and the error
    (black is none, white the largest); each shows the two most telling axes, at the worst index of the others. Of an
    array that was sampled, they show the rows and columns of the sample."""
    from PIL import Image, ImageDraw

    if expected.ndim:
        places = np.ix_(*known_lines(~np.isnan(expected)))
        got, expected = got[places], expected[places]
    error = relative_error(got, expected)
    axes = panel_axes(error) if expected.ndim else ()
    flat = np.where(np.isnan(error), -1, error)
    worst = np.unravel_index(int(np.argmax(flat)), flat.shape) if flat.size else ()
    at = tuple(slice(None) if a in axes else int(worst[a]) for a in range(error.ndim))
    planes = [np.atleast_2d(a[at]) for a in (got, expected, error)]
    scale = max(largest(planes[0]), largest(planes[1])) or 1.0
    top = largest(planes[2]) or 1.0
    rows, columns = planes[0].shape
    cell = max(1, min(24, 288 // max(rows, columns)))
    margin, head = 12, 34
    high, wide = rows * cell, columns * cell
    panel_wide = max(wide, 120)
    image = Image.new("RGB", (3 * panel_wide + 4 * margin, high + head + margin), "white")
    pen = ImageDraw.Draw(image)
    pen.text((margin, 3), title, fill="black")
    for i, (name, plane) in enumerate(zip(("analytic", "numerical", "error"), planes, strict=True)):
        left = margin + i * (panel_wide + margin)
        pen.text((left, 18), name, fill="black")
        colours = _signed(plane / scale) if i < 2 else _grey(plane / top)
        picture = Image.fromarray(colours).resize((wide, high), Image.Resampling.NEAREST)
        image.paste(picture, (left, head))
        pen.rectangle((left - 1, head - 1, left + wide, head + high), outline="black")
    image.save(path, format="PNG")


def _signed(plane: np.ndarray) -> np.ndarray:
    v = np.clip(np.nan_to_num(plane), -1, 1)
    fade = 255 * (1 - np.abs(v))
    full = np.full_like(v, 255)
    return np.stack([np.where(v >= 0, full, fade), fade, np.where(v <= 0, full, fade)], -1).astype(np.uint8)


def _grey(plane: np.ndarray) -> np.ndarray:
    v = np.clip(np.nan_to_num(plane, posinf=1), 0, 1) ** 0.5
    return np.repeat((255 * v)[..., None], 3, -1).astype(np.uint8)
