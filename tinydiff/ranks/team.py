"""Ranks on one machine that a command starts by itself, where that is faster than threads: `tinydiff train` on a CPU.

Threads of one process wait for the interpreter's lock between NumPy's calls, and each operation waits for all of them.
Processes wait for each other once in a step, at the sum of their gradients. The others run the command as it was given, as
they would under `mpiexec`. What they exchange goes through pipes to rank 0, and gradients through memory that all share.

A pipe is at its end when the process behind it is. So no rank waits for one that has died, however it died.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from tinydiff.errors import InputError, RunFailed
from tinydiff.machine import terminal
from tinydiff.ranks.launcher import TEAM
from tinydiff.ranks.sums import buckets
from tinydiff.ranks.world import Several, sentence

BUCKET = 4 << 20  # bytes of each rank that are added up at once; they stay in the cache between the copy and the sum
_SPIN = 2e-3  # seconds to look for news at full speed: to be woken takes a tenth of a millisecond
_PATIENCE = 5.0  # seconds for a process that was told to end


class _Failure(NamedTuple):
    """What another rank than the first died of."""

    text: str
    of_input: bool


class Team(Several):
    """The ranks of one machine, as one of them sees them.

    rank, size: this process's number, and how many there are. pipes: rank 0 has one to each of the others, these have one to
    rank 0. memory: a file descriptor of what all share. processes: the others, for rank 0.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        pipes: Sequence[Connection],
        memory: int,
        processes: Sequence[subprocess.Popen[bytes]],
    ) -> None:
        super().__init__()
        self.rank = self.local_rank = rank
        self.size = self.local_size = self.sharing = size
        self._pipes, self._processes = pipes, processes
        os.ftruncate(memory, 2 * size * BUCKET)
        self._memory = mmap.mmap(memory, 2 * size * BUCKET)
        os.close(memory)
        self._turn = 0  # which half of the memory is next: the other ranks may still read the other half

    def gather(self, value: Any) -> list[Any]:
        if self.rank:
            try:
                self._pipes[0].send(value)
                found: list[Any] = _receive(self._pipes[0])
            except (EOFError, OSError):
                os._exit(1)  # rank 0 has ended, and says why if it can
            return found
        found = [value]
        for rank, pipe in enumerate(self._pipes, 1):
            try:
                found.append(_receive(pipe))
            except (EOFError, OSError):
                raise RunFailed(self._end_of(rank)) from None
            if isinstance(found[-1], _Failure):
                raise (InputError if found[-1].of_input else RunFailed)(found[-1].text)
        for rank, pipe in enumerate(self._pipes, 1):
            try:
                pipe.send(found)
            except OSError:
                raise RunFailed(self._end_of(rank)) from None
        return found

    def wait(self) -> None:
        self.gather(None)

    def sum(self, arrays: list[Any]) -> None:
        for dtype in dict.fromkeys(a.dtype for a in arrays):
            for pieces in buckets([a for a in arrays if a.dtype == dtype], BUCKET // dtype.itemsize):
                self._sum(pieces)

    def _sum(self, pieces: list[Any]) -> None:
        """Each rank writes its row, and adds up some columns of all rows into the first."""
        n, half = sum(piece.size for piece in pieces), self.size * BUCKET
        rows = np.frombuffer(self._memory, pieces[0].dtype, half // pieces[0].itemsize, self._turn * half)
        rows, self._turn = rows.reshape(self.size, -1)[:, :n], 1 - self._turn
        np.concatenate(pieces, out=rows[self.rank])
        self.wait()
        mine = slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)
        total = rows[0, mine]
        for row in rows[1:, mine]:
            total += row
        self.wait()
        start = 0
        for piece in pieces:
            piece[...] = rows[0, start : start + piece.size]
            start += piece.size

    @contextmanager
    def working(self) -> Iterator[None]:
        if self.rank == 0:  # which says itself what went wrong; the others end when they hear no more of it
            yield
            return
        with super().working():
            yield

    def abort(self, error: BaseException) -> NoReturn:
        """Tells rank 0 what this one died of, and ends."""
        with suppress(OSError):
            self._pipes[0].send(_Failure(sentence(error), isinstance(error, InputError)))
        os._exit(1)

    def leave(self) -> None:
        """At the end of rank 0's work: the others end as well."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE)
                continue
            process.kill()
            process.wait()

    def _end_of(self, rank: int) -> str:
        """What is known of the end of a rank."""
        try:
            status = self._processes[rank - 1].wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            return f"process {rank + 1} of {self.size} that train this network together answers no more"
        how = f"with status {status}"
        if status < 0:
            how = f"by {signal.Signals(-status).name}" + (
                ", as when memory is short" if -status == signal.SIGKILL else ""
            )
        return f"process {rank + 1} of {self.size} that train this network together was ended {how}"


def _receive(pipe: Connection) -> Any:
    start = time.monotonic()
    while not pipe.poll(0) and time.monotonic() - start < _SPIN:
        pass
    return pipe.recv()


def possible() -> bool:
    """Whether this system has what a team needs: memory that a file descriptor names (Linux)."""
    return hasattr(os, "memfd_create")


def start(size: int, words: Sequence[str]) -> Team:
    """This process's place as rank 0 of a team of `size`, after it has started the others with the same words of the command line.

    Call `leave` of it at the end. What reads terminals and signals is this process alone: the others have a session of their own,
    and learn of a signal as all ranks do.
    """
    pipes, processes, memory = [], [], os.memfd_create("tinydiff")
    home = str(Path(__file__).parents[2])
    environment = {name: value for name, value in os.environ.items() if name != "TINYDIFF_RANKS"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (home, environment.get("PYTHONPATH"))))
    for rank in range(1, size):
        ours, theirs = Pipe()
        given = theirs.fileno(), memory
        environment[TEAM] = json.dumps([rank, size, *given])
        with theirs:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tinydiff", *words],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=given,
                    start_new_session=True,
                )
            )
        pipes.append(ours)
    return Team(0, size, pipes, memory, processes)


def join() -> Team:
    """This process's place in the team of the process that started it."""
    rank, size, pipe, memory = json.loads(os.environ[TEAM])
    terminal.mute()
    return Team(rank, size, [Connection(pipe)], memory, ())
