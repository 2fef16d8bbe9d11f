"""The device, streams, events, memory pools and graphs.

Everything is computed at once, in the order of the calls, except while the current stream captures. Then a launch becomes
a node of the graph, and its result holds poison until the graph is replayed. As in CuPy, copies from and to the host,
synchronisations and cuBLAS are refused meanwhile.

A freed array is overwritten with poison, and so is, after each replay, all that the graph wrote to memory that was freed: on
a GPU another node may have that memory. Whoever keeps an address but not the array reads NaN.
"""

import contextlib
import os
import threading
from functools import cache

import numpy as np

from tests.cupy_stand_in.signatures import COUNTS, of_cuda


class CUDARuntimeError(RuntimeError):
    """cupy.cuda.runtime's."""


class _State(threading.local):
    """Of a thread, as in CuPy: the streams and pools of the `with` blocks that are open."""

    def __init__(self):
        self.streams, self.pools = [], []


STATE = _State()
LIVE = set()  # ids of the NumPy arrays whose memory an array of the stand-in owns


def root(array):
    """The NumPy array that owns the memory of another. Between the two may stand a helper of `as_strided`, no array itself."""
    found, base = array, array.base
    while base is not None:
        found, base = (base if isinstance(base, np.ndarray) else found), getattr(base, "base", None)
    return found


def poison(array):
    """Bytes of ones: NaN as floats, -1 as signed integers."""
    if array.flags.writeable and array.size:
        if array.flags.c_contiguous:
            array.reshape(-1).view(np.uint8)[...] = 255
        else:
            array[...] = -1 if array.dtype.kind != "f" else np.nan


def own(array):
    """Notes that an array of the stand-in owns this memory, taken from the current pool."""
    LIVE.add(id(array))
    if STATE.pools:
        STATE.pools[-1].take(array.nbytes)


def release(array):
    """That array is gone."""
    LIVE.discard(id(array))
    poison(array)


# ----------------------------------------------------------------------------------------------------------------- capture


def current_stream():
    return STATE.streams[-1] if STATE.streams else Stream.null


def capturing():
    """The graph that the current stream records, or None."""
    return current_stream().recorded


def refuse(what):
    """Fails as CuPy does where the current stream captures. what: "H2D transfers", "D2H transfers" or "cuBLAS"."""
    if capturing() is None:
        return
    if what == "cuBLAS":
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
    raise RuntimeError(f"the current stream is capturing, so {what} are disallowed")


def read_back():
    """What reads a value of the device on the host does this first."""
    refuse("D2H transfers")
    COUNTS["synchronisations"] += 1


def launch(compute, *sources, out=None):
    """What `compute`, a function without arguments, gives; recorded where the current stream captures.

    sources: NumPy arrays that it takes; a view of them is no launch. out: where it writes, if it has a place given. A launch
    counts, and so does an allocation for each new array. A few of CuPy's functions launch more than one kernel; they count as
    one.
    """
    graph = capturing()
    if graph is not None and out is not None:
        graph.add(compute, [out])
        COUNTS["launches of CuPy"] += 1
        return out
    with contextlib.nullcontext() if graph is None else np.errstate(all="ignore"):
        result = compute()
    several = isinstance(result, tuple | list)
    new = [
        a for a in (result if several else (result,))
        if isinstance(a, np.ndarray | np.generic) and not any(_shares(a, s) for s in sources)
    ]  # fmt: skip
    if not new and out is None:
        return result
    COUNTS["launches of CuPy"] += 1
    COUNTS["allocations"] += len(new) if out is None else 0
    if graph is None or out is not None:
        return result
    places = [np.array(a) for a in (result if several else (result,))]  # not yet computed: these have only its shape
    for place in places:
        poison(place)

    def again():
        found = compute()
        for place, a in zip(places, found if several else (found,), strict=True):
            place[...] = a

    graph.add(again, places)
    return type(result)(places) if several else places[0]


def _shares(a, b):
    return isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and np.may_share_memory(a, b)


class Graph:
    """cupy.cuda.Graph."""

    def __init__(self):
        self.nodes, self.written = [], {}

    def add(self, node, writes):
        """A node, a function without arguments, and the NumPy arrays that it writes to."""
        self.nodes.append(node)
        for array in map(root, writes):
            self.written[id(array)] = array

    @of_cuda("Graph.launch")
    def launch(self, stream=None):
        if (current_stream() if stream is None else stream).recorded is not None:
            raise NotImplementedError("the stand-in has no graphs inside graphs")
        COUNTS["launches of graphs"] += 1
        for node in self.nodes:
            node()
        for key, array in self.written.items():
            if key not in LIVE:
                poison(array)


class Stream:
    """cupy.cuda.Stream."""

    null = None

    @of_cuda("Stream")
    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        self.non_blocking, self.recorded, self.spoiled = non_blocking, None, False
        self.ptr, self.device_id = (0 if null else id(self)), 0

    def __enter__(self):
        STATE.streams.append(self)
        return self

    def __exit__(self, *error):
        STATE.streams.pop()

    @of_cuda("Stream.begin_capture")
    def begin_capture(self, mode=None):
        if self.ptr == 0:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        if not self.non_blocking:
            raise CUDARuntimeError("the stand-in captures on non-blocking streams only")
        self.recorded, self.spoiled = Graph(), False

    @of_cuda("Stream.end_capture")
    def end_capture(self):
        graph, self.recorded = self.recorded, None
        if graph is None:
            raise CUDARuntimeError("cudaErrorIllegalState: the operation cannot be performed in the present state")
        for pool in STATE.pools[-1:]:
            pool.sealed = True
        if self.spoiled:
            raise CUDARuntimeError(
                "cudaErrorStreamCaptureInvalidated: operation failed due to a previous error during capture"
            )
        return graph

    @of_cuda("Stream.is_capturing")
    def is_capturing(self):
        return self.recorded is not None

    @of_cuda("Stream.synchronize")
    def synchronize(self):
        if self.recorded is not None:
            self.spoiled = True
            raise CUDARuntimeError(
                "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing"
            )
        COUNTS["synchronisations"] += 1

    @of_cuda("Stream.record")
    def record(self, event=None):
        return Event() if event is None else event

    @of_cuda("Stream.wait_event")
    def wait_event(self, event):
        assert isinstance(event, Event)


class Event:
    """cupy.cuda.Event."""

    @of_cuda("Event")
    def __init__(self, block=False, disable_timing=False, interprocess=False):
        pass

    @of_cuda("Event.record")
    def record(self, stream=None):
        pass

    @of_cuda("Event.synchronize")
    def synchronize(self):
        refuse("synchronisations")
        COUNTS["waits for an event"] += 1


class MemoryPool:
    """cupy.cuda.MemoryPool. One that a graph was captured with must not be allocated from again: it would hand out what the
    graph's nodes write to."""

    @of_cuda("MemoryPool")
    def __init__(self, allocator=None):
        self.bytes, self.sealed = 0, False

    @of_cuda("MemoryPool.malloc")
    def malloc(self, size):
        raise NotImplementedError("the stand-in allocates by its functions")

    def take(self, size):
        assert not self.sealed, "memory is taken from the pool of a graph that has been captured"
        self.bytes += size

    @of_cuda("MemoryPool.total_bytes")
    def total_bytes(self):
        return self.bytes

    @of_cuda("MemoryPool.free_bytes")
    def free_bytes(self):
        return 0

    @of_cuda("MemoryPool.free_all_blocks")
    def free_all_blocks(self, stream=None):
        pass


@of_cuda("using_allocator")
@contextlib.contextmanager
def using_allocator(allocator=None):
    """The pool whose `malloc` is given serves the block."""
    STATE.pools.append(allocator.__self__)
    try:
        yield
    finally:
        STATE.pools.pop()


@of_cuda("get_current_stream")
def get_current_stream(device_id=-1):
    return current_stream()


@of_cuda("get_elapsed_time")
def get_elapsed_time(start_event, end_event):
    return 1.0


class Device(contextlib.nullcontext):
    """cupy.cuda.Device, of a GPU like an H100."""

    @of_cuda("Device")
    def __init__(self, device=None):
        super().__init__()
        self.id = 0 if device is None else device
        self.pci_bus_id = f"0000:{os.environ.get('CUDA_VISIBLE_DEVICES', '0')}:00.0"

    __hash__ = None  # as CuPy's

    compute_capability = "90"
    attributes = {"MaxSharedMemoryPerBlockOptin": 232448, "MultiProcessorCount": 132}  # noqa: RUF012

    @of_cuda("Device.synchronize")
    def synchronize(self):
        current_stream().synchronize()


@cache
def the_device():
    return Device()
