"""Reading files that anybody may have written: whole ones only, of bounded size, and text and JSON that mean what they should.

Every reader of tinydiff opens its files here. A pipe, a device or a folder in the place of a file is refused before anything
waits for it. What cannot be used is an InputError, one sentence that begins with the path.
"""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from tinydiff.errors import InputError

MOST_TEXT = 16 << 20  # bytes of a file of settings
MOST_NESTED = 32  # lists and objects in each other
LARGEST_NUMBER = 2**64


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """The regular file at a path, opened for reading bytes. OSError where that cannot be done, InputError for what is no file."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)  # a pipe is opened without waiting for whoever writes to it
    except ValueError:
        raise InputError(f"{os.fspath(path)} cannot be read: its name holds a zero byte") from None
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            what = "is a folder" if stat.S_ISDIR(mode) else "is a pipe or a device"
            raise InputError(f"{os.fspath(path)} cannot be read: it {what}, not a file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_regular(path: str | os.PathLike[str]) -> int:
    """The size in bytes of the file at a path that another library is to open by its name. InputError unless it is a
    regular file."""
    try:
        with open_file(path) as file:
            return os.fstat(file.fileno()).st_size
    except OSError as error:
        raise InputError(f"{os.fspath(path)} cannot be read: {error.strerror or error}") from None


def read_bytes(path: str | os.PathLike[str], most: int | None = None) -> bytes:
    """The content of the file at a path. InputError where it cannot be read or has more than `most` bytes."""
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            if most is not None and size > most:
                raise InputError(f"{os.fspath(path)} has {size:,} bytes, and such a file has at most {most:,}")
            return file.read() if most is None else file.read(most)  # it may be growing
    except OSError as error:
        raise InputError(f"{os.fspath(path)} cannot be read: {error.strerror or error}") from None


def name_bytes(name: str) -> bytes:
    """The bytes of a file's name, also of one that this system could not give to a file."""
    try:
        return os.fsencode(name)
    except UnicodeEncodeError:
        return name.encode("utf-8", "surrogatepass")


def read_json(path: Path) -> dict[str, Any]:
    """The object in the JSON file at a path, nested no deeper than `MOST_NESTED`. InputError for anything else."""
    try:
        value = json.loads(read_bytes(path, MOST_TEXT).decode())
    except InputError:
        raise
    except ValueError as error:  # not text, not JSON, or a number of thousands of digits
        raise InputError(f"{path} is not a JSON file, or was cut off: {error}") from None
    except RecursionError:
        raise InputError(
            f"{path} is nested too deeply: at most {MOST_NESTED} lists and objects in each other"
        ) from None
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a JSON object")
    if _depth(value) > MOST_NESTED:
        raise InputError(f"{path} is nested too deeply: at most {MOST_NESTED} lists and objects in each other")
    return value


def _depth(value: Any) -> int:
    """How many lists and objects are in each other; the count stops above the limit."""
    level, depth = [value], 0
    while depth <= MOST_NESTED:
        level = [v for v in level if isinstance(v, dict | list)]
        if not level:
            break
        depth += 1
        level = [inner for v in level for inner in (v.values() if isinstance(v, dict) else v)]
    return depth


def check_numbers(value: Any, where: object) -> None:
    """InputError where a number anywhere in a value is not finite, or beyond what any setting can mean."""
    rest = [value]
    while rest:
        v = rest.pop()
        if isinstance(v, dict):
            rest += v.values()
        elif isinstance(v, list):
            rest += v
        elif isinstance(v, int | float) and not -LARGEST_NUMBER < v <= LARGEST_NUMBER:
            odd = f"{v:g}" if isinstance(v, float) and not math.isfinite(v) else "one beyond 2**64"
            raise InputError(f"{where}: numbers must be finite and of a usual size, and it holds {odd}")


def check_text(name: str, text: str, most: int = 4096) -> None:
    """InputError where a text has more than `most` characters, or holds what no name of a file can hold.
    name: what the text is called, for that sentence."""
    if len(text) > most:
        raise InputError(f"{name} must be a text of at most {most} characters, not {len(text)}")
    if "\0" in text:
        raise InputError(f"{name} must not hold a zero byte")
    if any("\ud800" <= c <= "\udfff" for c in text):
        try:
            os.fsencode(text).decode()
        except UnicodeError:
            raise InputError(f"{name} must be text in UTF-8, and it holds other bytes: {text[:100]}") from None
        raise InputError(f"{name} is text in UTF-8, which Python cannot use as it was started: set PYTHONUTF8=1")
