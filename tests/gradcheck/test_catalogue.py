"""Every planted bug is found and named, and nothing right is accused: on one seed here, on a few more by `.ci/run`, on 1,000 by
tests/benchmarks/gradcheck_catalogue.py."""

import numpy as np
import pytest
from planted import CATALOGUE
from right_operations import cases

from tinydiff.gradcheck import GradientError, gradcheck

SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]
NAMES = [right.name for right in cases(0)]


def test_the_catalogue_is_large_and_names_are_unique():
    names = [planted.name for planted in CATALOGUE]
    assert len(names) >= 100
    assert len(set(names)) == len(names)
    assert len(set(NAMES)) == len(NAMES) >= 100


@pytest.mark.parametrize("seed", SEEDS[:2])
@pytest.mark.parametrize("planted", CATALOGUE, ids=lambda planted: planted.name)
def test_a_planted_bug_is_found_and_named(planted, seed):
    with pytest.raises(GradientError) as caught:
        gradcheck(planted.function, planted.inputs(np.random.default_rng(seed)), seed=seed, **planted.options)
    assert caught.value.report.diagnosis == planted.expected, planted.slip


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_right_is_accused(seed):
    for right in cases(seed):
        gradcheck(right.fn, right.inputs, seed=seed, name=right.name, sizes=True, **right.options)
