"""Blocks that are computed again in backward, so that the arrays inside need not be kept (gradient checkpointing; Chen
et al., 2016)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tinydiff import random
from tinydiff.autograd.tape import Edge, Node, edge_to, is_recording, mode, set_mode
from tinydiff.backend import is_float


class _Recompute:
    """What a recomputed block keeps: the function, its inputs, and where its random numbers began."""

    def __init__(self, fn: Callable[..., Any], xs: tuple[Any, ...]) -> None:
        self.fn, self.xs = fn, xs
        self.versions: dict[Any, int] = {}
        self.draws: dict[random.Generator, int] = {}

    def run(self) -> tuple[Any, bool]:
        """The block's outputs as a tuple, and whether it returned one."""
        outputs = self.fn(*self.xs)
        several = isinstance(outputs, tuple | list)
        return (tuple(outputs) if several else (outputs,)), several

    def release(self) -> None:
        self.__dict__.clear()


class _RecomputeNode(Node):
    """Its gradients go to the outputs of the block run once more, whose new nodes the walk then visits like any others.

    The new nodes hang on the inputs' own edges, so gradients of tensors that the block merely refers to (a layer's
    weights, values computed outside) arrive where they belong.
    """

    __slots__ = ()

    def pull(self, L_Ys: list[Any], gradients: Any = None) -> Iterator[tuple[Edge, Any, bool]]:
        op = self.op
        if any(version.count != count for version, count in op.versions.items()):
            raise RuntimeError(
                "a tensor that a recomputed block uses was changed in place between forward and backward"
            )
        with set_mode(recording=True), random.replaying(op.draws):
            outputs, _ = op.run()
        if [(y.shape, y.dtype) for y in outputs] != [(shape, dtype) for shape, dtype, _ in self.outputs]:
            raise RuntimeError("a recomputed block must do the same thing again, but it returned other outputs")
        for y, L_Y in zip(outputs, L_Ys, strict=True):
            if (edge := edge_to(y)) is not None:
                yield edge, L_Y, False


def recompute(fn: Callable[..., Any], *xs: Any) -> Any:
    """fn(*xs), without keeping the arrays inside: backward runs fn again to get them (gradient checkpointing; Chen et
    al., 2016).

    fn: a function that takes xs and returns a tensor or a tuple of them. It must do the same thing when called again;
        random numbers that it draws from a Generator are drawn again.

    The cost is one more forward pass of the block. RuntimeError in backward where the second run gives other shapes or
    a tensor that fn uses was changed in place.
    """
    if not is_recording():
        return fn(*xs)
    op = _Recompute(fn, xs)
    with set_mode(recording=False, seen=op.versions, unrecorded=False), random.recording() as op.draws:
        outputs, several = op.run()
        needed = mode.unrecorded or any(y.requires_grad for y in outputs)
    outputs = tuple(y.detach() for y in outputs)
    if needed:
        node = _RecomputeNode(op, (), [y.data for y in outputs])
        for index, y in enumerate(outputs):
            if is_float(y.dtype, or_complex=True):
                y._attach(node, index)
        if hasattr(mode.observer, "deferred"):
            mode.observer.deferred(node, xs)
    return outputs if several else outputs[0]
