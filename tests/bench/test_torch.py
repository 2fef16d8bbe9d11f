"""The competitors are fair: what PyTorch is given to do is what tinydiff does."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tinydiff.bench import torch as bench_torch  # noqa: E402
from tinydiff.bench.cases import all_cases, make_resblock  # noqa: E402
from tinydiff.machine import threads  # noqa: E402

pytestmark = pytest.mark.parity
CASES = {case.name: case for case in all_cases(quick=True)}


@pytest.mark.parametrize("name", CASES)
def test_shapes_are_the_same(name):
    case = CASES[name]
    with threads.threads(1):
        assert bench_torch.load("cpu", 1) is torch and torch.get_num_threads() == 1
        competitors = bench_torch.competitors(torch, case, "cpu")
        assert set(competitors) <= {"channels first", "channels last"} and competitors
        ours = case.work("cpu").forward()
    for work in competitors.values():
        theirs = work.forward()
        if case.kind == "adam":
            assert theirs is None
            continue
        assert theirs.numel() == ours.size
        if theirs.ndim == 4 and case.kind != "attention":
            n, c, h, w = theirs.shape
            assert (n, h, w, c) == ours.shape
        work.backward(theirs)


def test_resblocks_have_the_same_weights():
    ours = sum(p.size for p in make_resblock(64).parameters())
    assert ours == 2 * (2 * 64) + 2 * (9 * 64 * 64 + 64) + 256 * 64 + 64
    work = bench_torch.MAKERS["resblock"](torch, "cpu", torch.channels_last, n=1, size=4, c=64)
    y = work.forward()
    assert y.shape == (1, 64, 4, 4) and y.is_contiguous(memory_format=torch.channels_last)
    assert np.isfinite(y.detach().numpy()).all()
