"""The ranks that this process belongs to: those of a launcher, those that it has started itself, or none but itself."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tinydiff.errors import InputError
from tinydiff.machine import terminal
from tinydiff.ranks import team
from tinydiff.ranks.launcher import announced, of_team
from tinydiff.ranks.world import Mpi, World

_ALONE = World()
_world: World | None = None


def world() -> World:
    """All ranks of this job: those that a launcher has started, or this process alone. InputError where a launcher has
    started several and they cannot find each other."""
    global _world
    if _world is None:
        rank, size = announced()
        _world = _ALONE if size == 1 else _join(rank, size)
    return _world


def stay_alone() -> None:
    """From now on this process is for itself, whatever a launcher has started."""
    global _world
    _world = _ALONE


def start_team(size: int, words: Sequence[str]) -> None:
    """From now on this process is rank 0 of a team of `size`, whose others it starts with the same words of the command line."""
    global _world
    _world = team.start(size, words)


@contextmanager
def team_ended() -> Iterator[None]:
    """A block at whose end a team that this process has started in it is no more."""
    global _world
    before = world()
    try:
        yield
    finally:
        if _world is not before and isinstance(_world, team.Team):
            ours, _world = _world, before
            ours.leave()


def _join(rank: int, size: int) -> World:
    if of_team():
        return team.join()
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"{size} processes were started to work together, which needs the package mpi4py and an MPI library: "
            f"pip install 'tinydiff[mpi]' ({error}); with TINYDIFF_RANKS=0 each is for itself"
        ) from None
    found = MPI.COMM_WORLD.Get_size()
    if found != size:
        raise InputError(
            f"the launcher has started {size} processes, and mpi4py finds {found}: they belong to different MPI libraries; "
            "use the mpiexec of the one that mpi4py was built for"
        )
    ranks = Mpi(MPI)
    if rank:
        terminal.mute()
    sys.excepthook = ranks.uncaught
    atexit.register(ranks.leave)  # after mpi4py's own, so it comes before
    return ranks
