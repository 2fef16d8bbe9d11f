"""What NumPy's functions do when they are given tensors.

A NumPy function returns plain arrays, so a gradient would end there without a word. Where a tensor that needs a gradient is
given, while the tape records:

- the ufuncs behind Python's operators (`np.add` is what `array + x` calls) compute as the operators do and return tensors;
- functions whose result carries no gradient (argmax, shape, allclose, sign, save) compute with the values;
- all others raise a TypeError that says what to write.

Without such a tensor, and inside `no_grad`, NumPy computes with the values. `np.asarray(x)`, `np.array(x)`, `np.copy(x)`,
`float(x)`, `x.item()`, `x.numpy()` and `x.data` ask for values by name: they give them, and no gradient follows.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tinydiff.autograd.conversion import register_advice
from tinydiff.autograd.tape import is_recording
from tinydiff.autograd.tensor import Tensor

operations: set[str] = set()  # the names of `tinydiff.ops`, which stands above this file and enters them

_OPERATORS = {
    "add": "add", "subtract": "sub", "multiply": "mul", "divide": "truediv", "power": "pow", "matmul": "matmul",
    "less": "lt", "less_equal": "le", "greater": "gt", "greater_equal": "ge", "equal": "eq", "not_equal": "ne",
    "negative": "neg", "positive": "pos", "absolute": "abs",
}  # fmt: skip
_MIRRORED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le", "eq": "eq", "ne": "ne"}

# floating point results that carry no gradient, or a slope of 0, or that ask for values by name
_QUIET = {
    "zeros_like", "ones_like", "empty_like", "full_like", "sign", "floor", "ceil", "trunc", "rint", "round", "around", "fix",
    "floor_divide", "heaviside", "spacing", "copy", "histogram", "histogram2d", "histogramdd", "histogram_bin_edges",
}  # fmt: skip
# what is answered of a list of tensors, too: no gradient is in it
_ANSWERED = {
    "allclose", "isclose", "array_equal", "array_equiv", "argmax", "argmin", "argsort", "argwhere", "nonzero", "flatnonzero",
    "count_nonzero", "searchsorted", "shape", "ndim", "size", "any", "all", "save", "savez", "savez_compressed", "savetxt",
    "array2string", "array_repr", "array_str", "isin", "digitize", "asarray_chkfinite", "require", "result_type", "can_cast",
}  # fmt: skip
_CHANGING = set(
    ["copyto", "put", "place", "putmask", "put_along_axis", "fill_diagonal"]
)  # their first argument, in place

_INSTEAD = {
    "full": "td.ops.broadcast_to(value, shape)", "vectorize": "the function on whole tensors",
    "true_divide": "x / y", "float_power": "x ** y", "square": "x * x", "reciprocal": "1 / x", "fabs": "abs(x)",
    "fmax": "td.ops.maximum(x, y)", "fmin": "td.ops.minimum(x, y)", "amax": "td.ops.max(x)", "amin": "td.ops.min(x)",
    "concat": "td.ops.concatenate(xs)", "hstack": "td.ops.concatenate(xs, axis=1), of vectors without axis",
    "append": "td.ops.concatenate(xs)",
    "vstack": "td.ops.concatenate(xs), of vectors td.ops.stack(xs)", "row_stack": "td.ops.concatenate(xs)",
    "block": "td.ops.concatenate(xs, axis)",
    "column_stack": "td.ops.stack(xs, axis=1) of vectors", "dstack": "td.ops.stack(xs, axis=2) of matrices",
    "r_": "td.ops.concatenate(xs)", "insert": "td.ops.concatenate([x[:i], new, x[i:]])",
    "meshgrid": "td.ops.broadcast_to(x, shape)",
    "prod": "td.ops.exp(td.ops.log(x).sum()) for positive x", "cumsum": "np.tri(len(x)) @ x for a vector",
    "real": "x itself",
    "linspace": "a + (b - a) * np.linspace(0, 1, n)", "polyval": "(a * x + b) * x + c",
    "nansum": "td.ops.where(np.isnan(x), 0, x).sum()",
    "trapezoid": "((y[1:] + y[:-1]) * dx / 2).sum()", "multi_dot": "a @ b @ c", "matrix_power": "x @ x",
    "remainder": "x - y * np.floor(x.data / y)", "pow": "x ** y", "fsum": "x.sum()", "dist": "td.ops.norm(x - y)",
    "asmatrix": "x itself", "ma.array": "td.ops.where(mask, 0, x)", "nanmean": "x[np.isfinite(x)].mean()",
    "unstack": "list(x)",
    "array_split": "td.ops.split(x, indices)", "hsplit": "td.ops.split(x, n, axis=1)", "vsplit": "td.ops.split(x, n)",
    "dsplit": "td.ops.split(x, n, axis=2)", "dot": "x @ y", "matvec": 'td.ops.einsum("ij,j->i", x, y)',
    "vecmat": 'td.ops.einsum("i,ij->j", x, y)', "vecdot": "(x * y).sum(-1)", "vdot": "(x * y).sum()",
    "inner": 'td.ops.einsum("...i,...i->...", x, y)', "outer": 'td.ops.einsum("i,j->ij", x, y)',
    "tensordot": "td.ops.einsum(subscripts, x, y)", "kron": "td.ops.einsum and reshape",
    "trace": 'td.ops.einsum("ii->", x)',
    "diagonal": 'td.ops.einsum("ii->i", x)', "diag": 'td.ops.einsum("ii->i", x) of a matrix', "norm": "td.ops.norm(x)",
    "vector_norm": "td.ops.norm(x)", "matrix_norm": "td.ops.norm(x)", "ravel": "td.ops.flatten(x)",
    "permute_dims": "td.ops.transpose(x, axes)", "moveaxis": "td.ops.transpose(x, axes)",
    "rollaxis": "td.ops.transpose(x, axes)", "swapaxes": "td.ops.transpose(x, axes)",
    "matrix_transpose": "td.ops.transpose(x, axes)", "take": "x[indices]", "take_along_axis": "x[indices]",
    "compress": "x[mask]", "extract": "x[mask]", "delete": "x[kept]", "choose": "td.ops.where(condition, x, y)",
    "select": "td.ops.where(condition, x, y)", "piecewise": "td.ops.where(condition, x, y)",
    "nan_to_num": "td.ops.where(np.isfinite(x), x, 0)", "tril": "x * np.tri(*x.shape)",
    "triu": "x * np.tri(*x.shape).T",
    "log1p": "td.ops.log(1 + x)", "expm1": "td.ops.exp(x) - 1", "exp2": "2 ** x", "log2": "td.ops.log(x) / np.log(2)",
    "log10": "td.ops.log(x) / np.log(10)", "logaddexp": "td.ops.logsumexp(td.ops.stack([x, y]), axis=0)",
    "tan": "td.ops.sin(x) / td.ops.cos(x)", "sinh": "(td.ops.exp(x) - td.ops.exp(-x)) / 2",
    "cosh": "(td.ops.exp(x) + td.ops.exp(-x)) / 2", "hypot": "td.ops.sqrt(x * x + y * y)", "average": "td.ops.mean(x)",
    "ptp": "x.max() - x.min()", "diff": "x[1:] - x[:-1]", "ediff1d": "x[1:] - x[:-1]", "flip": "x[::-1]",
    "flipud": "x[::-1]", "fliplr": "x[:, ::-1]", "roll": "td.ops.concatenate([x[-n:], x[:-n]]) along axis 0",
    "repeat": "x[indices]",
    "tile": "td.ops.concatenate([x] * n, axis=-1)", "sort": "x[np.argsort(x)] of a vector",
    "atleast_1d": "td.ops.reshape(x, shape)",
    "atleast_2d": "td.ops.reshape(x, shape)", "atleast_3d": "td.ops.reshape(x, shape)", "astype": "x * 1.0",
    "broadcast_arrays": "td.ops.broadcast_to(x, shape)", "expit": "td.ops.sigmoid(x)", "degrees": "x * (180 / np.pi)",
    "rad2deg": "x * (180 / np.pi)", "radians": "x * (np.pi / 180)", "deg2rad": "x * (np.pi / 180)",
    "convolve": "td.ops.conv2d(x, w) on images", "add.reduce": "td.ops.sum(x)", "maximum.reduce": "td.ops.max(x)",
    "minimum.reduce": "td.ops.min(x)", "add.outer": "x[:, None] + y", "subtract.outer": "x[:, None] - y",
    "multiply.outer": "x[:, None] * y", "divide.outer": "x[:, None] / y",
}  # fmt: skip


def array_ufunc(self: Tensor, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
    """NumPy calls this for a ufunc that has a tensor among its inputs or outputs."""
    name = ufunc.__name__ if method == "__call__" else f"{ufunc.__name__}.{method}"
    if not options and method == "__call__" and ufunc.__name__ in _OPERATORS:
        symbol, (a, *b) = _OPERATORS[name], inputs
        if isinstance(a, Tensor):
            return getattr(a, f"__{symbol}__")(*b)
        return getattr(b[0], f"__{_MIRRORED.get(symbol, 'r' + symbol)}__")(a)
    changed = [inputs[0]] if method == "at" else list(options.get("out") or ())
    needed = _needs_gradient([*inputs, options])
    if needed and changed:
        raise TypeError(
            f"np.{name} changes an array in place, which no gradient passes: write {_written(ufunc.__name__)} into a new "
            "name (a = a + x instead of a += x), or give it x.data"
        )
    return _computed(name, getattr(ufunc, method), inputs, options, needed, changed)


def array_function(self: Tensor, function: Any, types: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """NumPy calls this for each of its other functions that has a tensor among its arguments."""
    name = function.__name__
    changed = (
        list(args[:1]) if name in _CHANGING else [options["out"]] if isinstance(options.get("out"), Tensor) else []
    )
    module = getattr(function, "__module__", "").removeprefix("numpy")
    shown = f"{module}.{name}".lstrip(".") if module in (".linalg", ".fft") else name
    if name == "copyto" and sys._getframe(1).f_code.co_name == "full_like":  # which calls it
        name = "full_like"
    if name in _CHANGING and _needs_gradient([args, options]):
        raise TypeError(
            f"np.{shown} changes an array in place, which no gradient passes: write td.ops.where or td.ops.concatenate for a "
            "new one, or give it x.data"
        )
    if name == "full_like" and _needs_gradient([args[1:], options]):
        raise TypeError(
            "np.full_like gives its value no gradient: write td.ops.broadcast_to(value, shape), or value.data"
        )
    return _computed(shown, function, args, options, _needs_gradient([args, options]), changed)


def _computed(name: str, function: Any, args: Any, options: Any, needed: bool, changed: list[Any]) -> Any:
    """What NumPy computes of the values. TypeError where the result would have lost a gradient that is needed."""
    short = name.rpartition(".")[2]
    known = name in _INSTEAD or short in _INSTEAD or _in_ops(short)
    if needed and known and short not in _QUIET:
        _refuse(name)
    result = function(*_values(args), **_values(options))
    if needed and short not in _QUIET and _is_real(result):
        _refuse(name)
    for x in changed:
        if isinstance(x, Tensor):
            x._version.count += 1
            result = x if result is x.data else result
    return result


def refuse_call(name: str, part: str, directly: bool) -> None:
    """TypeError where the function of this name, in a part of NumPy, would lose the gradient of a tensor that it got, directly
    or in a list."""
    name = {"AxisConcatenator": "r_", "MaskedArray": "ma.array"}.get(name, name)
    if name not in _QUIET | _ANSWERED:
        name = f"{part}.{name}" if part in ("linalg", "fft") else name
        _refuse(name) if directly or name == "r_" else _refuse(name, " of a list", "td.ops.stack(list) and ")


def _refuse(name: str, whose: str = "", first: str = "") -> None:
    written = _written(name)
    advice = "td.ops has no such function: write a td.Function" if written is None else f"write {first}{written}"
    raise TypeError(
        f"np.{name}{whose} would lose the gradient of a tensor: {advice}, or give it x.data where none is wanted"
    )


def _written(name: str) -> str | None:
    short = name.rpartition(".")[2]
    instead = _INSTEAD.get(name) or _INSTEAD.get(short)
    return instead or (f"td.ops.{short}" if _in_ops(short) else None)


def _in_ops(name: str) -> bool:
    return name in operations


def _needs_gradient(values: Any) -> bool:
    return is_recording() and any(x.requires_grad for x in _tensors(values))


def _tensors(values: Any) -> Iterable[Tensor]:
    for x in values.values() if isinstance(values, dict) else values:
        if isinstance(x, Tensor):
            yield x
        elif isinstance(x, list | tuple | dict):
            yield from _tensors(x)


def _values(x: Any) -> Any:
    """x with plain arrays in place of tensors."""
    if isinstance(x, Tensor):
        return x.data
    if isinstance(x, dict):
        return {key: _values(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        values = [_values(value) for value in x]
        return values if isinstance(x, list) else tuple(values)
    return x


def _is_real(result: Any) -> bool:
    """Whether there are floating point or complex numbers in a result."""
    if isinstance(result, list | tuple):
        return any(_is_real(x) for x in result)
    dtype = getattr(result, "dtype", None)
    return isinstance(result, float | complex) or (dtype is not None and getattr(dtype, "kind", "") in "fcO")


register_advice(refuse_call, _written)


def remainder(method: Any) -> Any:
    """A method of tensors that computes x % y of values. With a tensor that needs a gradient it raises a TypeError."""

    def checked(x: Tensor, y: Any) -> Any:
        if _needs_gradient([x, y]):
            raise TypeError(f"x % y would lose the gradient of a tensor: write {_INSTEAD['remainder']}, or x.data % y")
        return method(x, y)

    return checked


class ForNumPy:
    """`__array_ufunc__` of tensors. NumPy, which looks it up on the type, finds the function. CuPy, which looks it up on the
    tensor, finds None and leaves `array + x` to the tensor's own operator."""

    def __get__(self, instance: Any, owner: Any) -> Any:
        return array_ufunc if instance is None else None
