"""The processes that do one job together, and how they agree.

What one rank alone finds must end all of them: the others would wait for it for ever. There are two ways. In a block
`together` nothing is exchanged; at its end the ranks tell each other what went wrong, and all raise the same error. In a block
`working` they exchange results; there a rank that fails says why, and ends all.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from tinydiff.errors import InputError, RunFailed, of_system
from tinydiff.machine import limits, terminal
from tinydiff.ranks.heartbeat import Heartbeat
from tinydiff.ranks.launcher import choose_gpu
from tinydiff.ranks.sums import sum_in_order

_SPIN, _NAP = 2e-3, 5e-4  # seconds: how long to wait at full speed, and the naps after that
_FIRST = 1.0  # seconds that a rank which was interrupted leaves to rank 0, which was as well if the whole job was
_LEFT = 10.0  # seconds after which a rank that waits at its end is not waiting for us to come there as well


class World:
    """All ranks of a job, as one of them sees them; this class: a process alone.

    rank: this process's, from 0 on. size: how many there are. local_rank, local_size: the same among those on this machine.
    sharing: how many of these may run on processors of this one's, itself included; a launcher may have given each its own.
    """

    rank, size, local_rank, local_size, sharing = 0, 1, 0, 1, 1

    def gather(self, value: Any) -> list[Any]:
        """The values that the ranks give, small objects, in their order."""
        return [value]

    def sum(self, arrays: list[Any]) -> None:
        """Adds up NumPy arrays of the same shapes and dtypes over the ranks, in place and in the order of the ranks: all get
        the same bits, those of ((a0 + a1) + a2) + ..."""

    def wait(self) -> None:
        """Until all ranks are here."""

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block in which nothing is exchanged. What fails on one rank fails on all, with the first rank's sentence."""
        yield

    @contextmanager
    def working(self) -> Iterator[None]:
        """A block in which results are exchanged. A rank that fails says why, and ends the others."""
        yield

    def require_same(self, what: Mapping[str, str]) -> None:
        """InputError, on all ranks, where one has another text under a name in `what` than rank 0."""


class Several(World):
    """What ranks do alike, whatever carries what they exchange: `gather`."""

    def __init__(self) -> None:
        self._agreed: BaseException | None = None  # what all ranks raise

    @contextmanager
    def together(self) -> Iterator[None]:
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        told = None if error is None else (isinstance(error, InputError), sentence(error))
        found = self.gather(told)
        if not any(found):
            return
        rank, (of_input, text) = next((i, f) for i, f in enumerate(found) if f)
        if error is None or told != found[rank]:
            text = text if all(f == found[rank] for f in found) else f"rank {rank} of {self.size}: {text}"
            error = InputError(text) if of_input else RunFailed(text)
        self._agreed = error
        raise error

    @contextmanager
    def working(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            if error is self._agreed or (error.__cause__ or error.__context__) is self._agreed is not None:
                raise
            self.abort(error)

    def require_same(self, what: Mapping[str, str]) -> None:
        found = self.gather({name: hashlib.sha256(text.encode()).hexdigest() for name, text in what.items()})
        with self.together():
            for rank, other in enumerate(found):
                for name in what:
                    if other.get(name) != found[0][name]:
                        raise InputError(
                            f"rank {rank} has {name} that differ from those of rank 0; all ranks need the same"
                        )

    def abort(self, error: BaseException) -> NoReturn:
        """Ends all ranks for an error that this one met."""
        raise NotImplementedError


class Mpi(Several):
    """The ranks that a launcher has started, connected by MPI. mpi: the module `mpi4py.MPI`."""

    def __init__(self, mpi: Any) -> None:
        super().__init__()
        self._mpi, self._comm = mpi, mpi.COMM_WORLD.Dup()
        self.rank, self.size = self._comm.Get_rank(), self._comm.Get_size()
        local = self._comm.Split_type(mpi.COMM_TYPE_SHARED)
        self.local_rank, self.local_size = local.Get_rank(), local.Get_size()
        own = limits.processor_numbers()
        self.sharing = sum(not own.isdisjoint(other) for other in local.allgather(own))
        choose_gpu(self.local_rank, self.local_size)
        self._at_end = self._comm.Dup()  # of its own, so that a rank at its end does not pass for one that goes on
        self._heartbeat = Heartbeat(mpi, self._comm.Dup(), self._silent)

    def gather(self, value: Any) -> list[Any]:
        self.wait()
        found: list[Any] = self._comm.allgather(value)
        return found

    def sum(self, arrays: list[Any]) -> None:
        sum_in_order(self._mpi, self._comm, arrays)

    def wait(self) -> None:
        self._wait(self._comm)

    def _wait(self, comm: Any) -> None:
        # A blocking call of MPI would keep a processor busy, perhaps for as long as rank 0 draws or saves.
        request, start, at_end = comm.Ibarrier(), time.monotonic(), comm is self._at_end
        while not request.Test():
            if not at_end and self._heartbeat.left is not None and time.monotonic() - self._heartbeat.left[1] > _LEFT:
                raise RunFailed(f"rank {self._heartbeat.left[0]} has ended before the others")
            if time.monotonic() - start > _SPIN:
                time.sleep(_NAP)

    def abort(self, error: BaseException) -> NoReturn:
        """Says what this rank died of, and ends all."""
        if isinstance(error, KeyboardInterrupt) and self.rank:
            with suppress(KeyboardInterrupt):
                time.sleep(_FIRST)
        self._end(sentence(error), signal.SIGINT + 128 if isinstance(error, KeyboardInterrupt) else 1)
        raise AssertionError from error

    def _silent(self, rank: int, seconds: float) -> None:
        self._end(f"nothing has been heard of rank {rank} for {seconds:.0f} s; what was saved is intact", 1, self.rank)

    def _end(self, text: str, status: int, rank: int | None = None) -> None:
        with suppress(OSError, ValueError, AttributeError):
            line = f"tinydiff: rank {self.rank if rank is None else rank} of {self.size}: {terminal.escaped(text)}\n"
            os.write(sys.stderr.fileno(), line.encode(errors="backslashreplace"))
        self._comm.Abort(status)

    def uncaught(self, kind: Any, error: BaseException, trace: Any) -> None:
        """What Python does with an exception that nobody catches, and then the end of all ranks."""
        traceback.print_exception(kind, error, trace)
        self._comm.Abort(1)

    def leave(self) -> None:
        """At the end of the process, before MPI is left: until the others are there as well, this rank is healthy."""
        with suppress(KeyboardInterrupt):
            self._heartbeat.leaving = True
            self._wait(self._at_end)
        self._heartbeat.stop()


def sentence(error: BaseException) -> str:
    """What went wrong, in one sentence."""
    if isinstance(error, InputError | RunFailed):
        return str(error)
    if isinstance(error, OSError):
        return of_system(error)
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return f"{type(error).__name__}: {error}"
