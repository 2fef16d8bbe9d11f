"""Sums over GPUs, one for each rank, by NVIDIA's library NCCL.

NCCL adds along a ring of the ranks (NCCL_ALGO=Ring, unless that variable says otherwise). So the order of the additions is the
same in every run with as many ranks, but is not that of the ranks: the bits are those of no other number of ranks.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinydiff import backend
from tinydiff.errors import InputError, named
from tinydiff.ranks.world import World


class Nccl:
    """NCCL's communicator of all ranks. Its calls are launched on the current stream, and wait for nothing.

    library: CuPy's module for NCCL. identity: what `get_unique_id` gave on rank 0. All ranks make it at the same time.
    """

    def __init__(self, library: Any, identity: bytes, world: World) -> None:
        self._library, self.size, self._rank = library, world.size, world.rank
        self._comm = library.NcclCommunicator(world.size, identity, world.rank)

    def sum(self, arrays: Sequence[Any]) -> None:
        """Adds up float32 arrays, contiguous, of the same shapes on all ranks, in place."""
        for a in arrays:
            place, kind = a.data.ptr, self._kind(a)
            self._comm.allReduce(place, place, a.size, kind, self._library.NCCL_SUM, self._stream())

    def gather(self, a: Any) -> Any:
        """The arrays (n,) of all ranks, as one (ranks, n)."""
        found = backend.array_module(a).empty((self.size, a.size), a.dtype)
        self._comm.allGather(a.data.ptr, found.data.ptr, a.size, self._kind(a), self._stream())
        return found

    def _kind(self, a: Any) -> Any:
        if a.dtype != np.float32 or not a.flags.c_contiguous:
            raise ValueError(f"NCCL takes contiguous float32 arrays here, not {a.dtype}")
        return self._library.NCCL_FLOAT32

    @staticmethod
    def _stream() -> int:
        stream: int = backend.module_for("cuda").cuda.get_current_stream().ptr
        return stream


def connect(world: World) -> Nccl:
    """The communicator of all ranks, whose devices are GPUs. InputError, on all of them, where NCCL is missing or two ranks have
    one GPU. Call it in a block `world.working`."""
    os.environ.setdefault("NCCL_ALGO", "Ring")  # else it may choose another order of additions from run to run
    library, place = None, ("", "")
    with world.together():
        library = backend.nccl()
        if library is None:
            raise InputError(
                f"training on several GPUs needs NCCL: pip install {backend.extra_of_nccl()}; or use {named('device', 'cpu')}"
            )
        place = socket.gethostname(), backend.module_for("cuda").cuda.Device().pci_bus_id
    places = world.gather(place)
    with world.together():
        for rank, other in enumerate(places):
            if (first := places.index(other)) < rank:
                raise InputError(
                    f"ranks {first} and {rank} have one GPU: each needs its own, so start no more ranks on a machine than it "
                    f"has GPUs, or use {named('device', 'cpu')}"
                )
    assert library is not None
    return Nccl(library, world.gather(library.get_unique_id() if world.rank == 0 else None)[0], world)


def require_one_device(world: World, device: str) -> None:
    """InputError, on all ranks, where some have a GPU and others have none. device: this rank's, resolved."""
    found = world.gather(device)
    with world.together():
        if len(set(found)) > 1:
            raise InputError(
                f"rank {found.index('cpu')} has no GPU and rank {found.index('cuda')} has one: each needs its own, or use "
                f"{named('device', 'cpu')}"
            )
