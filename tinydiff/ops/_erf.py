"""erf, erfc and erfcx for arrays, in float64: W. J. Cody's rational Chebyshev approximations.

"Rational Chebyshev approximations for the error function", Mathematics of Computation 23 (1969), in three pieces:
erf on |x| <= 0.46875, exp(x^2) erfc(x) on 0.46875..4 and on 4..infinity. The relative error is a few units in the last
place everywhere, in the far tails of erfc too. NumPy has no error function, and CuPy's needs SciPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinydiff.backend import array_module

_SPLIT = 0.46875
_ONE_OVER_SQRT_PI = 0.56418958354775628695

# numerator and denominator of each piece, highest power first
_ERF = (
    (
        1.85777706184603153e-1,
        3.16112374387056560e0,
        1.13864154151050156e2,
        3.77485237685302021e2,
        3.20937758913846947e3,
    ),
    (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3),
)
_MIDDLE = (
    (2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594e0, 6.61191906371416295e1,
     2.98635138197400131e2, 8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3, 1.23033935479799725e3),
    (1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2,
     1.62138957456669019e3, 3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3),
)  # fmt: skip
_TAIL = (
    (1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1,
     1.25781726111229246e-1, 1.60837851487422766e-2, 6.58749161529837803e-4),
    (1.0, 2.56852019228982242e0, 1.87295284992346725e0,
     5.27905102951428412e-1, 6.05183413124413191e-2, 2.33520497626869185e-3),
)  # fmt: skip


def erf(x: Any) -> Any:
    """erf(x) = 2/sqrt(pi) * integral of exp(-s^2) from 0 to x, float64, in x's shape."""
    xp, x = _float64(x)
    y = xp.abs(x)
    return xp.where(y <= _SPLIT, _erf_small(x), xp.copysign(1 - _exp_minus_square(xp, y) * _scaled_tail(xp, y), x))


def erfc(x: Any) -> Any:
    """erfc(x) = 1 - erf(x) without cancellation, float64, in x's shape; 0 beyond x = 26.6, where it underflows."""
    xp, x = _float64(x)
    y = xp.abs(x)
    tail = _exp_minus_square(xp, y) * _scaled_tail(xp, y)
    return xp.where(y <= _SPLIT, 1 - _erf_small(x), xp.where(x < 0, 2 - tail, tail))


def erfcx(x: Any) -> Any:
    """exp(x^2) erfc(x), float64, in x's shape: 1/(x sqrt(pi)) for large x; overflows below x = -26.6."""
    xp, x = _float64(x)
    y = xp.abs(x)
    with np.errstate(over="ignore"):
        small = (1 - _erf_small(x)) * xp.exp(xp.minimum(y, _SPLIT) ** 2)
        tail = _scaled_tail(xp, y)
        return xp.where(
            y <= _SPLIT, small, xp.where(x < 0, 2 / _exp_minus_square(xp, xp.minimum(y, 26.7)) - tail, tail)
        )


def _float64(x: Any) -> tuple[Any, Any]:
    xp = array_module(x)
    return xp, xp.asarray(x, dtype="float64")


def _erf_small(x: Any) -> Any:
    """erf for |x| <= 0.46875 (other x give a finite value, which is not used)."""
    x = array_module(x).clip(x, -_SPLIT, _SPLIT)
    return x * _ratio(_ERF, x * x)


def _scaled_tail(xp: Any, y: Any) -> Any:
    """exp(y^2) erfc(y) for y > 0.46875."""
    middle = _ratio(_MIDDLE, xp.clip(y, _SPLIT, 4.0))
    far = xp.maximum(y, 4.0)
    z = 1 / far / far  # the square may overflow
    return xp.where(y <= 4.0, middle, (_ONE_OVER_SQRT_PI - z * _ratio(_TAIL, z)) / far)


def _exp_minus_square(xp: Any, y: Any) -> Any:
    """exp(-y^2) with the square split in two, since exp multiplies the rounding error of its argument by y^2."""
    y = xp.minimum(y, 30.0)  # exp(-900) is 0
    head = xp.floor(y * 16) / 16
    return xp.exp(-head * head) * xp.exp(-(y - head) * (y + head))


def _ratio(piece: tuple[tuple[float, ...], tuple[float, ...]], x: Any) -> Any:
    numerator, denominator = (_horner(coefficients, x) for coefficients in piece)
    return numerator / denominator


def _horner(coefficients: tuple[float, ...], x: Any) -> Any:
    total = coefficients[0] * x + coefficients[1]
    for c in coefficients[2:]:
        total *= x
        total += c
    return total
