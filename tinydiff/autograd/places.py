"""Gradients that are born where they are used.

An optimiser that goes over one flat piece of memory has given each weight a place in it for its gradient. While the
backward pass of an operation runs, the places of its weights are on offer: a kernel that makes a gradient may `claim` one
of that shape and write there, which saves a copy. A gradient made elsewhere is copied there by `Tensor._accumulate`.

A claim goes by shape, so what lies in a place may belong to another weight, or be a part of something else. `settle`
copies all that is not in its own place; so a claim never changes a result.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tinydiff.backend import address, is_array


class _Offer(threading.local):
    free: tuple[Any, ...] = ()  # weights that have a place and no gradient yet
    claimed: tuple[Any, ...] = ()


_offer = _Offer()
_any_kept = False  # whether any weight has a place; on the CPU none has


def keep(tensor: Any, place: Any) -> None:
    """From now on the gradient of this tensor, a leaf, lies in `place`, an array of its shape and dtype."""
    global _any_kept
    _any_kept, tensor._place = True, place


def keep_all(tensors: Sequence[Any], parts: Sequence[Any]) -> None:
    """Takes `parts` for the tensors' gradients. Where they are not the same arrays, they are the tensors' places from now
    on."""
    for tensor, part in zip(tensors, parts, strict=True):
        if part is not tensor.grad:
            tensor.grad = part
            keep(tensor, part)


def in_use() -> bool:
    """Whether any tensor of this process has a place."""
    return _any_kept


def place_of(tensor: Any, dtype: Any) -> Any:
    """Where a gradient of the tensor belongs that has this dtype; None for no such place."""
    place: Any = tensor._place
    fits = place is not None and place.shape == tensor.shape and place.dtype == dtype
    return place if fits and type(place) is type(tensor.data) else None


def claim(shape: Sequence[int]) -> Any:
    """A place on offer for a float32 gradient of this shape, with arbitrary content, or None."""
    for i, tensor in enumerate(_offer.free):
        if tensor.shape == tuple(shape) and tensor.grad is None:
            _offer.free = (*_offer.free[:i], *_offer.free[i + 1 :])
            place = place_of(tensor, np.float32)
            if place is not None:
                _offer.claimed = (*_offer.claimed, place)
                return place
    return None


@contextmanager
def offered(leaves: Iterable[Any]) -> Iterator[None]:
    """A block in which the places of these tensors are on offer; None stands for an input that is not a leaf."""
    before = _offer.free, _offer.claimed
    known = [x for x in leaves if x is not None and x._place is not None]
    ids = [id(x) for x in known]
    _offer.free, _offer.claimed = tuple(x for x in known if ids.count(id(x)) == 1), ()
    try:
        yield
    finally:
        _offer.free, _offer.claimed = before


def settle(gradients: Sequence[Any], leaves: Sequence[Any]) -> list[Any]:
    """The gradients of an operation's inputs, inside `offered`: those in their own place are that place itself, copies
    replace those in the place of another."""
    if not _offer.claimed or len(gradients) != len(leaves):  # of a wrong number the tape says so
        return list(gradients)
    return [_settled(L, x) for L, x in zip(gradients, leaves, strict=True)]


def _settled(L: Any, leaf: Any) -> Any:
    if not is_array(L) or not L.size:
        return L
    where = address(L)
    for place in _offer.claimed:
        if address(place) <= where < address(place) + place.nbytes:
            own = leaf is not None and place_of(leaf, L.dtype) is place
            whole = own and where == address(place) and L.shape == place.shape and L.flags.c_contiguous
            return place if whole else L.copy()
    return L
