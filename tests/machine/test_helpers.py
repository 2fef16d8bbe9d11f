"""Threads that help with the parts of a piece of work."""

import _thread
import gc
import itertools
import signal
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest

from tinydiff.machine import helpers, workspaces

PATIENCE = 600  # seconds until a thread counts as hanging, on the busiest machine


def together(n):
    """Passes only where n threads are in it at once."""
    return threading.Barrier(n, timeout=PATIENCE).wait


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("n", [0, 1, 2, 5, 50])
def test_results_come_in_the_order_of_the_parts(threads, n):
    assert helpers.run(lambda x: x * x, range(n), threads) == [x * x for x in range(n)]


def test_as_many_threads_as_asked_for_work_at_once_and_no_more():
    wait = together(3)
    used = helpers.run(lambda _: (wait(), threading.get_ident())[1], range(3), 3)
    assert len(set(used)) == 3 and threading.get_ident() in used
    used = helpers.run(lambda _: (time.sleep(0.001), threading.get_ident())[1], range(40), 2)
    assert len(set(used)) <= 2


def test_helpers_are_started_once(monkeypatch):
    started = []
    monkeypatch.setattr(helpers, "_helpers", helpers._Helpers())
    monkeypatch.setattr(
        helpers._thread, "start_new_thread", lambda *a, start=_thread.start_new_thread: (started.append(1), start(*a))
    )
    for threads in (1, 1, 3, 3, 2, 4):
        wait = together(threads)
        helpers.run(lambda _, wait=wait: wait(), range(threads), threads)
    assert len(started) == 3


def test_the_caller_works_alone_where_no_thread_can_be_started(monkeypatch):
    def refuse(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(helpers, "_helpers", helpers._Helpers())
    monkeypatch.setattr(helpers._thread, "start_new_thread", refuse)
    me = threading.get_ident()
    assert helpers.run(lambda _: threading.get_ident(), range(4), 4) == [me] * 4


def test_all_parts_are_done_before_an_error_is_raised_and_the_first_error_is():
    for _ in range(20):
        done = []

        def work(part, done=done):
            if part in (1, 3):
                raise ValueError(part)
            time.sleep(0.002)
            done.append(part)

        with pytest.raises(ValueError, match="1"):
            helpers.run(work, range(6), 3)
        assert sorted(done) == [0, 2, 4, 5]


def test_a_helper_survives_whatever_its_part_raises():
    for error in (KeyboardInterrupt, SystemExit, GeneratorExit, ZeroDivisionError):
        wait, me = together(2), threading.get_ident()

        def work(_, wait=wait, me=me, error=error):
            wait()
            if threading.get_ident() != me:
                raise error

        with pytest.raises(error):
            helpers.run(work, range(2), 2)
    assert helpers.run(str, range(2), 2) == ["0", "1"]


def test_a_helper_sees_the_callers_errstate():
    wait = together(2)
    with np.errstate(divide="raise"):
        states = helpers.run(lambda _: (wait(), np.geterr()["divide"])[1], range(2), 2)
    assert states == ["raise", "raise"]


def test_work_inside_work():
    inner = helpers.run(lambda i: helpers.run(lambda j: 10 * i + j, range(3), 3), range(4), 3)
    assert inner == [[10 * i + j for j in range(3)] for i in range(4)]


def test_a_caller_does_not_wait_for_helpers_that_another_keeps_busy():
    wait, release, busy = together(2), threading.Event(), []

    def other():
        def work(_):
            wait()
            busy.append(1)
            release.wait(PATIENCE)

        helpers.run(work, range(2), 2)

    thread = threading.Thread(target=other)
    thread.start()
    while len(busy) < 2:
        time.sleep(0.001)
    assert helpers.run(str, range(3), 2) == ["0", "1", "2"]
    release.set()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_many_callers_at_once():
    results = {}

    def caller(k):
        results[k] = [helpers.run(lambda x: x + k, range(n % 5), 1 + n % 4) for n in range(300)]

    callers = [threading.Thread(target=caller, args=(k,)) for k in range(6)]
    for t in callers:
        t.start()
    for t in callers:
        t.join(PATIENCE)
    assert results == {k: [[x + k for x in range(n % 5)] for n in range(300)] for k in range(6)}


class Thing:
    pass


def test_finished_work_is_not_kept_alive_by_helpers_that_are_busy():
    thing, release, wait = Thing(), threading.Event(), together(2)
    seen = weakref.ref(thing)

    def busy(_):
        wait()
        release.wait(PATIENCE)

    with pytest.MonkeyPatch.context() as m:
        m.setattr(helpers, "_helpers", helpers._Helpers())
        other = threading.Thread(target=helpers.run, args=(busy, range(2), 2))
        other.start()
        while not helpers._helpers.count or not helpers._helpers.jobs.empty():
            time.sleep(0.001)
        results = helpers.run(lambda part: part, [thing, thing], 2)
        del thing, results
        gc.collect()
        assert seen() is None
        release.set()
        other.join(PATIENCE)


@pytest.mark.parametrize("threads", [1, 2])
def test_what_failed_is_not_kept_alive(threads):
    """Nor does it wait for the collector of cycles: memory may be what it failed for."""
    seen = []

    def work(part):
        thing = Thing()
        seen.append(weakref.ref(thing))
        raise MemoryError

    gc.disable()
    try:
        with pytest.raises(MemoryError):
            helpers.run(work, range(2), threads)
        patient = time.monotonic() + 60  # until the helper has left its frame
        while any(ref() is not None for ref in seen) and time.monotonic() < patient:
            time.sleep(0.001)
        assert all(ref() is None for ref in seen)
    finally:
        gc.enable()


def test_an_interruption_while_helpers_start_is_no_reason_to_stay_alone():
    def interrupt(frame, event, arg):
        if event == "c_return" and arg is _thread.start_new_thread:
            sys.setprofile(None)
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as m:
        m.setattr(helpers, "_helpers", helpers._Helpers())
        sys.setprofile(interrupt)
        try:
            with pytest.raises(KeyboardInterrupt):
                helpers.run(str, range(2), 2)
        finally:
            sys.setprofile(None)
        wait = together(2)
        helpers.run(lambda _: wait(), range(2), 2)


def test_an_interruption_of_the_caller_begins_no_more_parts_and_waits_for_those_begun():
    started, done = threading.Event(), []
    me = threading.get_ident()

    def work(part):
        if threading.get_ident() == me:
            started.wait(PATIENCE)
            raise KeyboardInterrupt
        started.set()
        time.sleep(0.1)
        done.append(part)

    with pytest.raises(KeyboardInterrupt):
        helpers.run(work, range(10), 2)
    assert len(done) == 1
    time.sleep(0.15)
    assert len(done) == 1


def test_after_a_second_interruption_nobody_uses_what_helpers_still_write_to(monkeypatch):
    go, me = threading.Event(), threading.get_ident()

    def work(part):
        if threading.get_ident() != me:
            started.set()
            go.wait(PATIENCE)
        else:
            started.wait(PATIENCE)
            raise KeyboardInterrupt

    def interrupted(self):
        raise KeyboardInterrupt

    started = threading.Event()
    mine = workspaces.workspace("of the caller", (10,))
    with monkeypatch.context() as m:
        m.setattr(helpers._Job, "stop", interrupted)
        with pytest.raises(KeyboardInterrupt):
            helpers.run(work, range(2), 2)
    assert not np.shares_memory(mine, workspaces.workspace("of the caller", (10,)))
    go.set()
    assert helpers.run(str, range(2), 2) == ["0", "1"]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs an interval timer")
def test_interruptions_at_any_moment_leave_nothing_that_hangs_or_is_wrong():
    """A signal comes after ever other microseconds, and raises wherever the caller is."""

    class Interruption(Exception):
        pass

    def interrupt(*_):
        raise Interruption

    A = np.ones((2, 20_000))
    before = signal.signal(signal.SIGALRM, interrupt)
    interrupted = 0
    try:
        for i in range(400):
            begun, ended = [], []

            def work(part, begun=begun, ended=ended):
                if threading.current_thread() is threading.main_thread():  # may be interrupted between any two lines
                    return float((A[part % 2] * part).sum())
                begun.append(part)
                result = float((A[part % 2] * part).sum())
                ended.append(part)
                return result

            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, 1e-6 * (20 + i))
                    found = helpers.run(work, range(4), 3)
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                assert found == [part * 20_000.0 for part in range(4)]
            except Interruption:
                interrupted += 1
            assert helpers.run(str, range(4), 3) == list("0123")
            assert len(begun) == len(ended)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 20


SHUTDOWN = """
import atexit
import numpy as np
from tinydiff.machine import helpers

def work(part):
    return float(np.full(1000, part).sum())

class Late:
    def __del__(self):
        print("late", helpers.run(work, range(4), 4))

if {early}:
    helpers.run(work, range(4), 4)
late = Late()
atexit.register(lambda: print("exit", helpers.run(work, range(4), 4)))
"""


@pytest.mark.parametrize("early", [True, False])
def test_work_at_the_end_of_the_process(early):
    done = subprocess.run(
        [sys.executable, "-c", SHUTDOWN.format(early=early)], capture_output=True, text=True, timeout=PATIENCE
    )
    expected = "[0.0, 1000.0, 2000.0, 3000.0]"
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"exit {expected}\nlate {expected}\n"


def test_parts_may_be_any_sequence():
    assert helpers.run(sum, [[1, 2], (3,), range(4)], 2) == [3, 3, 6]
    assert helpers.run(str, "abc", 2) == ["a", "b", "c"]
    assert list(itertools.chain(*helpers.run(list, np.eye(2), 2))) == [1, 0, 0, 1]
