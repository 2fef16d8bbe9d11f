"""A sign of life that each rank sends to the next one, every second, from a thread.

A rank that has died without a word, or whose machine has, would leave the others waiting for ever. One that computes, draws
or saves goes on sending.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

EVERY = 1.0  # seconds
_ALIVE, _LEAVING = 1, 2


class Heartbeat:
    """Sends signs of life and listens for those of the rank before.

    mpi: the module `mpi4py.MPI`. comm: a communicator for nothing else. lost: called with a rank and the seconds of its
    silence, in another thread. Without a library that several threads may call, nothing is sent.
    """

    leaving = False  # whether this rank is at its end, and tells so

    def __init__(self, mpi: Any, comm: Any, lost: Callable[[int, float], None]) -> None:
        self.left: tuple[int, float] | None = None  # the rank before, once it is at its end, and since when
        self._comm, self._lost = comm, lost
        self._before, self._after = (comm.Get_rank() - 1) % comm.Get_size(), (comm.Get_rank() + 1) % comm.Get_size()
        self._patience = _patience()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="tinydiff heartbeat", daemon=True)
        if mpi.Query_thread() == mpi.THREAD_MULTIPLE:
            self._thread.start()

    def _beat(self) -> None:
        sent, sign, byte = None, np.zeros(1, np.uint8), np.zeros(1, np.uint8)
        heard = tick = time.monotonic()
        while not self._stop.wait(EVERY):
            now = time.monotonic()
            if now - tick > 5 * EVERY:  # this process was stopped itself, perhaps with the whole job
                heard = now
            tick = now
            if sent is None or sent.Test():
                sign[0] = _LEAVING if self.leaving else _ALIVE
                sent = self._comm.Isend(sign, self._after)
            while self._comm.Iprobe(self._before):
                self._comm.Recv(byte, self._before)
                heard = now
                if byte[0] == _LEAVING:
                    self.left = self.left or (self._before, now)
            if now - heard > self._patience:
                self._lost(self._before, now - heard)
                return

    def stop(self) -> None:
        """Sends nothing more."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()


def _patience() -> float:
    """Seconds of silence after which a rank counts as lost: TINYDIFF_RANK_TIMEOUT, or 60."""
    text = os.environ.get("TINYDIFF_RANK_TIMEOUT", "")
    return float(text) if text.isascii() and text.isdecimal() and int(text) else 60.0
