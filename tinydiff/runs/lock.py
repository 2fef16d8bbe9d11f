"""One process at a time writes to the folder of a run.

The file `.lock` in it is locked with flock, which the system gives up when the process ends, however it ends. What is in the
file, host and process, is for the message only: such numbers repeat, in containers above all. The file is removed by its
holder at the end; one that a killed process left is taken over.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import time
from itertools import count
from pathlib import Path

from tinydiff.errors import InputError, shown
from tinydiff.machine.terminal import say
from tinydiff.runs.atomic import writing

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
MOST_TRIES = 100  # to lock the file that is there; some file systems give one file several numbers


class Lock:
    """The right to write to a folder that exists, from `acquire` to `release`."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / NAME
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object has the lock."""
        return self._descriptor is not None

    def acquire(self) -> None:
        """InputError where another process has it or the folder cannot be written. A system or a disk without locks is
        told, and no obstacle."""
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        for attempt in count(1):
            if self._descriptor is not None:
                return
            with writing(self.file):
                descriptor = os.open(self.file, flags, 0o666)
            try:
                found = os.fstat(descriptor)
                if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:  # never one of ours
                    raise InputError(f"{self.file} is not the plain file that a run leaves there: move it away")
                self._take(descriptor)
                if attempt >= MOST_TRIES or _is_at(descriptor, self.file):  # else its holder has removed it meanwhile
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
                    self._descriptor, descriptor = descriptor, -1
            except OSError as error:  # nowhere to write on a full disk, which the next save will say
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                self._descriptor, descriptor = descriptor, -1
            finally:
                if descriptor >= 0:
                    os.close(descriptor)

    def _take(self, descriptor: int) -> None:
        for _ in range(5):  # whoever only looks has it for a moment
            if (state := _lock(descriptor)) is not False:
                break
            time.sleep(0.05)
        if state is False:
            raise InputError(_refusal(self.file, descriptor))
        if state is None:
            say(f"{self.file.parent} cannot be locked on this system or disk: start no second process on this run")

    def release(self, keep: bool = False) -> None:
        """Gives the right back, if it was acquired. keep: the file stays, as after a kill."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            with contextlib.suppress(OSError):
                if not keep and _is_at(descriptor, self.file):
                    self.file.unlink()  # before it is unlocked: whoever waits for it finds it gone and makes another
            os.close(descriptor)


def check_free(folder: Path) -> None:
    """InputError if a process has the lock of a folder now; nothing is written."""
    try:
        descriptor = os.open(folder / NAME, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError):
        return
    try:
        if _lock(descriptor, shared=True) is False:  # so that those who look do not meet
            raise InputError(_refusal(folder / NAME, descriptor))
    finally:
        os.close(descriptor)


def holder(folder: Path) -> tuple[str, float] | None:
    """Who has the lock of a folder now, for people, and since when, in seconds since the epoch; None: nobody. It may be read by
    those who may not write."""
    try:
        descriptor = os.open(folder / NAME, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError):
        return None
    try:
        if _lock(descriptor, shared=True) is False:
            return _who(descriptor), os.fstat(descriptor).st_mtime
        return None
    finally:
        os.close(descriptor)


def _lock(descriptor: int, shared: bool = False) -> bool | None:
    """Whether it could be locked; None: there are no locks here. shared: only so that nobody else writes."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES) else None
    return True


def _is_at(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(file))
    except FileNotFoundError:
        return False


def _refusal(file: Path, descriptor: int) -> str:
    return f"{file.parent} is in use: {_who(descriptor)} is writing to it; wait until it ends, or stop it"


def _who(descriptor: int) -> str:
    with contextlib.suppress(OSError):
        return shown(os.pread(descriptor, 200, 0).decode(errors="replace").strip(), 100) or "another process"
    return "another process"
