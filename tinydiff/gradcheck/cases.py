"""What the functions of both shelves are run on, to be compared with their definitions in float64; see `backends.py`.

Shapes are small and awkward: sums of several slices and parts, tiles that stick out, odd channels, one pixel, arrays that do not
start at 16 bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tinydiff import optim, random
from tinydiff.diffusion import noise
from tinydiff.dispatch import by_definition
from tinydiff.ops.activation import silu_backward, silu_forward
from tinydiff.ops.attending import attend, attend_backward
from tinydiff.ops.contraction import product
from tinydiff.ops.convolution import (
    convolve,
    convolve_input_gradient,
    convolve_weight_gradient,
    sum_pixels,
    sum_pixels_and_images,
    upsample_convolve,
    upsample_convolve_input_gradient,
    upsample_convolve_weight_gradient,
)
from tinydiff.ops.fully_connected import (
    linear_forward,
    linear_input_gradient,
    linear_weight_gradient,
    linears_forward,
    linears_input_gradient,
    linears_weight_gradient,
    sum_rows,
    sums_of_rows,
)
from tinydiff.ops.normalization import group_normalize, group_normalize_backward
from tinydiff.ops.pooling import repeat_pixels, sum_pixel_blocks
from tinydiff.ops.reduction import sum_of_squares
from tinydiff.ops.shape import cut, join
from tinydiff.ops.softmaxes import softmax_array, softmax_backward
from tinydiff.ops.tables import pick_rows, sum_picked
from tinydiff.ops.windows import Window
from tinydiff.random import Generator

Array = np.ndarray
Pairs = Iterator[tuple[Any, Any]]  # what a fast version gave, and what the definition gives in float64
Run = Callable[..., Any]  # calls a function with its arguments where they are to be computed
Check = Callable[[np.random.Generator, Run], Pairs]
Cases = Callable[[np.random.Generator], Iterator[tuple[Any, ...]]]  # arguments of a function, in float32

STATE = (2**40 + 7, 3, 12, 2**32 - 3)  # of a generator; the offset crosses a word


def held(function: Any, cases: Cases) -> Check:
    """A check that a fast version of a function gives what its definition gives in float64, for each of the cases."""

    def check(rng: np.random.Generator, run: Run) -> Pairs:
        for args in cases(rng):
            ours = run(function, *args)
            yield from pairs(ours, defined(function, *map(double, args)))

    return check


def defined(function: Callable[..., Any], *args: Any) -> Any:
    """What the definition of a function gives."""
    with by_definition():
        return function(*args)


def pairs(ours: Any, truth: Any) -> Pairs:
    """Each array of a result, or of the tuple or list that it is; None where the truth is None."""
    if not isinstance(truth, tuple | list):
        yield ours, truth
        return
    if ours is NotImplemented or len(ours) != len(truth):
        yield NotImplemented, truth[0]
        return
    for a, b in zip(ours, truth, strict=True):
        if b is not None:
            yield a, b


def double(x: Any) -> Any:
    if isinstance(x, tuple | list) and any(isinstance(a, np.ndarray) for a in x):
        return type(x)(map(double, x))
    return x.astype(np.float64) if isinstance(x, np.ndarray) and x.dtype == np.float32 else x


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape, np.float32)


# --- Products of matrices.


def products_of(rng: np.random.Generator) -> Iterator[tuple[Array, Array, Array]]:
    for stack, M, K, N in (
        ((), 70, 100, 36),
        ((3,), 66, 133, 35),
        ((), 5, 1600, 8),
        ((), 1, 1, 1),
        ((2,), 132, 52, 140),
    ):
        yield normal(rng, *stack, M, K), normal(rng, *stack, K, N), normal(rng, N)


def _product(rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    for A, B, _ in products_of(rng):
        yield A, B
        yield A, B.swapaxes(-1, -2).copy(), False, True
        yield A.swapaxes(-1, -2).copy(), B, True, False


def _layers(rng: np.random.Generator) -> Iterator[tuple[Array, Array, Array, Array]]:
    """X (N, D), W (D, M), b (M,), L_Y (N, M)."""
    for N, D, M in ((70, 100, 36), (5, 1600, 8), (1, 1, 1), (300, 7, 33), (0, 4, 3)):
        yield normal(rng, N, D), normal(rng, D, M), normal(rng, M), normal(rng, N, M)


def _linear(rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    for X, W, b, _ in _layers(rng):
        yield X, W, b
        yield X, W, None


def _several_layers(rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    for X, W, b, _ in _layers(rng):
        yield X, [W, -W[:, :1]], [b, None]


def _several_gradients(rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    for _, W, _, L_Y in _layers(rng):
        yield [L_Y, L_Y[:, :1]], [W, -W[:, :1]]


def rows_of(rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    for shape in ((1, 1), (300, 33), (7, 64), (1000, 5)):
        yield (normal(rng, *shape),)


def _picked(rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    for shape, V in (((7,), 4), ((2, 3), 9), ((200,), 3)):
        yield normal(rng, *shape, 5), rng.integers(0, V, shape), (V, 5)


def _tables(rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    for shape, D in (((7,), 5), ((2, 3), 8), ((200,), 12)):
        yield normal(rng, 9, D), rng.integers(0, 9, shape)


# --- Convolutions.


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


def _convolutions(rng: np.random.Generator) -> Iterator[tuple[Window, Array, Array, Array]]:
    for images, C, K, window in _CONVOLUTIONS:
        X, W = normal(rng, *images, C), normal(rng, *window.size, C, K)
        yield window, X, W, normal(rng, images[0], *window.output_size(X.shape), K)


def _convolve(rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    for window, X, W, R in _convolutions(rng):
        yield X, W, None, window
        yield X, W, normal(rng, W.shape[3]), window, 1, normal(rng, len(X), W.shape[3]), R


def images_of(rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    for shape in ((3, 4, 5, 8), (2, 1, 1, 33), (200, 3, 3, 4)):
        yield (normal(rng, *shape),)


def _doubled(rng: np.random.Generator) -> Iterator[tuple[Array, Array, Array, Array]]:
    """X (N, H, W, C), W (3, 3, C, K), b (K,), L_Y (N, 2 H, 2 W, K)."""
    for N, H, W, C, K in ((2, 7, 6, 20, 24), (1, 1, 1, 3, 5)):
        yield normal(rng, N, H, W, C), normal(rng, 3, 3, C, K), normal(rng, K), normal(rng, N, 2 * H, 2 * W, K)


# --- Normalisation.


def normalized(rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    """X, L_Y, w, b, groups, silu."""
    for shape, groups, silu, mean in (
        ((2, 5, 4, 16), 4, False, 0.0),
        ((3, 7, 9, 24), 3, True, 100.0),
        ((2, 3, 5, 6), 2, True, 0.0),
        ((2, 1, 1, 64), 4, True, 0.0),
        ((1, 50, 60, 8), 1, True, -3.0),  # too large for shared memory
        ((9, 2, 2, 48), 1, False, 0.0),
    ):
        X = normal(rng, *shape) + np.float32(mean)
        yield X, normal(rng, *shape), normal(rng, shape[-1]), normal(rng, shape[-1]), groups, silu


def _group_normalize(rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    for X, _, w, b, groups, silu in normalized(rng):
        yield X, w, b, groups, 1e-5, silu


def _group_normalize_backward(rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    for X, L_Y, w, b, groups, silu in normalized(rng):
        _, u, r = defined(group_normalize, *map(double, (X, w, b)), groups, 1e-5, silu)
        if np.abs(u).max() < 50:  # else the rounding of u to float32 is all that the comparison sees
            yield L_Y, X, u.astype(np.float32), r.astype(np.float32), w, b, groups, silu


def _silu(rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    for n in (1, 4099):
        yield (3 * normal(rng, n),)


def _silu_backward(rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    for n in (1, 4099):
        yield normal(rng, n), 3 * normal(rng, n)


# --- Attention.


def _softmax(rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    for shape in ((3, 1), (9, 33), (5, 200), (2, 3, 700), (3, 1500)):
        yield 4 * normal(rng, *shape), -1


def _softmax_backward(rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    for X, axis in _softmax(rng):
        yield defined(softmax_array, X, axis), normal(rng, *X.shape), axis


def _attend(rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    for stack, L, M, D, E in (((2, 3), 9, 7, 5, 6), ((2,), 64, 64, 32, 32), ((1,), 3, 1100, 8, 4)):
        Q, K, V = (normal(rng, *stack, *size) for size in ((L, D), (M, D), (M, E)))
        yield Q, K, V, D**-0.5


def _attend_backward(rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    for Q, K, V, scale in _attend(rng):
        Y, z = (a.astype(np.float32) for a in defined(attend, *map(double, (Q, K, V)), scale))
        yield normal(rng, *Y.shape), Q, K, V, z, Y, scale


# --- Noise.


def _draws(rng: np.random.Generator, run: Run) -> Pairs:
    for n in (1, 6, 2051):
        yield run(random.words, n, STATE, "cpu"), defined(random.words, n, STATE, "cpu")
        yield run(random.uniform, n, STATE, "cpu"), defined(random.uniform, n, STATE, "cpu")
        yield run(random.normal, n, STATE, "cpu"), Generator(*STATE).normal(n, np.float64)


def _pictures(rng: np.random.Generator) -> Iterator[tuple[Array, Array, Array, Array]]:
    """x0, another such array, and both weights of q_sample."""
    for shape in ((3, 5, 5, 1), (4, 9, 7, 3)):
        a = rng.uniform(0.1, 0.9, shape[0])
        yield normal(rng, *shape), normal(rng, *shape), a, np.sqrt(1 - a * a)


def _q_sample(rng: np.random.Generator, run: Run) -> Pairs:
    for x0, _, a, s in _pictures(rng):
        truth, _ = defined(noise.q_sample, double(x0), a, s, STATE)
        yield run(noise.q_sample, x0, a, s, STATE)[0], truth


def _mse_loss(rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    for x0, P, a, s in _pictures(rng):
        for target in ("eps", "x0", "v"):
            yield P, x0, a, s, STATE, target, rng.uniform(0.5, 2, len(x0))


def _reverse_step(rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    c = np.array([1.2, -0.7, 0.6, 0.3, 0.4, -0.5, 0.8, 0.25])
    for xt, output, _, _ in _pictures(rng):
        yield output, xt, c, STATE
        yield np.concatenate([output, normal(rng, *xt.shape)], -1), xt, c, STATE, False, normal(rng, *xt.shape)


# --- Optimisers, which change their arrays in place.


def _gathered_adam(rng: np.random.Generator, run: Run) -> Pairs:
    arrays = [[np.abs(normal(rng, *shape)) for shape in ((3, 5), (33,), (1,))] for _ in range(5)]
    exact: Any = [double(a) for a in arrays]
    options: Any = 2, 0.02, (0.9, 0.99), 1e-3, 0.1, True, 0.8
    pieces, parts = zip(*(run(optim.gathered, a) for a in arrays), strict=True)
    run(optim.adam, *pieces, *options)
    defined(optim.adam, *exact, *options)
    for part, truth in zip(parts, exact, strict=True):
        yield from zip(part, truth, strict=True)


def _clip(rng: np.random.Generator, run: Run) -> Pairs:
    for n in (1, 3001, 40_000):
        g = normal(rng, n + 1)[1:]
        exact = double(g)
        yield run(optim.clip, [g], 1e-2), defined(optim.clip, [exact], 1e-2)
        yield g, exact


def _vectors(rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    for n in (1, 3001):
        yield (normal(rng, n),)


# --- Resampling and joining.


def _small(rng: np.random.Generator) -> Iterator[tuple[Array, Array, Array]]:
    for N, H, W, A, B in ((2, 3, 5, 8, 4), (1, 4, 2, 3, 8), (2, 1, 1, 5, 1)):
        yield normal(rng, N, H, W, A), normal(rng, N, H, W, B), normal(rng, N, 2 * H, 2 * W, A)


BY_DEFINITION: dict[str, dict[str, Check]] = {  # by the source of the kernels
    "matrix": {
        "product": held(product, _product),
        "linear_forward": held(linear_forward, _linear),
        "linears_forward": held(linears_forward, _several_layers),
        "linears_input_gradient": held(linears_input_gradient, _several_gradients),
        "linears_weight_gradient": held(
            linears_weight_gradient, lambda rng: ((X, [L, L[:, :1]]) for X, _, _, L in _layers(rng))
        ),
        "linear_input_gradient": held(linear_input_gradient, lambda rng: ((L, W) for _, W, _, L in _layers(rng))),
        "linear_weight_gradient": held(linear_weight_gradient, lambda rng: ((X, L) for X, _, _, L in _layers(rng))),
        "sum_picked": held(sum_picked, _picked),
    },
    "sums": {
        "sum_rows": held(sum_rows, rows_of),
        "sums_of_rows": held(sums_of_rows, lambda rng: (([L, L[:, :3].copy()],) for (L,) in rows_of(rng))),
        "sum_pixels": held(sum_pixels, images_of),
        "sum_pixels_and_images": held(sum_pixels_and_images, images_of),
    },
    "convolution": {
        "convolve": held(convolve, _convolve),
        "convolve_input_gradient": held(
            convolve_input_gradient, lambda rng: ((L_Y, W, X.shape, window) for window, X, W, L_Y in _convolutions(rng))
        ),
        "convolve_weight_gradient": held(
            convolve_weight_gradient,
            lambda rng: ((X, L_Y, W.shape, window) for window, X, W, L_Y in _convolutions(rng)),
        ),
        "upsample_convolve": held(upsample_convolve, lambda rng: ((X, W, b) for X, W, b, _ in _doubled(rng))),
        "upsample_convolve_input_gradient": held(
            upsample_convolve_input_gradient, lambda rng: ((L_Y, W) for _, W, _, L_Y in _doubled(rng))
        ),
        "upsample_convolve_weight_gradient": held(
            upsample_convolve_weight_gradient, lambda rng: ((X, L_Y) for X, _, _, L_Y in _doubled(rng))
        ),
    },
    "normalization": {
        "group_normalize": held(group_normalize, _group_normalize),
        "group_normalize_backward": held(group_normalize_backward, _group_normalize_backward),
        "silu": held(silu_forward, _silu),
        "silu_backward": held(silu_backward, _silu_backward),
    },
    "attention": {
        "softmax": held(softmax_array, _softmax),
        "softmax_backward": held(softmax_backward, _softmax_backward),
        "attend": held(attend, _attend),
        "attend_backward": held(attend_backward, _attend_backward),
    },
    "noise": {
        "draws": _draws,
        "q_sample": _q_sample,
        "mse_loss": held(noise.mse_loss, _mse_loss),
        "reverse_step": held(noise.reverse_step, _reverse_step),
    },
    "optimizer": {
        "adam": _gathered_adam,
        "clip": _clip,
        "sum_of_squares": held(sum_of_squares, _vectors),
    },
    "resampling": {
        "repeat_pixels": held(repeat_pixels, lambda rng: ((X, (2, 2)) for X, _, _ in _small(rng))),
        "sum_pixel_blocks": held(sum_pixel_blocks, lambda rng: ((L_Y, (2, 2)) for _, _, L_Y in _small(rng))),
        "join": held(join, lambda rng: (([X, Y], -1) for X, Y, _ in _small(rng))),
        "pick_rows": held(pick_rows, _tables),
        "cut": held(cut, lambda rng: ((np.concatenate([X, Y], -1), [X.shape[-1]], -1) for X, Y, _ in _small(rng))),
    },
}
