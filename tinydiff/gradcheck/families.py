"""Every CUDA kernel, run on the host and compared with its definition in float64: `tinydiff gradcheck --kernels`.

Gradients are compared with their formulas, which hold for the operations of the package too and are checked there by
finite differences; a kernel itself works in float32, where differences show little. Shapes are small and awkward: sums of
several slices and parts, tiles that stick out, odd channels, one pixel, arrays that do not start at 16 bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from tinydiff.cuda import (
    activation,
    attending,
    convolution,
    fully_connected,
    host,
    noise,
    normalization,
    optim,
    pooling,
    products,
    random,
    softmaxes,
    source,
)
from tinydiff.cuda.shape import cut, join
from tinydiff.cuda.updates import adam_scalars, launch_adam, launch_squared_norm
from tinydiff.dispatch import by_definition
from tinydiff.errors import RunFailed
from tinydiff.gradcheck.kernels import by_kernels
from tinydiff.ops.windows import Window, fold, unfold
from tinydiff.optim import adam, clip
from tinydiff.random import Generator

Array = np.ndarray
Pairs = Iterator[tuple[Any, Any]]  # what a kernel gave, and what the definition gives in float64
Run = Callable[..., Any]  # calls a function with its arguments where its kernels run
Check = Callable[[np.random.Generator, Run], Pairs]

TOLERANCE = 1e-5  # of a result's largest entry

_STATE = (2**40 + 7, 3, 12, 2**32 - 3)  # of a generator; the offset crosses a word


class Outcome(NamedTuple):
    """One check of a family: the kernels that it ran, its largest error, and what was wrong, if anything was."""

    kernels: frozenset[str]
    error: float
    failure: str


def check_kernels(seed: int = 0, write: Callable[[str], Any] = print) -> bool:
    """Checks every kernel and writes a line for each; whether all are right. RunFailed without a C++ compiler.

    seed: of the numbers, and of the order in which threads and blocks take turns.
    """
    if host.missing():
        raise RunFailed(str(host.missing()))
    start, right, ran = time.perf_counter(), True, 0
    for family, checks in FAMILIES.items():
        outcomes = {name: run_check(check, seed) for name, check in checks.items()}
        for kernel in source.kernels(source.load(f"{family}.cu", host=True)):
            by = {name: outcome for name, outcome in outcomes.items() if kernel in outcome.kernels}
            failures = [f"{name}: {outcome.failure}" for name, outcome in by.items() if outcome.failure]
            right &= bool(by) and not failures
            ran += 1
            if failures or not by:
                write(f"{family + '.cu':18} {kernel:24} WRONG  {'; '.join(failures) or 'nothing ran it'}")
            else:
                error = max(outcome.error for outcome in by.values())
                write(f"{family + '.cu':18} {kernel:24} right  {error:7.1e} of the largest entry  ({', '.join(by)})")
        for name, outcome in outcomes.items():
            if not outcome.kernels:
                right = False
                write(f"{family + '.cu':18} {'(' + name + ')':24} WRONG  {outcome.failure or 'it ran no kernel'}")
    write(f"{ran} kernels {'agree' if right else 'do not all agree'} with float64, {time.perf_counter() - start:.1f} s")
    return right


def run_check(check: Check, seed: int = 0) -> Outcome:
    """Runs one of the checks in FAMILIES."""
    ran: set[str] = set()
    worst, failure = 0.0, ""

    def run(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        with by_kernels(ran, seed):
            return function(*args, **options)

    try:
        for ours, truth in check(np.random.default_rng(seed), run):
            error = _error(ours, truth)
            worst = max(worst, error)
            if not error <= TOLERANCE and not failure:
                failure = f"off by {error:.1e} of the largest entry, shape {np.shape(truth)}"
    except source.KernelError as error:
        if "does not compile" in str(error):
            raise RunFailed(f"the kernels cannot be checked: {error}") from None
        failure = failure or str(error)
    return Outcome(frozenset(ran), worst, failure)


def _error(ours: Any, truth: Any) -> float:
    """The largest difference relative to the largest entry; infinite where shapes, integers or infinities differ."""
    if ours is NotImplemented or np.shape(ours) != np.shape(truth):
        return np.inf
    ours, truth = np.asarray(ours), np.asarray(truth)
    if truth.dtype.kind in "iu" or not truth.size:
        return 0.0 if np.array_equal(ours, truth) else np.inf
    finite = np.isfinite(truth)
    if not np.array_equal(ours[~finite], truth[~finite]):
        return np.inf
    with np.errstate(invalid="ignore"):  # whatever memory held that a wrong kernel did not write
        differences = np.abs(ours[finite] - truth[finite].astype(np.float64))
    error = differences.max(initial=0) / (np.abs(truth[finite]).max(initial=0) or 1)
    return float(error) if np.isfinite(error) else np.inf


def _zip(ours: Iterable[Any], *truth: Any) -> Pairs:
    yield from zip(ours, truth, strict=True)


def _normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape, np.float32)


def _doubles(*xs: Array) -> list[Array]:
    return [x.astype(np.float64) for x in xs]


# --- Products of matrices.


def _matmul(rng: np.random.Generator, run: Run) -> Pairs:
    for stack, M, K, N in (
        ((), 70, 100, 36),
        ((3,), 66, 37, 35),
        ((), 5, 1600, 8),
        ((), 1, 1, 1),
        ((2,), 132, 52, 140),
    ):
        A, B, bias = _normal(rng, *stack, M, K), _normal(rng, *stack, K, N), _normal(rng, N)
        A64, B64, b64 = _doubles(A, B, bias)
        truth = A64 @ B64
        yield run(products.matmul, A, B), truth
        yield run(products.matmul, A, B, bias=bias, scale=0.5), truth / 2 + b64
        yield run(products.matmul, A, B.swapaxes(-1, -2).copy(), transpose_b=True), truth
        yield run(products.matmul, A.swapaxes(-1, -2).copy(), B, transpose_a=True), truth


def _sum_rows(rng: np.random.Generator, run: Run) -> Pairs:
    for size in ((1, 1), (300, 33), (7, 64), (1000, 5)):
        X = _normal(rng, *size)
        yield run(fully_connected.sum_rows, X), X.sum(0, dtype=np.float64)


# --- Convolutions. P = patches(X), Y = P W + 1 b.


def _window(size: int, stride: int, padding: Any, dilation: int = 1) -> Window:
    return Window.read("gradcheck", size, stride, padding, dilation)


_CONVOLUTIONS = (  # images, C, K, window
    ((2, 6, 5), 20, 36, _window(3, 1, 1)),
    ((3, 7, 5), 8, 12, _window(3, 2, ((0, 1), (0, 1)))),
    ((2, 5, 7), 3, 7, _window(3, 1, ((2, 0), (1, 3)))),
    ((2, 9, 8), 4, 8, _window(3, 1, 2, 2)),
    ((40, 2, 2), 8, 12, _window(3, 1, 1)),
    ((1, 4, 4), 100, 4, _window(3, 1, 1)),
    ((2, 4, 9), 20, 70, _window(1, 1, 0)),
)


def _convolution_arrays(rng: np.random.Generator) -> Iterator[tuple[Window, Array, Array, Array]]:
    for images, C, K, window in _CONVOLUTIONS:
        X, W = _normal(rng, *images, C), _normal(rng, *window.size, C, K)
        yield window, X, W, _normal(rng, images[0], *window.output_size(X.shape), K)


def _convolve(rng: np.random.Generator, run: Run) -> Pairs:
    for window, X, W, R in _convolution_arrays(rng):
        b, E = _normal(rng, W.shape[3]), _normal(rng, len(X), W.shape[3])
        X64, W64, b64, E64, R64 = _doubles(X, W, b, E, R)
        Y = np.tensordot(unfold(X64, window), W64, 3)
        yield run(convolution.convolve, X, W, None, window), Y
        yield run(convolution.convolve, X, W, b, window, 1, E, R), Y + b64 + E64[:, None, None] + R64


def _convolve_input_gradient(rng: np.random.Generator, run: Run) -> Pairs:
    for window, X, W, L_Y in _convolution_arrays(rng):
        L_P = np.tensordot(L_Y.astype(np.float64), W, (3, 3))
        yield run(convolution.convolve_input_gradient, L_Y, W, X.shape, window), fold(L_P, X.shape, window)


def _convolve_weight_gradient(rng: np.random.Generator, run: Run) -> Pairs:
    for window, X, W, L_Y in _convolution_arrays(rng):
        L_W = np.tensordot(unfold(X.astype(np.float64), window), L_Y, ((0, 1, 2), (0, 1, 2)))
        yield run(convolution.convolve_weight_gradient, X, L_Y, W.shape, window), L_W


# --- Normalisation. U = Z w + b, Z = (X - u) r, Y = M silu(U) with dropout's mask M.


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _normalization(rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    """Everything about groups of channels in float64, and the arrays in float32."""
    for shape, groups, silu, p, mean in (
        ((2, 5, 4, 16), 4, False, 0.0, 0.0),
        ((3, 7, 9, 24), 3, True, 0.0, 100.0),
        ((2, 3, 5, 6), 2, True, 0.3, 0.0),
        ((2, 1, 1, 64), 4, True, 0.1, 0.0),
        ((1, 50, 60, 8), 1, True, 0.2, -3.0),  # too large for shared memory
        ((9, 2, 2, 48), 1, False, 0.0, 0.0),
    ):
        X, L_Y = _normal(rng, *shape) + np.float32(mean), _normal(rng, *shape)
        w, b = _normal(rng, shape[-1]), _normal(rng, shape[-1])
        by_group = (len(X), -1, groups, shape[-1] // groups)
        x, mask = X.astype(np.float64).reshape(by_group), 1.0
        u, r = x.mean((1, 3), keepdims=True), 1 / np.sqrt(x.var((1, 3), keepdims=True) + 1e-5)
        if p:
            mask = (Generator(*_STATE).uniform(shape) >= np.float32(p)) / (1 - p)
        Z = ((x - u) * r).reshape(shape)
        U = Z * w + b
        L_U = L_Y * mask * (_sigmoid(U) * (1 + U * (1 - _sigmoid(U))) if silu else 1)
        L_Z, z = (L_U * w).reshape(by_group), Z.reshape(by_group)
        L_x = (L_Z - L_Z.mean((1, 3), keepdims=True) - z * (L_Z * z).mean((1, 3), keepdims=True)) * r
        options = {"dropout": (p, _STATE) if p else None}
        results = U * (_sigmoid(U) if silu else 1) * mask, u[:, 0, :, 0], r[:, 0, :, 0]
        gradients = L_x.reshape(shape), (L_U * Z).sum((0, 1, 2)), L_U.sum((0, 1, 2))
        yield X, L_Y, w, b, groups, silu, options, results, gradients


def _group_normalize(rng: np.random.Generator, run: Run) -> Pairs:
    for X, _, w, b, groups, silu, options, results, _ in _normalization(rng):
        yield from _zip(run(normalization._normalize, X, w, b, groups, 1e-5, silu, **options), *results)


def _group_normalize_backward(rng: np.random.Generator, run: Run) -> Pairs:
    for X, L_Y, w, b, groups, silu, options, (_, u, r), gradients in _normalization(rng):
        saved = u.astype(np.float32), r.astype(np.float32)
        ours = run(normalization._normalize_backward, L_Y, X, *saved, w, b, groups, silu, **options)
        if np.abs(u).max() < 50:  # else the rounding of u to float32 is all that the comparison sees
            yield from _zip(ours, *gradients)


def _silu(rng: np.random.Generator, run: Run) -> Pairs:
    for n in (1, 4099):
        X, L_Y = 3 * _normal(rng, n), _normal(rng, n)
        x, s = X.astype(np.float64), _sigmoid(X.astype(np.float64))
        yield run(activation.silu_forward, X), x * s
        yield run(activation.silu_backward, L_Y, X), L_Y * s * (1 + x * (1 - s))


# --- Attention.


def _softmax_of(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _softmax(rng: np.random.Generator, run: Run) -> Pairs:
    for shape in ((3, 1), (9, 33), (5, 200), (2, 3, 700), (3, 1500)):
        X, L_P = 4 * _normal(rng, *shape), _normal(rng, *shape)
        P = _softmax_of(X.astype(np.float64))
        yield run(softmaxes.softmax_array, X, -1), P
        L_X = P * (L_P - (L_P * P).sum(-1, keepdims=True))
        yield run(softmaxes.softmax_backward, P.astype(np.float32), L_P, -1), L_X


def _attend(rng: np.random.Generator, run: Run) -> Pairs:
    for stack, L, M, D, E in (((2, 3), 9, 7, 5, 6), ((2,), 64, 64, 32, 32), ((1,), 3, 1100, 8, 4)):
        Q, K, V = (_normal(rng, *stack, *size) for size in ((L, D), (M, D), (M, E)))
        L_Y = _normal(rng, *stack, L, E)
        q, k, v, l_y = _doubles(Q, K, V, L_Y)
        scale = D**-0.5
        S = scale * q @ k.swapaxes(-1, -2)
        P = _softmax_of(S)
        L_P = l_y @ v.swapaxes(-1, -2)
        L_S = P * (L_P - (L_P * P).sum(-1, keepdims=True)) * scale
        ours = run(attending.attend, Q, K, V, scale)
        yield from _zip(ours, P @ v, np.log(np.exp(S).sum(-1, keepdims=True)))
        gradients = run(attending.attend_backward, L_Y, Q, K, V, ours[1], ours[0], scale)
        yield from _zip(gradients, L_S @ k, L_S.swapaxes(-1, -2) @ q, P.swapaxes(-1, -2) @ l_y)


# --- Noise, Adam, resampling.


def _draws(rng: np.random.Generator, run: Run) -> Pairs:
    for n in (1, 6, 2051):
        yield run(random.words, n, _STATE, "cpu"), Generator(*_STATE).words(n)
        yield run(random.uniform, n, _STATE, "cpu"), Generator(*_STATE).uniform(n)
        yield run(random.normal, n, _STATE, "cpu"), Generator(*_STATE).normal(n, np.float64)


def _diffusion(rng: np.random.Generator) -> Iterator[tuple[Array, ...]]:
    for shape in ((3, 5, 5, 1), (4, 9, 7, 3)):
        x0, P = _normal(rng, *shape), _normal(rng, *shape)
        a = rng.uniform(0.1, 0.9, len(x0))
        eps = Generator(*_STATE).normal(shape, np.float64)
        yield x0, P, a, np.sqrt(1 - a * a), rng.uniform(0.5, 2, len(x0)), eps


def _q_sample(rng: np.random.Generator, run: Run) -> Pairs:
    for x0, _, a, s, _, eps in _diffusion(rng):
        yield run(noise.q_sample, x0, a, s, _STATE)[0], (a * x0.T + s * eps.T).T


def _mse_loss(rng: np.random.Generator, run: Run) -> Pairs:
    for x0, P, a, s, weight, eps in _diffusion(rng):
        for target, truth in (("eps", eps), ("x0", x0), ("v", (a * eps.T - s * x0.T).T)):
            difference = P - truth
            weighted = (weight * difference.T).T
            ours = run(noise.mse_loss, P, x0, a, s, _STATE, target, weight)
            yield from _zip(ours, np.mean(weighted * difference), 2 / P.size * weighted)


def _reverse_step(rng: np.random.Generator, run: Run) -> Pairs:
    c = np.array([1.2, -0.7, 0.6, 0.3, 0.4, -0.5, 0.8, 0.25])
    for xt, output, _, _, _, z in _diffusion(rng):
        before, v = _normal(rng, *xt.shape), _normal(rng, *xt.shape)
        x0 = c[0] * xt.astype(np.float64) + c[1] * output
        clipped = np.clip(x0, -1, 1)
        ours = run(noise.reverse_step, output, xt, c, _STATE)
        yield from _zip(ours, c[2] * clipped + c[3] * xt + c[4] * z, clipped)
        sigma = c[4] * np.exp((c[5] + c[6] * (v + 1.0)) / 2)
        both = np.concatenate([output, v], -1)
        ours = run(noise.reverse_step, both, xt, c, _STATE, False, before)
        yield from _zip(ours, c[2] * (x0 + c[7] * (x0 - before)) + c[3] * xt + sigma * z, x0)


def _adam(rng: np.random.Generator, run: Run) -> Pairs:
    for n in (1, 1027, 4096):
        p, g, m, v, ema = (_normal(rng, n) ** power for power in (1, 1, 1, 2, 1))
        p64, g64, m64, v64, ema64 = _doubles(p, g, m, v, ema)
        with by_definition():
            adam([p64], [0.5 * g64], [m64], [v64], [ema64], 7, 0.02, (0.9, 0.99), 1e-3, 0.01, False, 0.8)
        run(launch_adam, p, g, m, v, ema, adam_scalars(7, 0.02, (0.9, 0.99), 1e-3, 0.0, 0.8, 0.5), (0.9, 0.99), 0.01)
        yield from _zip((p, m, v, ema), p64, m64, v64, ema64)
    arrays = [[np.abs(_normal(rng, *shape)) for shape in ((3, 5), (33,), (1,))] for _ in range(5)]
    exact: Any = [_doubles(*a) for a in arrays]
    options: Any = 2, 0.02, (0.9, 0.99), 1e-3, 0.1, True, 0.8
    pieces, parts = zip(*(run(optim.gathered, a) for a in arrays), strict=True)
    run(optim.adam, *pieces, *options)
    with by_definition():
        adam(*exact, *options)
    yield from _zip((a for part in parts for a in part), *(a for part in exact for a in part))


def _squared_norm(rng: np.random.Generator, run: Run) -> Pairs:
    for n in (1, 3001, 40_000):
        g, scale = _normal(rng, n + 1)[1:], np.zeros(1, np.float32)  # four bytes past a multiple of 16
        exact = g.astype(np.float64)
        with by_definition():
            norm = clip([exact], 1e-2)
        yield run(launch_squared_norm, g, 1e-2, scale), norm**2
        yield scale, np.minimum([1], 1e-2 / norm)
        yield run(optim.clip, [g], 1e-2), norm
        yield g, exact


def _resampling(rng: np.random.Generator, run: Run) -> Pairs:
    for N, H, W, A, B in ((2, 3, 5, 8, 4), (1, 4, 2, 3, 8), (2, 1, 1, 5, 1)):
        X, Y, L_Y = _normal(rng, N, H, W, A), _normal(rng, N, H, W, B), _normal(rng, N, 2 * H, 2 * W, A)
        yield run(pooling.repeat_pixels, X, (2, 2)), X.repeat(2, 1).repeat(2, 2)
        blocks = L_Y.astype(np.float64).reshape(N, H, 2, W, 2, A)
        yield run(pooling.sum_pixel_blocks, L_Y, (2, 2)), blocks.sum((2, 4))
        both = np.concatenate([X, Y], -1)
        yield run(join, [X, Y], -1), both
        yield from _zip(run(cut, both, [A], -1), X, Y)


FAMILIES: dict[str, dict[str, Check]] = {
    "matrix": {"matmul": _matmul, "sum_rows": _sum_rows},
    "convolution": {
        "convolve": _convolve,
        "convolve_input_gradient": _convolve_input_gradient,
        "convolve_weight_gradient": _convolve_weight_gradient,
    },
    "normalization": {
        "group_normalize": _group_normalize,
        "group_normalize_backward": _group_normalize_backward,
        "silu": _silu,
    },
    "attention": {"softmax": _softmax, "attend": _attend},
    "noise": {"draws": _draws, "q_sample": _q_sample, "mse_loss": _mse_loss, "reverse_step": _reverse_step},
    "optimizer": {"adam": _adam, "squared_norm": _squared_norm},
    "resampling": {"upsample, concatenate": _resampling},
}
