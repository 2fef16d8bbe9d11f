"""Multivariate Gaussians: densities, entropy, KL divergence, products, and a change of variable.

Means and points are (..., D), covariances (..., D, D), and leading axes broadcast. Everything is computed and returned
in float64; logarithms are natural. An isotropic covariance v I is given by `variance=v`, of shape (...), in place of
`cov`, and where there are two Gaussians by `variance=(v1, v2)` in place of both.

Covariances are factored as L L^T by Cholesky and used through linear systems in L; none is inverted. ValueError for
covariances that are not symmetric and positive definite, variances that are not positive, and shapes that do not fit.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import array_module


def log_prob(x: Any, mean: Any, cov: Any = None, *, variance: Any = None) -> Any:
    """log N(x; mean, cov), (...), of points x (..., D): -(D ln 2pi + ln det cov + |L^-1 (x - mean)|^2) / 2 (source C,
    20.2; E, 1.1(a)). mean (..., D); cov (..., D, D), or variance (...) instead."""
    x, mean = _vectors("log_prob", x=x, mean=mean)
    d = x - mean
    if _isotropic("log_prob", cov, variance):
        v = _variance("log_prob", variance, d)
        log_det, square = d.shape[-1] * array_module(d).log(v), (d * d).sum(-1) / v
    else:
        L = _cholesky("log_prob", cov, d)
        log_det, square = _log_det(L), (_solve(L, d) ** 2).sum(-1)
    return -(d.shape[-1] * math.log(2 * math.pi) + log_det + square) / 2


def entropy(cov: Any = None, *, variance: Any = None, dim: int | None = None) -> Any:
    """The entropy in nats, (...), of a Gaussian: (D (1 + ln 2pi) + ln det cov) / 2 (source A, 3.1.4). cov (..., D, D),
    or variance (...) with dim = D instead."""
    if _isotropic("entropy", cov, variance):
        if dim is None or dim < 1:
            raise ValueError(f"entropy: variance= needs dim=, the number of dimensions, at least 1, not {dim}")
        v = _variance("entropy", variance, None)
        return dim * (1 + math.log(2 * math.pi) + array_module(v).log(v)) / 2
    L = _cholesky("entropy", cov, None)
    return (L.shape[-1] * (1 + math.log(2 * math.pi)) + _log_det(L)) / 2


def kl(m1: Any, C1: Any, m2: Any, C2: Any, *, variance: Any = None) -> Any:
    """KL(N(m1, C1) || N(m2, C2)) in nats, (...) (source E, 1.2(a); for isotropic ones 1.2(b)):

        (ln det C2 - ln det C1 - D + tr(C2^-1 C1) + (m2 - m1)^T C2^-1 (m2 - m1)) / 2

    m1, m2 (..., D); C1, C2 (..., D, D). The trace is |L2^-1 L1|^2. For isotropic Gaussians: kl(m1, None, m2, None,
    variance=(v1, v2)).
    """
    m1, m2 = _vectors("kl", m1=m1, m2=m2)
    d = m2 - m1
    if _both_isotropic("kl", C1, C2, variance):
        v1, v2 = (_variance("kl", v, d) for v in variance)
        r = array_module(d).log(v1 / v2)
        return (d.shape[-1] * (array_module(d).expm1(r) - r) + (d * d).sum(-1) / v2) / 2
    L1, L2 = (_cholesky("kl", C, d) for C in (C1, C2))
    trace = (_solve_matrix(L2, L1) ** 2).sum((-2, -1))
    return (_log_det(L2) - _log_det(L1) - d.shape[-1] + trace + (_solve(L2, d) ** 2).sum(-1)) / 2


def product(m1: Any, C1: Any, m2: Any, C2: Any, *, variance: Any = None) -> tuple[Any, Any]:
    """Mean (..., D) and covariance (..., D, D) of the Gaussian that N(x; m1, C1) N(x; m2, C2) is proportional to
    (source E, 1.1(a)): cov = (C1^-1 + C2^-1)^-1, mean = cov (C1^-1 m1 + C2^-1 m2). With S = C1 + C2 = L L^T these are

        cov = C1 S^-1 C2 = (L^-1 C1)^T (L^-1 C2)        mean = C2 S^-1 m1 + C1 S^-1 m2.

    m1, m2 (..., D); C1, C2 (..., D, D). The factor of proportion is N(m1; m2, C1 + C2). For isotropic Gaussians
    product(m1, None, m2, None, variance=(v1, v2)) returns the mean and the variance.
    """
    m1, m2 = _vectors("product", m1=m1, m2=m2)
    if _both_isotropic("product", C1, C2, variance):
        v1, v2 = (_variance("product", v, m1) for v in variance)
        share = (v2 / (v1 + v2))[..., None]
        return share * m1 + (1 - share) * m2, v1 * v2 / (v1 + v2)
    for C in (C1, C2):
        _cholesky("product", C, m1)
    C1, C2 = (array_module(m1).asarray(_plain(C), "float64") for C in (C1, C2))
    L = _cholesky("product", C1 + C2, m1)
    half1, half2 = _solve_matrix(L, C1), _solve_matrix(L, C2)
    cov = _transpose(half1) @ half2
    mean = _apply(_transpose(half2), _solve(L, m1)) + _apply(_transpose(half1), _solve(L, m2))
    return mean, (cov + _transpose(cov)) / 2


def change_of_variable(x: Any, A: Any, B: Any = None, *, variance: Any = None) -> tuple[Any, Any]:
    """N(x; A y, B) as a Gaussian in y: its mean (..., K) and covariance (..., K, K) (source E, 1.1(b)),

        cov = (A^T B^-1 A)^-1,  mean = cov A^T B^-1 x,

    the generalised least squares solution. With B = L L^T and L^-1 A = Q R this is R mean = Q^T L^-1 x and
    cov = (R^T R)^-1, without squaring the condition number. x (..., D), A (..., D, K), B (..., D, D) or variance.
    ValueError where A is not of full column rank: then y is not determined and there is no such Gaussian.
    """
    (x,) = _vectors("change_of_variable", x=x)
    xp = array_module(x)
    A = xp.asarray(_plain(A), "float64")
    if A.ndim < 2 or A.shape[-2] != x.shape[-1]:
        raise ValueError(f"change_of_variable: A must be ({x.shape[-1]}, K) for x of shape {x.shape}, not {A.shape}")
    if _isotropic("change_of_variable", B, variance):
        sigma = xp.sqrt(_variance("change_of_variable", variance, x))[..., None]
        A, x = A / sigma[..., None], x / sigma
    else:
        L = _cholesky("change_of_variable", B, x)
        A, x = _solve_matrix(L, A), _solve(L, x)
    rows, columns = A.shape[-2:]
    if columns > rows:
        raise ValueError(
            f"change_of_variable: A {(rows, columns)} has more columns than rows, so y is not determined by x"
        )
    Q, R = xp.linalg.qr(A)
    lengths = xp.sqrt((A * A).sum(-2))
    own = xp.abs(xp.diagonal(R, axis1=-2, axis2=-1))  # what each column adds to the span of those before it
    if not bool((own > 1e-13 * rows * lengths).all()):
        raise ValueError("change_of_variable: A is not of full column rank, so y is not determined by x")
    half = _solve_matrix(R, xp.eye(columns))
    return _solve(R, _apply(_transpose(Q), x)), half @ _transpose(half)


def _plain(x: Any) -> Any:
    return x.data if isinstance(x, Tensor) else x


def _vectors(name: str, **vectors: Any) -> list[Any]:
    """The vectors as float64, broadcast against each other; ValueError unless their last axes agree."""
    arrays = {key: array_module(_plain(x)).asarray(_plain(x), "float64") for key, x in vectors.items()}
    if any(a.ndim == 0 for a in arrays.values()) or len({a.shape[-1] for a in arrays.values()}) > 1:
        shapes = " and ".join(f"{key} {a.shape}" for key, a in arrays.items())
        raise ValueError(f"{name}: points and means must be (..., D) with one D, not {shapes}")
    return list(arrays.values())


def _isotropic(name: str, cov: Any, variance: Any) -> bool:
    if (cov is None) == (variance is None):
        raise ValueError(
            f"{name}: give either a covariance or variance=, not {'both' if cov is not None else 'neither'}"
        )
    return variance is not None


def _both_isotropic(name: str, C1: Any, C2: Any, variance: Any) -> bool:
    if variance is None and C1 is not None and C2 is not None:
        return False
    if C1 is not None or C2 is not None or not isinstance(variance, tuple | list) or len(variance) != 2:
        raise ValueError(f"{name}: give two covariances, or None for both and variance=(v1, v2)")
    return True


def _variance(name: str, variance: Any, like: Any) -> Any:
    v = array_module(_plain(variance) if like is None else like).asarray(_plain(variance), "float64")
    if not bool((v > 0).all()):
        raise ValueError(f"{name}: the variance must be positive, not {v.min()}")
    return v


def _cholesky(name: str, cov: Any, like: Any) -> Any:
    """The lower factor of a covariance, whose size must be that of the vectors `like` (None: any)."""
    xp = array_module(_plain(cov) if like is None else like)
    cov = xp.asarray(_plain(cov), "float64")
    D = like.shape[-1] if like is not None else cov.shape[-1] if cov.ndim else 0
    if cov.ndim < 2 or cov.shape[-2:] != (D, D):
        size = D or "D"
        raise ValueError(
            f"{name}: a covariance must be (..., {size}, {size}), not {cov.shape}; for v I give variance=v"
        )
    diagonal = xp.diagonal(cov, axis1=-2, axis2=-1)
    definite = bool((diagonal > 0).all())
    if definite:
        scale = xp.sqrt(diagonal)
        correlation = cov / (scale[..., None] * scale[..., None, :])
        if not bool((xp.abs(correlation - _transpose(correlation)) <= 1e-8).all()):
            raise ValueError(f"{name}: the covariance is not symmetric")
        # rounding hides a zero eigenvalue from Cholesky, but moves those of the correlations by a few D eps only
        definite = bool((xp.linalg.eigvalsh(correlation) > 4 * D * np.finfo(float).eps).all())
    if not definite:
        raise ValueError(f"{name}: the covariance is not positive definite")
    return xp.linalg.cholesky(cov)


def _log_det(L: Any) -> Any:
    xp = array_module(L)
    return 2 * xp.log(xp.diagonal(L, axis1=-2, axis2=-1)).sum(-1)


def _solve(L: Any, b: Any) -> Any:
    """L^-1 b for vectors b (..., D)."""
    return array_module(L).linalg.solve(L, b[..., None])[..., 0]


def _solve_matrix(L: Any, B: Any) -> Any:
    return array_module(L).linalg.solve(L, B)


def _apply(A: Any, x: Any) -> Any:
    return (A @ x[..., None])[..., 0]


def _transpose(A: Any) -> Any:
    return array_module(A).swapaxes(A, -1, -2)
