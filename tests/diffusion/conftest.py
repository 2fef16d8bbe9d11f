"""Data whose best possible model is known: independent Gaussian pixels, for which every reverse step is affine."""

from dataclasses import dataclass

import numpy as np
import pytest


@dataclass
class GaussianData:
    """x0 ~ N(m, s^2) in every pixel, under a schedule given by betas; formulas from the betas alone, in plain
    products."""

    betas: np.ndarray
    m: float = 0.3
    s: float = 0.5

    def __post_init__(self):
        self.alpha_bar = np.append(1.0, np.cumprod(1 - self.betas))

    def gain(self, t):
        """E[x0 | xt] = m + gain (xt - sqrt(alpha_bar) m), by Gaussian conditioning."""
        ab = self.alpha_bar[t]
        return np.sqrt(ab) * self.s**2 / (ab * self.s**2 + 1 - ab)

    def x0(self, x, t):
        t = np.asarray(t).reshape(-1, *[1] * (x.ndim - 1))
        return (self.m + self.gain(t) * (x - np.sqrt(self.alpha_bar[t]) * self.m)).astype(x.dtype)

    def eps(self, x, t, labels=None):
        """The exact model: E[eps | xt]."""
        column = np.asarray(t).reshape(-1, *[1] * (x.ndim - 1))
        ab = self.alpha_bar[column]
        return ((x - np.sqrt(ab) * self.x0(x.astype(np.float64), t)) / np.sqrt(1 - ab)).astype(x.dtype)

    def v(self, x, t, labels=None):
        ab = self.alpha_bar[np.asarray(t).reshape(-1, *[1] * (x.ndim - 1))]
        x64 = x.astype(np.float64)
        return (np.sqrt(ab) * self.eps(x64, t) - np.sqrt(1 - ab) * self.x0(x64, t)).astype(x.dtype)


@pytest.fixture
def gaussian_data():
    return GaussianData
