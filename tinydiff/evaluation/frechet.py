"""The Frechet distance between two sets of features, with a Gaussian fitted to each (Heusel et al., 2017, eq. 6)."""

from __future__ import annotations

import numpy as np


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and covariance (D, D), with divisor N - 1, of features (N, D), N at least 2; in float64."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"moments takes features (N, D) with N at least 2, not {features.shape}")
    features = features.astype(np.float64)
    mean = features.mean(0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


def frechet_distance(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """The squared 2-Wasserstein distance of N(mean1, cov1) and N(mean2, cov2), what FID is on Inception's features:

        |mean1 - mean2|^2 + tr(cov1 + cov2 - 2 (cov1^1/2 cov2 cov1^1/2)^1/2)

    Means (D,), covariances (D, D), symmetric and positive semi-definite, singular ones included. In float64, by
    eigenvalues of symmetric matrices alone, so the result is real and not below 0.
    """
    shapes = [np.shape(a) for a in (mean1, cov1, mean2, cov2)]
    d = np.size(mean1)
    if shapes != [(d,), (d, d), (d,), (d, d)]:
        raise ValueError(f"frechet_distance takes (D,), (D, D), (D,), (D, D), not {', '.join(map(str, shapes))}")
    values, vectors = np.linalg.eigh(np.asarray(cov1, np.float64))
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    product = np.linalg.eigvalsh(root @ cov2 @ root).clip(0)
    difference = np.asarray(mean1, np.float64) - mean2
    return max(float(difference @ difference + np.trace(cov1) + np.trace(cov2) - 2 * np.sqrt(product).sum()), 0.0)
