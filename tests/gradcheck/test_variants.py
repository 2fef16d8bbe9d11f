"""tinydiff/gradcheck/variants.py: no entry of any VARIANTS is left out of the check of all kernels."""

import pytest

from tinydiff.cuda import host, nvrtc, products, source, tensor
from tinydiff.gradcheck import backends, variants

pytestmark = pytest.mark.skipif(host.missing() is not None, reason=str(host.missing()))


@pytest.fixture(scope="module")
def launched():
    """{source: {flags: {kernel: parts}}} of all checks by every plan; nothing is compiled, and no kernel computes anything."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "run", lambda *args: None)
        for name, checks in backends.BY_SOURCE.items():
            for _, block in variants.plans(name):
                with block:
                    for check in checks.values():
                        for launch in backends.run_check(check).launches:
                            of_variant = found.setdefault(launch.source, {}).setdefault(launch.flags, {})
                            of_variant.setdefault(launch.kernel, set()).add(launch.parts)
    return found


def test_no_variant_is_left_out(launched):
    declared = {}
    for name, defines, _ in nvrtc.variants():
        declared.setdefault(name, set()).add(source.flags(defines))
    assert {name: set(found) for name, found in launched.items()} == declared
    assert {f"{name}.cu" for name in backends.BY_SOURCE} == set(declared)


def test_every_product_runs_unsplit_and_split(launched):
    """Each kernel that plans are made for, in each of its variants; convolutions forward, backward, with and without a stride."""
    for name, found in launched.items():
        for flags, kernels in found.items():
            planned = {k: parts for k, parts in kernels.items() if k in (*products.KERNELS, *tensor.KERNELS)}
            if name in ("matrix.cu", "convolution.cu", *tensor.SOURCES):
                assert planned, (name, flags)
            for kernel, parts in planned.items():
                assert {1, 3} <= parts, (kernel, flags, parts)
    for kernels in launched["convolution.cu"].values():
        assert {"conv_forward", "conv_weight_gradient"} <= set(kernels)
