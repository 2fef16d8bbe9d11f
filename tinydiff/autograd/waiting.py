"""Gradients that are added where the next one is made.

Where a tensor goes into several operations, their gradients for it add up. On a GPU an addition of its own reads both and
writes the sum. So while the backward pass of an operation runs, what waits at its first input already is on offer: a kernel
that makes that input's gradient may `claim` it, and add it before it writes. The tape then takes what it gets for the sum.

Only operations that say so (`Function.adds_waiting`) are offered it, since a claim adds to whatever its kernel makes.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tinydiff.backend import address


class Offer:
    """What waits at an input, None once it is claimed."""

    def __init__(self, gradient: Any) -> None:
        self.gradient = gradient


class _Offers(threading.local):
    now: Offer | None = None


_offers = _Offers()


@contextmanager
def offered(gradient: Any) -> Iterator[Offer]:
    """A block in which a gradient is on offer; None for none."""
    before, _offers.now = _offers.now, Offer(gradient)
    try:
        yield _offers.now
    finally:
        _offers.now = before


def claim(shape: Sequence[int], dtype: Any = np.float32) -> Any:
    """The gradient on offer in this shape, whose last axis is its own, if it has this dtype, lies in one piece and begins at a
    multiple of 16 bytes; else None. Whoever claims it has to add it to the gradient that an operation returns for its first input,
    and not to change it."""
    offer = _offers.now
    if offer is None or (L := offer.gradient) is None:
        return None
    fits = L.ndim > 0 and L.shape[-1] == shape[-1] and L.size == math.prod(shape) and L.dtype == dtype
    if not fits or not L.flags.c_contiguous or address(L) % 16:
        return None
    offer.gradient = None
    return L.reshape(shape)
