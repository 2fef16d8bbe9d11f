"""Copies of tensors: by the module `copy`, and by pickle."""

from __future__ import annotations

from typing import Any


def copy(x: Any) -> Any:
    """Another tensor of the same memory, at the same place of the tape."""
    y = type(x)._wrap(x.data, x._version)
    y.requires_grad = x.requires_grad
    if x._node is not None:
        y._attach(x._node, x._index)
    else:
        y.grad = x.grad
    return y


def deepcopy(x: Any, memo: dict[int, Any]) -> Any:
    """A tensor of its own memory. The copy of a leaf is a leaf with its own gradient, without hooks; that of a computed tensor
    is computed from it, so gradients pass."""
    if x._node is not None:
        y = +x
    else:
        y = type(x)._wrap(x.data.copy())
        y.requires_grad, y.grad = x.requires_grad, None if x.grad is None else x.grad.copy()
    memo[id(x)] = y
    return y


def reduce(x: Any) -> Any:
    """What pickle keeps of a leaf. TypeError for a computed tensor, whose place on the tape cannot be kept."""
    if x._node is not None:
        raise TypeError("a tensor that was computed from others cannot be pickled: pickle x.detach() or x.data")
    return _restored, (type(x), x.data, x.requires_grad, x.grad)


def _restored(cls: Any, data: Any, requires_grad: bool, grad: Any) -> Any:
    x = cls._wrap(data)
    x.requires_grad, x.grad = requires_grad, grad
    return x
