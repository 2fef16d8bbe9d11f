"""Where pictures lie: in a folder, or in an archive. What is in an archive is read into memory; nothing is unpacked to the disk,
so no name in it leads anywhere."""

from __future__ import annotations

import bz2
import copy
import gzip
import io
import lzma
import os
import stat
import sys
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
_LARGEST = 64 << 20  # bytes of a picture's file in an archive, and of what comes before the pixels in any
_LONGEST_NAME = 4096  # characters, as in a file system
_MOST_HEADER = 4 << 20  # bytes of what a tar file says of a member: names, maps of holes
_MOST_SHARED = 100  # remarks in a tar file on all members that follow; each of them gets a copy
_MOST_UNPACKED = 256 << 20, 200  # bytes that any packed tar file may have, and how many times its size a larger one
UNPACKED_AT_ONCE = 4096  # bytes to ask of a member: zipfile unpacks as many packed ones whole, by LZMA to 30 MB
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
        return Metered(cast(Any, open_file(self.path / name)).detach())


class Metered(io.BufferedReader):
    """A file of which at most `left` bytes are read from now on: Pillow takes some formats, and remarks in others, whole."""

    left = _LARGEST

    def allow(self, count: int) -> None:
        """At most `count` bytes for pixels, and some for what comes after them."""
        self.left = count + _LARGEST

    def read(self, size: int | None = -1, /) -> bytes:
        most = self.left + 1
        content = super().read(most if size is None or size < 0 else min(size, most))
        self.left -= len(content)
        if self.left < 0:
            self.left = 0
            raise ValueError("its file has more bytes than such a picture may need")
        return content


class _Archive:
    """Members by name; of several with one name the last, as when they are unpacked."""

    members: dict[PurePosixPath, Any]
    too_long: str | None = None  # the beginning of a name that no file could have

    def place(self, name: str) -> PurePosixPath | None:
        """The name of a member, relative; None for one that is too long, or too deep."""
        if len(name) > _LONGEST_NAME or name.count("/") > _DEEPEST:
            self.too_long = self.too_long or name[:60]
            return None
        return PurePosixPath(name.lstrip("/"))

    def names(self, skip: Skip) -> Iterator[PurePath]:
        if self.too_long is not None:
            far = f"more than {_LONGEST_NAME} characters or {_DEEPEST} folders"
            skip(PurePosixPath(self.too_long), f"a name, maybe one of several, has {far}")
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
            link = stat.S_ISLNK(info.external_attr >> 16)
            if not info.is_dir() and not link and (name := self.place(_zip_name(info))) is not None:
                self.members[name] = info

    def read(self, name: PurePosixPath) -> bytes:
        if self.members[name].flag_bits & 1:
            raise ValueError("encrypted")
        content = io.BytesIO()
        with open_member(self.archive, self.members[name]) as member:
            while content.tell() <= _LARGEST and (piece := member.read(UNPACKED_AT_ONCE)):
                content.write(piece)
        return content.getvalue()


def open_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> BinaryIO:
    """A member of a zip, to be read by `UNPACKED_AT_ONCE` bytes: then little is unpacked at once, also by bzip2, whose 2,000 bytes
    may be 2 GB, which zipfile would unpack whole."""
    if info.compress_type != zipfile.ZIP_BZIP2:
        return cast(BinaryIO, archive.open(info))
    packed = copy.copy(info)
    packed.compress_type, packed.file_size = zipfile.ZIP_STORED, info.compress_size
    cast(Any, packed).CRC = None  # bzip2 has its own sums
    return cast(BinaryIO, bz2.open(archive.open(packed)))


class _Tar(_Archive):
    """Of a compressed one, whose parts cannot be reached in any order, the wanted files are kept in memory. wanted: their
    endings."""

    def __init__(self, file: BinaryIO, packed: Any, wanted: Collection[str], path: Path) -> None:
        size, (most, times) = os.fstat(file.fileno()).st_size, _MOST_UNPACKED
        end = sys.maxsize if packed is None else max(most, times * size)
        self.content = content = _Bounded(file if packed is None else packed(file), end)
        self.archive, self.members = tarfile.TarFile(fileobj=cast(Any, content)), {}
        self.lock, self.path, count = threading.Lock(), path, 0
        everything, _ = limits.memory()
        left = (4 << 30 if everything is None else everything) // 4
        while (info := self.archive.next()) is not None:
            cast(Any, self.archive).members.clear()  # else it keeps what is not wanted as well
            content.left = _MOST_HEADER
            if (count := count + 1) > _MOST_MEMBERS:
                raise _too_much(path, f"more than {_MOST_MEMBERS:,} files")
            if len(self.archive.pax_headers) > _MOST_SHARED:
                raise tarfile.ReadError(f"it says more than {_MOST_SHARED} things of all its files")
            if (name := self.place(info.name)) is None:
                continue
            if info.islnk():  # another name of an earlier file
                target = self.place(info.linkname)
                self.members[name] = None if target is None else self.members.get(target)
            elif info.isreg():
                self.members[name] = info
                if packed is not None:
                    self.members[name] = self._content(info) if name.suffix.lower() in wanted else b""
                    left -= len(self.members[name])
                    if left < 0:
                        raise _too_much(path, "more than fits into a quarter of the memory")
        content.seek(self.archive.offset)
        last = content.read(512)
        if not last or any(last):
            raise tarfile.ReadError("it does not end as a tar file does")

    def _content(self, info: tarfile.TarInfo) -> bytes:
        with self.lock, cast(Any, self.archive.extractfile(info)) as member:
            self.content.left = _LARGEST + _MOST_HEADER
            content = cast(bytes, member.read(_LARGEST + 1))
            self.content.left = _MOST_HEADER
            return content

    def read(self, name: PurePosixPath) -> bytes:
        member = self.members[name]
        if member is None:
            raise ValueError("a link to a file that is not in the archive")
        return member if isinstance(member, bytes) else self._content(member)


class _Bounded:
    """A file of which no header makes somebody read much. end: bytes that may be unpacked. left: bytes that may be read now."""

    def __init__(self, file: Any, end: int) -> None:
        self.file, self.tell, self.close = file, file.tell, file.close
        self.end, self.left = end, _MOST_HEADER

    def seek(self, place: int) -> int:
        if place > self.end:
            raise tarfile.ReadError(f"it has more than the {self.end:,} bytes that are unpacked")
        return cast(int, self.file.seek(place))

    def read(self, size: int = -1) -> bytes:
        self.left -= size
        if size < 0 or self.left < 0:
            raise tarfile.ReadError(f"a header says that it has {size:,} bytes, or is one of too many")
        content = cast(bytes, self.file.read(size))
        if self.file.tell() > self.end:
            raise tarfile.ReadError(f"it has more than the {self.end:,} bytes that are unpacked")
        return content


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


def _zip_name(info: zipfile.ZipInfo) -> str:
    """The name of a member as it was meant: macOS writes UTF-8 and does not say so, old Windows programs write backslashes."""
    name = info.filename
    if not info.flag_bits & 0x800:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/") if info.create_system == 0 and "/" not in name else name
