"""Homework as it is: the forms in which people have forward and backward passes."""

import numpy as np
import pytest

import tinydiff as td
from tinydiff.errors import InputError
from tinydiff.gradcheck import GradientError, gradcheck

RNG = np.random.default_rng(11)
X, W, B = RNG.normal(size=(5, 4)), RNG.normal(size=(4, 3)), RNG.normal(size=3)
Y = np.array([0, 2, 1, 2, 0])


def failure(*args, **options):
    with pytest.raises(GradientError) as caught:
        gradcheck(*args, **options)
    return caught.value.report


def names(report):
    return [v.name for v in report.verdicts]


def probabilities(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def softmax_loss(factor=1.0):
    def loss(x, y):
        p = probabilities(x)
        d = p.copy()
        d[np.arange(len(y)), y] -= 1
        return -np.log(p[np.arange(len(y)), y]).mean(), factor * d / len(y)

    return loss


def squares(factor=1.0):
    def loss(w, X, y):
        r = X @ w - y
        return np.mean(r**2), factor * 2 * X.T @ r / len(y)

    return loss


def test_a_loss_and_its_gradient():
    report = gradcheck(softmax_loss(), [X, Y % 3])
    assert names(report) == ["x"] and "was taken for (loss, gradients): of x" in str(report)
    assert failure(softmax_loss(2.0), [X, Y % 3]).diagnosis == "ratio"


def test_operators_alone_do_not_make_it_a_function_of_tensors():
    inputs = [RNG.normal(size=4), X, RNG.normal(size=5)]
    assert names(gradcheck(squares(), inputs)) == ["w"]
    assert failure(squares(0.5), inputs).diagnosis == "ratio"


@pytest.mark.parametrize("keys", ["W b", "dW db", "grad_W grad_b", "W_grad b_grad"])
def test_a_loss_and_gradients_by_name(keys):
    def loss(W, b, x):
        y = x @ W + b
        k, j = keys.split()
        return (y**2).sum(), {k: 2 * x.T @ y, j: 2 * y.sum(0)}

    assert names(gradcheck(loss, [W, B, X])) == ["W", "b"]


class Net:
    """Two layers; loss(X, y) returns (loss, gradients by name)."""

    factor = 1.0

    def __init__(self):
        rng = np.random.default_rng(0)
        self.params = {
            "W1": rng.normal(size=(4, 6)),
            "b1": np.zeros(6),
            "W2": rng.normal(size=(6, 3)),
            "b2": np.zeros(3),
        }

    def loss(self, X, y):
        p = self.params
        h = np.tanh(X @ p["W1"] + p["b1"])
        value, d = softmax_loss()(h @ p["W2"] + p["b2"], y)
        dh = d @ p["W2"].T * (1 - h**2)
        grads = {"W1": X.T @ dh, "b1": dh.sum(0), "W2": self.factor * h.T @ d, "b2": d.sum(0)}
        return value, grads


class MisnamedNet(Net):
    def loss(self, X, y):
        value, grads = super().loss(X, y)
        grads["w_2"] = grads.pop("W2")
        return value, grads


def test_a_class_of_a_network():
    net = Net()
    before = {k: v.copy() for k, v in net.params.items()}
    arrays = dict(net.params)
    report = gradcheck(net.loss, [X, Y % 3])
    assert names(report) == ["W1", "b1", "W2", "b2"]
    assert all(net.params[k] is arrays[k] and np.array_equal(arrays[k], before[k]) for k in before)
    wrong = Net()
    wrong.factor = 3.0
    report = failure(wrong.loss, [X, Y % 3])
    assert [v.name for v in report.verdicts if not v.ok] == ["W2"] and report.diagnosis == "ratio"
    with pytest.raises(InputError, match="under the name 'w_2', and MisnamedNet has no parameter of that name"):
        gradcheck(MisnamedNet().loss, [X, Y % 3])


class Affine:
    """A layer that stores its gradients."""

    factor = 1.0

    def __init__(self):
        self.W, self.b = W.copy(), B.copy()
        self.dW = self.db = None

    def forward(self, x):
        self.x = x
        return x @ self.W + self.b

    def backward(self, dout):
        self.dW, self.db = self.factor * self.x.T @ dout, dout.sum(0)
        return dout @ self.W.T


class Called:
    """A layer that is called, and keeps its gradients under names of its own."""

    def __init__(self, share=1.0):
        self.w, self.b, self.share = W.copy(), B.copy(), share

    def __call__(self, x):
        self.x = x
        return x @ self.w + self.b

    def backward(self, g):
        self.w_g, self.b_g = self.share * self.x.T @ g, g.sum(0)
        return g @ self.w.T


class Keeps:
    """A base class whose call keeps what backward needs, and hands on to forward."""

    def __call__(self, *inputs):
        self.inputs = inputs
        return self.forward(*inputs)

    def backward(self, g):
        return self.slopes(g, *self.inputs)


class Squares(Keeps):
    def forward(self, guess, target):
        return ((guess - target) ** 2).mean()

    def slopes(self, g, guess, target):
        d = 2 * g * (guess - target) / guess.size
        return d, -d


def test_layers_that_are_called():
    assert names(gradcheck(Called(), [X], parameters=["w", "b"])) == ["x", "w", "b"]
    with pytest.raises(GradientError, match="gradient of w"):
        gradcheck(Called(0.5), [X], parameters=["w", "b"])
    assert names(gradcheck(Squares(), [X, X + 1])) == ["guess", "target"]


class Adding(Affine):
    """Adds to the gradients it has, as layers do between two steps."""

    def __init__(self):
        super().__init__()
        self.dW, self.db = np.zeros_like(self.W), np.zeros_like(self.b)

    def backward(self, dout):
        self.dW += self.x.T @ dout
        self.db += dout.sum(0)
        return dout @ self.W.T


class Listing(Affine):
    def __init__(self):
        super().__init__()
        self.params, self.grads = [self.W, self.b], [np.zeros_like(self.W), np.zeros_like(self.b)]

    def forward(self, x):
        self.x = x
        return x @ self.params[0] + self.params[1]

    def backward(self, dout):
        self.grads[0][...] = self.x.T @ dout
        self.grads[1][...] = dout.sum(0)
        return dout @ self.params[0].T


@pytest.mark.parametrize("kind", [Affine, Adding])
@pytest.mark.parametrize("how", [["W", "b"], {"W": "dW", "b": "db"}, "object"])
def test_gradients_that_a_layer_stores(kind, how):
    layer = kind()
    parameters = layer if how == "object" else how
    report = gradcheck(layer.forward, [X], backward=layer.backward, parameters=parameters)
    assert names(report) == ["x", "W", "b"]
    np.testing.assert_array_equal(layer.W, W)
    layer.factor = 2.0
    if kind is Affine:
        report = failure(layer, [X], parameters=parameters)
        assert [v.name for v in report.verdicts if not v.ok] == ["W"] and report.diagnosis == "ratio"


def test_parameters_in_lists():
    layer = Listing()
    assert len(names(gradcheck(layer, [X], parameters=layer.params))) == 3


def test_what_nobody_asked_about_is_said():
    report = gradcheck(Affine(), [X])
    assert names(report) == ["x"]
    assert any("also stores gradients of W, b, which were not looked at" in note for note in report.notes)
    assert not [n for n in gradcheck(Affine(), [X], parameters=["W", "b"]).notes if "stores" in n]


def test_dicts_of_parameters():
    def forward(params, x):
        return np.tanh(x @ params["W"] + params["b"]), (x, params)

    def backward(dout, cache, key="W"):
        x, params = cache
        d = dout * (1 - np.tanh(x @ params["W"] + params["b"]) ** 2)
        return {key: x.T @ d, "b": d.sum(0)}, d @ params["W"].T

    inputs = [{"W": W, "b": B}, X]
    assert names(gradcheck(forward, inputs, backward=backward, cache=True)) == ["W", "b", "x"]
    wrong = lambda dout, cache: backward(dout, cache, "w")  # noqa: E731
    with pytest.raises(InputError, match="no gradient for 'W': its keys are 'w', 'b'"):
        gradcheck(forward, inputs, backward=wrong, cache=True)


def test_wrong_keys_are_named_and_not_taken_for_zeros():
    with pytest.raises(InputError, match="no gradient for 'w': its keys are 'x', 'weight'"):
        gradcheck(lambda x, w: x @ w, [X, W], backward=lambda g, x, w: {"x": g @ w.T, "weight": x.T @ g})


def test_several_outputs_beside_a_cache():
    def forward(x, h):
        a, b = np.tanh(x + h), x * h
        return a, b, (x, h, a)

    def backward(da, db, cache):
        x, h, a = cache
        d = da * (1 - a**2)
        return d + db * h, d + db * x

    assert gradcheck(forward, [X, X + 1], backward=backward, cache=True).ok


def test_scipys_gradient():
    def rosenbrock(x):
        return np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)

    def gradient(x, sign=1.0):
        d = np.zeros_like(x)
        d[:-1] = -400 * x[:-1] * (x[1:] - x[:-1] ** 2) - 2 * (1 - x[:-1])
        d[1:] += sign * 200 * (x[1:] - x[:-1] ** 2)
        return d

    assert gradcheck(rosenbrock, [RNG.normal(size=5)], backward=gradient).ok
    assert not failure(rosenbrock, [RNG.normal(size=5)], backward=lambda x: gradient(x, -1.0)).ok
    assert gradcheck(lambda w: (w**2).sum(), [[1.0, 2.0, 3.0]], backward=lambda theta: 2 * theta).ok


def test_the_backward_of_jax():
    def bwd(res, g):
        x, w = res
        return g @ w.T, x.T @ g

    assert gradcheck(lambda x, w: (x @ w, (x, w)), [X, W], backward=bwd, cache=True).ok


def test_global_random_numbers_are_repeated():
    state = np.random.get_state()[1].copy()

    def dropout(x):
        mask = np.random.rand(*x.shape) < 0.5
        return x * mask, mask

    assert gradcheck(dropout, [X], backward=lambda g, mask: g * mask, cache=True).ok
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_lists_and_numbers():
    assert gradcheck(lambda x: np.sum(np.square(x)), [[1.0, 2.0]], backward=lambda g, x: [2 * g * v for v in x]).ok
    assert gradcheck(lambda x: x**2, [3.0], backward=lambda g, x: 2 * g * x).ok
    assert gradcheck(lambda x, p: x**p, [X**2, 3.0], backward=lambda g, x, p: g * p * x ** (p - 1)).ok


def test_pytorch():
    torch = pytest.importorskip("torch", reason="needs PyTorch, part of the extra `parity`")

    class Cube(torch.autograd.Function):
        factor = 3

        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return Cube.factor * g * x**2

    assert names(gradcheck(Cube, [X])) == ["x"]
    assert gradcheck(lambda x, w: torch.tanh(x @ w), [torch.tensor(X), torch.tensor(W)]).ok
    Cube.factor = 2
    assert failure(Cube, [torch.tensor(X)]).diagnosis == "ratio"


def test_functions_of_tensors_are_what_they_were():
    assert names(gradcheck(lambda x: (td.ops.mean(x), x * 2), [X])) == ["x"]


class Late:
    """Its gradients exist only after backward."""

    def __init__(self):
        self.W = W.copy()

    def forward(self, x):
        self.x = x
        return x @ self.W

    def backward(self, dout):
        self.grad_W = self.x.T @ dout
        return dout @ self.W.T


def test_gradients_that_appear_with_backward():
    layer = Late()
    assert names(gradcheck(layer, [X], parameters=layer)) == ["x", "W"]
    assert not hasattr(layer, "x") and not hasattr(layer, "grad_W")


def test_a_gradient_that_is_nowhere():
    class Forgets(Late):
        def backward(self, dout):
            return dout @ self.W.T

    with pytest.raises(InputError, match="there is no gradient of 'W' after backward"):
        gradcheck(Forgets(), [X], parameters=["W"])


def test_a_number_beside_arrays_is_checked_where_it_has_a_gradient():
    def scaled(x, k):
        return k * x

    assert names(gradcheck(scaled, [W, 0.7], backward=lambda g, x, k: (g * k, (g * x).sum()))) == ["x", "k"]
    assert names(gradcheck(scaled, [W, 0.7], backward=lambda g, x, k: (g * k, None))) == ["x"]
    assert names(gradcheck(scaled, [W, 0.7], backward=lambda g, x, k: g * k)) == ["x"]
    assert failure(scaled, [W, 0.7], backward=lambda g, x, k: (g * k, g.sum())).verdicts[-1].name == "k"
