"""Where values leave the tape, and what is said when a gradient would be lost there without a word."""

from __future__ import annotations

import ast
import dis
import functools
import linecache
import sys
import threading
import warnings
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

import numpy as np

from tinydiff.autograd.tape import is_recording
from tinydiff.errors import a_type


class _Left(threading.local):
    count: int = 0  # how often a tensor that needs a gradient has given its values to NumPy or Python


_left = _Left()
_refusals: list[Callable[[str, str], None]] = []


def register_refusal(refuse: Callable[[str, str], None]) -> Callable[[str, str], None]:
    """Tells this file what to call, with a function's name and part of NumPy, where that got a list of tensors. The caller
    stands above this file."""
    _refusals[:] = [refuse]
    return refuse


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
        _refuse_in_numpy(frame)
    elif dis.opname[frame.f_code.co_code[frame.f_lasti]].startswith("STORE_S"):  # SUBSCR, SLICE
        warnings.warn(
            "array[i] = x keeps the values of the tensor x and loses its gradient: collect tensors in a list and write "
            "td.ops.stack(list), or write array[i] = x.data",
            stacklevel=3,
        )
    elif (call := _call(frame.f_code, frame.f_lasti)) is not None:
        _judge(call, frame.f_locals)


def _module(frame: FrameType) -> str:
    return frame.f_globals.get("__name__") or ""


def _refuse_in_numpy(frame: FrameType) -> None:
    """TypeError if the function of NumPy that the user called would lose a gradient."""
    while (caller := frame.f_back) is not None and _module(caller).partition(".")[0] == "numpy":
        frame = caller
    part = _module(frame).split(".")[1]  # numpy.linalg, numpy.lib
    if part != "testing":
        _refusals[0](frame.f_code.co_qualname.partition(".")[0], part)


def _judge(call: ast.Call, names: dict[str, Any]) -> None:
    """Says what to write where a call, with the values of names in it, loses a gradient."""
    if isinstance(call.func, ast.Attribute):
        name, owner = call.func.attr, call.func.value
        if name == "dot":
            raise TypeError(
                "array.dot(x) would lose the gradient of the tensor x: write array @ x, or give it x.data where none is wanted"
            )
        if name == "fill":
            warnings.warn(
                "array.fill(x) loses the gradient of the tensor x: write td.ops.broadcast_to(x, shape)", stacklevel=4
            )
        if isinstance(owner, ast.Name) and owner.id == "math" and not name.startswith("is"):
            warnings.warn(
                f"math.{name}(x) gives a number without the gradient of the tensor x: write td.ops.{name}(x) if there is one, "
                "or math of x.item()",
                stacklevel=4,
            )
    for argument in call.args:
        value = names.get(argument.id) if isinstance(argument, ast.Name) else None
        if isinstance(argument, ast.List | ast.Tuple | ast.ListComp) or isinstance(value, list | tuple):
            warnings.warn(
                "an array made of a list of tensors keeps their values and loses their gradients: write td.ops.stack(list), "
                "or [x.data for x in list] where no gradient is wanted",
                stacklevel=4,
            )


@functools.lru_cache(256)
def _call(code: CodeType, at: int) -> ast.Call | None:
    """The call at an instruction, as far as the source tells; None where it is no call or in another library."""
    first, last, start, end = list(code.co_positions())[at // 2]
    if first is None or last is None or start is None or end is None or "-packages" in code.co_filename:
        return None
    lines = [linecache.getline(code.co_filename, i).encode() for i in range(first, last + 1)]
    lines[-1] = lines[-1][:end]
    lines[0] = lines[0][start:]
    try:
        call = ast.parse(b"(" + b"".join(lines) + b")", mode="eval").body
    except SyntaxError:
        return None
    return call if isinstance(call, ast.Call) else None


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
