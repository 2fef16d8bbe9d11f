"""The Frechet distance of Gaussians against closed forms."""

import numpy as np
import pytest

from tinydiff.evaluation.frechet import frechet_distance, moments


def test_frechet_distance_of_known_gaussians(rng):
    # one dimension: (m1 - m2)^2 + (s1 - s2)^2
    assert frechet_distance([1.0], [[4.0]], [-2.0], [[9.0]]) == pytest.approx(9 + 1, abs=1e-12)
    # covariances that commute: the standard deviations subtract
    q = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    a, b, m = rng.uniform(0.1, 3, 5), rng.uniform(0.1, 3, 5), rng.normal(size=5)
    expected = m @ m + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet_distance(np.zeros(5), q * a @ q.T, m, q * b @ q.T) == pytest.approx(expected, abs=1e-12)
    # N(0, A A^T) moved by the symmetric S = gradient of a convex function: the optimal map, so tr((S - I) C (S - I))
    root = rng.normal(size=(5, 5))
    C, S = root @ root.T, q * rng.uniform(0.2, 2, 5) @ q.T
    expected = np.trace((S - np.eye(5)) @ C @ (S - np.eye(5)))
    assert frechet_distance(m, C, m, S @ C @ S) == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_is_symmetric_and_zero_for_equals_also_singular_ones(rng):
    a, b = (moments(rng.normal(size=(4, 6)) * scale) for scale in (1, 2))  # rank 3 of 6
    assert frechet_distance(*a, *a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(*a, *b) == pytest.approx(frechet_distance(*b, *a), abs=1e-6)
    mean, cov = moments(np.array([[0.0, 1], [2, 5]]))
    np.testing.assert_allclose(mean, [1, 3])
    np.testing.assert_allclose(cov, [[2, 4], [4, 8]])


def test_frechet_distance_refuses_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"\(2,\), \(3, 3\)"):
        frechet_distance(np.zeros(2), np.eye(3), np.zeros(2), np.eye(2))
    with pytest.raises(ValueError, match="at least 2"):
        moments(np.zeros((1, 3)))
