"""More forms of homework: other structures, other ways to call, layers inside of networks, and what is said where none fits."""

import dataclasses
import random
from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tinydiff.errors import InputError
from tinydiff.gradcheck import GradientError, gradcheck

RNG = np.random.default_rng(5)
X, W, B = RNG.normal(size=(5, 4)), RNG.normal(size=(4, 3)), RNG.normal(size=3)
FAST = {"skip": ["sizes", "strides", "layouts"]}
Pair = namedtuple("Pair", "dw dx")  # not in the order of the inputs


@dataclasses.dataclass
class Affine:
    """Parameters, gradients and a layer in one."""

    W: Any
    b: Any
    x: Any = None

    def forward(self, x):
        self.x = x
        return x @ self.W + self.b

    def backward(self, g):
        self.dW, self.db = self.x.T @ g, g.sum(0)
        return g @ self.W.T


def checked(*args, **options):
    return [v.name for v in gradcheck(*args, **FAST, **options).verdicts]


def fails(*args, **options):
    with pytest.raises(GradientError) as caught:
        gradcheck(*args, **FAST, **options)
    return caught.value.report.diagnosis


@pytest.mark.parametrize(
    "returned",
    [
        lambda dx, dw: (g for g in (dx, dw)),
        lambda dx, dw: map(np.asarray, (dx, dw)),
        lambda dx, dw: SimpleNamespace(dw=dw, dx=dx),
        lambda dx, dw: Pair(dw, dx),
    ],
)
def test_gradients_in_other_containers(returned):
    assert checked(lambda x, w: x @ w, [X, W], backward=lambda g, x, w: returned(g @ w.T, x.T @ g)) == ["x", "w"]
    assert fails(lambda x, w: x @ w, [X, W], backward=lambda g, x, w: returned(g @ w.T, 2 * x.T @ g)) == "ratio"


def test_one_array_for_two_inputs():
    assert checked(lambda x, y: np.stack([x, 2 * y]), [X, X], backward=lambda g, x, y: g * [[[1]], [[2]]]) == ["x", "y"]


def test_outputs_in_other_containers():
    waves = {"s": np.sin, "c": np.cos}
    assert gradcheck(
        lambda x: {k: f(x) for k, f in waves.items()},
        [X],
        backward=lambda g, x: g["s"] * np.cos(x) - g["c"] * np.sin(x),
    )
    assert gradcheck(lambda x: (np.sin(x), x), [X], backward=lambda g, x: g[0] * np.cos(x) + g[1])
    assert fails(lambda x: [np.sin(x), x], [X], backward=lambda g, x: g[0] * np.cos(x) - g[1]) in ("sign", "missing")
    assert gradcheck(
        lambda x: [v * v for v in x], [[1.0, 2.0]], backward=lambda g, x: [2 * a * v for a, v in zip(g, x, strict=True)]
    )


def test_structures_of_parameters():
    def loss(params, x):
        y = x @ params["out"]["W"] + params["out"]["b"]
        return (y**2).sum(), {"out": {"dW": 2 * x.T @ y, "db": 2 * y.sum(0)}}

    assert checked(loss, [{"out": {"W": W, "b": B}}, X]) == ["out.W", "out.b"]

    def layers(params, x):
        ((w, b),) = params
        y = x @ w + b
        return (y**2).sum(), [(2 * x.T @ y, 2 * y.sum(0))]

    assert len(checked(layers, [[(W, B)], X])) == 2

    def objects(p, x):
        y = p.forward(x)
        return (y**2).sum(), Affine(2 * x.T @ y, 2 * y.sum(0))

    assert checked(objects, [Affine(W, B), X])[:2] == ["W", "b"]


def test_a_loss_whose_gradients_are_of_later_inputs():
    def loss(x, w, b, factor=2):
        y = x @ w + b
        return (y**2).sum(), 2 * x.T @ y, factor * y.sum(0)

    assert checked(loss, [X, W, B]) == ["w", "b"]
    assert fails(lambda x, w, b: loss(x, w, b, 3), [X, W, B]) == "ratio"
    with pytest.raises(InputError, match="it cannot be told what these are the gradients of"):
        gradcheck(lambda x, w: ((x @ w).sum(), x, x), [X, W])


class Net:
    """Layers in a list, of which the first counts its calls."""

    def __init__(self):
        self.layers, self.calls, self.rng = [Affine(W.copy(), B.copy()), Scale()], 0, np.random.default_rng(0)

    def forward(self, x):
        self.calls += 1
        self.keep = (self.rng.random(x.shape) < 0.5) * (random.random() + 1)
        x = x * self.keep
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def backward(self, g):
        for layer in reversed(self.layers):
            g = layer.backward(g)
        return g * self.keep


class Parameter:
    def __init__(self, value):
        self.value, self.grad = value, np.zeros_like(value)


class Scale:
    """Adds to the gradient of a parameter that is an object."""

    __slots__ = ("factor", "x")

    def __init__(self):
        self.factor = Parameter(np.array(1.5))

    def forward(self, x):
        self.x = x
        return self.factor.value * x

    def backward(self, g):
        self.factor.grad += (g * self.x).sum()
        return self.factor.value * g


def test_layers_inside_of_a_network():
    net = Net()
    array = net.layers[0].W
    report = gradcheck(net, [X], **FAST)
    assert any("objects inside also store gradients of Affine.W, Affine.b" in note for note in report.notes)
    assert checked(net, [X], parameters=net.layers) == ["x", "W[0]", "b[0]", "factor[1]"]
    assert checked(net, [X], parameters={"first": array}) == ["x", "first"]
    assert checked(net.layers[1], [X], parameters=["factor"]) == ["x", "factor"]
    assert checked(net.layers[1], [X], parameters=[net.layers[1].factor]) == ["x", "parameter"]
    assert net.calls == 0 and net.layers[0].x is None and net.layers[0].W is array
    assert not hasattr(net, "keep") and net.layers[1].factor.grad == 0


class SquaredError:
    """A loss that takes no L_Y; the gradient of its first input alone."""

    factor = 2

    def forward(self, p, t):
        self.d = p - t
        return (self.d**2).mean()

    def backward(self):
        return self.factor * self.d / self.d.size


def test_losses_that_keep_what_they_need():
    assert checked(SquaredError(), [X, 2 * X], wrt="p") == ["p"]
    with pytest.raises(InputError, match=r"returned 1 gradient for 2 floating point inputs \(p, t\); wrt= names"):
        gradcheck(SquaredError(), [X, 2 * X])
    wrong = SquaredError()
    wrong.factor = 1
    assert fails(wrong, [X, 2 * X], wrt="p") == "ratio"


class Storing:
    """A network whose loss keeps its gradients."""

    def __init__(self):
        self.W = W.copy()

    def loss(self, x):
        y = x @ self.W
        self.grads = {"W": 2 * x.T @ y}
        return np.sum(np.square(y))

    def pair(self, x):
        self.loss(x)
        return np.sum((x @ self.W) ** 2), (self.grads["W"],)


def test_a_loss_that_keeps_its_gradients():
    net = Storing()
    assert checked(net.loss, [X], parameters=["W"]) == ["W"] == checked(net.pair, [X], parameters="W")
    assert not hasattr(net, "grads")
    for fn in (net.loss, lambda x: x.dot(W)):
        with pytest.raises(InputError, match="there is no backward pass to check: pass backward="):
            gradcheck(fn, [X])


def test_float32_inside():
    def forward(x):
        return np.tanh(x.astype(np.float32))

    assert gradcheck(forward, [X], backward=lambda g, x: (g * (1 - np.tanh(x) ** 2)).astype(np.float32))


@pytest.mark.parametrize(
    "fn, inputs, options, sentence",
    [
        (lambda x, *, w: x @ w, [X], {}, r"missing a required (keyword-only )?argument: 'w'"),
        (lambda x, w: x @ w, [X], {}, r"\(x, w\) was given 1 input: missing a required argument: 'w'"),
        (Affine, [X], {}, "Affine is a class: give an object of it"),
        (lambda x, w: (x @ w, (x, w)), [X, W], {"backward": lambda d, c: d}, "pass cache=True"),
        (lambda x: {"loss": (x**2).sum()}, [X], {}, r"returns a dict \(loss\): return \(loss, gradients\)"),
    ],
)
def test_what_does_not_fit_is_said(fn, inputs, options, sentence):
    with pytest.raises(InputError, match=sentence):
        gradcheck(fn, inputs, **options)


def test_more_ways_to_call():
    def forward(x):
        return np.tanh(x), np.tanh(x)

    assert gradcheck(forward, [X], backward=lambda a, b: a * (1 - b**2), cache=True, **FAST)
    assert gradcheck(forward, [X], backward=lambda b, a: a * (1 - b**2), cache=True, **FAST)  # it is linear in a alone
    assert gradcheck(lambda x: (np.sin(x), x), [X], backward=lambda x, d: d * np.cos(x), cache=True, **FAST)
    assert gradcheck(lambda x: ((x**2).sum(), x), [X], backward=lambda cache: 2 * cache, cache=True, **FAST)
    buffer = np.zeros_like(X)
    assert gradcheck(lambda x: np.multiply(x, 2, out=buffer), [X], backward=lambda g, x: 2 * g, **FAST)


class Guarded(Affine):
    """Its parameter cannot be replaced from outside."""

    weight = property(lambda self: self.W)

    def backward(self, g):
        self.dweight = self.x.T @ g
        return g @ self.weight.T


def test_parameters_behind_a_property():
    assert checked(Guarded(W.copy(), B), [X], parameters=["weight"]) == ["x", "weight"]


def test_gradients_that_are_no_numbers():
    with pytest.raises(GradientError, match="the gradient of x is no array of numbers but of <U3"):
        gradcheck(lambda x: x, [X], backward=lambda g, x: "abc")


@pytest.mark.parametrize("gradient", [lambda g: 3 * g**2, lambda grad: 3 * grad**2, lambda dy: 3 * dy * dy])
def test_the_gradient_of_a_loss_whose_variable_is_named_like_one(gradient):
    assert gradcheck(lambda w: (w**3).sum(), [X], backward=gradient).ok
    with pytest.raises(GradientError):
        gradcheck(lambda w: (w**3).sum(), [X], backward=lambda g: 2 * gradient(g))


def test_a_backward_that_needs_the_loss_gradient_alone():
    assert gradcheck(lambda x: x.sum(), [X], backward=lambda g: g * np.ones(X.shape)).ok


@pytest.mark.parametrize("factor, word", [(1, "right"), (2, "wrong")])
def test_a_backward_that_writes_into_what_it_was_given_is_told_what_to_write(factor, word):
    def backward(dout, x):
        dout *= factor * (x > 0)
        return dout

    with pytest.raises(GradientError, match=rf"returns are {word},.*residual connection.*dout = dout \* mask"):
        gradcheck(lambda x: np.maximum(x, 0), [X], backward=backward)
