"""Sums that blocks compute in parts and the last of them adds, as kernels/split_k.cuh has it: where the parts lie, what counts
them, and how long adding takes."""

from __future__ import annotations

from typing import Any

import numpy as np

GROUP = 8  # as in kernels/split_k.cuh: sums that a block adds
COUNTERS = 1 << 16

_counters: dict[Any, Any] = {}


def slots(xp: Any, parts: int, tiles: int, size: int) -> tuple[Any, Any]:
    """Memory for the parts of some tiles of `size` entries that `add_parts` adds, and counters; None and None for one part."""
    if parts == 1:
        return None, None
    return xp.empty((tiles * parts, size), np.float32), counters(xp, tiles * counters_of_tile(parts))


def counters_of_tile(parts: int) -> int:
    """How many counters `add_parts` has for a tile: one for each group, for each group of groups, and so on."""
    return sum(-(-n // GROUP) for n in _sums(parts))


def cycles_of_adding(parts: int, size: int) -> float:
    """About how many cycles it takes until the parts of a tile of `size` floats are added: that is bound by one block, which reads
    its group's sums at some 64 bytes a cycle."""
    sums = sum(min(n, GROUP) for n in _sums(parts))
    return 1500 + sums * 4 * size / 64 if sums else 0


def _sums(parts: int) -> list[int]:
    """How many sums are left to add: of all parts, of groups of them, and so on."""
    left = []
    while parts > 1:
        left.append(parts)
        parts = -(-parts // GROUP)
    return left


def counters(xp: Any, n: int) -> Any:
    """At least n counters: zeros whenever no kernel is running. One array for each stream, since launches of several may run at
    once; it is kept, since a graph may hold its address."""
    assert n <= COUNTERS
    key = "host" if xp is np else (xp.cuda.Device().id, xp.cuda.get_current_stream().ptr)
    if key not in _counters:
        _counters[key] = xp.zeros(COUNTERS, np.uint32)
    return _counters[key]
