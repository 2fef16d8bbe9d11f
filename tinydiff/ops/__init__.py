"""Operations on tensors. Each is a Function, a class with forward and backward, and a function that calls it.

They take tensors or arrays and return tensors; operators and methods of Tensor are installed at the end of this file.
"""

import functools as _functools
from typing import Any

from tinydiff.autograd import numpy_calls as _numpy_calls
from tinydiff.autograd.tensor import Tensor as _Tensor
from tinydiff.ops.activation import gelu, relu, sigmoid, silu, softplus, tanh
from tinydiff.ops.arguments import as_array as _as_array
from tinydiff.ops.arithmetic import abs_ as abs
from tinydiff.ops.arithmetic import (
    add,
    clip,
    cos,
    divide,
    erf,
    exp,
    log,
    maximum,
    minimum,
    multiply,
    negative,
    positive,
    power,
    sin,
    sqrt,
    subtract,
    where,
)
from tinydiff.ops.attending import attention
from tinydiff.ops.batch_normalization import batch_norm
from tinydiff.ops.contraction import einsum, matmul
from tinydiff.ops.convolution import conv2d, conv_transpose2d, patches, unpatches
from tinydiff.ops.dropping import dropout
from tinydiff.ops.fully_connected import linear
from tinydiff.ops.loss import cross_entropy, mse_loss
from tinydiff.ops.normalization import group_norm, layer_norm
from tinydiff.ops.pooling import avg_pool2d, max_pool2d, upsample_nearest2d
from tinydiff.ops.reduction import max, mean, min, norm, std, sum, var
from tinydiff.ops.shape import (
    broadcast_to,
    concatenate,
    expand_dims,
    flatten,
    getitem,
    pad,
    reshape,
    split,
    squeeze,
    stack,
    transpose,
)
from tinydiff.ops.softmaxes import log_softmax, logsumexp, softmax
from tinydiff.ops.tables import embedding

__all__ = [name for name, value in list(globals().items()) if not name.startswith("_") and hasattr(value, "__code__")]


def _install_operators() -> None:
    """Python's operators and methods of NumPy's arrays. `Tensor` declares them for type checkers."""

    def binary(function: Any) -> tuple[Any, Any]:
        return (lambda a, b: function(a, b)), (lambda a, b: function(b, a))

    def comparison(method: str) -> Any:
        return lambda a, b: _Tensor(getattr(a.data, method)(_as_array(b)))

    def named(function: Any) -> Any:
        @_functools.wraps(function)
        def method(*args: Any, **options: Any) -> Any:
            for name, ours in (("dim", "axis"), ("keepdim", "keepdims")):
                if name in options:
                    raise TypeError(f"{function.__name__}: write {ours}, as in NumPy, for {name}")
            return function(*args, **options)

        return method

    operators = {"add": add, "sub": subtract, "mul": multiply, "truediv": divide, "pow": power, "matmul": matmul}
    methods: dict[str, Any] = {}
    for name, function in operators.items():
        methods[f"__{name}__"], methods[f"__r{name}__"] = binary(function)
    for name in ("lt", "le", "gt", "ge", "eq", "ne"):
        methods[f"__{name}__"] = comparison(f"__{name}__")
    for name in ("and", "or", "xor"):
        methods[f"__{name}__"] = methods[f"__r{name}__"] = comparison(f"__{name}__")
    methods |= {
        "__neg__": negative,
        "__pos__": positive,
        "__abs__": abs,
        "__getitem__": getitem,
        "T": property(transpose),
    }
    methods["__invert__"] = lambda a: _Tensor(~a.data)
    methods["__round__"] = lambda a, digits=None: round(a.item(), digits)
    for name in ("floordiv", "mod"):  # the slope of x // y is 0
        methods[f"__{name}__"], methods[f"__r{name}__"] = (comparison(f"__{r}{name}__") for r in ("", "r"))
    for name in ("__mod__", "__rmod__"):
        methods[name] = _numpy_calls.remainder(methods[name])
    elementwise = exp, log, sqrt, sin, cos, abs, clip, tanh, relu, sigmoid, silu, gelu, softplus, softmax, log_softmax
    shapes = reshape, transpose, squeeze, split, flatten, expand_dims, broadcast_to
    methods |= {
        f.__name__.rstrip("_"): named(f)
        for f in (sum, mean, var, std, norm, max, min, logsumexp, *elementwise, *shapes)
    }
    for name, method in methods.items():
        setattr(_Tensor, name, method)

    _Tensor.__array_ufunc__ = _numpy_calls.ForNumPy()  # type: ignore[attr-defined]
    _Tensor.__array_function__ = _numpy_calls.array_function  # type: ignore[attr-defined]
    _numpy_calls.operations.update(__all__)


_install_operators()
