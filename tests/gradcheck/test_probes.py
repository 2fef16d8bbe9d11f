"""Each probe finds what only it finds, says under which circumstances, and is quiet otherwise."""

import numpy as np
import pytest

import tinydiff as td
from tinydiff import ops
from tinydiff.gradcheck import GradientError, gradcheck
from tinydiff.gradcheck.probes import LAYOUTS, PROBES

RNG = np.random.default_rng(3)


def failure(fn, inputs, **options):
    with pytest.raises(GradientError) as caught:
        gradcheck(fn, inputs, **options)
    return caught.value.report


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_hold_the_numbers_that_they_should(name):
    u = RNG.normal(size=(3, 4, 2))
    laid = LAYOUTS[name](u)
    assert laid.shape == u.shape
    if name.startswith("broadcast"):
        assert laid.strides[0] == 0
        np.testing.assert_array_equal(laid[0].ravel()[0], u[0].ravel()[0])
    else:
        np.testing.assert_array_equal(laid, u)
        assert not laid.flags.c_contiguous


class BroadcastOnly(td.Function):
    """Right for every L_Y but one of stride 0, of which it takes the memory for the array."""

    def forward(self, X):
        return X * 2.0

    def backward(self, L):
        return L * 2.0 if 0 not in L.strides or L.size == 1 else np.zeros_like(L)


def test_strides():
    report = failure(BroadcastOnly, [RNG.normal(size=(4, 5))])
    assert report.findings[0].probe == "strides" and "stride 0" in str(report)
    assert gradcheck(BroadcastOnly, [RNG.normal(size=(4, 5))], skip=["strides"]).ok


class WritesToBroadcast(td.Function):
    def forward(self, X):
        return X * 1.0

    def backward(self, L):
        if not L.flags.writeable:
            L[...] = 0
        return L


def test_writing_into_a_broadcast_gradient():
    assert failure(WritesToBroadcast, [RNG.normal(size=(4, 5))]).diagnosis == "in-place"


def test_writing_into_the_gradient_itself():
    class InPlace(td.Function):
        def forward(self, X):
            return X * 2.0

        def backward(self, L):
            L *= 2
            return L

    report = failure(InPlace, [RNG.normal(size=(4, 5))])
    assert report.findings[0].probe == "purity"
    assert "changed the gradient of output 0 that it was given" in str(report)


class NoFortranInputs(td.Function):
    def forward(self, X):
        self.save(X)
        return X**2

    def backward(self, L):
        (X,) = self.saved
        return 2 * X.ravel(order="K").reshape(X.shape) * L


def test_layouts_of_inputs():
    report = failure(NoFortranInputs, [RNG.normal(size=(4, 5))])
    assert report.findings[0].probe == "layouts" and report.diagnosis == "strides"


class Needs(td.Function):
    def forward(self, A, B, C):
        return A + B + C

    def backward(self, L):
        return L, L, (L if self.needs[0] or not self.needs[1] else 0 * L)


def test_needs_tries_every_combination():
    report = failure(Needs, [RNG.normal(size=(2, 3)) for _ in range(3)])
    assert report.findings[0].probe == "needs" and "wanted for B, C only" in str(report)


class Dropped(td.Function):
    def forward(self, X):
        return X * 1.0, X * 2.0

    def backward(self, L, M):
        return L + 2 * M if M.any() else L * 0


def test_outputs_used_one_at_a_time():
    report = failure(Dropped, [RNG.normal(size=(2, 3))])
    assert report.findings[0].probe == "dropped" and report.diagnosis == "dropped-output"


def test_a_leaf_used_twice():
    class Same(td.Function):
        def forward(self, A, B):
            self.same = A is B
            return A * 1.0 + B

        def backward(self, L):
            return (L, 0 * L) if self.same else (L, L)

    report = failure(Same, [RNG.normal(size=(2, 3)), RNG.normal(size=(2, 3))])
    assert report.diagnosis == "repeated-leaf" and "given for both A and B" in str(report)


@pytest.mark.filterwarnings("error")
def test_inputs_of_one_shape_with_other_domains_are_not_accused(rng):
    a, b = rng.normal(size=4), rng.uniform(0.5, 2, 4)
    ok = [
        gradcheck(lambda a, b: a * np.log(b), [a, b], backward=lambda g, a, b: (g * np.log(b), g * a / b)),
        gradcheck(lambda a, b: a * ops.sqrt(b), [a, b]),
        gradcheck(lambda b, a: a / (a - b), [b + 5, a]),
        gradcheck(lambda a, b: ops.norm(a - b), [a, b]),
        gradcheck(lambda a, b: (a - b) ** -0.5, [a + 9, b]),
    ]
    assert all(ok) and all(report.ok for report in ok)


def test_a_cache_that_two_calls_share():
    class Layer:
        def __call__(self, x):
            self.x = x
            return x**3, self

        def backward(self, L, cache):
            return 3 * cache.x**2 * L

    layer = Layer()
    report = failure(layer, [RNG.normal(size=(2, 3))], backward=layer.backward, cache=True)
    assert report.diagnosis == "reused"


def test_an_object_that_remembers_one_pass_is_not_asked_for_two():
    class Layer:
        def forward(self, x):
            self.x = x
            return x**3

        def backward(self, L):
            return 3 * self.x**2 * L

    layer = Layer()
    assert gradcheck(layer.forward, [RNG.normal(size=(2, 3))], backward=layer.backward).ok


def test_many_inputs_are_checked_in_groups():
    xs = [RNG.normal(size=3) for _ in range(12)]

    def total(*xs):
        y = xs[0]
        for x in xs[1:]:
            y = y + x * x
        return y

    report = gradcheck(total, xs)
    assert [v.name for v in report.verdicts] == ["12 arrays"]

    class Square(td.Function):
        def forward(self, X):
            self.save(X)
            return X * X

        def backward(self, L):
            return self.saved[0] * L

    def wrong(*xs):
        return total(*xs[:-1]) + Square.apply(xs[-1])

    report = failure(wrong, xs)
    assert [v.name for v in report.verdicts if not v.ok] == ["input 11"]


def test_every_probe_runs_by_default():
    assert list(PROBES) == ["strides", "layouts", "needs", "dropped", "shared", "reuse", "repeats", "sizes"]
    report = gradcheck(ops.multiply, [RNG.normal(size=(2, 3)), RNG.normal(size=(2, 3))])
    assert report.probes[-len(PROBES) :] == list(PROBES)
