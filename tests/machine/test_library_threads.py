"""The number of threads of NumPy's linear algebra library, in operations and outside of them."""

import threading
from contextlib import suppress
from types import SimpleNamespace

import pytest
import threadpoolctl

from tinydiff.machine import library_threads


class Fake:
    """A library that says how often it was told a number."""

    def __init__(self, number=4):
        self.number, self.told = number, []

    def get(self):
        return self.number

    def set(self, number):
        self.number = number
        self.told.append(number)

    one = 1


@pytest.fixture
def fake():
    return Fake()


@pytest.fixture
def pin(fake):
    return library_threads.Pin(lambda: fake)


def test_the_first_thread_pins_and_the_last_one_gives_back(pin, fake):
    pin.enter(1)
    pin.enter(2)
    pin.leave(1)
    assert fake.told == [1]
    pin.leave(2)
    assert fake.told == [1, 4]


def test_entering_and_leaving_twice_changes_nothing(pin, fake):
    pin.enter(1)
    pin.enter(1)
    pin.leave(1)
    pin.leave(1)
    assert fake.told == [1, 4]


def test_a_library_with_one_thread_is_left_alone(pin, fake):
    fake.number = 1
    pin.enter(1)
    pin.leave(1)
    assert fake.told == []


def test_what_the_program_sets_meanwhile_stays(pin, fake):
    pin.enter(1)
    fake.number = 3
    pin.leave(1)
    assert fake.number == 3
    pin.enter(1)
    pin.leave(1)
    assert fake.number == 3


def test_no_library_to_pin():
    pin = library_threads.Pin(lambda: None)
    pin.enter(1)
    pin.leave(1)
    assert not pin.inside


@pytest.mark.parametrize("call", range(1, 9))
def test_an_interrupted_call_can_be_made_again(fake, call):
    """The call's n-th touch of the library is interrupted, before or after it takes effect."""
    for late in (False, True):
        fake.number, touched = 4, 0

        def touch(do, *a, late=late):
            nonlocal touched
            touched += 1
            if touched == call and not late:
                raise KeyboardInterrupt
            result = do(*a)
            if touched == call:
                raise KeyboardInterrupt
            return result

        lib = library_threads.Library(
            lambda touch=touch: touch(fake.get), lambda number, touch=touch: touch(fake.set, number)
        )
        pin = library_threads.Pin(lambda lib=lib: lib)
        with suppress(KeyboardInterrupt):
            pin.enter(1)
        try:
            pin.leave(1)
        except KeyboardInterrupt:
            pin.leave(1)
        assert fake.number == 4 and pin.before is None and not pin.inside


def test_a_forked_process_keeps_only_the_thread_that_forked(pin, fake):
    pin.enter(threading.get_ident() + 1)  # another thread, which the child does not have
    pin.after_fork()
    assert fake.number == 4 and not pin.inside
    pin.enter(threading.get_ident())
    pin.enter(threading.get_ident() + 1)
    pin.after_fork()
    assert fake.number == 1 and pin.inside == {threading.get_ident()}


def libraries(monkeypatch, *found):
    library_threads.library.cache_clear()
    controllers = [SimpleNamespace(**lib) for lib in found]
    monkeypatch.setattr("threadpoolctl.ThreadpoolController", lambda: SimpleNamespace(lib_controllers=controllers))
    handle = SimpleNamespace(openblas_get_num_threads="get", openblas_set_num_threads="set")
    monkeypatch.setattr(library_threads.ctypes, "PyDLL", lambda path: SimpleNamespace(**vars(handle), path=path))
    try:
        return library_threads.library()
    finally:
        library_threads.library.cache_clear()


def openblas(path="/lib/libopenblas.so", layer="pthreads"):
    return {"internal_api": "openblas", "filepath": path, "threading_layer": layer}


@pytest.mark.parametrize(
    ("found", "pinned"),
    [
        ([], False),  # Accelerate, or none at all
        ([{"internal_api": "mkl", "filepath": "libmkl_rt.so", "threading_layer": "intel"}], False),
        ([openblas()], True),
        ([openblas(layer="openmp")], False),  # the number is the calling thread's
        ([openblas("/site/numpy.libs/a.so"), openblas("/site/scipy.libs/b.so")], True),
        ([openblas("/site/other.libs/a.so"), openblas("/site/scipy.libs/b.so")], False),  # which is NumPy's?
        ([openblas("/site/numpy.libs/a.so", "openmp"), openblas("/site/scipy.libs/b.so")], False),
    ],
)
def test_which_library_is_pinned(found, pinned, monkeypatch):
    lib = libraries(monkeypatch, *found)
    assert lib == (("get", "set", 1) if pinned else None)


def test_numpys_own_library_is_recognised():
    """As it comes from PyPI; where it does not, there is nothing to tell."""
    own = [
        lib
        for lib in threadpoolctl.threadpool_info()
        if lib["user_api"] == "blas" and "numpy" in lib["filepath"] and lib.get("threading_layer") == "pthreads"
    ]
    if len(own) != 1:
        pytest.skip("this NumPy does not bring OpenBLAS with threads of its own")
    for number in (2, 1):
        with threadpoolctl.threadpool_limits(number, "blas"):
            assert library_threads.library().get() == number


def test_all_libraries_at_once():
    others = library_threads.others()
    if others is None:
        pytest.skip("threadpoolctl knows none of this NumPy's libraries")
    before = others.get()
    assert len(others.one) == len(before)
    pin = library_threads.Pin(lambda: others)
    with threadpoolctl.threadpool_limits(2, "blas"):
        pin.enter(1)
        assert others.get() == others.one
        pin.leave(1)
        assert set(others.get()) == {2}
    assert others.get() == before


def test_a_handler_that_works_in_the_middle_of_leaving(fake):
    """It gives the number back itself."""

    def get():
        if pin.before is not None and not nested:
            nested.append(1)
            pin.enter(2)
            pin.leave(2)
        return fake.get()

    nested = []
    pin = library_threads.Pin(lambda: library_threads.Library(get, fake.set))
    pin.enter(1)
    pin.leave(1)
    assert nested and fake.number == 4 and set(fake.told) <= {1, 4}
