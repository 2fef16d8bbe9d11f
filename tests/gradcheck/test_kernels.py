"""Kernels given to the check: a Function that calls them, the adjoint test in float32, and operations that run them."""

import numpy as np
import pytest

import tinydiff as td
from tinydiff import ops
from tinydiff.cuda import host, normalization, softmaxes
from tinydiff.dispatch import on_host
from tinydiff.errors import InputError
from tinydiff.gradcheck import GradientError, gradcheck
from tinydiff.ops.softmaxes import softmax_array, softmax_backward

pytestmark = pytest.mark.skipif(bool(host.missing()), reason=host.missing() or "")

RNG = np.random.default_rng(8)


class GroupNormKernel(td.Function):
    """Group normalisation of float32 arrays by kernels/normalization.cu."""

    factor = 1.0

    def forward(self, X, w, b):
        Y, mean, scale = normalization.group_normalize(X, w, b, 2, 1e-5)
        self.save(X, w, b, mean, scale)
        return Y

    def backward(self, L_Y):
        X, w, b, mean, scale = self.saved
        L_X, L_w, L_b = normalization.group_normalize_backward(L_Y, X, mean, scale, w, b, 2, False)
        return L_X, np.float32(self.factor) * L_w, L_b


def test_a_kernel_is_held_to_the_operation_in_float64():
    inputs = [RNG.normal(size=(3, 5, 8)), RNG.normal(size=8), RNG.normal(size=8)]
    options = {"dtype": np.float32, "reference": lambda x, w, b: ops.group_norm(x, 2, w, b)}
    report = gradcheck(GroupNormKernel, inputs, **options)
    assert report.dtype == "float32"
    assert [v.name for v in report.verdicts] == ["X", "w", "b"]
    wrong = type("Wrong", (GroupNormKernel,), {"factor": 1.01})
    with pytest.raises(GradientError) as caught:
        gradcheck(wrong, inputs, **options)
    assert (caught.value.report.findings[0].input, caught.value.report.diagnosis) == ("w", "ratio")
    with pytest.raises(GradientError) as caught:
        gradcheck(GroupNormKernel, inputs, dtype=np.float32, reference=lambda x, w, b: ops.group_norm(x, 4, w, b))
    assert caught.value.report.diagnosis == "forward"


SCALE_AND_SHIFT = """#include "tinydiff.cuh"
// y[i] = 3 x[i] + x[i - 1], its transpose, and the same with the shift the other way round
KERNEL(forward, 32)(const float* x, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = 3.0f * x[i] + (i > 0 ? x[i - 1] : 0.0f);
}
KERNEL(backward, 32)(const float* l_y, float* l_x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) l_x[i] = 3.0f * l_y[i] + (i + 1 < n ? l_y[i + 1] : 0.0f);
}
"""


class Difference(td.Function):
    """A linear map by a kernel that takes float32 alone; there is nothing else to compare it with."""

    source = ""
    transposed = "backward"

    def run(self, kernel, x):
        from tinydiff.cuda.launch import launch

        x = np.ascontiguousarray(x)
        if x.dtype != np.float32:
            raise TypeError("this kernel takes float32")
        y = np.empty_like(x)
        launch(self.source, kernel, (-(-x.size // 32), 1, 1), (32, 1, 1), (x, y, np.int32(x.size)))
        return y

    def forward(self, X):
        return self.run("forward", X)

    def backward(self, L_Y):
        return self.run(self.transposed, L_Y)


def test_a_linear_kernel_is_held_to_itself_by_the_adjoint_test(tmp_path):
    source = tmp_path / "difference.cu"
    source.write_text(SCALE_AND_SHIFT, encoding="utf-8")
    right = type("Right", (Difference,), {"source": str(source)})
    report = gradcheck(right, [RNG.normal(size=70)], dtype=np.float32)
    assert [v.method for v in report.verdicts] == ["adjoint test"]
    wrong = type("Wrong", (Difference,), {"source": str(source), "transposed": "forward"})
    with pytest.raises(GradientError) as caught:
        gradcheck(wrong, [RNG.normal(size=70)], dtype=np.float32)
    assert caught.value.report.diagnosis == "transposed"


class Softmax(td.Function):
    """As an operation is written: array functions that kernels may compute instead."""

    def forward(self, X):
        P = softmax_array(X, -1)
        self.save(P)
        return P

    def backward(self, L_P):
        return softmax_backward(*self.saved, L_P, -1)


def test_operations_run_their_kernels():
    report = gradcheck(Softmax, [RNG.normal(size=(5, 9))], kernels=True)
    assert report.dtype == "float32"
    assert any("kernels that ran" in note and "softmax" in note for note in report.notes)
    assert "kernels" not in str(gradcheck(Softmax, [RNG.normal(size=(5, 9))]))


def test_a_wrong_kernel_is_found_through_its_operation(monkeypatch):
    right = softmaxes.softmax_backward
    monkeypatch.setattr(
        softmaxes, "softmax_backward", lambda P, L_P, axis: right(P, L_P, axis) + 0 * P + P * np.float32(0.1)
    )
    gradcheck(Softmax, [RNG.normal(size=(5, 9))])  # NumPy's is right
    with pytest.raises(GradientError):
        gradcheck(Softmax, [RNG.normal(size=(5, 9))], kernels=True)


def test_the_block_ends_with_the_check():
    run = host.run
    gradcheck(Softmax, [RNG.normal(size=(3, 4))], kernels=True)
    assert host.run is run
    with on_host():
        pass
    report = gradcheck(Softmax, [RNG.normal(size=(3, 4))], dtype=np.float32)
    assert not any("kernels" in note for note in report.notes)


def test_a_check_by_kernels_that_none_takes_part_in_is_refused():
    class Square(td.Function):
        def forward(self, X):
            self.save(X)
            return X * X

        def backward(self, L_Y):
            return 2 * self.saved[0] * L_Y

    with pytest.raises(InputError, match="no kernel took these arrays"):
        gradcheck(Square, [RNG.normal(size=(3, 4))], kernels=True)
    with pytest.raises(InputError, match="float32"):
        gradcheck(Softmax, [RNG.normal(size=(3, 4))], kernels=True, dtype=np.float64)
