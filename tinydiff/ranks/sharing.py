"""Work in pieces that do not depend on each other: each rank does some of them, and all get all results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from tinydiff.ranks.world import World

Job = TypeVar("Job")
Result = TypeVar("Result")


def share_out(world: World, jobs: Sequence[Job], work: Callable[[Job], Result]) -> list[Result]:
    """The results of all jobs, in their order, on every rank; `work` does one. Each rank does as many, give or take one. Jobs of
    different lengths are shared out most evenly where the longest come first. Call it in a block `world.working`."""
    n = world.size
    mine = [work(jobs[i]) for i in range(len(jobs)) if _owner(i, n) == world.rank]
    found: list[Result] = []
    for i in range(-(-len(jobs) // n)):  # not all at once: MPI counts the bytes of a message in 31 bits
        of_ranks = world.gather(mine[i] if i < len(mine) else None)
        found += [of_ranks[_owner(job, n)] for job in range(i * n, min((i + 1) * n, len(jobs)))]
    return found


def _owner(job: int, ranks: int) -> int:
    """The rank that does a job: 0 to N - 1, then N - 1 to 0, and so on."""
    turn, place = divmod(job, ranks)
    return ranks - 1 - place if turn % 2 else place


def even_parts(n: int, most: int) -> list[slice]:
    """0..n-1 in as few slices of at most `most` as that takes, all of about one length."""
    count = -(-n // most)
    return [slice(n * i // count, n * (i + 1) // count) for i in range(count)]
