"""Pictures for people: grids, PNG and GIF files, the loss curve.

Pictures here are uint8 (H, W, C) with 1 to 4 channels, which Pillow calls L, LA, RGB and RGBA. Files are written under
a temporary name and renamed, so that an interrupted save leaves the old file or the new one, never half a picture.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinydiff.backend import to_numpy
from tinydiff.data.pixels import convert_channels, fit, resize, to_bytes, to_float, without_alpha
from tinydiff.errors import InputError
from tinydiff.machine.files import open_file
from tinydiff.machine.terminal import say
from tinydiff.runs import atomic
from tinydiff.runs.atomic import PathLike, write_file

__all__ = [  # the names of td.images; those on pixels are of data/pixels.py
    "check_place",
    "convert_channels",
    "fit",
    "grid",
    "plot_loss",
    "resize",
    "save_gif",
    "save_png",
    "to_bytes",
    "to_float",
    "write_file",
]


def grid(images: Any, columns: int | None = None, padding: int = 2, scale: int = 1) -> np.ndarray:
    """Images uint8 (n, H, W, C) in rows on a white sheet, uint8 (H', W', C).

    columns: None: the least number that makes the sheet about square. padding: the white between images and around
    them, in pixels of the sheet. scale: every pixel becomes that many a side. ValueError for other images and numbers.
    """
    images = to_numpy(images)
    if images.ndim != 4 or images.dtype != np.uint8 or 0 in images.shape or images.shape[-1] > 4:
        raise ValueError(
            f"grid takes uint8 images (n, H, W, C) with 1 to 4 channels, not {images.dtype} {images.shape}"
        )
    if scale < 1 or padding < 0 or (columns is not None and columns < 1):
        raise ValueError(f"grid takes columns and scale from 1 and padding from 0, not {columns}, {scale}, {padding}")
    n, _, _, channels = images.shape
    columns = min(n, columns or math.ceil(math.sqrt(n)))
    rows = -(-n // columns)
    height, width = images.shape[1] * scale, images.shape[2] * scale
    sheet = np.full(
        (rows * (height + padding) + padding, columns * (width + padding) + padding, channels), 255, np.uint8
    )
    for i, image in enumerate(images):
        top, left = padding + i // columns * (height + padding), padding + i % columns * (width + padding)
        sheet[top : top + height, left : left + width] = image.repeat(scale, 0).repeat(scale, 1)
    return sheet


def save_png(path: PathLike, images: Any, texts: Mapping[str, str] | None = None) -> None:
    """Writes a PNG file: one picture uint8 (H, W, C), or a grid of images uint8 (n, H, W, C).

    path: a name that ends in .png. texts: named texts to put into the file. InputError for another name or a place that
    cannot be written, RunFailed for a full disk.
    """
    path = _named(path, ".png")
    images = to_numpy(images)
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for name, text in (texts or {}).items():
        info.add_text(name, text)
    buffer = io.BytesIO()
    _picture(images if images.ndim == 3 else grid(images)).save(buffer, "PNG", pnginfo=info)
    write_file(path, buffer.getvalue())


def read_text(path: PathLike, name: str) -> str | None:
    """The text that `save_png` put under a name into the picture at a path; None where there is no such picture or text."""
    from PIL import Image

    try:
        with open_file(path) as file, Image.open(file, formats=("PNG",)) as picture:
            text = picture.info.get(name)
    except Exception:  # Pillow fails on damaged files with whatever comes up
        return None
    return text if isinstance(text, str) else None


def save_gif(path: PathLike, frames: Sequence[Any], duration: int = 80, hold: int = 2000) -> None:
    """Writes a GIF file that loops.

    path: a name that ends in .gif. frames: pictures uint8 (H, W, C) of one shape. duration, hold: how long each frame,
    and the last one, is shown, in ms; GIF counts hundredths of a second.

    Greys come out exactly. Colours are reduced to 256 a frame, and transparent parts stand on white. InputError for
    another name or a place that cannot be written, RunFailed for a full disk, ValueError for frames that do not fit.
    """
    path = _named(path, ".gif")
    shapes = {np.shape(frame) for frame in frames}
    if len(shapes) != 1:
        raise ValueError(f"save_gif takes one or more frames of one shape (H, W, C), not {sorted(shapes) or 'none'}")
    pictures = [without_alpha(_picture(to_numpy(frame))) for frame in frames]
    pictures = [p if p.mode == "L" else p.quantize(256) for p in pictures]
    times = [duration] * (len(pictures) - 1) + [hold]
    options = {"save_all": True, "append_images": pictures[1:], "duration": times, "loop": 0}
    buffer = io.BytesIO()
    pictures[0].save(
        buffer, "GIF", **options, optimize=False
    )  # Pillow misreads the greys of palettes that it optimised
    write_file(path, buffer.getvalue())


def plot_loss(csv_path: PathLike, png_path: PathLike) -> bool:
    """Draws the `loss` column of a run's log over its `step` column, raw and smoothed, and `holdout_loss`, if there are some, as
    a PNG file.

    csv_path: of the log. png_path: of the picture, a name that ends in .png.

    Rows that are cut off or hold no finite number are left out. Returns False, after one line on stderr, where
    matplotlib is not installed. InputError for a log that cannot be read or holds no loss.
    """
    png_path = _named(png_path, ".png")
    steps, losses = _read_losses(Path(csv_path))
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        say("no loss curve drawn: it needs matplotlib, pip install 'tinydiff[plot]'")
        return False
    figure = Figure(figsize=(8, 4.5), dpi=100, layout="constrained")  # no pyplot: its state belongs to the user
    axes = figure.add_subplot()
    axes.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=0.8, marker="." * (len(losses) < 2), label="loss")
    window = max(1, len(losses) // 50)
    if window > 1:
        smooth = np.convolve(losses, np.full(window, 1 / window), mode="valid")
        middle = np.convolve(steps, np.full(window, 1 / window), mode="valid")
        axes.plot(middle, smooth, color="tab:blue", linewidth=1.8, label=f"mean of {window} rows")
    held_steps, held = _read_column(Path(csv_path), "holdout_loss")
    if len(held):
        marker = "." if len(held) < 20 else ""
        axes.plot(held_steps, held, color="tab:orange", linewidth=1.5, marker=marker, label="loss on held-out images")
    if min([*losses, *held]) > 0:
        axes.set_yscale("log")
    axes.set(xlabel="step", ylabel="loss")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    write_file(png_path, buffer.getvalue())
    return True


def check_place(path: PathLike, suffix: str) -> None:
    """Raises, before long work, the InputError or RunFailed that writing a picture at a path would raise after it.
    suffix: the ending that the name must have, ".png" or ".gif"."""
    atomic.check_place(_named(path, suffix))


def _named(path: PathLike, suffix: str) -> Path:
    path = Path(path)
    if path.suffix.lower() != suffix:
        raise InputError(f"{path} would hold a {suffix[1:].upper()} picture, so its name must end in {suffix}")
    return path


def _picture(image: np.ndarray) -> Any:
    from PIL import Image

    if image.ndim != 3 or image.dtype != np.uint8 or 0 in image.shape or image.shape[-1] > 4:
        raise ValueError(f"a picture is uint8 (H, W, C) with 1 to 4 channels, not {image.dtype} {image.shape}")
    return Image.fromarray(np.ascontiguousarray(image[..., 0] if image.shape[-1] == 1 else image))


def _read_losses(path: Path) -> tuple[np.ndarray, np.ndarray]:
    steps, losses = _read_column(path, "loss")
    if not len(steps):
        raise InputError(f"{path} holds no rows with a step and a loss to draw")
    return steps, losses


def _read_column(path: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps (n,) of the rows that have a finite number under a name, and these numbers (n,)."""
    try:
        with open_file(path) as file:
            rows = list(csv.DictReader(io.StringIO(file.read().decode(), newline=""), skipinitialspace=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    points = []
    for row in rows:
        if None in row.values():  # cut off
            continue
        with contextlib.suppress(KeyError, TypeError, ValueError):
            points.append((float(row["step"]), float(row[name])))
    finite = np.array([p for p in points if all(map(math.isfinite, p))], np.float64).reshape(-1, 2)
    return finite[:, 0], finite[:, 1]
