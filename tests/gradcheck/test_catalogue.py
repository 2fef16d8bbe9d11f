"""Every planted bug is found, nearly all with the right diagnosis, and nothing right is accused: on a few seeds here, on
1,000 by tests/benchmarks/gradcheck_catalogue.py."""

import numpy as np
import pytest
from planted import CATALOGUE
from right_operations import cases

from tinydiff.gradcheck import GradientError, gradcheck

SEEDS = range(2)
NAMES = [right.name for right in cases(0)]


def test_the_catalogue_is_large_and_names_are_unique():
    names = [planted.name for planted in CATALOGUE]
    assert len(names) >= 100
    assert len(set(names)) == len(names)
    assert len(set(NAMES)) == len(NAMES) >= 100


@pytest.mark.parametrize("planted", CATALOGUE, ids=lambda planted: planted.name)
def test_a_planted_bug_is_found_and_named(planted):
    right = 0
    for seed in SEEDS:
        with pytest.raises(GradientError) as caught:
            gradcheck(planted.function, planted.inputs(np.random.default_rng(seed)), seed=seed, **planted.options)
        right += caught.value.report.diagnosis == planted.expected
    assert right >= 0.9 * len(SEEDS), planted.slip


@pytest.mark.parametrize("seed", range(3))
def test_nothing_right_is_accused(seed):
    for right in cases(seed):
        gradcheck(right.fn, right.inputs, seed=seed, name=right.name, sizes=True, **right.options)
