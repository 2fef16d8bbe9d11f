"""Where pictures lie: in a folder, or in an archive. What is in an archive is read into memory; nothing is unpacked to the disk,
so no name in it leads anywhere."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import tarfile
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, BinaryIO, Protocol, cast

from tinydiff.errors import InputError
from tinydiff.machine import limits
from tinydiff.machine.files import open_file
from tinydiff.machine.terminal import quoted

Skip = Callable[[PurePath, str], None]

_DEEPEST = 100  # folders in each other
_MOST_VISITS = 16  # of one folder, by different links
_LARGEST = 64 << 20  # bytes of a picture's file in an archive, and of a name in a tar file
_MOST_MEMBERS = 5_000_000
_PACKED: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
_ZIPS, _TARS = (".zip",), (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_OTHER_ARCHIVES = (".tar.zst", ".tzst", ".tar.lz4", ".tar.lz", ".tar.z", ".7z", ".rar")
ARCHIVES = (*_ZIPS, *_TARS, *_OTHER_ARCHIVES)
# What systems put beside pictures: macOS, Synology, QNAP, Windows, Linux.
_NOT_DATA = {
    "__MACOSX",
    "@eaDir",
    "#recycle",
    "#snapshot",
    "@Recycle",
    "$RECYCLE.BIN",
    "System Volume Information",
    "lost+found",
}


class Source(Protocol):
    """What pictures are read from."""

    def names(self, skip: Skip) -> Iterable[PurePath]:
        """The files in it, relative to it, without hidden ones, what systems put there, and runs. skip: called for what cannot
        be looked at."""

    def open(self, name: PurePath) -> BinaryIO:
        """One of them, to be read from any thread."""


class Folder:
    """A folder and those in it, links followed, loops not."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self, skip: Skip) -> list[PurePath]:
        found: list[PurePath] = []
        visits: Counter[tuple[int, int]] = Counter()

        def look(place: PurePath, above: frozenset[tuple[int, int]]) -> None:
            try:
                about = os.stat(self.path / place)
                entries = sorted(os.scandir(self.path / place), key=lambda entry: os.fsencode(entry.name))
            except OSError as error:
                if not above:
                    raise InputError(f"{self.path} cannot be read: {error.strerror or error}") from error
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
                if _is_hidden(entry.name):
                    continue
                if not os.path.isdir(entry.path):
                    found.append(place / entry.name)
                elif not (
                    os.path.isfile(os.path.join(entry.path, "config.toml"))
                    and os.path.isdir(os.path.join(entry.path, "checkpoint"))
                ):  # a run: its samples are no data, and a resume must find what its start found
                    look(place / entry.name, above | {here})

        look(PurePath(), frozenset())
        return found

    def open(self, name: PurePath) -> BinaryIO:
        if not stat.S_ISREG(os.stat(self.path / name).st_mode):
            raise ValueError("not a file")  # reading a pipe would wait forever
        return open_file(self.path / name)


class _Archive:
    """Members by name; of several with one name the last, as when they are unpacked."""

    members: dict[PurePosixPath, Any]

    def names(self, skip: Skip) -> Iterator[PurePath]:
        folders = {parent for name in self.members for parent in name.parents}
        runs = {name.parent for name in self.members if name.name == "config.toml" and name.parent.name}
        runs = {run for run in runs if run / "checkpoint" in folders}
        for name in self.members:
            if ".." in name.parts:
                skip(name, "its name leads out of the archive")
            elif not any(map(_is_hidden, name.parts)) and runs.isdisjoint(name.parents):
                yield name

    def open(self, name: PurePath) -> BinaryIO:
        content = self.read(PurePosixPath(name))
        if len(content) > _LARGEST:
            raise ValueError(f"more than the {_LARGEST:,} bytes that are read of a file in an archive")
        return io.BytesIO(content)

    def read(self, name: PurePosixPath) -> bytes:
        """The content of a member; at least one byte more than `_LARGEST`, and not all, of a larger one."""
        raise NotImplementedError


class _Zip(_Archive):
    def __init__(self, file: BinaryIO) -> None:
        self.archive, self.members = zipfile.ZipFile(file), {}
        for info in self.archive.infolist():
            if not info.is_dir() and not stat.S_ISLNK(info.external_attr >> 16):
                self.members[_plain(_zip_name(info))] = info

    def read(self, name: PurePosixPath) -> bytes:
        if self.members[name].flag_bits & 1:
            raise ValueError("encrypted")
        with self.archive.open(self.members[name]) as member:
            return member.read(_LARGEST + 1)


class _Tar(_Archive):
    """Of a compressed one, whose parts cannot be reached in any order, the wanted files are kept in memory. wanted: their
    endings."""

    def __init__(self, file: BinaryIO, packed: Any, wanted: Collection[str], path: Path) -> None:
        content = _Bounded(file if packed is None else packed(file))
        self.archive, self.members = tarfile.TarFile(fileobj=cast(Any, content)), {}
        self.lock, self.path = threading.Lock(), path
        everything, _ = limits.memory()
        left = (4 << 30 if everything is None else everything) // 4
        for count, info in enumerate(self.archive):
            if count == _MOST_MEMBERS:
                raise _too_much(path, f"more than {_MOST_MEMBERS:,} files")
            name = _plain(info.name)
            if info.islnk():  # another name of an earlier file
                self.members[name] = self.members.get(_plain(info.linkname))
            elif info.isreg():
                self.members[name] = info
                if packed is not None:
                    self.members[name] = self._content(info) if name.suffix.lower() in wanted else b""
                    left -= len(self.members[name])
                    if left < 0:
                        raise _too_much(path, "more than fits into a quarter of the memory")
        content.seek(self.archive.offset)
        end = content.read(512)
        if not end or any(end):
            raise tarfile.ReadError("it does not end as a tar file does")

    def _content(self, info: tarfile.TarInfo) -> bytes:
        with self.lock, cast(Any, self.archive.extractfile(info)) as member:
            return cast(bytes, member.read(_LARGEST + 1))

    def read(self, name: PurePosixPath) -> bytes:
        member = self.members[name]
        if member is None:
            raise ValueError("a link to a file that is not in the archive")
        return member if isinstance(member, bytes) else self._content(member)


class _Bounded:
    """A file of which no header makes somebody read much at once."""

    def __init__(self, file: Any) -> None:
        self.file, self.seek, self.tell, self.close = file, file.seek, file.tell, file.close

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LARGEST + 512:
            raise tarfile.ReadError(f"a header says that it has {size:,} bytes")
        return cast(bytes, self.file.read(size))


@contextmanager
def opened(path: Path, wanted: Collection[str]) -> Iterator[Source]:
    """The folder or archive at a path, to be read within the block. wanted: endings of the files to be read from it. InputError for
    an archive that is damaged or too large."""
    if path.is_dir():
        yield Folder(path)
        return
    with open_file(path) as file:
        start = file.read(2)
        file.seek(0)
        try:
            source = _Zip(file) if start == b"PK" else _Tar(file, _PACKED.get(start), wanted, path)
        except InputError:
            raise
        except Exception as error:  # zipfile and tarfile fail on damaged files in many ways
            reason = " ".join(str(error).split()) or type(error).__name__
            raise refused(path, f"is damaged, cut off or no archive: {reason}") from None
        with source.archive:
            yield source


def kind_of(path: Path) -> str | None:
    """Of a file's name and first bytes: "zip", "tar", "other" for an archive that is not read, None for what is none."""
    name = path.name.lower()
    with open_file(path) as file:
        start = file.read(262)
        file.seek(0)
        if start[:2] == b"\x1f\x8b":
            try:
                start = gzip.GzipFile(fileobj=file).read(262)
            except (OSError, EOFError, zlib.error):
                start = b""
    if start.startswith(b"PK\x03\x04") or name.endswith(_ZIPS):
        return "zip"
    if start[257:] == b"ustar" or name.endswith(_TARS):
        return "tar"
    return "other" if name.endswith(_OTHER_ARCHIVES) else None


def refused(path: Path, reason: str) -> InputError:
    """The sentence on an archive that cannot be used as it is, with the command that unpacks it."""
    return InputError(f"{path} {reason}; {_advice(path)}", limit=700)


def _advice(path: Path) -> str:
    kind = kind_of(path)
    if kind in ("zip", "tar"):
        return f"unpack it and give the folder: python -m {kind}file -e {quoted(path)} FOLDER"
    return "unpack it and give the folder"


def _too_much(path: Path, what: str) -> InputError:
    return refused(path, f"holds {what}")


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _NOT_DATA


def _plain(name: str) -> PurePosixPath:
    """The name of a member, relative."""
    return PurePosixPath(name.lstrip("/"))


def _zip_name(info: zipfile.ZipInfo) -> str:
    """The name of a member as it was meant: macOS writes UTF-8 and does not say so, old Windows programs write backslashes."""
    name = info.filename
    if not info.flag_bits & 0x800:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/") if info.create_system == 0 and "/" not in name else name
