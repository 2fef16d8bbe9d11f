"""CuPy's module for NCCL. Ranks are processes of mpiexec, and MPI carries what their communicators exchange.

Sums are in the order of the ranks, which NCCL's are not. While a stream captures, a call becomes a node of the graph, as with
NCCL from 2.9 on.
"""

import ctypes
import types

import numpy as np

from tests.cupy_stand_in import streams
from tests.cupy_stand_in.signatures import COUNTS, of_cuda

FLOAT32, SUM = 7, 0
CAPTURABLE = [True]  # whether graphs may hold these calls


class NcclError(RuntimeError):
    """cupy.cuda.nccl's."""


class NcclCommunicator:
    """One for all ranks, which make it together."""

    @of_cuda("nccl.NcclCommunicator")
    def __init__(self, ndev, commId, rank, config=None):
        from mpi4py import MPI

        assert isinstance(commId, bytes) and len(commId) == 128
        self.comm = MPI.COMM_WORLD.Dup()
        if (ndev, rank) != (self.comm.Get_size(), self.comm.Get_rank()) or len(set(self.comm.allgather(commId))) > 1:
            raise NcclError("NCCL_ERROR_INVALID_ARGUMENT: invalid argument")

    def _launch(self, work, stream):
        current = streams.current_stream()
        assert stream == current.ptr, "work for another stream than the current one"
        COUNTS["launches of NCCL"] += 1
        if current.recorded is None:
            work()
        elif CAPTURABLE[0]:
            current.recorded.add(work, [])
        else:
            current.spoiled = True
            raise NcclError("NCCL_ERROR_UNHANDLED_CUDA_ERROR: unhandled cuda error")

    @of_cuda("nccl.NcclCommunicator.allReduce")
    def allReduce(self, sendbuf, recvbuf, count, datatype, op, stream):
        assert (datatype, op) == (FLOAT32, SUM)
        sent, received = at(sendbuf, count), at(recvbuf, count)

        def work():
            parts = self.comm.allgather(sent.copy())
            received[...] = parts[0]
            for part in parts[1:]:
                received[...] += part

        self._launch(work, stream)

    @of_cuda("nccl.NcclCommunicator.allGather")
    def allGather(self, sendbuf, recvbuf, count, datatype, stream):
        assert datatype == FLOAT32
        sent, received = at(sendbuf, count), at(recvbuf, count * self.comm.Get_size())

        def work():
            received[...] = np.concatenate(self.comm.allgather(sent.copy()))

        self._launch(work, stream)


def at(address, count):
    """The float32 numbers at an address."""
    return np.frombuffer((ctypes.c_float * count).from_address(address), np.float32)


@of_cuda("nccl.get_unique_id")
def get_unique_id():
    return bytes(range(128))


def make():
    """The module, to be put into sys.modules as "cupy.cuda.nccl"."""
    return types.SimpleNamespace(
        available=True, NCCL_FLOAT32=FLOAT32, NCCL_SUM=SUM, NcclError=NcclError, NcclCommunicator=NcclCommunicator,
        get_unique_id=get_unique_id,
    )  # fmt: skip
