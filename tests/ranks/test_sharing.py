"""Jobs that ranks, which are threads here, share out."""

import threading

import pytest

from tinydiff.ranks import World, even_parts, share_out
from tinydiff.runs.shares import threads_of_rank


class Thread(World):
    """One of several ranks that are threads of this process."""

    def __init__(self, rank, barrier, given):
        self.rank, self.size, self.barrier, self.given = rank, barrier.parties, barrier, given

    def gather(self, value):
        self.barrier.wait()
        self.given[self.rank] = value
        self.barrier.wait()
        return list(self.given)


@pytest.mark.parametrize("jobs", [0, 1, 5, 8])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_every_job_is_done_once_and_all_ranks_have_the_results_in_order(size, jobs):
    barrier, given, done, found = threading.Barrier(size), [None] * size, [], [None] * size

    def rank(i):
        def work(job):
            done.append((i, job))
            return job * 10

        found[i] = share_out(Thread(i, barrier, given), range(jobs), work)

    ranks = [threading.Thread(target=rank, args=(i,)) for i in range(size)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join(10)
    assert found == [[10 * job for job in range(jobs)]] * size
    assert sorted(job for _, job in done) == list(range(jobs))
    counts = [sum(r == i for r, _ in done) for i in range(size)]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("n", [1, 63, 64, 65, 200])
def test_parts_are_even_and_cover_all(n):
    parts = even_parts(n, 64)
    assert [i for part in parts for i in range(n)[part]] == list(range(n))
    lengths = [part.stop - part.start for part in parts]
    assert max(lengths) <= 64 and max(lengths) - min(lengths) <= 1 and len(parts) == -(-n // 64)


@pytest.mark.parametrize(
    ("wish", "sharing", "variable", "threads"),
    [(None, 1, None, None), (None, 2, None, 4), (None, 16, None, 1), (3, 2, None, 3), (None, 2, "6", None), (3, 2, "6", 3)],
)  # fmt: skip
def test_threads_of_a_rank(wish, sharing, variable, threads, monkeypatch):
    """Each rank may have processors of its own (sharing 1), as Slurm gives them, or share 8 with others."""
    monkeypatch.setattr("tinydiff.machine.limits.processors", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    world = World()
    world.sharing, world.local_size = sharing, 16
    assert threads_of_rank(wish, world) == threads
