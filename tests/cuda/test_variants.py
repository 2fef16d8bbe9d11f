"""Every declared variant of every source runs and agrees with float64: each kernel, with each set of defines in VARIANTS."""

from collections import defaultdict

import numpy as np
import pytest

from tests.cuda.conftest import nan_filled
from tinydiff.cuda import convolution, host, nvrtc, products, source
from tinydiff.gradcheck.backends import run_check
from tinydiff.gradcheck.kernel_cases import BY_SOURCE

pytestmark = pytest.mark.skipif(host.missing() is not None, reason=str(host.missing()))

# Kernels that no function launches with these defines; a variant is a whole source, so they are compiled all the same.
IDLE = {
    "optimizer.cu": lambda defines: {"squared_norm", "clip_scale"} if defines else set(),
    "normalization.cu": lambda defines: set() if defines["VECTOR"] > 1 else {"silu_forward", "silu_backward"},
    "attention.cu": lambda defines: set() if defines["PER_LANE"] == 32 else {"softmax_long", "softmax_long_backward"},
}

WITH_PLANS = ("matrix", "joint", "convolution")


@pytest.fixture
def launched(monkeypatch):
    """{(source, flags): the kernels that ran}; memory that a kernel should have written and did not is NaN."""
    ran, run = defaultdict(set), host.run

    def noted(name, text, kernel, parameters, grid, block, args, shared, defines, seed=0):
        ran[name, source.flags(defines)].add(kernel)
        run(name, text, kernel, parameters, grid, block, args, shared, defines, seed)

    monkeypatch.setattr(host, "run", noted)
    monkeypatch.setattr(np, "empty", nan_filled)
    return ran


def plans(monkeypatch):
    """Forces each plan in turn, in one part and in three, on all products whose arrays can be moved so."""
    free = products.plan
    for forced in (p._replace(parts=parts) for p in products.PLANS for parts in (1, 3)):

        def plan(M, N, K, stack=1, vector_a=4, vector_b=4, forced=forced):
            fits = vector_a >= forced.vector_a and vector_b >= forced.vector_b
            return forced if fits else free(M, N, K, stack, vector_a, vector_b)

        with monkeypatch.context() as patch:
            patch.setattr(products, "plan", plan)
            patch.setattr(convolution, "plan", plan)
            yield forced


# Those for tensor cores: test_tensor.py, test_joint.py, test_tensor_convolution.py and test_tensor_attention.py run every variant.
@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[pytest.mark.slow] * (f in WITH_PLANS)) for f in BY_SOURCE if not f.startswith("tensor")],
)
def test_every_variant_agrees_with_float64(family, launched, monkeypatch):
    for plan in plans(monkeypatch) if family in WITH_PLANS else ["as planned"]:
        for name, check in BY_SOURCE[family].items():
            assert not (failure := run_check(check).failure), f"{name}, {plan}: {failure}"
    declared = {(name, source.flags(defines)): defines for name, defines, _ in nvrtc.variants()}
    assert set(launched) <= set(declared), "a family launches what it does not declare"
    for (name, flags), defines in declared.items():
        if name == f"{family}.cu":
            idle = IDLE.get(name, lambda _: set())(defines)
            wanted = set(source.kernels(source.load(name))) - idle
            assert launched[name, flags] == wanted, f"{name} with {defines}"


def test_every_source_has_checks():
    assert {f"{family}.cu" for family in BY_SOURCE} == {name for name, *_ in nvrtc.variants()}
