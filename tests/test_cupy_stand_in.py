"""The stand-in's captures: what they record and refuse, and that replays compute it. The same on the real CuPy (`-m gpu`)."""

import numpy as np
import pytest

from tests import cupy_stand_in
from tests.cupy_stand_in import nccl, streams
from tests.cupy_stand_in.signatures import api
from tinydiff import backend
from tinydiff.cuda.updates import launch_squared_norm


@pytest.fixture(params=["stand-in", pytest.param("CuPy", marks=pytest.mark.gpu)])
def cupy(request, monkeypatch):
    if request.param == "CuPy":
        if backend.cupy() is None:
            pytest.skip("needs an NVIDIA GPU and CuPy")
        yield backend.cupy()
    else:
        with cupy_stand_in.put_in_place(monkeypatch) as module:
            yield module


def captured(cupy, work):
    """(graph, what work gave, the pool) of a capture of work(); what it needs is compiled before."""
    work()
    stream, pool = cupy.cuda.Stream(non_blocking=True), cupy.cuda.MemoryPool()
    with stream, cupy.cuda.using_allocator(pool.malloc):
        stream.begin_capture()
        try:
            result = work()
        finally:
            graph = stream.end_capture()
    return graph, result, pool


def test_nothing_is_computed_before_a_replay_and_all_by_it(cupy):
    x, total = cupy.arange(6, dtype=np.float32), cupy.zeros((), np.float32)

    def work():
        y = (x * 2 + 1).reshape(2, 3)
        y[0] = 0
        y += x[:3]
        total[...] = total + y.sum()
        return y, y[1], launch_squared_norm(y.reshape(-1)), cupy.zeros(2), cupy.concatenate([y[:1], y[1:]])

    def expected():
        y = (np.arange(6, dtype=np.float32) * k * 2 + 1).reshape(2, 3)
        y[0] = 0
        y += np.arange(3) * k
        return y, y[1], (y * y).sum(), np.zeros(2), y

    k = 1
    graph, results, pool = captured(cupy, work)
    assert float(total) == expected()[0].sum()  # of the call before: not one of the capture
    assert pool.total_bytes() > 0
    for k in (1, 3):
        x[...] = cupy.arange(6) * k
        total[...] = 0
        graph.launch()
        for ours, theirs in zip(results, expected(), strict=True):
            np.testing.assert_array_equal(ours.get(), theirs)
        assert float(total) == expected()[0].sum()


REFUSED = {
    "H2D": {
        "asarray": lambda cupy, x: cupy.asarray(np.ones(2)),
        "set": lambda cupy, x: x.set(np.ones(4, np.float32)),
        "an index of the host": lambda cupy, x: x[[0, 1]],
        "many arrays": lambda cupy, x: cupy.concatenate([x] * 9),
    },
    "D2H": {
        "get": lambda cupy, x: x.get(),
        "item": lambda cupy, x: x[0].item(),
        "float": lambda cupy, x: float(x[0]),
        "a mask": lambda cupy, x: x[x > 0],
        "nonzero": lambda cupy, x: cupy.nonzero(x),
        "if": lambda cupy, x: bool(x[0] > 0),
    },
    "cuBLAS": {"matmul": lambda cupy, x: x.reshape(2, 2) @ x.reshape(2, 2)},
}


@pytest.mark.parametrize("what, name", [(what, name) for what, cases in REFUSED.items() for name in cases])
def test_what_a_capture_refuses(cupy, what, name):
    cupy_stand_in.MISSING.clear()
    x, work = cupy.ones(4, np.float32), REFUSED[what][name]
    error = NotImplementedError if what == "cuBLAS" else RuntimeError
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        with pytest.raises(error, match="captur"):
            work(cupy, x)
        stream.end_capture()


def test_a_synchronisation_spoils_a_capture(cupy):
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError):
            stream.synchronize()
    with pytest.raises(RuntimeError, match="legacy"):
        cupy.cuda.Stream.null.begin_capture()


def test_freed_memory_is_overwritten(monkeypatch):
    with cupy_stand_in.put_in_place(monkeypatch) as cupy:
        x = cupy.ones(4, np.float32)
        y = x + 1
        kept, view = y._array, y[1:]
        del y
        assert kept[0] == 2 and view.get()[0] == 2  # the view has the memory
        del view
        assert np.isnan(kept).all()
        inside, given = [], [x]
        del x

        def work():
            h = given[0] * 3
            inside[:] = [h._array]
            return h + 1

        graph, result, pool = captured(cupy, work)
        graph.launch()
        assert np.isnan(inside[0]).all() and (result.get() == 4).all()
        with pytest.raises(AssertionError, match="pool of a graph"), cupy.cuda.using_allocator(pool.malloc):
            cupy.ones(3)
        given.clear()
        graph.launch()
        assert np.isnan(result.get()).all()  # the graph reads what is no longer there


def test_the_calls_of_cuda_have_cupys_signatures():
    """Every public method of the stand-in's classes is held to one."""
    for kind in (streams.Stream, streams.Graph, streams.MemoryPool, streams.Event, streams.Device):
        own = {f"{kind.__name__}.{name}" for name, thing in vars(kind).items() if callable(thing) and name[0] != "_"}
        assert own - {"Graph.add", "MemoryPool.take"} <= set(api()["cuda"])
    own = {name for name, thing in vars(nccl.NcclCommunicator).items() if callable(thing) and name[0] != "_"}
    assert {f"nccl.NcclCommunicator.{name}" for name in own} <= set(api()["cuda"]) and len(own) == 2
