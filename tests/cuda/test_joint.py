"""Layers that share an input, in one launch each way, against float64 on rounded operands."""

import numpy as np
import pytest

from tinydiff.autograd import waiting
from tinydiff.cuda import host, joint, products, source, tensor
from tinydiff.cuda.source import LAYERS
from tinydiff.precision import IN_MEMORY, from_memory, in_memory, rounded

UNIT = {"float32": 0.0, "tf32": 0.0, "fp16": 2.0**-11, "bf16": 2.0**-8}
WIDTHS = [(8,), (24, 8), (72, 8, 136)]


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def arrays(M, D, widths, precision):
    """X, the W_i, the b_i and the L_Y_i, as they lie in memory."""
    held = [[normal(*shape, n, seed=i) for i, n in enumerate(widths)] for shape in ((D,), (), (M,))]
    Ws, L_Ys = ([in_memory(a, precision) for a in each] for each in held[::2])
    return in_memory(normal(M, D), precision), Ws, held[1], L_Ys


def exact(a, precision):
    return rounded(from_memory(a), precision).astype(np.float64)


def check(ours, truth, precision):
    """float32, or rounded to 16 bits."""
    assert ours.dtype == IN_MEMORY[precision]
    np.testing.assert_allclose(from_memory(ours), truth, rtol=UNIT[precision], atol=3e-6 * np.abs(truth).max(initial=0))


def all_ways(device, M, D, widths, precision, seed=0):
    """The three functions on random arrays, compared with float64; what they gave, for comparisons bit by bit."""
    X, Ws, bs, L_Ys = arrays(M, D, widths, precision)
    bs[0] = None
    R = in_memory(normal(M, D, seed=7), precision)

    def run(X, Ws, bs, L_Ys, R):
        with waiting.offered(R) as offer:
            L_X = joint.input_gradient(L_Ys, Ws, precision)
        assert offer.gradient is None and not (before != R).any()
        return [*joint.forward(X, Ws, bs, precision), L_X, *joint.weight_gradients(X, L_Ys, precision)]

    before = device.array(R.copy())
    got = device.run(run, X, Ws, bs, L_Ys, R, seed=seed)
    x, ws, l_ys = exact(X, precision), [exact(W, precision) for W in Ws], [exact(L, precision) for L in L_Ys]
    n = len(widths)
    for Y, w, b in zip(got[:n], ws, bs, strict=True):
        check(Y, x @ w + (0 if b is None else b), precision)
    L_X = sum((l_y @ w.T for l_y, w in zip(l_ys, ws, strict=True)), from_memory(R).astype(np.float64))
    check(got[n], L_X, precision)
    for L_W, l_y in zip(got[n + 1 :], l_ys, strict=True):
        check(L_W, x.T @ l_y, "float32")
    return got


@pytest.mark.parametrize("precision", UNIT)
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_layers_of_several_widths(device, widths, precision):
    all_ways(device, 40, 72, widths, precision)


@pytest.fixture
def forced(monkeypatch):
    """force(m, n, parts) has every product use that tile."""

    def force(m, n, parts):
        monkeypatch.setattr(products, "plan", lambda *sizes: products.Plan(m, n, parts, 4, 4))
        monkeypatch.setattr(tensor, "plan", lambda *sizes: tensor.Plan(m, n, parts))

    return force


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_parts_that_begin_and_end_within_layers_give_the_same_bits_whoever_is_last(device, forced, precision):
    """Layers of 1, 3, 1 and 8 slices in three parts: layers of one part, and parts of one layer."""
    forced(64, 64, 3)
    depth = 16 if precision == "float32" else 32
    widths = 8, 3 * depth, depth, 8 * depth - 8
    first, second = (all_ways(device, 70, 8 * depth, widths, precision, seed) for seed in (1, 2))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_more_layers_than_a_launch_takes(device, monkeypatch):
    """They are taken in turn, and what the first ones give is added to by the others."""
    run, ran = host.run, []
    monkeypatch.setattr(host, "run", lambda *args: (ran.append(args[2]), run(*args)))
    all_ways(device, 4, 4, [4] * (LAYERS + 2), "float32")
    kernels = "joint_input_gradient", "joint_forward", "joint_weight_gradient"
    assert device.name == "cuda" or ran == [k for k in kernels for _ in range(2)]


def test_what_is_not_taken_is_left_alone():
    X, Ws, bs, L_Ys = arrays(8, 16, (8, 12), "float32")
    odd = np.zeros(8 * 12 + 1, np.float32)[1:].reshape(8, 12)
    for x, ws, l_ys in (
        (X[:, :6].copy(), [W[:6] for W in Ws], L_Ys),  # rows that are no whole pieces
        (X, [Ws[0], Ws[1][:, :6].copy()], [L_Ys[0], L_Ys[1][:, :6].copy()]),
        (X.astype(float), [W.astype(float) for W in Ws], [L.astype(float) for L in L_Ys]),
        (X.astype(np.float16), [W.astype(np.float16) for W in Ws], [L.astype(np.float16) for L in L_Ys]),
        (X[:0], Ws, [L[:0] for L in L_Ys]),
    ):
        assert joint.forward(x, ws, bs) is joint.weight_gradients(x, l_ys) is joint.input_gradient(l_ys, ws) is None
    assert joint.weight_gradients(X, [L_Ys[0], odd]) is joint.input_gradient([L_Ys[0], odd], Ws) is None
    assert joint.forward(X, Ws, [bs[0], np.zeros(13, np.float32)[1:]]) is None


@pytest.mark.slow
@pytest.mark.parametrize("defines", [v[1] for v in joint.VARIANTS], ids=lambda x: " ".join(source.flags(x)))
@pytest.mark.parametrize("parts", [1, 2])
def test_every_variant(device, forced, defines, parts):
    forced(defines["TILE_M"], defines["TILE_N"], parts)
    precision = defines.get("PRECISION", "float32").lower()
    for M, D, widths in ((136, 264, (72, 8, 264)), (8, 520, (264, 16))):
        all_ways(device, M, D, widths, precision)
