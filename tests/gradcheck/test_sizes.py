"""tinydiff/gradcheck/sizes.py: other shapes, found by trying."""

import numpy as np
import pytest

import tinydiff as td
from tinydiff import ops
from tinydiff.gradcheck import GradientError, gradcheck

RNG = np.random.default_rng(4)


def shapes_seen(fn, inputs):
    seen = set()

    def spy(*xs):
        seen.add(tuple(x.shape for x in xs))
        return fn(*xs)

    gradcheck(spy, inputs)
    return seen


def test_axes_that_belong_together_are_shortened_together():
    seen = shapes_seen(ops.linear, [RNG.normal(size=(5, 4)), RNG.normal(size=(4, 3)), RNG.normal(size=3)])
    for shapes in (((0, 4), (4, 3), (3,)), ((1, 4), (4, 3), (3,)), ((5, 1), (1, 3), (3,)), ((5, 4), (4, 0), (0,))):
        assert shapes in seen


def test_equal_lengths_are_told_apart():
    """Of a square layer all three lengths are 4; each is shortened alone."""
    seen = shapes_seen(ops.linear, [RNG.normal(size=(4, 4)), RNG.normal(size=(4, 4)), RNG.normal(size=4)])
    for shapes in (((3, 4), (4, 4), (4,)), ((4, 3), (3, 4), (4,)), ((4, 4), (4, 3), (3,))):
        assert shapes in seen


class Mean(td.Function):
    """The mean over axis 0, with the length of another axis."""

    def forward(self, X):
        return X.mean(0)

    def backward(self, L):
        return np.broadcast_to(L / self.shapes[0][1], self.shapes[0])


def test_right_only_on_squares():
    with pytest.raises(GradientError) as caught:
        gradcheck(Mean, [RNG.normal(size=(4, 4))], sizes=True)
    report = caught.value.report
    assert report.diagnosis == "square-only"
    assert report.verdicts[0].ok
    assert "with length 3 along axis 0 of X" in str(report)


class FailsWhenEmpty(td.Function):
    def forward(self, X):
        return X * 2.0

    def backward(self, L):
        return 2 * L / (L.max() / L.max())


def test_empty_axes():
    with pytest.raises(GradientError) as caught:
        gradcheck(FailsWhenEmpty, [RNG.normal(size=(3, 4))], sizes=True)
    report = caught.value.report
    assert report.diagnosis == "size-0" and "with length 0 along" in str(report)
    assert gradcheck(FailsWhenEmpty, [RNG.normal(size=(3, 4))], skip=["sizes"]).ok


@pytest.mark.parametrize(
    "fn, shape, words",
    [
        (Mean, (4, 4), "with length 3 along axis 0 of X, backward does not give forward's derivative"),
        (FailsWhenEmpty, (3, 4), "with length 0 along axis 0 of X, forward works and backward raises ValueError"),
    ],
)
def test_sizes_that_nobody_asked_about_are_a_note(fn, shape, words):
    report = gradcheck(fn, [RNG.normal(size=shape)])
    (note,) = report.notes
    assert report.ok and words in note and note.endswith("sizes=True counts it")


class WrongShapeWhenEmpty(td.Function):
    def forward(self, X):
        return X * 2.0

    def backward(self, L):
        return 2 * L if L.size else np.zeros((1, *L.shape))


def test_the_gradient_of_nothing_has_its_shape():
    nothing = lambda L, x: 2 * L if L.size else np.zeros(1)  # noqa: E731
    with pytest.raises(GradientError) as caught:
        gradcheck(lambda x: x * 2, [RNG.normal(size=(3, 4))], backward=nothing, sizes=True)
    assert caught.value.report.diagnosis == "size-0"
    with pytest.raises(GradientError):
        gradcheck(WrongShapeWhenEmpty, [RNG.normal(size=(3, 4))], sizes=True)


def test_broadcasting_that_was_not_asked_for_is_only_noted():
    """NumPy broadcasts where the author meant equal shapes: forward runs, backward cannot, and nobody is accused."""
    inputs = [RNG.normal(size=(4, 5)), RNG.normal(size=(4, 5))]
    report = gradcheck(lambda a, b: a * b, inputs, backward=lambda L, a, b: (L * b, L * a), sizes=True)
    assert report.ok
    assert any("forward broadcasts and backward fails" in note for note in report.notes)


def test_integer_inputs_are_cut_too():
    seen = shapes_seen(ops.embedding, [RNG.integers(0, 3, size=7), RNG.normal(size=(5, 2))])
    assert ((0,), (5, 2)) in seen and ((1,), (5, 2)) in seen


def test_inputs_that_are_empty_from_the_start():
    assert gradcheck(ops.silu, [np.zeros((0, 3))]).ok
    assert gradcheck(ops.linear, [np.zeros((0, 4)), RNG.normal(size=(4, 3))]).ok
