"""tinydiff/gradcheck/backends.py and cases.py: both shelves against the definitions in float64."""

import numpy as np
import pytest

from tests import test_shelves
from tinydiff.cuda import host
from tinydiff.gradcheck import backends
from tinydiff.gradcheck.cases import BY_DEFINITION
from tinydiff.gradcheck.kernel_cases import BY_SOURCE

CHECKS = [pytest.param(check, id=name) for checks in BY_DEFINITION.values() for name, check in checks.items()]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_cpu(check, seed):
    def run(function, *args):
        result = backends.fast_version(function, "cpu")(*args)
        return function(*args) if result is NotImplemented else result

    error, failure = backends.compare(check, run, seed)
    assert not failure and error < backends.TOLERANCE


def of_kernels():
    """Every check. Each on tensor cores is a second of the C++ compiler, so those in 16 bits are slow ones but for products."""
    for source, checks in BY_SOURCE.items():
        for name, check in checks.items():
            slow = source.startswith("tensor_") and source != "tensor_product" and not name.startswith("tf32")
            yield pytest.param(check, id=f"{source} {name}", marks=[pytest.mark.slow] * slow)


@pytest.mark.skipif(host.missing() is not None, reason=str(host.missing()))
@pytest.mark.parametrize("check", of_kernels())
def test_the_kernels(check):
    outcome = backends.run_check(check, seed=3)
    assert not outcome.failure and outcome.kernels


def test_a_wrong_version_is_noticed(monkeypatch):
    from tinydiff.cpu import normalization

    right = normalization.group_normalize

    def wrong(X, *rest):
        Y, mean, scale = right(X, *rest)
        Y[..., -1, -1] *= np.float32(1.001)
        return Y, mean, scale

    monkeypatch.setattr(normalization, "group_normalize", wrong)
    _, failure = backends.compare(
        BY_SOURCE["normalization"]["group_normalize"], lambda f, *args: backends.fast_version(f, "cpu")(*args)
    )
    assert failure.startswith("off by")


def test_every_fast_version_is_among_the_cases():
    """Each function of both shelves that has a definition is run by some check."""
    ran = set()

    def run(function, *args, **options):
        if hasattr(function, "definition"):
            ran.add((function.__module__.rpartition(".")[2], function.__name__))
        return function(*args, **options)

    for checks in BY_DEFINITION.values():
        for check in checks.values():
            for _ in check(np.random.default_rng(0), run):
                pass
    fast = {(file, name) for _, file, name in (case.values for case in test_shelves.FAST)}
    assert fast - ran == {
        ("optim", "sgd"),
        ("optim", "move_averages"),
        ("optim", "clipped_adam"),
        ("pixels", "gather_batch"),
        ("rounding", "converted"),
    }, (
        "these are tested in tests/cpu/test_optim.py, test_optim_at_once.py, tests/cuda/test_pixels.py and test_rounding.py"
    )
