"""ONNX's operators in terms of `tinydiff.ops`, for test_onnx.py: one function for each.

It is called with the node's attributes (and __op__, __opset__, __outputs__, __alone__: the operator's name and version,
how many outputs are wanted, whether the model is this node alone) and its inputs, and raises `NotApplicable` with the
reason where ONNX has an option that tinydiff does not. onnx_layers.py has those for images, normalisation and losses.
"""

import numpy as np

from tinydiff import ops
from tinydiff.autograd.tensor import Tensor


class NotApplicable(Exception):
    """This case asks for something that tinydiff does not have; the message is the reason."""


ADAPTERS = {}


def adapter(*names):
    def register(function):
        for name in names:
            ADAPTERS[name] = function
        return function

    return register


def array(x):
    return x.data if isinstance(x, Tensor) else np.asarray(x)


def integers(x):
    return None if x is None else [int(v) for v in array(x).ravel()]


# Arithmetic


def elementwise(name, function):
    def run(attributes, *xs):
        if attributes.get("broadcast") and "axis" in attributes:
            axis, (a, b) = attributes["axis"], xs
            xs = (a, ops.reshape(b, (*b.shape, *[1] * (a.ndim - axis - b.ndim))))
        return function(*xs)

    ADAPTERS[name] = run


for name, function in {
    "Add": ops.add, "Sub": ops.subtract, "Mul": ops.multiply,
    "Abs": ops.abs, "Neg": lambda x: -x, "Exp": ops.exp, "Log": ops.log, "Sqrt": ops.sqrt, "Sin": ops.sin,
    "Cos": ops.cos, "Erf": ops.erf, "Relu": ops.relu, "Sigmoid": ops.sigmoid, "Tanh": ops.tanh,
    "Softplus": ops.softplus, "Where": ops.where, "MatMul": ops.matmul, "Reciprocal": lambda x: 1 / x,
    # composed of tinydiff's operations
    "Tan": lambda x: ops.sin(x) / ops.cos(x), "Sinh": lambda x: (ops.exp(x) - ops.exp(-x)) / 2,
    "Cosh": lambda x: (ops.exp(x) + ops.exp(-x)) / 2, "Softsign": lambda x: x / (1 + ops.abs(x)),
    "Mish": lambda x: x * ops.tanh(ops.softplus(x)), "HardSwish": lambda x: x * ops.clip(x / 6 + 0.5, 0, 1),
    # comparisons, off the tape
    "Greater": lambda a, b: Tensor(array(a)) > b, "GreaterOrEqual": lambda a, b: Tensor(array(a)) >= b,
    "Less": lambda a, b: Tensor(array(a)) < b, "LessOrEqual": lambda a, b: Tensor(array(a)) <= b,
    "Equal": lambda a, b: Tensor(array(a)) == b,
}.items():  # fmt: skip
    elementwise(name, function)


@adapter("Div")
def _divide(attributes, a, b):
    if array(a).dtype.kind == "f" or array(b).dtype.kind == "f":
        return ops.divide(a, b)
    if attributes["__alone__"]:
        raise NotApplicable("integer division rounds towards 0 in ONNX; tinydiff's gives fractions, as NumPy's")
    return np.trunc(array(a) / array(b)).astype(array(a).dtype)  # arithmetic of shapes inside a larger model


@adapter("Pow")
def _pow(attributes, a, b):
    if array(a).dtype.kind == "f":
        return ops.power(a, array(b).astype(array(a).dtype))
    raise NotApplicable("a power of integers has the base's type in ONNX; tinydiff's promotes, as NumPy's")


def fold(function):
    def run(attributes, *xs):
        y = ops.add(xs[0], np.zeros((), array(xs[0]).dtype))
        for x in xs[1:]:
            y = function(y, x)
        return y

    return run


ADAPTERS["Sum"], ADAPTERS["Max"], ADAPTERS["Min"] = fold(ops.add), fold(ops.maximum), fold(ops.minimum)


@adapter("Mean")
def _mean(attributes, *xs):
    return ADAPTERS["Sum"](attributes, *xs) / len(xs)


@adapter("Clip")
def _clip(attributes, x, low=None, high=None):
    low = attributes.get("min") if low is None else array(low).item()
    high = attributes.get("max") if high is None else array(high).item()
    return ops.clip(x, low, high)


@adapter("Gemm")
def _gemm(attributes, a, b, c=None):
    a = ops.transpose(a) if attributes.get("transA") else a
    b = ops.transpose(b) if attributes.get("transB") else b
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    if c is not None and array(c).shape == (array(b).shape[1],) and alpha == beta == 1:
        return ops.linear(a, b, c)
    y = alpha * ops.matmul(a, b)
    return y if c is None else y + beta * c


@adapter("Einsum")
def _einsum(attributes, *xs):
    return ops.einsum(attributes["equation"].decode(), *xs)


# Activations with options


@adapter("Gelu")
def _gelu(attributes, x):
    return ops.gelu(x, approximate=attributes.get("approximate", b"none").decode())


@adapter("Swish")
def _swish(attributes, x):
    alpha = attributes.get("alpha", 1.0)
    return ops.silu(x) if alpha == 1 else x * ops.sigmoid(alpha * x)


@adapter("LeakyRelu")
def _leaky_relu(attributes, x):
    return ops.where(array(x) < 0, attributes.get("alpha", 0.01) * x, x)


@adapter("PRelu")
def _prelu(attributes, x, slope):
    if array(slope).ndim == 1 and attributes["__opset__"] < 7:  # of old, one slope for each channel
        slope = ops.reshape(slope, (-1, *[1] * (array(x).ndim - 2)))
    return ops.maximum(x, 0) + slope * ops.minimum(x, 0)


@adapter("Elu", "Celu", "Selu")
def _elu(attributes, x):
    negative = ops.exp(ops.minimum(x, 0)) - 1
    if "gamma" in attributes or attributes["__op__"] == "Selu":
        alpha, gamma = (
            attributes.get("alpha", 1.67326319217681884765625),
            attributes.get("gamma", 1.05070102214813232421875),
        )
        return gamma * (ops.maximum(x, 0) + alpha * negative)
    alpha = attributes.get("alpha", 1.0)
    if attributes["__op__"] == "Celu":
        negative = ops.exp(ops.minimum(x, 0) / alpha) - 1
    return ops.maximum(x, 0) + alpha * negative


@adapter("HardSigmoid")
def _hard_sigmoid(attributes, x):
    return ops.clip(attributes.get("alpha", 0.2) * x + attributes.get("beta", 0.5), 0, 1)


@adapter("ThresholdedRelu")
def _thresholded_relu(attributes, x):
    return ops.where(array(x) > attributes.get("alpha", 1.0), x, 0.0)


@adapter("Softmax", "LogSoftmax")
def _softmax(attributes, x):
    function = ops.softmax if attributes["__op__"] == "Softmax" else ops.log_softmax
    if attributes["__opset__"] >= 13:
        return function(x, axis=attributes.get("axis", -1))
    axis = attributes.get("axis", 1) % array(x).ndim  # of old, everything from the axis on was one axis
    shape = array(x).shape
    return ops.reshape(function(ops.reshape(x, (int(np.prod(shape[:axis])), -1))), shape)


# Reductions


def reduction(name, function):
    def run(attributes, x, axes=None):
        axes = integers(axes) if axes is not None else attributes.get("axes")
        if not axes:
            if attributes.get("noop_with_empty_axes"):
                if name not in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin"):
                    raise NotApplicable("a reduction over no axis")
                axes = ()
            else:
                axes = None
        axis = axes if axes is None else tuple(axes)
        if name in ("ReduceMax", "ReduceMin"):
            if array(x).dtype == np.bool_:
                raise NotApplicable("the maximum of booleans")
            if array(x).size == 0:
                raise NotApplicable("the extreme of nothing is an error in tinydiff")
        return function(x, axis=axis, keepdims=bool(attributes.get("keepdims", 1)))

    ADAPTERS[name] = run


for name, function in {
    "ReduceSum": ops.sum,
    "ReduceMean": ops.mean,
    "ReduceMax": ops.max,
    "ReduceMin": ops.min,
    "ReduceLogSumExp": ops.logsumexp,
    "ReduceL1": lambda x, **k: ops.sum(ops.abs(x), **k),
    "ReduceL2": lambda x, **k: ops.sqrt(ops.sum(ops.multiply(x, x), **k)),
    "ReduceSumSquare": lambda x, **k: ops.sum(ops.multiply(x, x), **k),
    "ReduceLogSum": lambda x, **k: ops.log(ops.sum(x, **k)),
}.items():
    reduction(name, function)


# Shapes


@adapter("Reshape")
def _reshape(attributes, x, shape=None):
    shape = integers(shape) if shape is not None else list(attributes["shape"])
    old = array(x).shape
    if not attributes.get("allowzero"):
        shape = [old[i] if n == 0 else n for i, n in enumerate(shape)]
    return ops.reshape(x, tuple(shape))


@adapter("Flatten")
def _flatten(attributes, x):
    shape = array(x).shape
    axis = attributes.get("axis", 1)
    axis += len(shape) if axis < 0 else 0
    return ops.reshape(x, (int(np.prod(shape[:axis])), int(np.prod(shape[axis:]))))


@adapter("Transpose")
def _transpose(attributes, x):
    return ops.transpose(x, attributes.get("perm"))


@adapter("Squeeze")
def _squeeze(attributes, x, axes=None):
    axes = integers(axes) if axes is not None else attributes.get("axes")
    return ops.squeeze(x, None if axes is None else tuple(axes))


@adapter("Unsqueeze")
def _unsqueeze(attributes, x, axes=None):
    return ops.expand_dims(x, tuple(integers(axes) if axes is not None else attributes["axes"]))


@adapter("Expand")
def _expand(attributes, x, shape):
    return ops.broadcast_to(x, np.broadcast_shapes(array(x).shape, tuple(integers(shape))))


@adapter("Concat")
def _concat(attributes, *xs):
    return ops.concatenate(xs, attributes.get("axis", 1))


@adapter("Split")
def _split(attributes, x, sizes=None):
    axis = attributes.get("axis", 0)
    sizes = integers(sizes) if sizes is not None else attributes.get("split")
    if sizes is None:
        n, length = attributes.get("num_outputs", attributes["__outputs__"]), array(x).shape[axis]
        sizes = [min(-(-length // n), length - i * -(-length // n)) for i in range(n)]
    return tuple(ops.split(x, [int(i) for i in np.cumsum(sizes)[:-1]], axis))


@adapter("Slice")
def _slice(attributes, x, starts=None, ends=None, axes=None, steps=None):
    starts = integers(starts) if starts is not None else attributes["starts"]
    ends = integers(ends) if ends is not None else attributes["ends"]
    axes = integers(axes) if axes is not None else attributes.get("axes", range(len(starts)))
    index = [slice(None)] * array(x).ndim
    for k, axis in enumerate(axes):
        step, n = 1 if steps is None else integers(steps)[k], array(x).shape[axis]
        end = None if step < 0 and ends[k] < -n else ends[k]
        index[axis] = slice(starts[k], end, step)
    return ops.getitem(x, tuple(index))


@adapter("Gather")
def _gather(attributes, x, indices):
    axis, indices = attributes.get("axis", 0), array(indices)
    if axis == 0 and array(x).ndim == 2 and indices.size and indices.min() >= 0:
        return ops.embedding(indices, x)
    axis += array(x).ndim if axis < 0 else 0
    return ops.getitem(x, (*[slice(None)] * axis, indices))


@adapter("GatherND")
def _gather_nd(attributes, x, indices):
    if attributes.get("batch_dims"):
        raise NotApplicable("gathering within a batch")
    return ops.getitem(x, tuple(np.moveaxis(array(indices), -1, 0)))


@adapter("GatherElements")
def _gather_elements(attributes, x, indices):
    indices, axis = array(indices), attributes.get("axis", 0)
    places = list(np.indices(indices.shape))
    places[axis] = indices
    return ops.getitem(x, tuple(places))


@adapter("Pad")
def _pad(attributes, x, pads=None, value=None, axes=None):
    pads = integers(pads) if pads is not None else attributes.get("pads", attributes.get("paddings"))
    value = attributes.get("value", 0.0) if value is None else array(value).item()
    ndim, half = array(x).ndim, len(pads) // 2
    widths = [(0, 0)] * ndim
    for k, axis in enumerate(range(ndim) if axes is None else integers(axes)):
        widths[axis] = (pads[k], pads[k + half])
    if min(map(min, widths)) < 0:
        raise NotApplicable("negative padding")
    mode = attributes.get("mode", b"constant").decode()
    if mode == "wrap":
        raise NotApplicable("padding by wrapping around")
    return ops.pad(x, widths, mode, value)


@adapter("DepthToSpace", "SpaceToDepth")
def _depth_to_space(attributes, x):
    block = attributes["blocksize"]
    N, C, H, W = array(x).shape
    if attributes["__op__"] == "SpaceToDepth":
        y = ops.reshape(x, (N, C, H // block, block, W // block, block))
        order = (0, 3, 5, 1, 2, 4) if attributes.get("mode", b"DCR") == b"DCR" else (0, 1, 3, 5, 2, 4)
        return ops.reshape(ops.transpose(y, order), (N, -1, H // block, W // block))
    if attributes.get("mode", b"DCR") == b"DCR":
        y = ops.transpose(ops.reshape(x, (N, block, block, -1, H, W)), (0, 3, 4, 1, 5, 2))
    else:
        y = ops.transpose(ops.reshape(x, (N, -1, block, block, H, W)), (0, 1, 4, 2, 5, 3))
    return ops.reshape(y, (N, -1, H * block, W * block))
