"""A folder of pictures, in any format that Pillow reads."""

from __future__ import annotations

import os
import stat
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from tinydiff.data.dataset import Dataset, scaled_from
from tinydiff.data.decode import CONVERT, FULL, read_pixels, white_of
from tinydiff.errors import LONGEST, InputError, named, shown
from tinydiff.machine.files import open_file

_Picture = tuple[np.ndarray, int | None, tuple[int, int]]  # pixels, the largest number, the size (H, W) it came in

_THREADS = 8
_AT_ONCE = 2 * _THREADS  # decoded pictures in memory, before they are stored or refused
_BUDGET = 1 << 30  # bytes that decoding may take; a picture that needs more is decoded alone
_BYTES = 16  # of a pixel while it is decoded: Pillow keeps colours in four bytes, in up to four copies
_MOST_PIXELS = 100_000_000
_DEEPEST = 100  # folders in each other
_MOST_VISITS = 16  # of one folder, by different links

# What Pillow may take a file for, whatever its name says. Not EPS, for which it starts Ghostscript, nor what it hands on to
# other programs or keeps for old ones only.
_FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP",
)  # fmt: skip


def read_folder(
    folder: Path,
    image_size: int | None = None,
    channels: int | None = None,
    labels: bool | None = None,
    report: Callable[[str], None] | None = None,
) -> Dataset:
    """The pictures in a folder and in the folders in it, in byte order of their paths; hidden ones are left out.

    folder: a pathlib.Path.
    image_size: pixels a side, to which the middle square of each is scaled; None: all must be squares of one size.
    channels: 1 or 3; None gives grey if every picture is grey (its colours are equal, however it is stored), else
        colour.
    labels: whether the classes are the folders directly in `folder`.
    report: called with a line for each picture that is skipped because it cannot be read; None: a warning. They are
        listed in `skipped`.

    Transparent parts become white, a camera's rotation is undone, of an animation the first frame counts; `decode.py`
    tells which brightness a file's numbers mean. InputError if no picture is left.
    """
    skipped: list[tuple[str, str]] = []
    report = report or (lambda line: warnings.warn(line, stacklevel=2))

    def skip(path: PurePath, reason: str) -> None:
        skipped.append((str(path), reason))
        report(shown(f"skipped {folder / path}: {reason}", LONGEST))

    paths = _find(folder, skip)
    if not paths:
        raise InputError(
            f"{folder} holds no pictures: no file in it or below has the ending of a format that Pillow reads"
        )
    class_names = _class_names(folder, paths) if labels else None
    images: np.ndarray | None = None
    kept: list[PurePath] = []
    peaks: dict[int, int] = {}  # the largest number of each picture of 16 bits
    others: set[tuple[int, int]] = set()  # original sizes of pictures that were scaled
    for path, result in _decoded(folder, paths, image_size, channels):
        if isinstance(result, str):
            skip(path, result)
            continue
        picture, peak, came = result
        if peak is not None:
            peaks[len(kept)] = peak
        if image_size is not None and came != (image_size, image_size):
            others.add(came)
        if images is None:
            images = np.empty((len(paths), *picture.shape), np.uint8)
        size, first_size = picture.shape[:2], images.shape[1:3]
        if size != first_size or size[0] != size[1]:
            _refuse_sizes(folder, kept[0] if kept else path, first_size, path, size)
        if picture.shape[2] > images.shape[3]:  # the first one in colour
            images = np.repeat(images, 3, axis=3)
        images[len(kept)] = picture
        kept.append(path)
    if images is None:
        count = f"none of its {len(paths)} pictures can" if len(paths) > 1 else "its only picture cannot"
        raise InputError(f"{folder}: {count} be read; {paths[0]}: {dict(skipped)[str(paths[0])]}")
    done = [scaled_from(others)] if others else []
    if (white := white_of(peaks.values())) < FULL:
        again = _decoded(folder, [kept[i] for i in peaks], image_size, channels, white)
        for i, (path, result) in zip(peaks, again, strict=True):
            if isinstance(result, str):
                raise InputError(f"{folder / path} cannot be read as {white.bit_length()} bits: {result}")
            if result[0].shape[2] > images.shape[3]:
                images = np.repeat(images, 3, axis=3)
            images[i] = result[0]
        some = "" if len(peaks) == len(kept) else f"{len(peaks)} of them "
        bits, most = white.bit_length(), max(peaks.values())
        done.append(f"{some}taken as {bits} bits ({white} is white, as no 16-bit number is above {most})")
    values = None
    if class_names is not None:
        values = np.array([class_names.index(path.parts[0]) for path in kept], np.int64)
    names = None if class_names is None else [shown(name) for name in class_names]
    return Dataset(
        images[: len(kept)], values, names, name=folder.name, source=str(folder), skipped=skipped,
        fitted=", ".join(done),
    )  # fmt: skip


def _find(folder: Path, skip: Callable[[PurePath, str], None]) -> list[PurePath]:
    """The files below the folder whose names end as pictures' do, relative to it, links followed, loops not."""
    from PIL import Image

    suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name in _known()}
    found: list[PurePath] = []
    visits: Counter[tuple[int, int]] = Counter()

    def look(place: PurePath, above: frozenset[tuple[int, int]]) -> None:
        try:
            about = os.stat(folder / place)
            entries = sorted(os.scandir(folder / place), key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            if not above:
                raise InputError(f"{folder} cannot be read: {error.strerror or error}") from error
            skip(place, error.strerror or str(error))
            return
        here = about.st_dev, about.st_ino
        if here in above:
            return
        visits[here] += 1
        if len(above) > _DEEPEST or visits[here] > _MOST_VISITS:
            far = f"it is more than {_DEEPEST} folders deep"
            skip(place, far if len(above) > _DEEPEST else f"links lead there more than {_MOST_VISITS} times")
            return
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            if os.path.isdir(entry.path):
                look(place / entry.name, above | {here})
            elif os.path.splitext(entry.name)[1].lower() in suffixes:
                found.append(place / entry.name)

    look(PurePath(), frozenset())
    return sorted(found, key=lambda path: os.fsencode(path.as_posix()))


def _known() -> list[str]:
    """Those of the formats that this Pillow has."""
    from PIL import Image

    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _class_names(folder: Path, paths: list[PurePath]) -> list[str]:
    loose = [path for path in paths if len(path.parts) == 1]
    if len(loose) == len(paths):
        raise InputError(f"{folder} has no sub-folders with pictures, and labels are the names of sub-folders")
    if loose:
        raise InputError(f"{folder}: labels are the names of sub-folders, and {loose[0]} is not in one")
    return sorted({path.parts[0] for path in paths}, key=os.fsencode)


def _refuse_sizes(folder: Path, path: PurePath, size: Any, other_path: PurePath, other_size: Any) -> None:
    if size == other_size:
        raise InputError(
            f"{folder}: {path} is {_wide(size)}, not square, so give {named('image_size')} to crop and scale to"
        )
    raise InputError(
        f"{folder} holds pictures of several sizes, {path} is {_wide(size)} and {other_path} is {_wide(other_size)}, "
        f"so give {named('image_size')} to crop and scale to"
    )


def _wide(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"


def _decoded(
    folder: Path, paths: list[PurePath], image_size: int | None, channels: int | None, white: int = FULL
) -> Iterator[tuple[PurePath, _Picture | str]]:
    """Each path with what `_decode` gives, or with the reason why there is nothing, in order; Pillow decodes without the
    GIL."""
    from concurrent.futures import ThreadPoolExecutor

    def read(path: PurePath) -> _Picture | str:
        try:
            return _decode(folder / path, image_size, channels, white)
        except Exception as error:  # Pillow's readers raise all kinds of errors on damaged files
            return _reason(error, folder / path)

    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(paths), _AT_ONCE):
            some = paths[start : start + _AT_ONCE]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata
                pictures = list(pool.map(read, some))
            yield from zip(some, pictures, strict=True)


def _reason(error: Exception, path: Path) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        tiff = path.suffix.lower() in (".tif", ".tiff") and path.read_bytes()[:4] in (b"II*\0", b"MM\0*")
        return f"a kind of TIFF that Pillow cannot read ({CONVERT})" if tiff else "not a picture that Pillow can read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _decode(path: Path, image_size: int | None, channels: int | None, white: int) -> _Picture:
    """A picture and its largest number as `read_pixels` of `decode.py` gives them, and the size (H, W) it came in."""
    from PIL import Image

    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("not a file")  # reading a pipe would wait forever
    with open_file(path) as content, Image.open(content, formats=_known()) as file:
        came = file.height, file.width
        if image_size is not None:
            file.draft(None, (2 * image_size, 2 * image_size))  # a much larger JPEG is decoded at a smaller scale
        if (count := file.width * file.height) > _MOST_PIXELS:
            raise ValueError(f"{count:,} pixels, more than the {_MOST_PIXELS:,} that are read")
        with _room.taken(count * _BYTES):
            return *read_pixels(file, content, image_size, channels, white), came


class _Room:
    """Bytes that threads share: whoever wants more than are left waits, and who wants more than there are gets all."""

    def __init__(self, count: int) -> None:
        self.count, self.left, self.changed = count, count, threading.Condition()

    @contextmanager
    def taken(self, count: int) -> Iterator[None]:
        count = min(count, self.count)
        with self.changed:
            self.changed.wait_for(lambda: self.left >= count)
            self.left -= count
        try:
            yield
        finally:
            with self.changed:
                self.left += count
                self.changed.notify_all()


_room = _Room(_BUDGET)
