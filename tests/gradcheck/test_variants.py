"""tinydiff/gradcheck/variants.py: no entry of any VARIANTS is left out of the check of all kernels."""

import numpy as np
import pytest

from tinydiff.cuda import host, nvrtc, products, source, tensor
from tinydiff.gradcheck import backends, variants

pytestmark = pytest.mark.skipif(host.missing() is not None, reason=str(host.missing()))


@pytest.fixture(scope="module")
def launched():
    """{source: {flags: {kernel: its launches}}} of all checks by every plan, a launch being {"parts", "filters": layers of blocks,
    and the values of whole numbers by name}. Nothing is compiled, and no kernel computes anything."""
    found = {}

    def note(name, text, kernel, parameters, grid, block, args, shared, defines, seed=0):
        numbers = {p.name: int(a) for p, a in zip(parameters, args, strict=True) if isinstance(a, np.int32)}
        of_variant = found.setdefault(name, {}).setdefault(source.flags(defines), {})
        of_variant.setdefault(kernel, []).append({**numbers, "filters": grid[1], "parts": grid[2]})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "run", note)
        for name, checks in backends.BY_SOURCE.items():
            for _, block in variants.plans(name):
                with block, np.errstate(all="ignore"):
                    for check in checks.values():
                        backends.run_check(check)
    return found


def test_no_variant_is_left_out(launched):
    declared = {}
    for name, defines, _ in nvrtc.variants():
        declared.setdefault(name, set()).add(source.flags(defines))
    assert {name: set(found) for name, found in launched.items()} == declared
    assert {f"{name}.cu" for name in backends.BY_SOURCE} == set(declared)


def test_every_product_runs_unsplit_and_split(launched):
    """Each kernel that plans are made for, in each of its variants."""
    found = [
        (k, flags, of) for each in launched.values() for flags, kernels in each.items() for k, of in kernels.items()
    ]
    planned = [x for x in found if x[0] in (*products.KERNELS, *tensor.KERNELS)]
    assert {kernel for kernel, *_ in planned} == {*products.KERNELS, *tensor.KERNELS}
    for kernel, flags, launches in planned:
        assert {1, 3} <= {launch["parts"] for launch in launches}, (kernel, flags)


@pytest.mark.parametrize(
    "name, kernel", [("convolution.cu", "conv_forward"), ("tensor_convolution.cu", "tensor_convolution")]
)
def test_convolutions_run_with_and_without_a_stride_both_ways(launched, name, kernel):
    """A step is the stride of an input gradient. Four filters at once are those of doubled pixels."""
    for flags, kernels in launched[name].items():
        runs = kernels[kernel]
        if "-DBACKWARD=0" not in flags:
            assert {1, 2} <= {run["step_h"] for run in runs}, flags
        if "-DBACKWARD=1" not in flags:
            assert {1, 2} <= {run["stride_h"] for run in runs}, flags
        if "-DBACKWARD=0" in flags:
            assert {1, 4} <= {run["filters"] for run in runs}, flags


def test_filters_gradients_run_with_and_without_a_stride(launched):
    for name, kernel in (
        ("convolution.cu", "conv_weight_gradient"),
        ("tensor_weight_gradient.cu", "tensor_weight_gradient"),
    ):
        for flags, kernels in launched[name].items():
            assert {1, 2} <= {run["stride_h"] for run in kernels[kernel]}, flags
