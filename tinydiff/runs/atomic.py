"""Files and folders that are there whole or not at all, whatever moment the writer dies at.

A file is written under a temporary name, brought to the disk and renamed. A folder is never changed: a new one is written beside
it as `NAME.new` and brought to the disk, then the present one is renamed to `NAME.old`, the new one to `NAME`, and the old one is
deleted. One of its files, `LAST`, gets its name when all others are on the disk: a folder that has it is complete.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tinydiff.errors import InputError, RunFailed

PathLike = str | os.PathLike[str]

LAST = "model_index.json"

_TEMPORARY = re.compile(r"\..*\.\d+(-\d+)?\.tmp")  # as tinydiff names them; 0.1.0 had no second number
_numbers = itertools.count()

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FAILING = {errno.EIO, errno.EFBIG}  # like a full disk, no fault of the name that the user gave


@contextlib.contextmanager
def writing(path: PathLike, kept: str = "") -> Iterator[None]:
    """Turns an error of the system in the block into one sentence: RunFailed for a disk that is full or failing, InputError
    for a place that cannot be written. kept: what to add of what was there before."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise RunFailed(f"the disk is full: {path} could not be written{kept}") from None
        kind = RunFailed if error.errno in _FAILING else InputError
        raise kind(f"{path} cannot be written: {error.strerror or error}") from None


@contextlib.contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, gone in the end; errors as in `writing`."""
    check_outside(path)
    temporary = path.with_name(f".{path.name[:50]}.{os.getpid()}-{next(_numbers)}.tmp")
    with writing(path):
        with contextlib.suppress(FileNotFoundError):
            os.lstat(path)  # the name itself may be too long
        try:
            yield temporary
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()


def check_place(path: PathLike) -> None:
    """Raises, before long work, the InputError or RunFailed that `write_file` would raise at a path after it; InputError
    also where a folder, a pipe or a device is there. Links are looked at, and followed for that."""
    path = Path(path)
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # nothing, or a link that leads nowhere and will be replaced
        mode = stat.S_IFREG
    if not stat.S_ISREG(mode):
        what = os.strerror(errno.EISDIR) if stat.S_ISDIR(mode) else "it is a pipe or a device"
        raise InputError(f"{path} cannot be written: {what}")
    with temporary_beside(path) as temporary:
        open(temporary, "wb").close()
        check_replaceable(path)


def check_replaceable(path: Path) -> None:
    """OSError where a file that is there may be of somebody whose folder protects it, or may not be changed by anybody."""
    if not os.path.lexists(path) or os.name == "nt":
        return
    status, folder = os.lstat(path), os.stat(path.parent)
    forbidden = folder.st_mode & stat.S_ISVTX and os.geteuid() not in (0, status.st_uid, folder.st_uid)
    if not forbidden and stat.S_ISREG(status.st_mode):
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW))
        except OSError as error:  # what may not be written can be replaced, but not what may not be changed at all
            forbidden = error.errno == errno.EPERM
    if forbidden:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def check_outside(path: Path) -> None:
    """InputError for a path in a checkpoint, or any folder that `write_folder` made: the next save would remove what is there."""
    for parent in Path(os.path.abspath(path)).parents:
        if os.path.isfile(parent / LAST):  # False also where that cannot be known
            raise InputError(
                f"{path} is in the checkpoint {parent}, which the next save replaces; choose another place"
            )


def write_file(path: PathLike, content: bytes) -> None:
    """Writes a file at a path with the given content, bytes, whole or not at all: under a temporary name beside it, to
    the disk, then renamed. In the place of a link the file itself is put; what the link points to stays. InputError for
    a place that cannot be written, RunFailed for a disk that is full or failing."""
    path = Path(path)
    with temporary_beside(path) as temporary:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)


def make_folder(path: Path) -> None:
    """Makes the folder at a path and those above it, and returns when they are on the disk. OSError where that cannot be done."""
    if not path.is_dir():
        if not os.path.lexists(path.parent):
            make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def remove(path: Path) -> None:
    """Removes what is at a path: a file, a link (never what it points to) or a folder with all that is in it. OSError where it
    stays."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        (path / LAST).unlink(missing_ok=True)  # first: from now on it is not complete
        shutil.rmtree(path)


def remove_all(paths: Sequence[Path], aside: Path) -> None:
    """Removes what is at each of the paths as `remove` does or, where that cannot be done for one of them, nothing: OSError.

    aside: where a folder is made that they are moved to first; one that a killed process left there is removed."""
    if os.path.lexists(aside):
        remove(aside)
    for path in paths:
        check_removable(path)
    if not paths:
        return
    aside.mkdir()
    moved: list[tuple[Path, Path]] = []
    try:
        for path in paths:
            os.rename(path, there := aside / str(len(moved)))
            moved.append((path, there))
    except OSError:
        for path, there in moved:
            os.rename(there, path)
        aside.rmdir()
        raise
    remove(aside)


def check_removable(path: Path) -> None:
    """OSError where a folder at a path, one in it, or a file in them is not ours to remove."""
    for folder, _, files in () if path.is_symlink() else os.walk(path):
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, f"the permissions of {folder} forbid it")
        for name in files:
            check_replaceable(Path(folder, name))


def temporary_files(folder: Path) -> list[Path]:
    """The temporary files that killed writers left in a folder that is there."""
    return [
        folder / entry.name
        for entry in os.scandir(folder)
        if _TEMPORARY.match(entry.name) and not entry.is_dir(follow_symlinks=False)
    ]


def remove_temporary(folder: Path, seconds: float = 0) -> None:
    """Removes the temporary files that killed writers left in a folder; only those that are at least `seconds` old."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for path in temporary_files(folder):
            with contextlib.suppress(FileNotFoundError):
                if not seconds or time.time() - path.lstat().st_mtime > seconds:
                    path.unlink()


def write_folder(target: Path, files: Mapping[str, bytes | Callable[[Path], None]]) -> None:
    """Makes a folder with the given files, or puts one in the place of an earlier complete one, or of a link to one.

    files: by path in the folder, what is in them or a function that writes them; one must be `model_index.json`.
    Whatever moment the process is killed at, the earlier folder or the new one is there, complete. InputError for a
    place that cannot be written; RunFailed for a full disk, with the earlier folder still there.
    """
    check_outside(target)
    new, old = beside(target)
    with writing(target, "; what was saved before is kept"):
        make_folder(target.parent)
        repair(target)
        try:
            _write_files(new, files)
        except OSError:
            shutil.rmtree(new, ignore_errors=True)  # on a full disk, what was written of it is in the way
            raise
        if os.path.lexists(target):
            os.rename(target, old)
        os.rename(new, target)
        sync(target.parent)
        if os.path.lexists(old):
            remove(old)


def repair(target: Path) -> None:
    """Puts in place what an interrupted `write_folder` of the folder `target` left, and removes the rest. OSError where
    that cannot be done."""
    new, old = beside(target)
    if not is_complete(target):
        for folder in (new, old):
            if is_complete(folder):
                remove(target)
                os.rename(folder, target)
                sync(target.parent)
                break
    for folder in (new, old):
        if os.path.lexists(folder):
            remove(folder)


def _write_files(folder: Path, files: Mapping[str, bytes | Callable[[Path], None]]) -> None:
    for name, content in files.items():
        path = folder / (f"{name}.part" if name == LAST else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(path)
        else:
            path.write_bytes(content)
        sync(path)
    for directory in sorted({folder / parent for name in files for parent in Path(name).parents}):
        sync(directory)
    os.rename(folder / f"{LAST}.part", folder / LAST)  # now that everything is on the disk, the folder is complete
    sync(folder)


def sync(path: Path) -> None:
    """Returns when a file or a folder is on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows neither needs nor knows this for folders
    folder = path.is_dir()
    descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not folder or error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot, and need not
            raise
    finally:
        os.close(descriptor)


def beside(target: Path) -> tuple[Path, Path]:
    """Where a new folder is written, and where the earlier one goes."""
    target = Path(os.path.abspath(target))  # "." has no name
    return target.parent / f"{target.name}.new", target.parent / f"{target.name}.old"  # nor has "/"


def is_complete(folder: Path) -> bool:
    """Whether a folder has all its files."""
    return (folder / LAST).is_file()
