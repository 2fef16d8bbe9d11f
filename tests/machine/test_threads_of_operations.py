"""Operations use all threads without being told, and products inside them one."""

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import ClassVar

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import tinydiff as td
from tinydiff.machine import limits, threads
from tinydiff.machine.library_threads import library, pin, slow_pin

PATIENCE = 600  # seconds until a thread counts as hanging, on the busiest machine
needs_pin = pytest.mark.skipif(library() is None, reason="this NumPy's library keeps its threads")


@pytest.fixture(autouse=True)
def settings_are_put_back():
    yield
    td.set_threads(None)
    for each in (pin, slow_pin):
        assert not each.inside and each.before is None


def library_threads():
    return {p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas" and "numpy" in p["filepath"]}


class Seen(td.Function):
    """The identity, which notes the library's threads on both ways."""

    seen: ClassVar[list] = []

    def forward(self, X):
        self.seen.append(library_threads())
        return X + 0

    def backward(self, L_Y):
        self.seen.append(library_threads())
        return L_Y


def tensor(*shape):
    return td.Tensor(np.random.default_rng(0).normal(size=shape).astype(np.float32), requires_grad=True)


@needs_pin
def test_products_use_one_thread_inside_operations_and_the_programs_number_outside():
    with threadpool_limits(3, "blas"):
        Seen.seen.clear()
        x = tensor(4)
        y = Seen.apply(x)
        assert library_threads() == {3}
        (y * 2).sum().backward()
        assert library_threads() == {3} and Seen.seen == [{1}, {1}]


@needs_pin
def test_also_after_an_error_and_an_interruption():
    class Broken(td.Function):
        def forward(self, X, error):
            raise error

    for error in (ValueError, KeyboardInterrupt):
        with threadpool_limits(3, "blas"):
            with pytest.raises(error):
                Broken.apply(tensor(4), error=error)
            assert library_threads() == {3}


@needs_pin
def test_the_last_of_many_threads_gives_back_the_programs_number():
    def work(i):
        x, w = tensor(8, 16, 16, 8), tensor(3, 3, 8, 8)
        for _ in range(3):
            (td.ops.conv2d(x, w, padding=1) * (i + 1)).sum().backward()
        return float(np.abs(w.grad).sum()) / (i + 1)

    with threadpool_limits(2, "blas"):
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(work, range(12)))
        assert library_threads() == {2}
    np.testing.assert_allclose(found, found[0], rtol=1e-4)


def test_all_available_threads_are_used_without_being_told():
    if library() is None:
        assert threads.count() == 1
    else:
        assert (
            threads.count()
            == threads.available()
            == (int(os.environ.get("OMP_NUM_THREADS", "0")) or limits.processors())
        )


@pytest.mark.parametrize("n", [1, 3])
def test_set_threads_holds_in_every_thread(n):
    td.set_threads(n)
    counts = [threads.count(), len(threads.share(list, range(5)))]
    with ThreadPoolExecutor(1) as pool:
        counts.append(pool.submit(threads.count).result())
    assert counts == [n, n, n]
    with threads.threads(2):
        assert threads.count() == 2
        td.set_threads(4)
        assert threads.count() == 2
    assert threads.count() == 4


@pytest.mark.parametrize(
    ("n", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("2", TypeError), (True, TypeError)]
)
def test_set_threads_refuses(n, error):
    before = threads.count()
    with pytest.raises(error, match="set_threads: "):
        td.set_threads(n)
    assert threads.count() == before


def test_set_threads_takes_numpys_numbers():
    td.set_threads(np.int64(2))
    assert threads.count() == 2


def test_none_reads_the_environment_anew(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    td.set_threads(None)
    assert threads.count() == (5 if library() else 1)


def test_a_block_is_the_calling_threads_own():
    with threads.threads(7), ThreadPoolExecutor(1) as pool:
        assert pool.submit(threads.count).result() != 7


def test_a_library_that_keeps_its_threads_gets_no_others_beside_them_unless_asked_for(monkeypatch):
    monkeypatch.setattr(threads, "library", lambda: None)
    with threadpool_limits(2, "blas"):
        td.set_threads(None)
        assert threads.count() == 1
        with threads.threads():
            assert threads.count() == threads.available() and library_threads() <= {1}
        td.set_threads(3)
        assert threads.count() == 3 and library_threads() <= {1}
        td.set_threads(None)
        assert threads.count() == 1 and library_threads() <= {2}


@needs_pin
def test_blocks_side_by_side_over_a_library_that_keeps_its_threads(monkeypatch):
    monkeypatch.setattr(threads, "library", lambda: None)
    monkeypatch.setattr(slow_pin, "find", library)  # threadpoolctl lets one thread alone set OpenBLAS's number
    with threadpool_limits(2, "blas"):
        both, go = threading.Barrier(2, timeout=PATIENCE), threading.Event()

        def first():
            with threads.threads(2):
                both.wait()
            go.set()

        other = threading.Thread(target=first)
        other.start()
        with threads.threads(2):
            both.wait()
            go.wait(PATIENCE)
            assert library_threads() <= {1}
            td.set_threads(3)
        other.join()
        assert library_threads() <= {1}
        td.set_threads(None)
        assert library_threads() <= {2}


def test_a_first_operation_does_not_undo_what_another_thread_sets(monkeypatch):
    begun = threading.Event()

    def slowly(available=threads.available):
        begun.set()
        time.sleep(0.05)
        return available() + 5

    td.set_threads(None)
    monkeypatch.setattr(threads, "available", slowly)
    monkeypatch.setattr(threads, "library", lambda: True)
    first = threading.Thread(target=threads.count)
    first.start()
    begun.wait(PATIENCE)
    td.set_threads(3)
    first.join()
    assert threads.count() == 3


@needs_pin
@pytest.mark.skipif(os.name != "posix", reason="sends itself a signal")
@pytest.mark.parametrize("outside", [threads.threads, nullcontext])
def test_an_interruption_in_code_of_c_that_then_fails(outside):
    """Python notices the signal only where the next function begins."""
    kill = ctypes.PyDLL(None).kill

    class Interrupted(td.Function):
        def forward(self, X):
            sum(map(kill, [os.getpid()], [signal.SIGINT]), ())

    with threadpool_limits(2, "blas"):
        with pytest.raises((KeyboardInterrupt, TypeError)), outside():
            Interrupted.apply(tensor(3))
        assert library_threads() == {2} and not pin.inside


SETTINGS = {"channels": 32, "channel_mults": (1, 2), "blocks_per_level": 1, "attention_resolutions": (8,), "groups": 4}


def weights_after_a_loop():
    """Two steps of training as a user writes them."""
    unet, rng = td.UNet(16, 1, **SETTINGS, generator=td.random.Generator(0)), np.random.default_rng(0)
    optimizer = td.optim.Adam(list(unet.parameters()), 1e-3)
    x, eps = rng.standard_normal((2, 16, 16, 16, 1)).astype(np.float32)
    for _ in range(2):
        optimizer.zero_grad()
        td.ops.mse_loss(unet(x, np.arange(1, 17)), eps).backward()
        td.optim.clip_grad_norm(list(unet.parameters()), 0.1)
        optimizer.step()
    return np.concatenate([p.data.reshape(-1) for p in unet.parameters()])


@pytest.mark.slow
def test_the_same_bits_however_the_threads_were_started():
    td.set_threads(2)
    own = weights_after_a_loop()
    with ThreadPoolExecutor(2) as pool:
        others = list(pool.map(lambda _: weights_after_a_loop(), range(2)))
    td.set_threads(None)
    with threads.threads(2):
        inside = weights_after_a_loop()
    with threadpool_limits(1, "blas"), threads.threads(2):
        limited = weights_after_a_loop()
    for found in (*others, inside, limited):
        np.testing.assert_array_equal(found, own)


@pytest.mark.parametrize("method", ["spawn", *(["fork"] if hasattr(os, "fork") else [])])
def test_another_process_works_as_this_one_does(method):
    if method == "fork":  # with helpers that the child does not have
        td.set_threads(2)
        threads.share(lambda _: time.sleep(0.01), [0, 1])
    context = multiprocessing.get_context(method)
    with context.Pool(1) as pool:
        found = pool.apply_async(product_of_two, ()).get(PATIENCE)
    assert found == [2, 2.0 * 300]


def product_of_two():
    td.set_threads(2)
    barrier = threading.Barrier(2, timeout=PATIENCE)
    threads.share(lambda _: barrier.wait(), [0, 1])
    x = td.Tensor(np.ones((300, 300), np.float32))
    return [threads.count(), float((x @ x + x @ x).data.max())]


TWO_TRAINERS = """
import sys, threading
import numpy as np
import tinydiff as td
images = np.random.default_rng(0).integers(0, 256, (8, 28, 28, 1), np.uint8)
def train(i):
    u = td.UNet(28, 1, channels=8, channel_mults=(1, 2), blocks_per_level=1, attention_resolutions=(14,), groups=4)
    d = td.diffusion.Diffusion(td.diffusion.Schedule.cosine(10), predict="v")
    config = td.TrainConfig(out=f"{sys.argv[1]}/{i}", steps=2, batch_size=4, threads=i + 1, preview_every=0)
    td.Trainer(u, d, td.data.Dataset(images), config).run(force=True)
    done.append(i)
done, both = [], [threading.Thread(target=train, args=(i,)) for i in range(2)]
for t in both: t.start()
for t in both: t.join()
print(sorted(done))
"""


@pytest.mark.slow
def test_two_trainers_in_two_threads(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", TWO_TRAINERS, str(tmp_path)], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.stdout.endswith("[0, 1]\n") and done.returncode == 0, done.stderr


@needs_pin
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs an interval timer")
def test_interruptions_at_any_moment_of_a_step_leave_everything_usable():
    class Interruption(Exception):
        pass

    def interrupt(*_):
        raise Interruption

    x, w, v = tensor(4, 16, 16, 32), tensor(3, 3, 32, 32), tensor(32, 600)

    def step():
        w.grad = v.grad = None
        y = td.ops.conv2d(x, w, padding=1)
        (td.ops.silu(y).reshape(-1, 32) @ v).sum().backward()
        return w.grad.copy(), v.grad.copy()

    td.set_threads(2)
    expected, interrupted = step(), 0
    start = time.perf_counter()
    step()
    seconds = time.perf_counter() - start
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with threadpool_limits(2, "blas"):
            for i in range(100):
                try:
                    try:
                        signal.setitimer(signal.ITIMER_REAL, 1e-5 + seconds * i / 100)
                        step()
                    finally:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                except Interruption:
                    interrupted += 1
                assert library_threads() == {2} and not pin.inside
                if i % 10 == 0:
                    for found, exact in zip(step(), expected, strict=True):
                        np.testing.assert_array_equal(found, exact)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 20
