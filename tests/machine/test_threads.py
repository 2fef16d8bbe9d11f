"""Threads that share an operation: parts in order, the same bits each time, settings put back."""

import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from tinydiff import ops
from tinydiff.machine import threads, workspaces

PATIENCE = 600  # seconds until a thread counts as hanging, on the busiest machine


def blas_threads():
    return [p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"]


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_every_item_is_worked_on_once_and_results_come_in_order(n):
    with threads.threads(n):
        parts = threads.share(list, range(5))
    assert [item for part in parts for item in part] == list(range(5)) and len(parts) == min(n, 5)


def test_nothing_to_share():
    with threads.threads(2):
        assert threads.share(list, []) == [[]]


def test_the_threads_really_are_several():
    barrier = threading.Barrier(2, timeout=PATIENCE)  # passes only if two threads wait at it together
    with threads.threads(2):
        threads.share(lambda part: barrier.wait(), [0, 1])


def test_settings_are_put_back_also_after_an_error():
    before, usual = blas_threads(), threads.count()
    with pytest.raises(ZeroDivisionError), threads.threads(2):
        assert set(blas_threads()) <= {1}
        threads.share(lambda part: 1 / part[0], [1, 0])
    assert blas_threads() == before and threads.count() == usual


def test_available_threads_follow_the_environment(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads.available() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    assert threads.available() >= 1


@pytest.mark.parametrize("n", [1, 2, 3])
def test_convolutions_agree_whatever_the_number_of_threads(n):
    rng = np.random.default_rng(0)
    X, W = rng.normal(size=(7, 5, 5, 2)), rng.normal(size=(3, 3, 2, 4))

    def run():
        x, w = ops._Tensor(X, True), ops._Tensor(W, True)
        y = ops.conv2d(x, w, stride=2, padding=1)
        y.backward(np.cos(y.data))
        return y.data, x.grad, w.grad

    plain = run()
    with threads.threads(n):
        once, again = run(), run()
    for a, b, c in zip(plain, once, again, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(b, c)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def in_a_child(work):
    """What work() returns in a forked process, or a failure if that hangs."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=lambda: queue.put(work()))
    child.start()
    child.join(PATIENCE)
    if child.is_alive():
        child.kill()
        pytest.fail("the forked process hangs")
    assert child.exitcode == 0
    return queue.get()


@needs_fork
def test_a_process_forked_inside_a_block_has_threads_of_its_own():
    def work():
        barrier = threading.Barrier(2, timeout=PATIENCE)
        threads.share(lambda part: barrier.wait(), [0, 1])
        with threads.threads(3):
            nested = threads.share(sum, [1, 2, 3])
        return os.getpid(), threads.share(list, [1, 2]), nested

    with threads.threads(2):
        threads.share(list, [1, 2])  # the helper exists now, here
        pid, parts, nested = in_a_child(work)
        assert pid != os.getpid() and parts == [[1], [2]] and nested == [1, 2, 3]
        assert threads.share(list, [1, 2]) == [[1], [2]]


@needs_fork
def test_a_forked_process_can_leave_the_block_and_train_in_its_own():
    def work():
        rng = np.random.default_rng(0)
        x, w = ops._Tensor(rng.normal(size=(8, 8, 8, 4)), True), ops._Tensor(rng.normal(size=(3, 3, 4, 4)), True)
        with threads.threads(2):
            ops.conv2d(x, w, padding=1).sum().backward()
        return w.grad

    block = threads.threads(2)
    block.__enter__()
    threads.share(list, [1, 2])
    try:
        inside = in_a_child(lambda: (work(), block.__exit__(None, None, None))[0])
    finally:
        block.__exit__(None, None, None)
    np.testing.assert_array_equal(inside, work())


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("entries", [None, 1, 1 << 18, 1 << 30])
def test_blocks_cover_every_item_once(n, entries):
    X, seen = np.zeros((37, 3)), np.zeros(37, int)

    def work(block):
        seen[block] += 1

    with threads.threads(n):
        threads.share_blocks(work, X, entries, small=10)
        assert (seen == 1).all()
        threads.share_blocks(work, X, entries, small=1 << 40)
        assert (seen == 2).all()


def test_blocks_are_of_the_size_asked_for_and_small_work_is_not_shared():
    X, blocks = np.zeros((1000, 2)), []
    with threads.threads(2):
        threads.share_blocks(blocks.append, X, threads.BLOCK // 100)
        assert len(blocks) == 10 and {b.stop - b.start for b in blocks} == {100}
        blocks.clear()
        threads.share_blocks(blocks.append, X, threads.BLOCK // 800)
        assert len(blocks) == 2 and {b.stop - b.start for b in blocks} == {500}  # one for each thread at least
        blocks.clear()
        threads.share_blocks(lambda b: blocks.append(threading.get_ident()), X)
        assert blocks == [threading.get_ident()]
        threads.share_blocks(blocks.append, X[:0])  # nothing to do is not an error


@pytest.mark.parametrize("n", [1, 2, 3])
def test_tasks_are_each_done_once_and_their_results_come_in_order(n):
    with threads.threads(n):
        assert threads.share_tasks(lambda x: x * x, range(50)) == [x * x for x in range(50)]
        assert threads.share_tasks(abs, []) == []
        with pytest.raises(ZeroDivisionError):
            threads.share_tasks(lambda x: 1 / x, [1, 2, 0])


@pytest.mark.parametrize("n", [1, 2, 3])
def test_sums_over_shares(n):
    X = np.arange(21.0).reshape(7, 3)
    with threads.threads(n):
        np.testing.assert_array_equal(threads.sum_shares(lambda part: X[part].sum(0), X, small=0), X.sum(0))
        np.testing.assert_array_equal(threads.sum_shares(lambda part: X[part].sum(0), X), X.sum(0))


@pytest.mark.parametrize("shape", [(), (3, 4), (70, 64, 64), (5, 300, 300)], ids=str)
def test_add_to(shape):
    rng = np.random.default_rng(0)
    A, B = np.asarray(rng.normal(size=shape)), np.asarray(rng.normal(size=shape))
    expected = A + B
    with threads.threads(2):
        threads.add_to(A, B)
    np.testing.assert_array_equal(A, expected)


def test_work_that_shares_its_own_work_does_not_wait_for_itself():
    with threads.threads(2):
        nested = threads.share(lambda part: threads.share(list, [part[0], part[0] + 10]), [1, 2])
    assert nested == [[[1], [11]], [[2], [12]]]


@needs_fork
def test_a_forked_process_does_not_set_linear_algebra_against_its_threads():
    with threads.threads(2):
        assert set(in_a_child(lambda: (np.ones((300, 300)) @ np.ones((300, 300)), blas_threads())[1])) <= {1}


def test_each_thread_has_layouts_of_its_own():
    def make():
        return workspaces.workspace("layout of a thread", (10,))

    both = threading.Barrier(2, timeout=PATIENCE)
    with threads.threads(2):
        a, b = threads.share(lambda _: (both.wait(), workspaces.prepared(make))[1], range(2))
    assert not np.shares_memory(a, b)


HEAP = """
from pathlib import Path
import numpy as np
from tinydiff.machine import pages

def heap(what):
    lines = Path("/proc/self/smaps").read_text().split("[heap]")[1:]
    return sum(int(part.split(what + ":")[1].split()[0]) for part in lines) / 1024

before = heap("Rss")
pages.keep_freed_memory()
taken = heap("Rss") - before
arrays = [np.ones(1 << 18, np.float32) for _ in range(32)]  # of 1 MiB
print(taken, heap("AnonHugePages"))
"""


def large_pages_are_given_on_request():
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return setting.exists() and "[never]" not in setting.read_text()


@pytest.mark.skipif(not large_pages_are_given_on_request(), reason="this system gives no large pages on request")
def test_arrays_lie_in_large_pages_and_none_are_taken_in_advance():
    done = subprocess.run([sys.executable, "-c", HEAP], capture_output=True, text=True, check=True)
    taken, large = map(float, done.stdout.split())
    assert taken < 4 and large > 16  # MiB


def test_the_callers_workspaces_end_with_the_block(monkeypatch):
    """It has some for every worker."""
    monkeypatch.setattr(threads, "_usual", 2)
    before = workspaces.workspace("of the block", (10,))
    with threads.threads(1):
        pass
    assert workspaces.workspace("of the block", (10,)) is not None
    with threads.threads(3):
        workspaces.workspace("of the block", (20,))
        workspaces.prepared(list)
        with threads.threads(2):
            pass
        assert workspaces._workspaces.prepared
    assert not workspaces._workspaces.arrays and not workspaces._workspaces.prepared
    assert before.size == 10


def test_no_addresses_are_taken_where_they_are_limited():
    code = (
        "import resource, sys; from tinydiff.machine import limits, pages; before = limits.addresses_are_free(); "
        "resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30)); pages.keep_freed_memory(); "
        "size = int(open('/proc/self/statm').read().split()[0]) * 4096; print(before, limits.addresses_are_free(), size)"
    )
    if not Path("/proc/self/statm").exists():
        pytest.skip("this system does not tell how many addresses a process has")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    _, free, size = done.stdout.split()
    assert free == "False" and int(size) < 1 << 30
