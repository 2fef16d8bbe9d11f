"""Every operation that PyTorch has too: values and all gradients, in float64 to 1e-10 and in float32 to its precision.

PyTorch's layouts are made inside the PyTorch side of each case, so that its own autograd also undoes them.
"""

import numpy as np
import pytest

from tinydiff import ops
from tinydiff.autograd.tensor import Tensor

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
F = torch.nn.functional


def nchw(x):
    return x.permute(0, 3, 1, 2)


def nhwc(x):
    return x.permute(0, 2, 3, 1)


def kcrs(w):
    """(R, S, C, K) -> PyTorch's (K, C, R, S)."""
    return w.permute(3, 2, 0, 1)


def normal(*shape):
    return lambda rng: rng.normal(size=shape)


def positive(*shape):
    return lambda rng: rng.uniform(0.5, 2, shape)


def integers(high, *shape):
    return lambda rng: rng.integers(0, high, shape)


def booleans(*shape):
    def draw(rng):
        mask = rng.random(shape) < 0.6
        mask[..., 0] = True
        return mask

    return draw


CASES = {}


def case(name, ours, theirs, *inputs):
    assert name not in CASES
    CASES[name] = ours, theirs, inputs


# arithmetic
for name in ("add", "subtract", "multiply", "divide", "maximum", "minimum"):
    case(name, getattr(ops, name), getattr(torch, name), normal(2, 3, 4), normal(3, 1))
case("power", ops.power, torch.pow, positive(3, 4), normal(4))
case("power of a number", lambda x: ops.power(x, 3), lambda x: x**3, normal(3, 4))
case("number to a power", lambda x: ops.power(2.5, x), lambda x: 2.5**x, normal(3, 4))
case("where", ops.where, torch.where, booleans(3, 4), normal(3, 4), normal(4))
case("clip", lambda x: ops.clip(x, -0.5, 0.5), lambda x: torch.clip(x, -0.5, 0.5), normal(5, 6))
for name in ("exp", "sin", "cos", "erf", "abs"):
    case(name, getattr(ops, name), getattr(torch, name), normal(3, 4))
for name in ("log", "sqrt"):
    case(name, getattr(ops, name), getattr(torch, name), positive(3, 4))

# ties: PyTorch too shares them equally between two, and over a reduction of everything or with amax
case("maximum, equal", lambda x: ops.maximum(x, x.data), lambda x: torch.maximum(x, x.detach()), normal(3))
case("max, equal", lambda n: ops.max(n * 0.0 + 1.0, axis=1), lambda n: torch.amax(n * 0 + 1, 1), normal(3, 4))
case("abs at 0", lambda x: ops.abs(x * 0.0), lambda x: abs(x * 0), normal(3))
case("relu at 0", lambda x: ops.relu(x * 0.0), lambda x: F.relu(x * 0), normal(3))
case(
    "clip at its bounds",
    lambda x: ops.clip(x, float(x.data.min()), float(x.data.max())),
    lambda x: x.clip(x.min().item(), x.max().item()),
    normal(9),
)

# activations
for name in ("relu", "silu", "sigmoid", "tanh", "gelu", "softplus"):
    case(name, getattr(ops, name), getattr(F, name), normal(5, 6))
case("gelu tanh", lambda x: ops.gelu(x, "tanh"), lambda x: F.gelu(x, approximate="tanh"), normal(5, 6))
case("softmax", ops.softmax, lambda x: F.softmax(x, -1), normal(3, 4))
case("softmax, axis 1", lambda x: ops.softmax(x, axis=1), lambda x: F.softmax(x, 1), normal(2, 3, 4))
case("log_softmax", ops.log_softmax, lambda x: F.log_softmax(x, -1), normal(3, 4))
case(
    "logsumexp",
    lambda x: ops.logsumexp(x, (0, 2), keepdims=True),
    lambda x: torch.logsumexp(x, (0, 2), True),
    normal(2, 3, 4),
)

# reductions
for axis in (None, 1, (0, -1)):
    dim = (0, 1, 2) if axis is None else axis
    for ours, theirs in ((ops.sum, torch.sum), (ops.mean, torch.mean), (ops.max, torch.amax), (ops.min, torch.amin)):
        case(
            f"{ours.__name__} {axis}",
            lambda x, f=ours, a=axis: f(x, a, keepdims=True),
            lambda x, f=theirs, d=dim: f(x, d, True),
            normal(2, 3, 4),
        )
    for ddof in (0, 1):
        for ours, theirs in ((ops.var, torch.var), (ops.std, torch.std)):
            case(
                f"{ours.__name__} {axis} {ddof}",
                lambda x, f=ours, a=axis, n=ddof: f(x, a, ddof=n),
                lambda x, f=theirs, d=dim, n=ddof: f(x, d, correction=n),
                normal(2, 3, 4),
            )
    case(
        f"norm {axis}",
        lambda x, a=axis: ops.norm(x, a),
        lambda x, d=dim: torch.linalg.vector_norm(x, dim=d),
        normal(2, 3, 4),
    )
case(
    "norm of zeros",
    lambda x: ops.norm(x * 0, 1) + x,
    lambda x: torch.linalg.vector_norm(x * 0, dim=1) + x,
    normal(2, 2),
)


# shapes
case("reshape", lambda x: ops.reshape(x, (4, -1)), lambda x: x.reshape(4, -1), normal(2, 3, 4))
case("transpose", lambda x: ops.transpose(x, (1, 2, 0)), lambda x: x.permute(1, 2, 0), normal(2, 3, 4))
case("expand_dims", lambda x: ops.expand_dims(x, 1), lambda x: x.unsqueeze(1), normal(2, 3))
case("squeeze", lambda x: ops.squeeze(x, 1), lambda x: x.squeeze(1), normal(2, 1, 3))
case("broadcast_to", lambda x: ops.broadcast_to(x, (2, 3, 4)), lambda x: x.expand(2, 3, 4), normal(3, 1))
case("concatenate", lambda *x: ops.concatenate(x, 1), lambda *x: torch.cat(x, 1), normal(2, 1), normal(2, 3))
case("stack", lambda *x: ops.stack(x, -1), lambda *x: torch.stack(x, -1), normal(2, 3), normal(2, 3))
case("split", lambda x: ops.split(x, 3, 1)[1], lambda x: x.split(2, 1)[1], normal(2, 6))
case("split at", lambda x: ops.split(x, [1, 4], 1)[1], lambda x: torch.tensor_split(x, [1, 4], 1)[1], normal(2, 6))
case("getitem slices", lambda x: x[1:, ..., ::2], lambda x: x[1:, ..., ::2], normal(3, 2, 5))
case("getitem indices", lambda x: x[[0, 2, 2], :, 1], lambda x: x[[0, 2, 2], :, 1], normal(3, 2, 5))
for mode, theirs in (("constant", "constant"), ("reflect", "reflect"), ("edge", "replicate")):
    case(
        f"pad {mode}",
        lambda x, m=mode: ops.pad(x, ((0, 0), (1, 2), (3, 0), (0, 0)), m),
        lambda x, m=theirs: nhwc(F.pad(nchw(x), (3, 0, 1, 2), m)),
        normal(2, 4, 5, 3),
    )
case(
    "pad with a value",
    lambda x: ops.pad(x, ((1, 0), (0, 2)), value=2.5),
    lambda x: F.pad(x, (0, 2, 1, 0), value=2.5),
    normal(2, 3),
)

# products
case("linear", ops.linear, lambda x, w, b: F.linear(x, w.T, b), normal(2, 5, 3), normal(3, 4), normal(4))
case("matmul", ops.matmul, torch.matmul, normal(4, 1, 2, 3), normal(5, 3, 4))
case("matmul with a vector", ops.matmul, torch.matmul, normal(3), normal(5, 3, 4))
for subscripts, *shapes in (
    ("bij,bjk->bik", (2, 3, 4), (2, 4, 5)),
    ("ii->i", (3, 3)),
    ("...ij,jk->...ki", (2, 3, 4), (4, 5)),
    ("ij,kl->jl", (2, 3), (4, 5)),
    ("bi,bj,bk->ijk", (2, 3), (2, 4), (2, 5)),
):
    case(
        f"einsum {subscripts}",
        lambda *x, s=subscripts: ops.einsum(s, *x),
        lambda *x, s=subscripts: torch.einsum(s, *x),
        *(normal(*shape) for shape in shapes),
    )

# convolutions
for options in (
    {},
    {"padding": 1},
    {"stride": 2, "padding": 1},
    {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
    {"groups": 2, "padding": 1},
    {"groups": 4, "dilation": 2, "padding": 2},
    {"padding": 4},
):
    g = options.get("groups", 1)
    case(
        f"conv2d {options}",
        lambda x, w, b, o=options: ops.conv2d(x, w, b, **o),
        lambda x, w, b, o=options: nhwc(F.conv2d(nchw(x), kcrs(w), b, **o)),
        normal(2, 6, 7, 4),
        normal(3, 3, 4 // g, 8),
        normal(8),
    )
case(
    "conv2d with the paper's downsampling",
    lambda x, w, b: ops.conv2d(x, w, b, stride=2, padding=((0, 1), (0, 1))),
    lambda x, w, b: nhwc(F.conv2d(F.pad(nchw(x), (0, 1, 0, 1)), kcrs(w), b, stride=2)),
    normal(2, 6, 8, 3),
    normal(3, 3, 3, 4),
    normal(4),
)
for options in (
    {},
    {"stride": 2, "padding": 1, "output_padding": 1},
    {"stride": (3, 2), "padding": (0, 1), "output_padding": (2, 0)},
    {"dilation": 2, "padding": 1},
    {"groups": 2, "stride": 2},
):
    g = options.get("groups", 1)
    case(
        f"conv_transpose2d {options}",
        lambda x, w, b, o=options: ops.conv_transpose2d(x, w, b, **o),
        lambda x, w, b, o=options: nhwc(F.conv_transpose2d(nchw(x), kcrs(w), b, **o)),
        normal(2, 4, 5, 8),
        normal(3, 3, 4 // g, 8),
        normal(4),
    )
case(
    "patches",
    lambda x: ops.patches(x, (2, 3), stride=(1, 2), padding=1, dilation=(2, 1)),
    # (N, C R S, Ho Wo) -> (N Ho Wo, R S C)
    lambda x: (
        F.unfold(nchw(x), (2, 3), stride=(1, 2), padding=1, dilation=(2, 1))
        .reshape(2, 3, 2, 3, -1)
        .permute(0, 4, 2, 3, 1)
        .reshape(-1, 18)
    ),
    normal(2, 4, 5, 3),
)
case(
    "unpatches",
    lambda p: ops.unpatches(p, (2, 4, 5, 3), 3, padding=1),
    lambda p: nhwc(F.fold(p.reshape(2, 20, 3, 3, 3).permute(0, 4, 2, 3, 1).reshape(2, 27, 20), (4, 5), 3, padding=1)),
    normal(40, 27),
)

# pooling
for ours, theirs in ((ops.avg_pool2d, F.avg_pool2d), (ops.max_pool2d, F.max_pool2d)):
    for arguments in ((2,), (3, 2, 1), ((2, 3), (1, 2), (1, 0))):
        case(
            f"{ours.__name__} {arguments}",
            lambda x, f=ours, a=arguments: f(x, *a),
            lambda x, f=theirs, a=arguments: nhwc(f(nchw(x), *a)),
            normal(2, 6, 7, 3),
        )
case(
    "upsample_nearest2d",
    lambda x: ops.upsample_nearest2d(x, (2, 3)),
    lambda x: nhwc(F.interpolate(nchw(x), scale_factor=(2, 3), mode="nearest")),
    normal(2, 3, 4, 3),
)

# normalisation
case(
    "group_norm",
    lambda x, w, b: ops.group_norm(x, 3, w, b, eps=1e-6),
    lambda x, w, b: nhwc(F.group_norm(nchw(x), 3, w, b, eps=1e-6)),
    normal(2, 4, 5, 6),
    positive(6),
    normal(6),
)
case("group_norm, plain", lambda x: ops.group_norm(x, 2), lambda x: nhwc(F.group_norm(nchw(x), 2)), normal(2, 4, 5, 6))
case("layer_norm", ops.layer_norm, lambda x, w, b: F.layer_norm(x, (6,), w, b), normal(2, 5, 6), positive(6), normal(6))
case("layer_norm, plain", ops.layer_norm, lambda x: F.layer_norm(x, (6,)), normal(2, 5, 6))

# attention
QKV = normal(2, 3, 4, 5), normal(2, 3, 6, 5), normal(2, 3, 6, 7)
case("attention", ops.attention, F.scaled_dot_product_attention, *QKV)
case("attention, boolean mask", ops.attention, F.scaled_dot_product_attention, *QKV, booleans(4, 6))
case(
    "attention, float mask",
    lambda q, k, v, m: ops.attention(q, k, v, m.detach()),
    lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m.detach()),
    *QKV,
    normal(2, 1, 4, 6),
)
case(
    "attention, scale",
    lambda q, k, v: ops.attention(q, k, v, scale=0.3),
    lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3),
    *QKV,
)

# losses, embedding
for reduction in ("mean", "sum", "none"):
    case(
        f"mse_loss {reduction}",
        lambda a, b, r=reduction: ops.mse_loss(a, b, r),
        lambda a, b, r=reduction: F.mse_loss(a, b, reduction=r),
        normal(3, 4),
        normal(3, 4),
    )
    case(
        f"cross_entropy {reduction}",
        lambda x, n, r=reduction: ops.cross_entropy(x, n, r),
        lambda x, n, r=reduction: F.cross_entropy(x, n, reduction=r),
        normal(5, 4),
        integers(4, 5),
    )
case("embedding", ops.embedding, F.embedding, integers(4, 2, 5), normal(4, 3))


@pytest.fixture(autouse=True)
def one_thread():
    """PyTorch's threads cost more than these small arrays are worth."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 3e-5)], ids=["float64", "float32"])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_agree_with_pytorch(name, dtype, tolerance, rng):
    ours, theirs, inputs = CASES[name]
    arrays = [draw(rng) for draw in inputs]
    arrays = [a.astype(dtype) if a.dtype.kind == "f" else a for a in arrays]
    xs = [Tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
    ts = [torch.tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
    y, t = ours(*xs), theirs(*ts)
    assert y.shape == tuple(t.shape)
    assert y.dtype == dtype

    def agree(a, b, what):
        b = b.detach().numpy()
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1, np.abs(b).max()), err_msg=what)

    agree(y.data, t, "value")
    L_Y = rng.normal(size=y.shape).astype(dtype)
    y.backward(L_Y)
    t.backward(torch.tensor(L_Y))
    for i, (x, leaf) in enumerate(zip(xs, ts, strict=True)):
        if leaf.grad is not None:
            agree(x.grad, leaf.grad, f"gradient of input {i}")
        else:
            assert x.grad is None


def test_a_small_network_trained_by_both(rng):
    """Ten steps of gradient descent on conv, norm, activation, attention and loss end in the same weights."""
    shapes = {"w": (3, 3, 2, 4), "b": (4,), "g": (4,), "h": (4,), "q": (4, 4), "k": (4, 4), "v": (4, 4), "o": (4, 3)}
    start = {name: 0.5 * rng.normal(size=shape) for name, shape in shapes.items()}
    images, labels = rng.normal(size=(5, 4, 4, 2)), rng.integers(0, 3, 5)

    def tinydiff_loss(p):
        h = ops.silu(ops.group_norm(ops.conv2d(images, p["w"], p["b"], padding=1), 2, p["g"], p["h"]))
        h = h.reshape(5, 16, 4)
        h = h + ops.attention(h @ p["q"], h @ p["k"], h @ p["v"])
        return ops.cross_entropy(h.mean(axis=1) @ p["o"], labels)

    def torch_loss(p):
        x = nchw(torch.tensor(images))
        h = F.silu(F.group_norm(F.conv2d(x, kcrs(p["w"]), p["b"], padding=1), 2, p["g"], p["h"]))
        h = nhwc(h).reshape(5, 16, 4)
        h = h + F.scaled_dot_product_attention(h @ p["q"], h @ p["k"], h @ p["v"])
        return F.cross_entropy(h.mean(1) @ p["o"], torch.tensor(labels))

    ours = {name: a.copy() for name, a in start.items()}
    theirs = {name: torch.tensor(a) for name, a in start.items()}
    for _ in range(10):
        p = {name: Tensor(a, requires_grad=True) for name, a in ours.items()}
        loss = tinydiff_loss(p)
        loss.backward()
        ours = {name: a - 0.5 * p[name].grad for name, a in ours.items()}
        p = {name: t.detach().requires_grad_() for name, t in theirs.items()}
        their_loss = torch_loss(p)
        their_loss.backward()
        theirs = {name: (t - 0.5 * p[name].grad).detach() for name, t in p.items()}
        np.testing.assert_allclose(loss.data, their_loss.item(), rtol=1e-10)
    for name in shapes:
        np.testing.assert_allclose(ours[name], theirs[name].numpy(), rtol=1e-9, atol=1e-10)
    assert np.abs(ours["w"] - start["w"]).max() > 1e-3
