"""What the tests of the sources share: a Monte Carlo comparison with its error bar, and random covariances.

A test is named by the equation that it computes. A: AI Manifesto (Karaca, 2024). B: review of DDPM (Kitowski).
C: solutions to Bishop & Bishop, chapter 20 (Konopatzki). D: handwritten notes. E: assignment on flows and diffusion.
"""

import numpy as np
import pytest


@pytest.fixture
def agrees():
    """A function that compares means of samples, along the first axis, with what they should be: 5 standard errors."""

    def check(samples, expected):
        samples = np.asarray(samples, np.float64)
        standard_error = samples.std(0, ddof=1) / np.sqrt(len(samples))
        assert np.all(np.abs(samples.mean(0) - expected) <= 5 * standard_error)

    return check


@pytest.fixture
def covariance(rng):
    """A function that makes a random covariance of D dimensions."""

    def make(D):
        A = rng.standard_normal((D, D + 2))
        return A @ A.T / D

    return make
