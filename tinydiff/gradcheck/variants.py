"""Every variant of the kernels: the plans that the checks of `kernel_cases.py` are run by, one after another, and what is declared.

A call of a product has one plan, the fastest. So most variants would never run on arrays as small as those of the checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from tinydiff.cuda import convolution, nvrtc, products, source, tensor

_IN_FLOAT32, _ON_TENSOR_CORES = ("matrix", "joint", "convolution"), (*tensor.KERNELS, "tensor_joint")
PARTS = (1, 3)  # of the axis that is summed over: unsplit and split


def declared(name: str) -> list[tuple[str, ...]]:
    """The compiler's flags of each variant of kernels/`name`.cu."""
    return [source.flags(defines) for file, defines, _ in nvrtc.variants() if file == f"{name}.cu"]


def plans(name: str) -> Iterator[tuple[str, AbstractContextManager[None]]]:
    """Every plan of the products of kernels/`name`.cu: what it is, and a block in which they are made by it. For other kernels
    one block, in which nothing is different."""
    for parts in PARTS:
        split = "" if parts == 1 else f" in {parts} parts"
        if name in _IN_FLOAT32:
            for p in (
                products.PLANS if name != "joint" else [p for p in products.PLANS if p.vector_a == p.vector_b == 4]
            ):
                what = f"{p.m} x {p.n}, vectors of {p.vector_a} and {p.vector_b}{split}"
                yield what, _in_float32(p._replace(parts=parts))
        elif name in _ON_TENSOR_CORES:
            for m, n in tensor.TILES:
                yield f"{m} x {n}{split}", _on_tensor_cores(tensor.Plan(m, n, parts))
    if name not in (*_IN_FLOAT32, *_ON_TENSOR_CORES):
        yield "", nullcontext()


@contextmanager
def _replaced(modules: tuple[Any, ...], plan: Callable[..., Any]) -> Iterator[None]:
    before = [module.plan for module in modules]
    for module in modules:
        module.plan = plan
    try:
        yield
    finally:
        for module, its in zip(modules, before, strict=True):
            module.plan = its


def _in_float32(forced: products.Plan) -> AbstractContextManager[None]:
    """A block with one plan for all products whose arrays can be moved so."""
    free = products.plan

    def plan(M: int, N: int, K: int, stack: int = 1, vector_a: int = 4, vector_b: int = 4) -> products.Plan:
        fits = vector_a >= forced.vector_a and vector_b >= forced.vector_b
        return forced if fits else free(M, N, K, stack, vector_a, vector_b)

    return _replaced((products, convolution), plan)


def _on_tensor_cores(forced: tensor.Plan) -> AbstractContextManager[None]:
    return _replaced((tensor,), lambda *sizes: forced)
