"""What the CUDA kernels can do beyond the definitions, on the arrays of `cases.py`; and all cases together."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from tinydiff import optim
from tinydiff.cuda import doubling, normalization, products, tensor, tensor_convolution
from tinydiff.cuda.launch import launch
from tinydiff.cuda.taps import Place, Taps, taps_of
from tinydiff.cuda.updates import Prepared, adam_scalars, launch_adam, launch_squared_norm
from tinydiff.data.pixels import gather_batch
from tinydiff.gradcheck import attention_cases, joint_cases
from tinydiff.gradcheck.cases import (
    BY_DEFINITION,
    STATE,
    Check,
    Pairs,
    Run,
    defined,
    double,
    normal,
    normalized,
    pairs,
    products_of,
)
from tinydiff.gradcheck.half_cases import SOURCES_OF_HALVES, compared, in_16_bits, onto_another
from tinydiff.ops import convolution
from tinydiff.ops.normalization import group_normalize, group_normalize_backward
from tinydiff.ops.optim import move_loss_scale
from tinydiff.ops.windows import Window
from tinydiff.precision import from_memory, in_memory, rounded
from tinydiff.random import Generator


def _matmul(rng: np.random.Generator, run: Run) -> Pairs:
    """What the kernel can do beside a product."""
    for A, B, bias in products_of(rng):
        yield run(products.matmul, A, B, bias=bias, scale=0.5), double(A) @ double(B) / 2 + bias


def _tensor_product(
    rng: np.random.Generator, run: Run, precision: str, result: str, transpose_a: bool, transpose_b: bool
) -> Pairs:
    """Products on tensor cores, of rounded operands; the inner axis ends within a slice, and tiles within the matrices."""
    transposes = transpose_a, transpose_b
    for M, N, K, stack in ((8, 16, 24, 2), (136, 264, 72, 1), (8, 72, 1200, 1)):
        A, B, bias, Y = normal(rng, stack, M, K), normal(rng, stack, K, N), normal(rng, N), normal(rng, stack, M, N)
        operands = (x.swapaxes(1, 2) if yes else x for x, yes in zip((A, B), transposes, strict=True))
        a, b = (in_memory(np.ascontiguousarray(x), precision) for x in operands)
        y = in_memory(Y, result)
        run(tensor.product, a, b, bias, y, *transposes, 0.5, (M, N, K, stack), (M * K, K * N), precision)
        truth = double(rounded(A, precision)) @ double(rounded(B, precision)) / 2 + bias
        yield compared(y, truth, "tf32" if result == "float32" else result)


_CONVOLUTIONS = (  # images, channels, filters, window
    ((2, 6, 5), 32, 32, Window((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))),
    ((1, 8, 9), 32, 64, Window((3, 3), (2, 2), ((0, 1), (0, 1)), (1, 1))),
    ((2, 9, 8), 96, 96, Window((1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1))),
    ((3, 11, 9), 32, 288, Window((1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1))),  # several of the largest tiles
    ((2, 9, 11), 32, 32, Window((3, 2), (2, 3), ((1, 2), (2, 1)), (3, 4))),
)


def _on_tensor_cores(rng: np.random.Generator, precision: str) -> Iterator[Any]:
    """Windows, images X, filters W and L_Y, those as they lie in memory and as the float64 numbers that they are then."""
    for shape, C, K, window in _CONVOLUTIONS:
        X, W = normal(rng, *shape, C), normal(rng, *window.size, C, K) / 8
        arrays = X, W, normal(rng, len(X), *window.output_size(X.shape), K)
        yield window, [in_memory(x, precision) for x in arrays], [double(rounded(x, precision)) for x in arrays]


def _tensor_convolution(rng: np.random.Generator, run: Run, precision: str, backward: bool) -> Pairs:
    for window, (X, W, L_Y), (x, w, l_y) in _on_tensor_cores(rng, precision):
        Y = np.zeros_like(X if backward else L_Y)
        if backward:
            run(tensor_convolution.convolve_input_gradient, L_Y, W, Y, window, precision)
            truth = defined(convolution.convolve_input_gradient, l_y, w, X.shape, window)
        else:
            b, E, R = normal(rng, Y.shape[3]), normal(rng, len(Y), Y.shape[3]), normal(rng, *Y.shape)
            place = Place(*Y.shape[1:3], *Y.shape[1:3])
            added = b, E, in_memory(R, precision)
            run(tensor_convolution.convolve, X, W, added, Y, taps_of(window), place, precision)
            truth = defined(convolution.convolve, x, w, b, window) + E[:, None, None] + from_memory(added[2])
        yield compared(Y, truth, precision)


def _tensor_weight_gradient(rng: np.random.Generator, run: Run, precision: str) -> Pairs:
    for window, (X, W, L_Y), (x, _, l_y) in _on_tensor_cores(rng, precision):
        L_W = normal(rng, *W.shape)
        run(tensor_convolution.convolve_weight_gradient, X, L_Y, L_W, taps_of(window), precision)
        yield L_W, defined(convolution.convolve_weight_gradient, x, l_y, W.shape, window)


def _doubled_pixels(rng: np.random.Generator, run: Run, precision: str) -> Pairs:
    for N, height, width, C, K in ((2, 4, 3, 64, 16), (1, 1, 1, 32, 16), (2, 5, 6, 32, 80)):
        X, V, b = normal(rng, N, height, width, C), normal(rng, 4, 2, 2, C, K), normal(rng, K)
        Y = in_memory(np.zeros((N, 2 * height, 2 * width, K), np.float32), precision)
        taps, place = Taps((2, 2), (1, 1), (1, 1), (1, 1)), Place(height, width, 2 * height, 2 * width, (2, 2))
        in_it = [in_memory(a, precision) for a in (X, V)]
        run(tensor_convolution.convolve, *in_it, (b, None, None), Y, taps, place, precision)
        x, v = (double(rounded(a, precision)) for a in (X, V))
        for i, j in np.ndindex(2, 2):
            window = Window((2, 2), (1, 1), ((1 - i, i), (1 - j, j)), (1, 1))
            truth = defined(convolution.convolve, x, v[2 * i + j], None, window) + b
            yield compared(Y[:, i::2, j::2], truth, precision)


def _with_dropout(rng: np.random.Generator, run: Run) -> Pairs:
    """Y = M silu(Z w + b), whose gradient is that of silu(Z w + b) for M L_Y."""
    for (X, L_Y, w, b, groups, silu), p in zip(normalized(rng), (0.0, 0.2, 0.3, 0.1, 0.2, 0.5), strict=True):
        dropout = (p, STATE) if p else None
        mask = (Generator(*STATE).uniform(X.shape) >= np.float32(p)) / (1 - p)
        doubles = [double(x) for x in (X, w, b)]
        Y, u, r = defined(group_normalize, *doubles, groups, 1e-5, silu)
        ours = run(normalization.group_normalize, X, w, b, groups, 1e-5, silu, dropout)
        yield from pairs(ours, (Y * mask, u, r))
        saved = u.astype(np.float32), r.astype(np.float32)
        ours = run(normalization.group_normalize_backward, L_Y, X, *saved, w, b, groups, silu, dropout=dropout)
        if np.abs(u).max() < 50:
            x, w64, b64 = doubles
            truth = defined(group_normalize_backward, double(L_Y) * mask, x, u, r, w64, b64, groups, silu)
            yield from pairs(ours, truth)


def _adam(rng: np.random.Generator, run: Run) -> Pairs:
    for n in (1, 1027, 4096):
        p, g, m, v, average = (normal(rng, n) ** power for power in (1, 1, 1, 2, 1))
        exact: Any = [[double(a)] for a in (p, 0.5 * g, m, v, average)]
        defined(optim.adam, *exact, 7, 0.02, (0.9, 0.99), 1e-3, 0.01, False, 0.8)
        scalars = adam_scalars(7, 0.02, (0.9, 0.99), 1e-3, 0.0, 0.8, 0.5)
        run(launch_adam, p, g, m, v, average, scalars, (0.9, 0.99), 0.01)
        yield from zip((p, m, v, average), (x for i, (x,) in enumerate(exact) if i != 1), strict=True)


def _squared_norm(rng: np.random.Generator, run: Run) -> Pairs:
    for n in (1, 3001, 40_000):
        g, scale = normal(rng, n + 1)[1:], np.zeros(1, np.float32)  # four bytes past a multiple of 16
        squared = np.sum(double(g) ** 2)
        yield run(launch_squared_norm, g, 1e-2, scale), squared
        yield scale, np.minimum([1], 1e-2 / np.sqrt(squared))


def _loss_scale(rng: np.random.Generator, run: Run) -> Pairs:
    """A loss scale over some steps: what becomes of it, of the factor for Adam, and of the latch for failures."""
    ours, truth = np.array([4, 1998], np.float32), np.array([4, 1998], np.float32)
    report, failed, clock = np.zeros((1, 4), np.float32), np.zeros(1, np.uint32), np.array([3, 0], np.uint32)
    g, scale = normal(rng, 3001), np.zeros(1, np.float32)
    norm = float(np.sqrt(np.sum(double(g) ** 2)))
    for S, factor, loss in (
        (4, 1, 1.0),
        (4, 1, 1.0),
        (8, np.inf, 1.0),
        (4, 1, np.nan),
        (2, 1, 1.0),
        (1, 1, np.nan),
        (1, 1, 1.0),
    ):
        if S == 1:
            ours[...] = truth[...] = S, 0
        yield ours[:1], np.array([S])
        prepared, lost, finite = Prepared(None, clock, report, failed), failed[0] > 0, np.isfinite([factor, loss]).all()
        options = norm / 2, scale, np.array([loss], np.float32), None, prepared, ours
        run(launch_squared_norm, np.float32(S * factor) * g, *options)
        if not lost:
            move_loss_scale(truth, bool(finite))
        yield (
            np.nan_to_num(scale),
            np.array([0.5 / S if finite and not lost else 0.0]),
        )  # NaN where the step is left out
        yield ours, truth
        yield failed, np.array([3 * (lost or (S == 1 and not finite))], np.uint32)


def _gather_batch(rng: np.random.Generator, run: Run) -> Pairs:
    for shape in ((5, 3, 4, 1), (4, 5, 5, 3), (2, 1, 1, 4)):
        images, n = rng.integers(0, 256, shape).astype(np.uint8), 7
        indices, mirrored = rng.integers(0, shape[0], n), rng.integers(0, 2, n) == 1
        for flags in (None, mirrored):
            yield run(gather_batch, images, indices, flags), defined(gather_batch, images, indices, flags)


def _tick(rng: np.random.Generator, run: Run) -> Pairs:
    rows = rng.integers(0, 2**32, (3, 300)).astype(np.uint32)
    clock, now = np.array([6, 9], np.uint32), np.zeros(300, np.uint32)
    for step in (7, 8, 9, 10):
        run(launch, "batch.cu", "tick", (1, 1, 1), (256, 1, 1), (clock, rows, now, np.int32(300), np.int32(3)))
        yield now, rows[step % 3]
        yield clock, np.array([step, 9], np.uint32)


def _filters(rng: np.random.Generator, run: Run, precision: str = "float32") -> Pairs:
    for C, K in ((40, 70), (1, 3)):
        W = normal(rng, 3, 3, C, K)
        short, exact, truth = in_memory(W, precision), double(rounded(W, precision)), np.zeros((4, 4, C, K))
        for i, j in np.ndindex(4, 4):  # tap i of 4 is the sum of those of 3 that it covers
            truth[i, j] = exact[max(0, 2 - i) : 4 - i, max(0, 2 - j) : 4 - j].sum((0, 1))
        V = run(doubling.filters_of_parities, short)
        yield compared(run(doubling.turned_filters, short), truth.swapaxes(2, 3), precision)
        for a, b, i, j in np.ndindex(2, 2, 2, 2):
            yield compared(V[a, b, i, j], truth[3 - a - 2 * i, 3 - b - 2 * j], precision)


def _filters_backward(rng: np.random.Generator, run: Run) -> Pairs:
    for C, K in ((40, 70), (1, 3)):
        L_T, L_W, double = normal(rng, 4, 4, K, C), np.zeros((3, 3, C, K), np.float32), np.zeros((3, 3, C, K))
        run(doubling.sum_gradient, L_T, L_W)
        for r, s in np.ndindex(3, 3):
            double[r, s] = L_T[2 - r : 4 - r, 2 - s : 4 - s].sum((0, 1), np.float64).T
        yield L_W, double


OF_KERNELS: dict[str, dict[str, Check]] = {  # what the kernels can do beyond the definitions
    "batch": {"gather_batch": _gather_batch, "tick": _tick},
    "doubling": {
        "filters": _filters,
        "their gradient": _filters_backward,
        **{f"{p} filters": functools.partial(_filters, precision=p) for p in ("bf16", "fp16")},
    },
    "joint": joint_cases.IN_FLOAT32,
    "matrix": {"matmul": _matmul},
    "normalization": {
        "dropout": _with_dropout,
        "onto another": functools.partial(onto_another, precision="float32"),
    },
    "tensor_product": {
        precision + (result != "float32") * f" to {result}" + name: functools.partial(
            _tensor_product, precision=precision, result=result, transpose_a=a, transpose_b=b
        )
        for precision, result in (
            ("tf32", "float32"),
            ("bf16", "bf16"),
            ("bf16", "float32"),
            ("fp16", "fp16"),
            ("fp16", "float32"),
        )
        for name, a, b in (("", False, False), (", A transposed", True, False), (", B transposed", False, True))
    },
    "tensor_joint": joint_cases.ON_TENSOR_CORES,
    "tensor_convolution": {
        **{
            f"{precision}{', backward' if backward else ''}": functools.partial(
                _tensor_convolution, precision=precision, backward=backward
            )
            for precision in ("tf32", "bf16", "fp16")
            for backward in (False, True)
        },
        **{
            f"{precision}, doubled pixels": functools.partial(_doubled_pixels, precision=precision)
            for precision in ("tf32", "bf16", "fp16")
        },
    },
    "tensor_attention": attention_cases.CHECKS,
    "tensor_weight_gradient": {
        precision: functools.partial(_tensor_weight_gradient, precision=precision)
        for precision in ("tf32", "bf16", "fp16")
    },
    "optimizer": {"launch_adam": _adam, "squared_norm": _squared_norm, "loss scale": _loss_scale},
}

BY_SOURCE = {
    name: {**BY_DEFINITION.get(name, {}), **OF_KERNELS.get(name, {}), **in_16_bits(name)}
    for name in sorted({*BY_DEFINITION, *OF_KERNELS, *SOURCES_OF_HALVES})
}
