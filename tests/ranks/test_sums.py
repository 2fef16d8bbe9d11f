"""Sums over ranks, which are threads here; and what a launcher says."""

import threading

import numpy as np
import pytest

from tinydiff.ranks import launcher, world
from tinydiff.ranks.sums import sum_in_order

RNG = np.random.default_rng(0)


class _Threads:
    """As much of a communicator as the sums use, between threads."""

    def __init__(self, size):
        self.size, self.barrier, self.sent = size, threading.Barrier(size), [None] * size

    def of(self, rank):
        comm = type("Comm", (), {})()
        comm.Get_rank, comm.Get_size = lambda: rank, lambda: self.size

        def exchange(mine):
            self.barrier.wait()
            self.sent[rank] = mine
            self.barrier.wait()
            return list(self.sent)

        def all_to_all(send, receive):
            (a, (counts, starts), _), (b, (lengths, places), _) = send, receive
            found = exchange([a.tobytes()[s : s + n] for n, s in zip(counts, starts, strict=True)])
            data = b"".join(sent[rank] for sent in found)
            assert [len(sent[rank]) for sent in found] == list(lengths) and list(places) == [
                i * lengths[0] for i in range(self.size)
            ]
            b[...] = np.frombuffer(data, b.dtype).reshape(b.shape)

        def all_gather(send, receive):
            (a, n, _), (b, (counts, starts), _) = send, receive
            assert a.nbytes == n == counts[rank]
            found = exchange(a.tobytes())
            assert list(np.cumsum([0, *counts[:-1]])) == list(starts)
            b[...] = np.frombuffer(b"".join(found), b.dtype)

        comm.Alltoallv, comm.Allgatherv = all_to_all, all_gather
        return comm


def sums(size, arrays_of, bucket):
    """What each rank has after the sum of the arrays that `arrays_of(rank)` gives."""
    comm, found = _Threads(size), [arrays_of(rank) for rank in range(size)]
    mpi = type("MPI", (), {"BYTE": object()})
    workers = [
        threading.Thread(target=sum_in_order, args=(mpi, comm.of(rank), found[rank], bucket)) for rank in range(size)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(10)
    return found


@pytest.mark.parametrize("bucket", [1, 4, 60, 1 << 20])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_every_rank_gets_the_sum_in_the_order_of_the_ranks(size, bucket):
    shapes = [(3, 4), (), (0, 7), (7,), (1,)]
    given = [[RNG.normal(size=s).astype(t) for s in shapes for t in ("f4", "f8")] for _ in range(size)]
    for arrays in given:
        arrays.append(np.asfortranarray(RNG.normal(size=(3, 5)).astype("f4")))
        arrays.append(RNG.normal(size=(4, 6)).astype("f4")[::2, ::3])
    expected = []
    for parts in zip(*given, strict=True):
        total = parts[0].copy()
        for part in parts[1:]:
            total = total + part
        expected.append(total)
    for arrays in sums(size, lambda rank: [np.copy(a, order="K") if a.ndim < 2 else a for a in given[rank]], bucket):
        for a, wanted in zip(arrays, expected, strict=True):
            assert a.dtype == wanted.dtype and np.array_equal(a, wanted)


def test_the_order_shows_in_the_bits():
    big = [np.array([x], "f4") for x in (1e8, 1.0, -1e8)]
    assert all(a[0][0] == 0 for a in sums(3, lambda rank: [big[rank].copy()], 64))  # not 1, as (1e8 - 1e8) + 1 is


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, (0, 1)),
        ({"PMI_RANK": "2", "PMI_SIZE": "4"}, (2, 4)),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "PMI_RANK": "0", "PMI_SIZE": "1"}, (1, 2)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (0, 1)),  # the script of a job, which is one process
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8"}, (3, 8)),
        ({"PMI_RANK": "1", "PMI_SIZE": "two"}, (0, 1)),
        ({"PMI_RANK": "4", "PMI_SIZE": "4"}, (0, 1)),
        ({"PMI_RANK": "1", "PMI_SIZE": "2", "TINYDIFF_RANKS": "0"}, (0, 1)),
    ],
)
def test_what_a_launcher_says(variables, found, monkeypatch):
    for name in ("TINYDIFF_RANKS", *(name for pair in launcher._VARIABLES for name in pair)):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launcher.announced() == found


def test_a_process_alone_is_a_world_of_one():
    alone = world()
    a = np.ones(3)
    alone.sum([a])
    assert (alone.rank, alone.size, alone.gather(5)) == (0, 1, [5]) and a.tolist() == [1, 1, 1]
    with pytest.raises(ZeroDivisionError), alone.working(), alone.together():
        raise ZeroDivisionError
