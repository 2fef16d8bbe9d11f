"""tinydiff/ops/_erf.py against math.erf and math.erfc, and against scipy where it is installed."""

import math

import numpy as np
import pytest

from tinydiff.ops._erf import erf, erfc, erfcx

X = np.concatenate(
    [np.linspace(-6, 6, 20001), np.linspace(6, 26, 2001), np.geomspace(1e-300, 1, 500), [0.46875, -0.46875, 4.0, -4.0]]
)


def relative_error(ours, exact):
    exact = np.asarray(exact)
    return np.max(np.abs(ours - exact) / np.maximum(np.abs(exact), 1e-300))


def test_erf_and_erfc_agree_with_the_c_library():
    assert relative_error(erf(X), [math.erf(x) for x in X]) < 1e-15
    assert relative_error(erfc(X), [math.erfc(x) for x in X]) < 1e-15


def test_erfcx_agrees_with_erfc_where_both_are_finite():
    x = np.linspace(-5, 8, 4001)
    exact = [math.exp(v * v) * math.erfc(v) for v in x]
    assert relative_error(erfcx(x), exact) < 3e-14  # exp(v * v) itself is only good to v * v roundings


def test_special_values():
    np.testing.assert_array_equal(erf(np.array([0.0, -0.0, np.inf, -np.inf])), [0, 0, 1, -1])
    np.testing.assert_array_equal(erfc(np.array([0.0, np.inf, -np.inf, 40.0])), [1, 0, 2, 0])
    np.testing.assert_array_equal(erfcx(np.array([0.0, np.inf])), [1, 0])
    assert all(np.isnan(f(np.array([np.nan]))).all() for f in (erf, erfc, erfcx))
    assert np.signbit(erf(np.array(-0.0)))
    assert erf(np.zeros((2, 0, 3), np.float32)).shape == (2, 0, 3)
    assert erf(0.5).dtype == np.float64


@pytest.mark.parity
def test_agreement_with_scipy():
    special = pytest.importorskip("scipy.special")
    x = np.concatenate([X, np.geomspace(1, 1e8, 200)])
    assert relative_error(erfcx(x[x > -5]), special.erfcx(x[x > -5])) < 2e-15
