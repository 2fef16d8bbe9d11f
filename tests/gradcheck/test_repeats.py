"""tinydiff/gradcheck/repeats.py: an index with a value that is there twice."""

import numpy as np
import pytest

from tinydiff.gradcheck import GradientError, gradcheck

W = np.random.default_rng(2).normal(size=(7, 3))


def lookup(W, i):
    return W[i]


def adds_once(g, W, i):
    d = np.zeros_like(W)
    d[i] += g
    return d


def adds_each(g, W, i):
    d = np.zeros_like(W)
    np.add.at(d, i, g)
    return d


def scatter(x, i):
    out = np.zeros((9, x.shape[1]), x.dtype)
    out[i] = x
    return out


IDS = [np.array([0, 2, 5]), np.array([3, 1]), np.array([[0, 2], [4, 6]]), np.array([[0, 2, 4]])]


@pytest.mark.parametrize("ids", IDS)
def test_a_row_that_is_named_twice(ids):
    with pytest.raises(GradientError) as caught:
        gradcheck(lookup, [W, ids], backward=adds_once)
    report = caught.value.report
    assert report.diagnosis == "overwritten" and report.findings[0].probe == "repeats"
    assert "np.add.at(d, i, ...)" in str(report)
    assert gradcheck(lookup, [W, ids], backward=adds_each).notes == []
    assert gradcheck(lookup, [W, ids], backward=adds_once, skip="repeats").ok


def bag(W, i):
    return W[i].mean(1)


def test_a_row_that_is_named_twice_within_a_column():
    """None is in this one, though one is named in two columns."""

    def column_by_column(g, W, i, add):
        d = np.zeros_like(W)
        for j in range(i.shape[1]):
            add(d, i[:, j], g / i.shape[1])
        return d

    def once(d, i, g):
        d[i] += g

    inputs = [W, np.array([[0, 1], [1, 2], [4, 0]])]
    with pytest.raises(GradientError, match="there twice"):
        gradcheck(bag, inputs, backward=lambda g, W, i: column_by_column(g, W, i, once))
    assert gradcheck(bag, inputs, backward=lambda g, W, i: column_by_column(g, W, i, np.add.at)).notes == []


def test_the_largest_of_each_column_are_distinct():
    def backward(g, x, i):
        d = np.zeros_like(x)
        np.put_along_axis(d, i, g, 0)
        return d

    largest = np.argsort(W, 0)[:4]
    assert gradcheck(lambda x, i: np.take_along_axis(x, i, 0), [W, largest], backward=backward).ok


def test_a_permutation_need_not_repeat():
    order = np.array([2, 0, 1, 6, 5, 4, 3])
    report = gradcheck(lookup, [W, order], backward=adds_once)
    assert report.ok and any("there twice" in note for note in report.notes)
    assert gradcheck(lambda x, order: x[order], [W, np.array([0, 3])], backward=adds_once).ok


def test_forward_that_overwrites_is_not_accused():
    assert gradcheck(scatter, [W[:3], np.array([1, 8, 4])], backward=lambda g, x, i: g[i]).ok
