"""The discretised Gaussian decoder: the probability of a byte under a Gaussian in image values.

Byte k is x = k / 127.5 - 1, so it owns the interval x - 1/255 .. x + 1/255; the first and the last byte own the rest of
the line (Ho et al., 2020, eq. 13; source B, eq. 13). The 256 probabilities add up to 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinydiff.autograd.function import Function
from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import array_module
from tinydiff.ops._erf import erf, erfcx

HALF_WIDTH = 1 / 255


def bin_log_prob(mean: Any, log_variance: Any, x0: Any) -> Tensor:
    """log P(x0) of each element in nats, for a Gaussian of that mean and log-variance.

    x0: an array of byte values k / 127.5 - 1. mean, log_variance: tensors or arrays of its shape; gradients pass to
    both. Computed in float64 and right in the far tails too.
    """
    return BinLogProb.apply(mean, log_variance, x0=x0)


class BinLogProb(Function):
    """Y = log(P) with P = F(b) - F(a), where F is the normal distribution function and f its density.

        sigma = exp(log_variance / 2),  a = (x0 - 1 / 255 - mean) / sigma,  b = (x0 + 1 / 255 - mean) / sigma
        L_mean = L_Y * (f(a) - f(b)) / (sigma * P)
        L_log_variance = L_Y * (a * f(a) - b * f(b)) / (2 P)

    The first byte has a = -inf and the last one b = inf, and there a f(a) and b f(b) are 0.
    """

    def forward(self, mean, log_variance, x0):
        xp = array_module(mean)
        self.dtypes = mean.dtype, log_variance.dtype
        inverse_sigma = xp.exp(-log_variance.astype("float64") / 2)
        centre = x0.astype("float64") - mean
        a = xp.where(x0 < -0.999, -np.inf, (centre - HALF_WIDTH) * inverse_sigma)
        b = xp.where(x0 > 0.999, np.inf, (centre + HALF_WIDTH) * inverse_sigma)
        log_p = log_normal_interval(a, b)
        self.save(a, b, inverse_sigma, log_p)
        return log_p.astype(np.result_type(*self.dtypes), copy=False)

    def backward(self, L_Y):
        a, b, inverse_sigma, log_p = self.saved
        xp = array_module(a)
        f_a, f_b = (xp.exp(-z * z / 2 - log_p) / np.sqrt(2 * np.pi) for z in (a, b))  # both over P
        a, b = (xp.where(xp.isinf(z), 0.0, z) for z in (a, b))
        L_mean = L_Y * (f_a - f_b) * inverse_sigma
        L_log_variance = L_Y * (a * f_a - b * f_b) / 2
        return L_mean.astype(self.dtypes[0]), L_log_variance.astype(self.dtypes[1])


def log_normal_interval(a: Any, b: Any) -> Any:
    """log(F(b) - F(a)) for a < b, elementwise in float64, where F is the standard normal distribution function.

    The interval is mirrored so that its middle is not positive. If it then holds 0, the difference is a sum of two
    positive numbers. Otherwise exp(-b^2 / 2) is taken out of both, which keeps the logarithm right however far out.
    """
    xp = array_module(a)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        mirrored = a + b > 0
        a, b = xp.where(mirrored, -b, a), xp.where(mirrored, -a, b)
        root2 = np.sqrt(2.0)
        around_0 = xp.log((erf(b / root2) - erf(a / root2)) / 2)
        tail_a, tail_b = erfcx(-a / root2), erfcx(xp.maximum(-b, 0.0) / root2)
        aside = xp.log(tail_b / 2) - b * b / 2 + xp.log1p(-xp.exp((b - a) * (b + a) / 2) * tail_a / tail_b)
        return xp.where(b >= 0, around_0, aside)
