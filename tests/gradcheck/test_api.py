"""td.gradcheck as its users call it."""

import numpy as np
import pytest

import tinydiff as td
from tinydiff import nn, ops
from tinydiff.errors import InputError
from tinydiff.gradcheck import GradientError, Report, gradcheck


class Doubled(td.Function):
    """x + y whose gradient for y is doubled."""

    def forward(self, X, Y):
        return X + Y

    def backward(self, L):
        return L, 2 * L


def arrays(*shapes):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape) for shape in shapes]


def failure(*args, **options):
    with pytest.raises(GradientError) as caught:
        gradcheck(*args, **options)
    return caught.value.report


def test_a_right_gradient_gives_a_report():
    report = gradcheck(ops.linear, arrays((5, 4), (4, 3), (3,)), seed=7)
    assert isinstance(report, Report)
    assert report.ok and bool(report) and report.diagnosis is None
    assert [v.name for v in report.verdicts] == ["x", "w", "b"]
    assert all(v.ok and v.error <= v.allowed for v in report.verdicts)
    assert report.probes == [
        "repeat",
        "purity",
        "slopes",
        "strides",
        "layouts",
        "needs",
        "dropped",
        "shared",
        "reuse",
        "repeats",
        "sizes",
    ]
    assert "no error found" in str(report) and "seed=7" in str(report)


def test_a_wrong_gradient_is_an_assertion_error_with_the_report_in_it():
    assert issubclass(GradientError, AssertionError)
    report = failure(Doubled, arrays((4, 5), (4, 5)))
    assert not report.ok and not bool(report)
    assert {v.name: v.ok for v in report.verdicts} == {"X": True, "Y": False}
    (finding,) = report.findings
    assert (finding.probe, finding.input) == ("slopes", "Y")
    np.testing.assert_allclose(finding.got, 2 * finding.expected, rtol=1e-6)
    text = str(GradientError(report))
    for part in (
        "Doubled",
        "Y",
        "WRONG",
        "2 * L",
        "test_api.py:",
        "worst element: Y[",
        "the gradient is 2 times what it should be",
    ):
        assert part in text


def test_the_seed_replays_the_check():
    one, two, other = (str(failure(Doubled, arrays((4, 5), (4, 5)), seed=s)) for s in (3, 3, 4))
    assert one == two != other


def test_only_the_inputs_asked_for_are_checked():
    inputs = arrays((4, 5), (4, 5))
    assert gradcheck(Doubled, inputs, wrt=[0]).ok
    assert gradcheck(Doubled, inputs, wrt=["X"]).ok
    assert not failure(Doubled, inputs, wrt=["Y"]).ok


def test_inputs_that_are_not_floating_point_are_passed_on():
    seen = []

    def pick(table, index, flag, text):
        seen.append((index, flag, text))
        return table[index]

    index, flag = np.array([0, 2, 1]), np.array([True])
    report = gradcheck(pick, [arrays((4, 3))[0], index, flag, "word"], skip=["sizes", "repeats"])
    assert len(report.verdicts) == 1
    assert all(i is index and f is flag and t == "word" for i, f, t in seen)


def test_float32_and_tensors_are_checked_in_float64():
    kinds = set()

    def square(x):
        kinds.add(x.dtype)
        return x * x

    def product(x, y):
        kinds.update((x.dtype, y.dtype))
        return x * y

    single = np.linspace(1, 2, 5, dtype=np.float32)
    assert gradcheck(product, [single, single], wrt=[0]).ok
    x = td.Tensor(single, requires_grad=True)
    report = gradcheck(square, [x])
    assert np.dtype(np.float32) not in kinds
    assert report.verdicts[0].allowed < 1e-6
    assert x.grad is None and x.dtype == np.float32


def test_given_arrays_are_not_touched():
    x = arrays((4, 5))[0]
    before = x.copy()

    def double_in_place(a):
        a.data *= 2
        return a * 1.0

    assert failure(double_in_place, [x]).diagnosis == "in-place"
    np.testing.assert_array_equal(x, before)


def test_tolerances_are_derived_from_dtype_and_size_and_can_be_given():
    class Off(td.Function):
        def forward(self, X):
            return X * 3.0

        def backward(self, L):
            return L * 3.0 * (1 + 1e-4)

    x = arrays((4, 5))
    assert failure(Off, x).diagnosis in ("small", "ratio")
    assert gradcheck(Off, x, rtol=1e-3).ok
    assert gradcheck(Off, x, atol=1.0).ok
    few, many = (gradcheck(ops.exp, [np.zeros(n)]).tolerance for n in (2, 2000))
    assert "rtol 2.1e-08 = sqrt(eps sqrt(n)), n = 4 elements" in few
    assert "rtol 1.2e-07" in many


class TestByHand:
    """A NumPy forward and backward, as in homework."""

    @staticmethod
    def forward(x, w, b):
        return x @ w + b

    inputs = arrays((5, 4), (4, 3), (3,))

    def test_backward_takes_the_inputs(self):
        assert gradcheck(self.forward, self.inputs, backward=lambda L, x, w, b: (L @ w.T, x.T @ L, L.sum(0))).ok

    def test_backward_takes_a_cache(self):
        def forward(x, w, b):
            return x @ w + b, (x, w)

        def backward(L, cache):
            x, w = cache
            return L @ w.T, x.T @ L, L.sum(0)

        assert gradcheck(forward, self.inputs, backward=backward, cache=True).ok

    def test_an_object_that_remembers(self):
        class Layer:
            def forward(self, x):
                self.x = x
                return np.tanh(x)

            def backward(self, L):
                return L * (1 - np.tanh(self.x) ** 2)

        layer = Layer()
        assert gradcheck(layer.forward, arrays((4, 5)), backward=layer.backward).ok

    def test_gradients_by_name(self):
        def backward(L, x, w, b):
            return {"w": x.T @ L, "x": L @ w.T, "b": L.sum(0)}

        assert gradcheck(self.forward, self.inputs, backward=backward).ok

    def test_several_outputs_and_inputs_without_a_gradient(self):
        def forward(x, power, labels):
            return x**power, x[labels]

        def backward(L, M, x, power, labels):
            out = L * power * x ** (power - 1)
            np.add.at(out, labels, M)
            return out

        x = np.random.default_rng(0).uniform(1, 2, size=(4, 3))
        assert gradcheck(forward, [x, 3, np.array([0, 1, 1])], backward=backward, skip=["sizes"]).ok

    def test_a_wrong_one_is_explained(self):
        def backward(L, x, w, b):
            dw = x.T @ L / len(x)
            return L @ w.T, dw, L.sum(0)

        report = failure(self.forward, self.inputs, backward=backward)
        assert report.diagnosis == "ratio"
        assert [v.name for v in report.verdicts if not v.ok] == ["w"]
        assert "dw = x.T @ L / len(x)" in str(report)
        assert "1/5 of what it should be (5: the length of x along axis 0)" in str(report)

    def test_a_cache_that_was_not_announced(self):
        with pytest.raises(InputError, match="cache=True"):
            gradcheck(lambda x: (x * 2, (x, "kept")), arrays((3,)), backward=lambda L, x: L * 2)


class TestModules:
    @pytest.fixture
    def layers(self):
        layers = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
        for i, p in enumerate(layers.parameters()):
            p.data = np.random.default_rng(i).normal(size=p.shape).astype(np.float32)
        return layers

    def test_all_parameters_are_checked_and_given_back(self, layers):
        before = [(p.data, p.grad, p.requires_grad) for p in layers.parameters()]
        report = gradcheck(layers, arrays((5, 4)))
        assert [v.name for v in report.verdicts][1:] == ["0.weight", "0.bias", "1.weight", "1.bias"]
        for p, (data, grad, flag) in zip(layers.parameters(), before, strict=True):
            assert p.data is data and p.grad is grad and p.requires_grad is flag

    def test_a_wrong_layer_is_named(self, layers):
        class Wrong(nn.Module):
            def __init__(self):
                self.w = nn.Parameter(np.ones(3, np.float32))

            def __call__(self, x):
                return Doubled.apply(x, self.w * np.ones((5, 1)))

        report = failure(Wrong(), arrays((5, 3)))
        assert [v.name for v in report.verdicts if not v.ok] == ["w"]
        assert "the gradient of Y of Doubled is wrong by itself" in str(report)
        assert report.findings[0].culprit == ("Doubled", "Y")

    def test_parameters_of_a_loss(self, layers):
        x = arrays((5, 4))[0]
        report = gradcheck(lambda: ops.mean(layers(x) * layers(x)), [], parameters=layers)
        assert len(report.verdicts) == 4
        report = gradcheck(lambda x: layers(x), [x], parameters=layers, wrt=["1.bias"])
        assert [v.name for v in report.verdicts] == ["1.bias"]
        assert gradcheck(lambda w: w * w, arrays((3,)), parameters=[td.Tensor(np.ones(3))]).ok

    def test_a_tensor_that_the_tape_lost(self, layers):
        report = failure(lambda x: layers(x.detach()) + 0.0 * ops.sum(x), arrays((5, 4)))
        assert report.diagnosis == "zero"


class TestNoise:
    def test_generators_draw_the_same_each_time_and_are_left_as_they_were(self):
        generator = td.random.Generator(1)
        generator.normal((3,))
        offset = generator.offset
        assert gradcheck(lambda x: x * generator.normal(x.shape, np.float64), arrays((4, 5))).ok
        assert generator.offset == offset
        numpy_generator = np.random.default_rng(1)
        state = numpy_generator.bit_generator.state
        assert gradcheck(lambda x: x * numpy_generator.normal(size=x.shape), arrays((4,)), generator=numpy_generator).ok
        assert gradcheck(lambda x, g: x * g.normal(size=x.shape), [*arrays((4,)), numpy_generator]).ok
        assert numpy_generator.bit_generator.state == state

    def test_noise_from_nowhere_is_reported(self):
        report = failure(lambda x: x * np.random.default_rng().normal(size=x.shape), arrays((4,)))
        assert report.diagnosis == "not-repeatable" and "generator=" in str(report)


class Kernel(td.Function):
    """x sigmoid(x), as a kernel that takes float32 alone."""

    factor = 1.0

    def forward(self, X):
        if X.dtype != np.float32:
            raise TypeError("this kernel takes float32")
        self.save(X)
        return X / (1 + np.exp(-X))

    def backward(self, L):
        (X,) = self.saved
        S = 1 / (1 + np.exp(-X))
        return L * (S + X * S * (1 - S)) * np.float32(self.factor)


class WrongKernel(Kernel):
    factor = 1.01


class CumulativeKernel(td.Function):
    """A linear map in float32."""

    factor = 1.0

    def forward(self, X):
        if X.dtype != np.float32:
            raise TypeError("this kernel takes float32")
        return np.cumsum(X, 1)

    def backward(self, L):
        return np.cumsum(L[:, ::-1], 1)[:, ::-1] * np.float32(self.factor)


class WrongCumulativeKernel(CumulativeKernel):
    factor = 1.001


class TestKernels:
    x = arrays((6, 7))[0].astype(np.float32)

    @pytest.mark.parametrize("reference", [None, ops.silu])
    def test_float32(self, reference):
        report = gradcheck(Kernel, [self.x], dtype=np.float32, reference=reference)
        assert report.dtype == "float32"
        assert failure(WrongKernel, [self.x], dtype=np.float32, reference=reference).diagnosis == "ratio"

    @pytest.mark.slow
    def test_a_small_common_error_is_found_whatever_the_direction(self):
        """Where the terms of a sum cancel, an error common to all of them does too: along the second direction none do."""
        wrong = type("Wrong", (Kernel,), {"factor": 1.002})
        for seed in range(30):
            failure(wrong, [self.x], dtype=np.float32, reference=ops.silu, skip=["sizes"], seed=seed)

    def test_values_are_compared_with_the_reference(self):
        report = failure(Kernel, [self.x], dtype=np.float32, reference=ops.gelu)
        assert report.diagnosis == "forward" and report.findings[0].probe == "values"

    def test_a_linear_map_by_the_adjoint_test(self):
        report = gradcheck(CumulativeKernel, [self.x], dtype=np.float32)
        assert report.verdicts[0].method == "adjoint test"
        assert report.verdicts[0].allowed < 2e-4 * np.abs(self.x).sum()
        assert failure(WrongCumulativeKernel, [self.x], dtype=np.float32).diagnosis == "ratio"

    def test_operations_in_float32(self):
        x, w = arrays((2, 5, 6, 3), (3, 3, 3, 4))
        assert gradcheck(lambda x, w: ops.conv2d(x, w, padding=1), [x, w], dtype="float32").ok

    def test_without_float32_a_kernel_says_what_it_takes(self):
        with pytest.raises(TypeError, match="this kernel takes float32"):
            gradcheck(Kernel, [self.x])


def test_what_fn_raises_comes_through():
    with pytest.raises(ValueError, match="linear"):
        gradcheck(ops.linear, arrays((5, 4), (3, 3)))


def test_a_picture_is_saved_on_request(tmp_path):
    path = tmp_path / "error.png"
    failure(Doubled, arrays((4, 5), (4, 5)), png=path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_probes_can_be_left_out():
    report = gradcheck(ops.exp, arrays((3, 4)), skip=["sizes", "strides"])
    assert "sizes" not in report.probes and "strides" not in report.probes and "needs" in report.probes
    assert "sizes" not in gradcheck(ops.exp, arrays((3, 4)), skip="sizes").probes


def test_one_input_can_be_named_alone():
    for wrt in (1, "y", [1]):
        report = gradcheck(lambda x, y: x * y, arrays((3,), (3,)), wrt=wrt)
        assert [v.name for v in report.verdicts] == ["y"]


def test_a_number_of_numpys_is_an_array():
    assert gradcheck(lambda x: x * x, [np.float64(2.0)]).verdicts[0].shape == ()


@pytest.mark.parametrize(
    "args, options, sentence",
    [
        ((ops.exp, np.ones(3)), {}, r"write \[x\]"),
        ((ops.exp, (x for x in [np.ones(3)])), {}, "inputs must be a sequence"),
        ((ops.exp, [np.arange(3)]), {}, r"nothing to check: among the inputs \(an array of int64\)"),
        ((ops.exp, [[1, 2]]), {}, r"nothing to check: among the inputs \(list\)"),
        ((ops.exp, [np.array([1.0, np.nan])]), {}, r"input x is NaN at \[1\]"),
        ((3, [np.ones(3)]), {}, "fn must be a function, not int"),
        ((np.exp, [np.ones(3)]), {"backward": 3}, "backward must be a function, not int"),
        ((ops.exp, [np.ones(3)]), {"seed": -1}, "seed must be an integer of at least 0, not -1"),
        ((ops.exp, [np.ones(3)]), {"seed": "a"}, "seed must be"),
        ((ops.exp, [np.ones(3)]), {"rtol": -1.0}, "rtol must be a number of at least 0"),
        ((ops.exp, [np.ones(3)]), {"atol": np.nan}, "atol must be a number of at least 0"),
        ((ops.exp, [np.ones(3)]), {"dtype": "hello"}, "dtype must be float32 or float64, not hello"),
        ((ops.exp, [np.ones(3)]), {"generator": 3}, "generator must be a NumPy Generator"),
        ((ops.exp, [np.ones(3)]), {"parameters": 3}, "parameters must be a module"),
        ((ops.exp, [np.ones(3)]), {"cache": True}, "pass backward="),
        ((np.exp, [np.ones(3)]), {"backward": np.exp, "parameters": 3}, "parameters beside a backward are names"),
        ((np.exp, [np.ones(3)]), {"backward": np.exp, "parameters": ["W"]}, "parameters names 'W', which no layer has"),
        ((lambda x: x * 1j, [np.ones(3)]), {"backward": lambda L, x: L}, "returns complex numbers"),
        ((np.real, [np.ones(3) * 1j]), {"backward": lambda L, x: L}, "input val is complex"),
        ((ops.exp, [np.ones(3)]), {"reference": ops.exp, "parameters": []}, "reference and parameters do not go"),
        ((ops.exp, [np.ones(3)]), {"png": "/no/folder/e.png"}, "png: there is no folder /no/folder"),
        ((ops.exp, [np.ones(3)]), {"wrt": ["y"]}, "wrt names 'y'"),
        ((ops.embedding, [np.arange(3), np.ones((4, 2))]), {"wrt": [0]}, "not a floating point array"),
        ((ops.exp, [np.ones(3)]), {"dtype": np.int32}, "dtype must be float32 or float64"),
        ((ops.exp, [np.ones(3)]), {"skip": ["size"]}, "no probe 'size'"),
        ((ops.exp, [np.ones(3)]), {"parameters": [np.ones(3)]}, "must be a floating point Tensor"),
        ((lambda x: np.argmax(x.data), [np.ones(3)]), {}, "returns nothing in floating point"),
        ((lambda x: x * np.nan, [np.ones(3)]), {}, "no finite value"),
    ],
)
def test_arguments_that_make_no_check(args, options, sentence):
    with pytest.raises(InputError, match=sentence):
        gradcheck(*args, **options)


def test_outputs_that_are_not_finite_are_left_out():
    report = gradcheck(lambda x: ops.log_softmax(ops.where(np.arange(4) < 3, x, -np.inf)), arrays((2, 4)))
    assert "2 elements of the output are not finite" in str(report)


@pytest.mark.parametrize("seed", [619, 683])
def test_where_every_difference_leaves_the_domain_the_complex_step_acquits(seed):
    x = [np.array([1e-10, 1e-3, 0.5, 2.0])]
    assert gradcheck(ops.log, x, seed=seed).verdicts[0].method == "complex step"

    class Wrong(td.Function):
        def forward(self, X):
            self.save(X)
            return np.log(X)

        def backward(self, L):
            return 1.01 * L / self.saved[0]

    failure(Wrong, x, seed=seed)
