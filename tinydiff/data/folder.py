"""Pictures in a folder or an archive, in any format that Pillow reads."""

from __future__ import annotations

import os
import threading
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from tinydiff.data.dataset import Dataset, scaled_from
from tinydiff.data.decode import (
    FULL,
    memory_of_pixel,
    memory_of_tiff_pixel,
    read_pixels,
    read_tiff,
    what_it_is,
    white_of,
)
from tinydiff.data.sources import Folder, Metered, Skip, Source, opened, refused
from tinydiff.data.tiff import parse
from tinydiff.errors import LONGEST, InputError, named, shown
from tinydiff.machine import limits
from tinydiff.machine.files import name_bytes
from tinydiff.machine.pages import return_freed_memory

_Picture = tuple[np.ndarray, int | None, tuple[int, int]]  # pixels, the largest number, the size (H, W) it came in

_THREADS = 8
_AT_ONCE = 2 * _THREADS  # pictures that are being decoded, or wait to be stored or refused
_BUDGET = 1 << 30  # bytes that these may take together; a picture that needs more alone is not read
_LARGE = 64 << 20  # bytes
# Pictures that Pillow does not read without more.
_OTHER_PICTURES = {
    ".heic", ".heif", ".svg", ".svgz", ".jxl", ".pdf", ".ai", ".xcf", ".cdr", ".exr", ".hdr", ".dcm", ".nii", ".mat",
    ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw", ".pam", ".jxr", ".wdp", ".djvu",
}  # fmt: skip

_PARTS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"}  # of data sets

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
    """The pictures in a folder or an archive and in the folders in it, in byte order of their paths; hidden ones, and the
    folders of runs in it, are left out.

    folder: a pathlib.Path, of a folder, a .zip, or a .tar, compressed by gzip, bzip2 or xz or not.
    image_size: pixels a side, to which the middle square of each is scaled; None: all must be squares of one size.
    channels: 1 or 3; None gives grey if every picture is grey (its colours are equal, however it is stored), else
        colour.
    labels: whether the classes are the folders directly in `folder`, in byte order, or in that of numbers if all are numbers.
        Where a single folder holds all others, they are those in it.
    report: called with a line for each picture that is skipped because it cannot be read; None: a warning. They are
        listed in `skipped`.

    Transparent parts become white, a camera's rotation is undone, of an animation the first frame counts; `decode.py`
    tells which brightness a file's numbers mean. InputError if no picture is left.
    """
    report = report or (lambda line: warnings.warn(line, stacklevel=3))
    with opened(folder, picture_endings()[0]) as source:
        return _read(folder, source, image_size, channels, labels, report)


def read_picture(path: Path, channels: int) -> np.ndarray:
    """A single picture, uint8 (H, W, channels), read as those of a folder are. path: of its file. channels: 1 or 3. InputError
    where there is none, or none that can be read."""
    if channels not in (1, 3):
        raise InputError(f"{path}: pictures are read as grey or colours, and the model has {channels} channels")
    if not os.path.lexists(path):
        raise InputError(f"there is no picture {path}")
    try:
        with warnings.catch_warnings(action="ignore"):  # remarks on odd metadata
            return _decode(Folder(path.parent), PurePath(path.name), None, channels, FULL)[0]
    except Exception as error:  # Pillow's readers raise all kinds of errors on damaged files
        raise InputError(f"{path} cannot be used: {_reason(error)}") from None


def _read(
    folder: Path,
    source: Source,
    image_size: int | None,
    channels: int | None,
    labels: bool | None,
    report: Callable[[str], None],
) -> Dataset:
    skipped: list[tuple[str, str]] = []

    def skip(path: PurePath, reason: str) -> None:
        skipped.append((str(path), reason))
        report(shown(f"skipped {folder / path}: {reason}", LONGEST))

    ignored: Counter[str] = Counter()
    paths = _find(source, skip, ignored)
    notes = [f"ignored: {_counted(ignored)}; save them as PNG or JPEG to use them"] if ignored else []
    if not paths and not isinstance(source, Folder):
        raise refused(folder, "is an archive without pictures" + "".join(f" ({note})" for note in notes))
    if not paths:
        raise InputError(
            f"{folder} holds no pictures: no file in it or below has the ending of a format that Pillow reads"
            + "".join(f"; {note}" for note in notes)
        )
    level, class_names = _class_names(folder, paths) if labels else (0, None)
    if level:
        notes.append(f"the classes are the folders in {shown(PurePath(*paths[0].parts[:level]))}")
    images: np.ndarray | None = None
    kept: list[PurePath] = []
    peaks: dict[int, int] = {}  # the largest number of each picture of 16 bits
    others: set[tuple[int, int]] = set()  # original sizes of pictures that were scaled
    for path, result in _decoded(source, paths, image_size, channels):
        if isinstance(result, str):
            skip(path, result)
            continue
        picture, peak, came = result
        if peak is not None:
            peaks[len(kept)] = peak
        if image_size is not None and came != (image_size, image_size):
            others.add(came)
        if images is None:
            _check_memory(folder, len(paths), picture)
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
    if (white := white_of(peaks.values())) < FULL:
        again = _decoded(source, [kept[i] for i in peaks], image_size, channels, white)
        for i, (path, result) in zip(peaks, again, strict=True):
            if isinstance(result, str):
                raise InputError(f"{folder / path} cannot be read as {white.bit_length()} bits: {result}")
            if result[0].shape[2] > images.shape[3]:
                images = np.repeat(images, 3, axis=3)
            images[i] = result[0]
        some = "" if len(peaks) == len(kept) else f"{len(peaks)} of them "
        bits, most = white.bit_length(), max(peaks.values())
        notes.append(f"{some}taken as {bits} bits: {white} is white, as no 16-bit number is above {most}")
    values = None
    if class_names is not None and (lost := set(class_names) - {path.parts[level] for path in kept}):
        class_names = [name for name in class_names if name not in lost]
        notes.append(f"left out, as none of their pictures can be read: {', '.join(map(shown, sorted(lost)))}")
    if class_names is not None:
        values = np.array([class_names.index(path.parts[level]) for path in kept], np.int64)
    names = None if class_names is None else [shown(name) for name in class_names]
    return Dataset(
        images[: len(kept)], values, names, name=folder.name, source=str(folder), skipped=skipped,
        fitted=scaled_from(others) if others else "", notes=notes,
    )  # fmt: skip


def _counted(endings: Counter[str]) -> str:
    return ", ".join(f"{count:,} {ending} file{'s' * (count > 1)}" for ending, count in sorted(endings.items()))


def holds_pictures(folder: Path) -> bool:
    """Whether a file in the folder or below has the ending of a picture."""
    return bool(_find(Folder(folder), lambda path, reason: None, Counter()))


def picture_endings() -> tuple[set[str], set[str]]:
    """The endings of files that are read as pictures, and those of pictures that are not read."""
    from PIL import Image

    known, registered = _known(), Image.registered_extensions()
    read = {ending for ending, name in registered.items() if name in known}
    return read, ({ending for ending in registered} | _OTHER_PICTURES) - read


def _find(source: Source, skip: Skip, ignored: Counter[str]) -> list[PurePath]:
    """The files in a source whose names end as pictures' do, relative to it, in byte order. Endings of pictures that are not read
    are counted in `ignored`."""
    suffixes, others = picture_endings()
    found = []
    for name in source.names(skip):
        if (ending := name.suffix.lower()) in suffixes:
            found.append(name)
        elif ending in others:
            ignored[ending] += 1
    return sorted(found, key=lambda name: name_bytes(name.as_posix()))


def _known() -> list[str]:
    """Those of the formats that this Pillow has."""
    from PIL import Image

    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _class_names(folder: Path, paths: list[PurePath]) -> tuple[int, list[str]]:
    """How many folders the classes' folders are in, and their names in order."""
    loose = [path for path in paths if len(path.parts) == 1]
    if len(loose) == len(paths):
        raise InputError(f"{folder} has no sub-folders with pictures, and labels are the names of sub-folders")
    if loose:
        raise InputError(f"{folder}: labels are the names of sub-folders, and {loose[0]} is not in one")
    level = 0
    while len({path.parts[level] for path in paths}) == 1 and all(len(path.parts) > level + 2 for path in paths):
        level += 1
    names = sorted({path.parts[level] for path in paths}, key=name_bytes)
    if {name.lower() for name in names} <= _PARTS and len(names) > 1:
        place = folder / PurePath(*paths[0].parts[:level]) / names[-1]
        raise InputError(
            f"{folder}: {' and '.join(names)} are parts of a data set, no classes, so give one of them, as {place}"
        )
    return level, sorted(names, key=int) if all(name.isascii() and name.isdecimal() for name in names) else names


def _check_memory(folder: Path, count: int, picture: np.ndarray) -> None:
    everything, _ = limits.memory()
    if everything is not None and count * picture.nbytes > everything // 2:
        raise InputError(
            f"{folder}: its pictures, {count} of {_wide(picture.shape[:2])}, take {count * picture.nbytes:,} bytes, more than fit "
            f"into memory, so give {named('image_size')} to crop and scale to"
        )


def _refuse_sizes(folder: Path, path: PurePath, size: Any, other_path: PurePath, other_size: Any) -> None:
    if size == other_size:
        raise InputError(
            f"{folder}: {path} is {_wide(size)}, not square, so give {named('image_size')} to crop and scale to"
        )
    raise InputError(
        f"{folder} holds pictures of several sizes, {path} is {_wide(size)} and {other_path} is {_wide(other_size)}, "
        f"so give {named('image_size')} to crop and scale to"
    )


def _wide(size: tuple[int, ...]) -> str:
    return f"{size[1]}x{size[0]}"


def _decoded(
    source: Source, paths: list[PurePath], image_size: int | None, channels: int | None, white: int = FULL
) -> Iterator[tuple[PurePath, _Picture | str]]:
    """Each path with what `_decode` gives, or with the reason why there is nothing, in order; Pillow decodes without the
    GIL. What is decoded, and what is not yet taken from here, shares `_BUDGET`."""
    from concurrent.futures import Future, ThreadPoolExecutor

    room = _Room(_BUDGET)

    def read(turn: int, path: PurePath) -> _Picture | str:
        kept = 0
        try:
            result = _decode(source, path, image_size, channels, white, lambda count: room.take(turn, count))
            kept = result[0].nbytes
            return result
        except Exception as error:  # Pillow's readers raise all kinds of errors on damaged files
            return _reason(error)
        finally:
            if room.has(turn) >= _LARGE:
                return_freed_memory()  # else each thread's heap keeps some
            room.keep(turn, kept)

    waiting: deque[tuple[int, Future[_Picture | str]]] = deque()

    def first() -> Iterator[tuple[PurePath, _Picture | str]]:
        turn, future = waiting.popleft()
        yield paths[turn], future.result()
        room.keep(turn, 0)

    with ThreadPoolExecutor(_THREADS) as pool, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\b")  # remarks on odd metadata
        try:
            for turn, path in enumerate(paths):
                if len(waiting) == _AT_ONCE:
                    yield from first()
                waiting.append((turn, pool.submit(read, turn, path)))
            while waiting:
                yield from first()
        finally:
            room.close()


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _decode(
    source: Source,
    path: PurePath,
    image_size: int | None,
    channels: int | None,
    white: int,
    take: Callable[[int], None] = lambda count: None,
) -> _Picture:
    """A picture and its largest number as `read_pixels` of `decode.py` gives them, and the size (H, W) it came in.
    take: called with the bytes of memory that decoding needs, before it begins."""
    from PIL import Image, UnidentifiedImageError

    def take_for(width: int, height: int, each: int, kind: str | None) -> None:
        if (count := width * height) * each > _BUDGET:
            raise ValueError(f"{count:,} pixels, more than the {_BUDGET // each:,} that are read of {kind}")
        take(count * each)
        if isinstance(content, Metered):
            content.allow(count * each)

    with source.open(path) as content:
        try:
            opened_file = Image.open(content, formats=_known())
        except UnidentifiedImageError:
            if (tiff := parse(content)) is None:
                content.seek(0)
                raise ValueError(what_it_is(content.read(512))) from None
            take_for(tiff.width, tiff.height, memory_of_tiff_pixel(tiff), "TIFF")
            return *read_tiff(tiff, content, image_size, channels, white), (tiff.height, tiff.width)
        with opened_file as file:
            came = file.height, file.width
            if image_size is not None:
                file.draft(None, (2 * image_size, 2 * image_size))  # a much larger JPEG is decoded at a smaller scale
            take_for(file.width, file.height, memory_of_pixel(file), file.format)
            return *read_pixels(file, content, image_size, channels, white), came


class _Room:
    """Bytes that threads share. They are given out in the order of turns 0, 1, 2, ..., so that the first turn which is not
    done always has what it needs: none waits for a later one."""

    def __init__(self, count: int) -> None:
        self.left, self.next, self.closed = count, 0, False
        self.held: dict[int, int] = {}
        self.changed = threading.Condition()

    def take(self, turn: int, count: int) -> None:
        """Waits until all earlier turns have taken theirs and `count` bytes are left. OSError after `close`."""
        with self.changed:
            self.changed.wait_for(lambda: self.closed or (self.next == turn and self.left >= count))
            if self.closed:
                raise InterruptedError("reading has ended")
            self.left -= count
            self.held[turn] = count
            self.next += 1
            self.changed.notify_all()

    def keep(self, turn: int, count: int) -> None:
        """Gives back all but `count` bytes of what the turn took; of a turn that took nothing, its turn."""
        with self.changed:
            if turn not in self.held:
                self.changed.wait_for(lambda: self.closed or self.next >= turn)
                self.next = max(self.next, turn + 1)
            self.left += self.has(turn) - count
            self.held[turn] = count
            self.changed.notify_all()

    def has(self, turn: int) -> int:
        """The bytes that a turn holds."""
        return self.held.get(turn, 0)

    def close(self) -> None:
        """Nobody waits any more."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()
