"""Where values leave the tape, and what is said when a gradient would be lost there without a word."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np

from tinydiff.autograd.calls import Call, running_call, stores_element
from tinydiff.autograd.tape import is_recording
from tinydiff.errors import a_type


class _Left(threading.local):
    count: int = 0  # how often a tensor that needs a gradient has given its values to NumPy or Python


_left = _Left()
_refuse: list[Callable[..., None]] = []
_written: list[Callable[[str], str | None]] = []


def register_advice(refuse: Callable[..., None], written: Callable[[str], str | None]) -> None:
    """Tells this file what knows NumPy's functions, and stands above it: refuse(name, part, directly) raises where the function
    of a part of NumPy loses a gradient, written(name) is what to write instead of a function of that name, or None."""
    _refuse[:], _written[:] = [refuse], [written]


def leaves(tensor: Any) -> None:
    """Called by the conversions of a tensor, such as `__array__` and `__float__`. They are asked for by name, so they are
    silent for one tensor. A warning says what to write for `array[i] = tensor` and `np.array([tensor, ...])`; a TypeError
    does where NumPy computes with a list of tensors."""
    if not (tensor.requires_grad and is_recording()):
        return
    _left.count += 1
    frame = sys._getframe(2)
    if _module(frame) == __name__:
        return  # `to_array` refuses
    if _module(frame).partition(".")[0] == "numpy":
        _refuse_in_numpy(frame, tensor)
    elif stores_element(frame):
        warnings.warn(
            "array[i] = x keeps the values of the tensor x and loses its gradient: collect tensors in a list and write "
            "td.ops.stack(list), or write array[i] = x.data",
            stacklevel=3,
        )
    elif (call := running_call(frame)) is not None:
        _judge(call, tensor)


def _module(frame: FrameType) -> str:
    return frame.f_globals.get("__name__") or ""


def _refuse_in_numpy(frame: FrameType, tensor: Any) -> None:
    """TypeError if the function of NumPy that the user called would lose a gradient."""
    while (caller := frame.f_back) is not None and _module(caller).partition(".")[0] == "numpy":
        frame = caller
    part = _module(frame).split(".")[1]  # numpy.linalg, numpy.lib
    if part != "testing":
        directly = any(value is tensor for value in frame.f_locals.values())
        _refuse[0](frame.f_code.co_qualname.partition(".")[0], part, directly)


# functions of math whose results carry no gradient
_QUIET = {
    "ceil",
    "floor",
    "trunc",
    "isclose",
    "isfinite",
    "isinf",
    "isnan",
    "isqrt",
    "comb",
    "perm",
    "factorial",
    "gcd",
    "lcm",
}


_DRAWS = {"normal", "uniform", "standard_normal", "laplace", "exponential", "gamma", "poisson", "choice", "permutation"}


def _judge(call: Call, tensor: Any) -> None:
    """Says what to write where a call loses a gradient."""
    function, name = call.function, call.name
    module, owner = getattr(function, "__module__", None), getattr(function, "__self__", None)
    where = "or give it x.data where no gradient is wanted"
    if module in ("math", "cmath"):
        name = function.__name__
        if name not in _QUIET:
            advice = f"write {found}, or" if (found := _written[0](name)) else "write a td.Function, or"
            _warn(
                f"{module}.{name}(x) gives a number without the gradient of the tensor x: {advice} x.item() where none is wanted"
            )
    elif isinstance(function, type) and issubclass(function, np.generic):
        if tensor.ndim:
            _warn(
                f"np.{name}(x) keeps the values of the tensor x and loses its gradient: write x.data.astype(np.{name})"
            )
    elif (isinstance(owner, np.ndarray) or (function is None and call.is_method)) and name in ("dot", "fill", "put"):
        if name == "dot":
            raise TypeError(f"array.dot(x) would lose the gradient of the tensor x: write array @ x, {where}")
        instead = {"fill": "td.ops.broadcast_to(x, shape)", "put": "td.ops.where or td.ops.concatenate"}[name]
        _warn(f"array.{name}(x) loses the gradient of the tensor x: write {instead}, {where}")
    elif type(owner).__module__.startswith("numpy.random") or (function is None and call.is_method and name in _DRAWS):
        _warn(
            f"random numbers of {name}(x) have no gradient with respect to the tensor x: draw noise and write mean + scale * "
            f"noise, write x[indices] to choose or shuffle, {where}"
        )
    elif function is np.arange:
        _warn(f"np.arange(x) loses the gradient of the tensor x: write start + step * np.arange(n), {where}")
    elif call.lists or function is np.fromiter or (module, name) == ("array", "array"):
        _warn(
            "an array made of a list of tensors keeps their values and loses their gradients: write td.ops.stack(list), or "
            "[x.data for x in list] where no gradient is wanted"
        )


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=5)


def to_array(data: Any, name: str) -> np.ndarray:
    """Numbers or lists as a float32 array. TypeError where a tensor among them would lose its gradient, and for what is not
    numbers; ValueError for lists of unequal lengths."""
    before = _left.count
    try:
        if data is None:  # NumPy would make it NaN
            raise TypeError("None is no number")
        array = np.asarray(data, np.float32)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"{name} takes arrays, numbers or lists of equal lengths, not this {type(data).__name__}: {error}"
        ) from None
    if _left.count != before:
        raise TypeError(
            f"{name} would lose the gradient of the tensors in this {type(data).__name__}: write td.ops.stack([a, b]), or "
            "x.detach() for each where no gradient is wanted"
        )
    return array


def refuse_tensor(tensor: Any, name: str) -> None:
    """TypeError where a new tensor made of this one would lose its gradient."""
    if tensor.requires_grad and is_recording():
        raise TypeError(
            f"{name} of a tensor that needs a gradient would lose it: use the tensor itself, or x.detach() where no gradient "
            "is wanted"
        )


_INSTEAD = {
    "view": "x.reshape(shape)", "unsqueeze": "td.ops.expand_dims(x, axis)", "permute": "x.transpose(axes)",
    "clone": "+x, a copy that stays on the tape", "copy": "+x, a copy that stays on the tape", "cpu": 'x.to("cpu")',
    "cuda": 'x.to("cuda")', "dim": "x.ndim", "numel": "x.size", "contiguous": "x itself", "is_leaf": "x.requires_grad",
    "pow": "x ** y", "add": "x + y", "sub": "x - y", "mul": "x * y", "div": "x / y", "matmul": "x @ y", "mm": "x @ y",
    "bmm": "x @ y", "dot": "x @ y", "neg": "-x", "square": "x * x", "t": "x.T", "mT": "td.ops.transpose(x, axes)",
    "swapaxes": "x.transpose(axes)", "ravel": "x.flatten()", "expand": "x.broadcast_to(shape)",
    "repeat": "x[indices]", "tolist": "x.data.tolist()", "float": "float(x) for one element, or td.Tensor(x.data)",
    "astype": "td.Tensor(x.data.astype(dtype))", "argmax": "x.data.argmax(axis)", "argmin": "x.data.argmin(axis)",
    "any": "x.data.any()", "all": "x.data.all()", "chunk": "x.split(n, axis)", "clamp": "x.clip(low, high)",
    "prod": "td.ops.exp(td.ops.log(x).sum()) for positive x", "type": "x.dtype", "grad_fn": "repr(x), which names it",
    "masked_fill": "td.ops.where(mask, value, x)", "index_select": "x[indices]", "gather": "x[indices]",
    "zero_": "x.data[...] = 0", "fill_": "x.data[...] = value", "copy_": "x.data[...] = array",
    "add_": "x.data += y", "sub_": "x.data -= y", "mul_": "x.data *= y", "div_": "x.data /= y",
    "clamp_": "x.data.clip(low, high, out=x.data)", "detach_": "x = x.detach()", "normal_": "x.data[...] = array",
}  # fmt: skip


def missing(tensor: Any, name: str) -> Any:
    """The attribute of a tensor that Python did not find: `.grad` of a tensor that is not a leaf, which is None with a
    warning; else an AttributeError that says what to write."""
    if name == "grad":
        warnings.warn(
            f".grad of a tensor computed by {tensor._node.name} is not kept: call retain_grad() on it before backward; in a "
            "training loop change the weight itself, w.data -= lr * w.grad, since w = w - lr * w.grad makes another tensor",
            stacklevel=3,
        )
        return None
    instead = f": write {_INSTEAD[name]}" if name in _INSTEAD else ""
    raise AttributeError(f"{a_type(tensor)} has no attribute {name!r}{instead}", name=name, obj=tensor)
