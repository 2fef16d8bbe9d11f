"""What the letters and functions of a formula stand for in an operation that was recorded: arrays with numbers.

The meaning of sum and mean, and how arrays become matrices, differ between operations; `_MEANINGS` has one function for each
kind. All is computed in float64 from the values that the trace kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tinydiff.ops._erf import erf
from tinydiff.ops.convolution import SAME
from tinydiff.ops.windows import by_group, fold, joined, unfold
from tinydiff.study.notation import Term, evaluate, parse
from tinydiff.study.recorder import Operation


def _sigmoid(A: Any) -> Any:
    return 1 / (1 + np.exp(-A))


def _softmax(A: Any, axis: Any = -1) -> Any:
    E = np.exp(A - A.max(axis, keepdims=True))
    return E / E.sum(axis, keepdims=True)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "exp": np.exp, "log": np.log, "sqrt": np.sqrt, "sin": np.sin, "cos": np.cos, "tanh": np.tanh, "sign": np.sign, "erf": erf,
    "sigmoid": _sigmoid,
}  # fmt: skip


class Meaning:
    """The letters and functions of one operation. letters: definitions, as `Gradient.letters` has them.

    KeyError for a name that is not known, also where the trace did not keep all values of an array.
    """

    def __init__(self, op: Operation, letters: dict[str, str]) -> None:
        self.op, self.letters = op, letters
        self.functions = dict(_FUNCTIONS)
        self.values: dict[str, Any] = {"pi": math.pi}
        for name, value in op.settings.items():
            if isinstance(value, bool | int | float | np.ndarray | list | tuple):
                self.values[name] = value
        given = [*zip(op.names, op.inputs, strict=False), ("L_Y", op.L_Ys[0] if op.L_Ys else None)]
        given += [("Y", op.outputs[0] if op.outputs else None)]
        self.values.update((name, whole) for name, x in given if x is not None and (whole := _whole(x)) is not None)
        self.values["L_Ys"] = [_whole(L) for L in op.L_Ys]
        self.values |= {f"L_Y_{i + 1}": L for i, L in enumerate(self.values["L_Ys"])}
        self.shapes = {name: x.shape for name, x in zip(op.names, op.inputs, strict=False) if x is not None}
        self.restore: Callable[[Any, tuple[int, ...]], Any] = _fitted
        self.spreads = False  # whether a value belongs to every element of the output
        _MEANINGS.get(op.name, lambda meaning: None)(self)

    def __call__(self, name: str) -> Any:
        if name not in self.values:
            self.values[name] = self.value(parse(self.letters[name]))
        if self.values[name] is None:
            raise KeyError(name)
        return self.values[name]

    def value(self, term: Term) -> Any:
        """The value of a formula."""
        with np.errstate(all="ignore"):
            return evaluate(term, self, self.functions)


def _whole(summary: Any) -> np.ndarray | None:
    """All values, or None where the trace kept some only."""
    if summary.values is None or summary.index or summary.values.dtype.kind not in "fiub":
        return None
    return summary.values.astype(float)


def _fitted(A: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A in a shape: a stack of matrices in another shape, or repeated along axes of length 1."""
    A = np.asarray(A, float)
    if A.shape == shape:
        return A
    return A.reshape(shape) if A.size == math.prod(shape) else np.broadcast_to(A, shape)


def _elementwise(meaning: Meaning) -> None:
    limits = {"low": -math.inf, "high": math.inf}
    meaning.values |= {k: v for k, v in limits.items() if meaning.op.settings.get(k, 0) is None}
    meaning.spreads = True


def _over(meaning: Meaning, axes: Any) -> None:
    """Sums and means over axes, which stay with length 1."""
    axes = tuple(axes) if isinstance(axes, tuple | list) else (axes,)
    meaning.functions["sum"] = lambda A: A.sum(axes, keepdims=True)
    meaning.functions["mean"] = lambda A: A.mean(axes, keepdims=True)
    meaning.functions["softmax"] = lambda A: _softmax(A, axes)


def _reduction(meaning: Meaning) -> None:
    _over(meaning, meaning.op.settings["axes"])
    kept = tuple(meaning.op.settings["kept"])
    for name in ("L_Y", "Y"):
        if name in meaning.values:
            meaning.values[name] = meaning.values[name].reshape(kept)


def _along_axis(meaning: Meaning) -> None:
    _over(meaning, meaning.op.settings["axis"])


def _norm(meaning: Meaning) -> None:
    """All arrays in the shape of X. Means go over the group or, of batch normalisation, over all but the channel, as sums do."""
    shape = meaning.shapes["X"]
    groups = meaning.op.settings.get("groups")
    meaning.values.setdefault("w", 1.0)
    meaning.values.setdefault("b", 0.0)

    def mean(A: Any) -> Any:
        if meaning.op.name == "BatchNorm":
            return A.mean(tuple(range(len(shape) - 1)), keepdims=True)
        if groups is None:
            return A.mean(-1, keepdims=True)
        G = A.reshape(shape[0], -1, groups, shape[-1] // groups)
        return np.broadcast_to(G.mean((1, 3), keepdims=True), G.shape).reshape(shape)

    meaning.functions |= {"mean": mean, "sum": lambda A: A.sum(tuple(range(len(shape) - 1)))}


def _rows(meaning: Meaning) -> None:
    """Axes before the last one are rows."""
    for name, A in meaning.values.items():
        if (name in ("X", "L_Y") or name.startswith("L_Y_")) and A is not None:
            meaning.values[name] = A.reshape(-1, A.shape[-1])


def _convolution(meaning: Meaning) -> None:
    """A matrix for each group of channels: pixels are the rows of images, taps those of filters."""
    op, values = meaning.op, meaning.values
    groups = op.settings.get("groups", 1)
    transposed, upsampled = op.name == "ConvTranspose2d", op.name == "UpsampleConv2d"
    window = SAME if upsampled else op.settings["window"]
    image = op.outputs[0].shape if transposed else meaning.shapes["X"]
    if upsampled:
        image = (image[0], 2 * image[1], 2 * image[2], image[3])
    pixels = {name: values[name] for name in ("X", "L_Y") if name in values}
    values |= {name: by_group(A, groups) for name, A in pixels.items()}
    if "W" in values:
        values["W"] = by_group(values["W"], groups)
    if op.name == "Conv2d" and "L_Y" in pixels:
        meaning.functions["sum"] = lambda A: pixels["L_Y"].sum((1, 2))

    def patches(A: Any) -> Any:
        stands = next((B for name, B in pixels.items() if A is values[name]), A)  # as images again
        return by_group(unfold(stands, window), groups)

    def patches_adjoint(A: Any) -> Any:
        return fold(joined(A, (image[0], *window.output_size(image), *window.size, image[3])), image, window)

    def doubling(A: Any) -> Any:
        return pixels["X"].repeat(2, 1).repeat(2, 2)

    def doubling_adjoint(A: Any) -> Any:
        N, H, W, C = A.shape
        return A.reshape(N, H // 2, 2, W // 2, 2, C).sum((2, 4))

    def restore(A: Any, shape: tuple[int, ...]) -> Any:
        stacked = np.ndim(A) == 3 and len(A) == groups and A.shape != shape
        return joined(A, shape) if stacked and len(shape) == 4 else _fitted(A, shape)

    meaning.functions |= {"patches": patches, "patchesᵀ": patches_adjoint}
    meaning.functions |= {"doubling": doubling, "doublingᵀ": doubling_adjoint}
    meaning.restore = restore


def _windows(meaning: Meaning) -> None:
    """Patches keep the axes of the window, (N, Ho, Wo, R, S, C), and other arrays get axes of length 1 there."""
    op, window = meaning.op, meaning.op.settings["window"]
    whole = op.name in ("Patches", "Unpatches")
    image = tuple(op.settings["shape"]) if op.name == "Unpatches" else meaning.shapes["X"]
    (R, S), (Ho, Wo) = window.size, window.output_size(image)
    for name in ("L_Y", "Y"):
        if name in meaning.values and not whole:
            meaning.values[name] = meaning.values[name][:, :, :, None, None]

    def adjoint(A: Any) -> Any:
        full = (image[0], Ho, Wo, R, S, image[3])
        return fold(A.reshape(full) if whole else np.broadcast_to(A, full), image, window)

    meaning.functions |= {"patchesᵀ": adjoint, "sum": lambda A: A.sum((3, 4), keepdims=True)}
    meaning.functions["patches"] = lambda A: unfold(A, window, 0.0 if whole else -math.inf)


def _attention(meaning: Meaning) -> None:
    mask = meaning.op.settings.get("mask", meaning.values.get("mask"))
    if isinstance(mask, np.ndarray) and meaning.op.inputs[3].dtype == "bool":  # type: ignore[union-attr]
        meaning.values["mask"] = np.where(mask, 0, -math.inf)
    _over(meaning, -1)


def _moved(meaning: Meaning) -> None:
    """Operations that move elements. `scatter` puts each element of L_Y where that of Y was taken from."""
    op, settings = meaning.op, meaning.op.settings
    shape = op.inputs[0].shape if op.inputs and op.inputs[0] is not None else ()
    functions = meaning.functions
    functions["reshape"] = lambda A: A.reshape(shape)
    functions["sum"] = np.sum
    if op.name == "BroadcastTo":
        extra = len(settings["shape"]) - len(shape)
        repeated = tuple(extra + i for i, n in enumerate(shape) if n != settings["shape"][extra + i])
        functions["sum"] = lambda A: A.sum((*range(extra), *repeated))
    if op.name == "Transpose":
        functions["transpose"] = lambda A: A.transpose(np.argsort(settings["axes"]))
    if op.name in ("Concatenate", "Split"):
        ends = np.cumsum([x.shape[settings["axis"]] for x in op.inputs if x is not None])[:-1]
        functions["cut"] = lambda A: np.split(A, ends, settings["axis"])
        functions["join"] = lambda parts: np.concatenate(parts, settings["axis"])
    if op.name == "Pad":
        functions["crop"] = lambda A: A[
            tuple(slice(a, a + n) for (a, _), n in zip(settings["widths"], shape, strict=True))
        ]
    if op.name == "UpsampleNearest2d":
        f, g = settings["factor"]
        N, H, W, C = shape
        functions["sum"] = lambda A: A.reshape(N, H, f, W, g, C).sum((2, 4))
    picks = {
        "GetItem": lambda places: places[settings["index"]],
        "PadByIndex": lambda places: places.take(settings["source"], settings["axis"]),
        "Embedding": lambda places: places[settings["indices"]],
    }
    if op.name in picks:
        places = picks[op.name](np.arange(math.prod(shape)).reshape(shape))
        functions["scatter"] = lambda A: np.bincount(places.ravel(), A.ravel(), math.prod(shape)).reshape(shape)


def _einsum(meaning: Meaning) -> None:
    meaning.values["Xs"] = [_whole(x) for x in meaning.op.inputs]
    meaning.functions["einsum"] = lambda text, *As: np.einsum(text, *As)


def _cross_entropy(meaning: Meaning) -> None:
    _over(meaning, 1)
    count = meaning.shapes["X"][1]
    meaning.functions["onehot"] = lambda labels: np.eye(count)[np.asarray(labels)]
    if "L_Y" in meaning.values:
        meaning.values["L_Y"] = meaning.values["L_Y"].reshape(-1, 1)


def _bins(meaning: Meaning) -> None:
    """The lowest and the highest byte own the rest of the line; so far out the density is 0 in floating point."""
    meaning.functions["f"] = lambda z: np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    meaning.functions["F"] = lambda z: (1 + erf(z / math.sqrt(2))) / 2
    x0, far = meaning("x0"), 1e3
    meaning.values["a"] = np.where(x0 < -0.999, -far, meaning("a"))
    meaning.values["b"] = np.where(x0 > 0.999, far, meaning("b"))


_KINDS: dict[Callable[[Meaning], None], str] = {
    _elementwise: "Add Subtract Multiply Divide Power Maximum Minimum Where Clip Negative Positive Cast Abs Exp Log Sqrt Sin Cos "
    "Erf Relu Silu Sigmoid Tanh Gelu GeluTanh Softplus",
    _reduction: "Sum Mean Var Std Norm Max Min LogSumExp",
    _along_axis: "Softmax LogSoftmax",
    _norm: "GroupNorm LayerNorm BatchNorm",
    _rows: "Linear Linears",
    _convolution: "Conv2d UpsampleConv2d ConvTranspose2d",
    _windows: "Patches Unpatches AvgPool2d MaxPool2d",
    _attention: "Attention Matmul",
    _moved: "Reshape Transpose BroadcastTo Concatenate Split GetItem Pad PadByIndex Embedding UpsampleNearest2d",
    _einsum: "Einsum",
    _cross_entropy: "CrossEntropy",
    _bins: "BinLogProb",
}
_MEANINGS = {name: kind for kind, names in _KINDS.items() for name in names.split()}
