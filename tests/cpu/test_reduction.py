"""tinydiff/cpu/reduction.py against the definition."""

import pytest

from tests.cpu.agreement import check
from tinydiff.ops.reduction import sum_of_squares


@pytest.mark.parametrize("n", [0, 1, 5, 100_000])
def test_agrees_with_the_definition(n, rng):
    check(sum_of_squares, rng.normal(size=n))
