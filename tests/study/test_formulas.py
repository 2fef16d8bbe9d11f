"""The formulas of a page are computed from the arrays of the trace, and give the gradients that the operations gave."""

import importlib
import math
import pkgutil

import numpy as np
import pytest

import tinydiff as td
import tinydiff.ops
from tinydiff.autograd.function import Function
from tinydiff.diffusion.decoder import bin_log_prob
from tinydiff.ops.rounding import cast
from tinydiff.study.formulas import formulas_of, parts_of, value_of
from tinydiff.study.notation import evaluate, parse

rng = np.random.default_rng(5)


def tensor(*shape, low=-2.0, high=2.0):
    return td.Tensor(rng.uniform(low, high, shape), requires_grad=True)


def positive(*shape):
    return tensor(*shape, low=0.5)


def ties(*shape):
    return td.Tensor(rng.integers(0, 3, shape).astype(float), requires_grad=True)


def conv(**options):
    return lambda x, w, b=None: td.ops.conv2d(x, w, b, **options)


o, images, filters = td.ops, (2, 5, 6, 4), (3, 2, 4, 6)
mask = rng.uniform(size=(3, 5)) < 0.7
mask[:, 0] = True
layers = td.ops.fully_connected.linears
CASES = {
    "linear": lambda: o.linear(tensor(4, 3), tensor(3, 5), tensor(5)),
    "linear without a bias": lambda: o.linear(tensor(2, 3, 4), tensor(4, 5)),
    "linears": lambda: layers(tensor(4, 3), [(tensor(3, 5), tensor(5)), (tensor(3, 2), None)]),
    "four linears": lambda: layers(tensor(2, 2, 3), [(tensor(3, 2), tensor(2)) for _ in range(4)]),
    "conv": lambda: conv()(tensor(*images), tensor(*filters), tensor(6)),
    "conv, no bias": lambda: conv(padding=1)(tensor(*images), tensor(*filters)),
    "conv, strided": lambda: conv(stride=2, padding=((0, 1), (2, 0)))(tensor(*images), tensor(*filters), tensor(6)),
    "conv, grouped": lambda: conv(groups=2)(tensor(*images), tensor(3, 2, 2, 6), tensor(6)),
    "conv, dilated": lambda: conv(dilation=(2, 1), groups=4)(tensor(*images), tensor(2, 2, 1, 8), tensor(8)),
    "conv with terms": lambda: o.convolution.conv2d_add(
        tensor(2, 4, 4, 3), tensor(3, 3, 3, 2), tensor(2), tensor(2, 2), tensor(2, 4, 4, 2), padding=1
    ),
    "upsampled": lambda: o.convolution.upsample_conv2d(tensor(2, 3, 2, 2), tensor(3, 3, 2, 4), tensor(4)),
    "transposed": lambda: o.conv_transpose2d(tensor(2, 3, 3, 6), tensor(*filters), tensor(4), stride=2, padding=1),
    "transposed, grouped": lambda: o.conv_transpose2d(tensor(2, 3, 3, 6), tensor(3, 2, 2, 6), stride=2, groups=2),
    "patches": lambda: o.patches(tensor(2, 4, 5, 3), (3, 2), stride=2, padding=1),
    "unpatches": lambda: o.unpatches(tensor(12, 12), (2, 5, 4, 3), 2, padding=((0, 0), (0, 1)), stride=(2, 1), dilation=2),
    "group norm": lambda: o.group_norm(tensor(2, 3, 3, 4), 2, tensor(4), tensor(4)),
    "group norm, plain": lambda: o.group_norm(tensor(2, 3, 4), 4),
    "group norm, weight": lambda: o.group_norm(tensor(2, 3, 4), 1, tensor(4)),
    "group norm and silu": lambda: o.normalization.group_norm_silu(tensor(2, 3, 3, 4), 2, tensor(4), tensor(4)),
    "group norm and silu, plain": lambda: o.normalization.group_norm_silu(tensor(2, 3, 4), 2),
    "layer norm": lambda: o.layer_norm(tensor(2, 3, 4), tensor(4), tensor(4)),
    "layer norm, plain": lambda: o.layer_norm(tensor(3, 4)),
    "attention": lambda: o.attention(tensor(2, 3, 4), tensor(2, 5, 4), tensor(2, 5, 2)),
    "attention, scaled": lambda: o.attention(tensor(2, 3, 4), tensor(2, 5, 4), tensor(2, 5, 2), scale=0.3),
    "attention, mask": lambda: o.attention(tensor(2, 3, 4), tensor(5, 4), tensor(2, 5, 2), tensor(1, 5)),
    "attention, boolean mask": lambda: o.attention(tensor(2, 3, 4), tensor(2, 5, 4), tensor(2, 5, 2), mask),
    "matmul": lambda: tensor(2, 3, 4) @ tensor(4, 5),
    "matmul, stacks": lambda: o.matmul(tensor(2, 1, 3, 4), tensor(5, 4, 2)),
    "einsum": lambda: o.einsum("ij,jk->ik", tensor(2, 3), tensor(3, 4)),
    "einsum, three": lambda: o.einsum("...ij,jk,k->...i", tensor(2, 2, 3), tensor(3, 4), tensor(4)),
    "einsum, sums": lambda: o.einsum("ij,kl->ik", tensor(2, 3), tensor(4, 5)),
    "einsum, diagonal": lambda: o.einsum("iij->j", tensor(3, 3, 2)),
    "mse": lambda: o.mse_loss(tensor(2, 3), tensor(2, 3)),
    "mse, sum": lambda: o.mse_loss(tensor(2, 3), tensor(2, 3), "sum"),
    "mse, none": lambda: o.mse_loss(tensor(2, 3), tensor(2, 3), "none"),
    "cross-entropy": lambda: o.cross_entropy(tensor(4, 3), np.array([0, 2, 2, 1])),
    "cross-entropy, sum": lambda: o.cross_entropy(tensor(4, 3), np.array([0, 2, 2, 1]), "sum"),
    "cross-entropy, none": lambda: o.cross_entropy(tensor(4, 3), np.array([0, 2, 2, 1]), "none"),
    "softmax": lambda: o.softmax(tensor(3, 4, 2), axis=1),
    "log softmax": lambda: o.log_softmax(tensor(3, 4)),
    "logsumexp": lambda: o.logsumexp(tensor(2, 3, 4), axis=(0, 2)),
    "logsumexp, kept": lambda: o.logsumexp(tensor(2, 3), axis=0, keepdims=True),
    "where": lambda: o.where(rng.uniform(size=(2, 3)) < 0.5, tensor(2, 3), tensor(3)),
    "clip": lambda: o.clip(tensor(3, 4), tensor(4, high=0), 0.5),
    "clip, crossed": lambda: o.clip(tensor(3, 4), tensor(3, 4), tensor(3, 4)),
    "clip, one limit": lambda: o.clip(tensor(3, 4), None, tensor()),
    "power": lambda: positive(2, 3) ** tensor(3),
    "power by a number": lambda: tensor(2, 3) ** 3,
    "divide": lambda: tensor(2, 1, 3) / positive(4, 1),
    "multiply": lambda: tensor(2, 3) * tensor(1, 3),
    "multiply by a number": lambda: tensor(2, 3) * 0.25,
    "number minus": lambda: 1 - tensor(2, 3),
    "add": lambda: tensor(2, 3) + tensor(),
    "maximum": lambda: o.maximum(ties(4, 3), ties(3)),
    "minimum": lambda: o.minimum(ties(4, 3), 1.0),
    "gelu": lambda: o.gelu(tensor(7)),
    "gelu, tanh": lambda: o.gelu(tensor(7), approximate="tanh"),
    "sum": lambda: o.sum(tensor(2, 3, 4), axis=(0, 2)),
    "mean": lambda: o.mean(tensor(2, 3, 4), axis=-1, keepdims=True),
    "mean of all": lambda: o.mean(tensor(2, 3)),
    "var": lambda: o.var(tensor(2, 3, 4), axis=(0, 1), ddof=1),
    "std": lambda: o.std(tensor(2, 3), axis=0),
    "norm": lambda: o.norm(tensor(2, 3), axis=1, keepdims=True),
    "max": lambda: o.max(ties(4, 3), axis=0),
    "min": lambda: o.min(ties(4, 3, 2), axis=(1, 2), keepdims=True),
    "transpose": lambda: o.transpose(tensor(2, 3, 4), (2, 0, 1)),
    "reshape": lambda: o.reshape(tensor(2, 6), (3, 4)),
    "cast": lambda: cast(tensor(2, 3), np.float32),
    "broadcast": lambda: o.broadcast_to(tensor(3, 1), (2, 3, 4)),
    "concatenate": lambda: o.concatenate([tensor(2, 3), tensor(2, 1), tensor(2, 2)], axis=1),
    "split": lambda: o.split(tensor(5, 2), [1, 3]),
    "slice": lambda: tensor(4, 5)[1:3, ::2],
    "index": lambda: tensor(4, 5)[np.array([0, 2, 0])],
    "mask": lambda: tensor(2, 5)[np.array([True, False])],
    "pad": lambda: o.pad(tensor(2, 3), ((1, 0), (0, 2)), value=tensor()),
    "reflected": lambda: o.pad(tensor(4, 3), ((1, 2), (0, 0)), mode="reflect"),
    "embedding": lambda: o.embedding(np.array([[0, 2], [2, 1]]), tensor(3, 4)),
    "average pool": lambda: o.avg_pool2d(tensor(2, 5, 4, 2), (2, 3), stride=1, padding=1),
    "max pool": lambda: o.max_pool2d(ties(2, 5, 4, 2), 2, padding=1),
    "upsample": lambda: o.upsample_nearest2d(tensor(1, 2, 3, 2), (2, 3)),
    "dropout": lambda: o.dropout(tensor(4, 5), 0.3, td.random.Generator(0)),
    "bins": lambda: bin_log_prob(tensor(2, 3), tensor(2, 3), np.array([[-1.0, 0.2, 1.0], [1.0, -0.2, -1.0]])),
    **{name: lambda name=name: getattr(o, name)(tensor(2, 3)) for name in ["exp", "sin", "cos", "erf", "abs"]},
    **{name: lambda name=name: getattr(o, name)(tensor(2, 3)) for name in ["relu", "silu", "tanh"]},
    **{name: lambda name=name: getattr(o, name)(positive(2, 3)) for name in ["sqrt", "log", "sigmoid", "softplus"]},
    "batch norm": lambda: o.batch_norm(tensor(4, 2, 3), tensor(3), tensor(3)),
    "batch norm, plain": lambda: o.batch_norm(tensor(4, 3)),
    "signs": lambda: -(+tensor(2, 3)),
}  # fmt: skip


def traced(compute):
    """The trace of the backward pass of a random projection."""
    with td.trace() as trace:
        ys = compute()
        ys = ys if isinstance(ys, tuple) else (ys,)
        o.sum(o.concatenate([(y * rng.normal(size=y.shape)).reshape(-1) for y in ys])).backward()
    return trace


def wrong_formulas(op):
    """What is wrong with the formulas of an operation of a trace."""
    formulas = formulas_of(op)
    for i, (name, L) in enumerate(zip(op.names, op.L_Xs, strict=True)):
        if L is None or not op.needs[i]:
            continue
        text, value = f"{op.name}: L_{name} = {formulas[i].text}", value_of(op, i, formulas[i])
        if value is None:
            yield f"{text} cannot be computed"
        elif not np.allclose(np.broadcast_to(value, L.shape), L.values, rtol=1e-9, atol=1e-12):
            yield f"{text} is not the gradient"
        letters = set(parse(formulas[i].computed).names()) - {"L_Y", "Y", "pi", "L_Ys", "Xs", *op.names}
        letters -= {k for k, v in op.settings.items() if isinstance(v, np.ndarray)} | {f"L_Y_{k}" for k in range(9)}
        if letters - {sentence.partition(" = ")[0] for sentence in formulas[i].where}:
            yield f"{text} does not explain {letters}"


@pytest.fixture(scope="module")
def traces():
    return {name: traced(compute) for name, compute in CASES.items()}


def test_every_formula_gives_its_gradient(traces):
    wrong = {
        name: found for name, t in traces.items() if (found := [w for op in t.operations for w in wrong_formulas(op)])
    }
    assert not wrong


def test_every_operation_has_a_formula_that_is_computed(traces):
    for package in (tinydiff.ops, td.diffusion):
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")

    def below(cls):
        return [cls, *(c for sub in cls.__subclasses__() for c in below(sub))]

    places = ("tinydiff.ops.", "tinydiff.diffusion.")
    known = {f.__name__ for f in below(Function) if f.__module__.startswith(places) and "forward" in vars(f)}
    assert known - {op.name for t in traces.values() for op in t.operations} == {"_NoiseLoss"} and len(known) > 50


def test_the_loss_of_a_training_step():
    diffusion = td.diffusion.Diffusion(td.diffusion.Schedule.linear())
    x0, prediction = rng.normal(size=(2, 4, 4, 1)).astype(np.float32), tensor(2, 4, 4, 1)
    with td.trace() as trace:
        diffusion.loss(lambda x, t: prediction * 1, x0, td.random.Generator(0)).backward()
    (op,) = [op for op in trace.operations if op.name == "_NoiseLoss"]
    (formula,) = formulas_of(op)
    assert formula.text == "G * L_Y" and "computed in forward" in " ".join(formula.where)
    assert not list(wrong_formulas(op))


def test_a_hook_hands_gradients_on():
    layer = td.nn.Linear(3, 2)
    layer.register_full_backward_hook(lambda module, L_Xs, L_Ys: None)
    trace = traced(lambda: layer(tensor(4, 3)))
    (inputs,), (outputs,) = ([op for op in trace.operations if op.name == name] for name in ("_Inputs", "_Outputs"))
    for op in (inputs, outputs):
        assert formulas_of(op)[0].text == "L_Ys[0]" and formulas_of(op)[0].where == ["as the hooks leave it"]
        assert not list(wrong_formulas(op))


def test_sums_over_what_was_repeated_are_told(traces):
    L_B = formulas_of(traces["multiply"].operations[0])[1]
    assert L_B.text == "sum(L_Y * A)" and L_B.where == ["summed over axis 0, along which B was repeated"]
    L_X = formulas_of(traces["mse"].operations[0])[0]
    assert L_X.text == "2 (P - T) * L_Y / n" and L_X.where[0] == "n = 6"
    assert formulas_of(traces["mse, sum"].operations[0])[0].where[0] == "n = 1"
    grouped = formulas_of(traces["conv, grouped"].operations[0])[1]
    assert "separately for each of the 2 groups of channels" in grouped.where and not grouped.shapes
    assert formulas_of(traces["linears"].operations[0])[0].text == "L_Y_1 W_1ᵀ + L_Y_2 W_2ᵀ"


def test_the_three_terms_of_group_normalisation_are_there():
    trace = traced(lambda: o.normalization.group_norm_silu(tensor(2, 3, 4), 2, tensor(4), tensor(4)))
    op = trace.operations[0]
    formula = formulas_of(op)[0]
    parts = dict(parts_of(op, formula))
    first, second, third = parts["L_Z"], parts["mean(L_Z)"], parts["Z * mean(L_Z * Z)"]
    np.testing.assert_allclose((first - second - third) / parts["s"], op.L_Xs[0].values, rtol=1e-9)
    A = parts["A"]
    S = 1 / (1 + np.exp(-A))
    np.testing.assert_allclose(first, op.L_Ys[0].values * (S + A * S * (1 - S)) * op.inputs[1].values, rtol=1e-9)
    assert "L_Z = L_A * w" in formula.where and "means over the group" in formula.where


def test_the_patches_of_a_convolution_are_there():
    op = traced(CASES["conv"]).operations[0]
    parts = dict(parts_of(op, formulas_of(op)[1]))
    assert parts["P"].shape == (2 * 3 * 5, 24)
    np.testing.assert_array_equal(parts["P"][0], op.inputs[0].values[0, :3, :2].ravel())
    L_Y = op.L_Ys[0].values.reshape(-1, 6)
    np.testing.assert_allclose((parts["P"].T @ L_Y).reshape(filters), op.L_Xs[1].values, rtol=1e-9)


def test_arrays_that_were_not_kept_are_not_made_up():
    with td.trace(values=10) as trace:
        o.tanh(o.linear(tensor(40, 30), tensor(30, 20))).sum().backward()
    op = trace.operations[0]
    assert value_of(op, 1, formulas_of(op)[1]) is None and parts_of(op, formulas_of(op)[1]) == []


@pytest.mark.parametrize(
    "text, value",
    [
        ("2 a b / 3", 2 * 2 * 5 / 3), ("a^2 b", 20.0), ("-a^2 + b", 1.0), ("a (b - 1) * 2", 16.0), ("1 - (a < b)", 0.0),
        ("a <= b < 5", 0.0), ("a > b or b > a", 1.0), ("sqrt(2 b - 1)", 3.0), ("f^T(a) / b", 0.4), ("c[1] - c[0]", 3.0),
        ("a - b - 1", -4.0), ("2 sqrt(a + 7) b", 30.0),
    ],
)  # fmt: skip
def test_the_notation(text, value):
    letters = {"a": 2.0, "b": 5.0, "c": [1.0, 4.0]}
    functions = {"sqrt": math.sqrt, "fᵀ": lambda a: a}
    assert evaluate(parse(text), letters.__getitem__, functions) == pytest.approx(value)


def test_products_of_matrices_bind_stronger():
    A, B = rng.normal(size=(2, 2)), rng.normal(size=(2, 2))
    letters = {"A": A, "B": B}.__getitem__
    np.testing.assert_allclose(evaluate(parse("A * A^T B"), letters, {}), A * (A.T @ B))
    np.testing.assert_allclose(evaluate(parse("1^T A"), letters, {}), A.sum(0))


@pytest.mark.parametrize("text", ["L_Y.sum(0)", "a +", "(a", "a b)", "", "f(a", "x[0"])
def test_what_is_not_a_formula(text):
    with pytest.raises(ValueError, match="is not a formula"):
        parse(text)
