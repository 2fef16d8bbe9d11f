"""The noise schedule: how much of the image and how much noise x_t holds, for t = 1..T.

The forward process q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I) (source A, 5.2.2; Ho et al., 2020, eq. 2)
is fixed by its variances beta_t alone. With alpha_t = 1 - beta_t and alpha_bar_t = alpha_1 ... alpha_t, its closed form
is q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I) (source A, 5.2.19; source C, 20.3).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinydiff.errors import InputError

MAX_BETA = 0.999  # Nichol & Dhariwal (2021): a cosine would end in a beta of 1, which leaves nothing of x_{T-1}
NOISY_ENOUGH = 0.01  # alpha_bar_T above this leaves so much of x_0 in x_T that N(0, I) is a wrong start for sampling


@dataclass(frozen=True, eq=False, repr=False)
class Schedule:
    """Variances and everything that follows from them; make one by `linear`, `cosine`, `sigmoid` or `from_betas`.

    All arrays are float64 of length T + 1, indexed by t and read-only; index 0 is the clean image.

        beta                   variance of the noise that step t adds; beta[0] = 0
        alpha                  1 - beta
        alpha_bar              product of alpha_1..alpha_t: the share of x_0's variance left in x_t; alpha_bar[0] = 1
        log_alpha_bar          its logarithm, the sum of log(1 - beta)
        one_minus_alpha_bar    the variance of the noise in x_t, exact to rounding at small t, where 1 - alpha_bar is not
        posterior_variance     the variance of q(x_{t-1} | x_t, x_0), (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) beta_t;
                               0 at t = 1, where x_0 is known
        log_posterior_variance its logarithm, but at t = 1 that of t = 2 (of beta_1 where T = 1), as in the paper's code
        timesteps              int64: the t that the model was trained with for this step, 0..T unless respaced
    """

    beta: np.ndarray
    alpha: np.ndarray
    alpha_bar: np.ndarray
    log_alpha_bar: np.ndarray
    one_minus_alpha_bar: np.ndarray
    posterior_variance: np.ndarray
    log_posterior_variance: np.ndarray
    timesteps: np.ndarray

    @classmethod
    def linear(cls, T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
        """T variances evenly spaced from beta_start to beta_end, taken literally (Ho et al., 2020, section 4).

        The defaults are for T = 1000. With fewer steps, scale both up by 1000 / T, or x_T keeps some of the image.
        InputError unless T >= 1 and both are in (0, 1).
        """
        T = _count(T, "T")
        for name, value in (("beta_start", beta_start), ("beta_end", beta_end)):
            if not 0 < value < 1:
                raise InputError(f"{name} must be between 0 and 1, both excluded, not {value}")
        return cls.from_betas(np.linspace(beta_start, beta_end, T))

    @classmethod
    def cosine(cls, T: int = 1000, s: float = 0.008) -> Schedule:
        """alpha_bar_t = f(t) / f(0) with f(t) = cos^2((t/T + s) / (1 + s) * pi/2), each beta at most 0.999
        (Nichol & Dhariwal, 2021, eq. 17). InputError unless T >= 1 and s >= 0."""
        T = _count(T, "T")
        if not 0 <= s < math.inf:
            raise InputError(f"s must be a number of at least 0, not {s}")
        f = np.cos((np.linspace(0, 1, T + 1) + s) / (1 + s) * np.pi / 2) ** 2
        return cls._from_alpha_bar(f / f[0])

    @classmethod
    def sigmoid(cls, T: int = 1000, start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> Schedule:
        """alpha_bar_t falls from 1 to 0 like a sigmoid between start / tau and end / tau, each beta at most 0.999
        (Jabri, Fleet & Chen, 2022, algorithm 1). InputError unless T >= 1, start < end and tau > 0."""
        T = _count(T, "T")
        if not (-math.inf < start < end < math.inf and 0 < tau < math.inf):
            raise InputError(
                f"a sigmoid schedule needs start < end and tau > 0, not start={start}, end={end}, tau={tau}"
            )
        level = 1 / (1 + np.exp(-(start + (end - start) * np.linspace(0, 1, T + 1)) / tau))
        return cls._from_alpha_bar((level[-1] - level) / (level[-1] - level[0]))

    @classmethod
    def from_betas(cls, betas: Sequence[float] | np.ndarray) -> Schedule:
        """The schedule of given betas: T numbers, beta_1..beta_T, in (0, 1).

        InputError for anything else. The last may be 1, after others, as in `zero_terminal_snr`. It warns where
        alpha_bar_T is above 0.01: x_T then still holds some of the image.
        """
        try:
            betas = np.array(betas, np.float64)
        except (TypeError, ValueError):
            raise InputError(f"betas must be a sequence of numbers, not {betas!r}") from None
        if betas.ndim != 1 or not betas.size:
            raise InputError(f"betas must be a sequence of at least one number, not an array of shape {betas.shape}")
        last_is_one = betas.size > 1 and betas[-1] == 1
        wrong = np.flatnonzero(~((betas > 0) & (betas < 1))[: betas.size - last_is_one])
        if wrong.size:
            t = int(wrong[0]) + 1
            raise InputError(
                f"every beta must be between 0 and 1, both excluded, but beta_{t} of {betas.size} is {betas[t - 1]}"
            )
        with np.errstate(divide="ignore"):  # log 0 where beta_T is 1
            schedule = cls._make(betas, np.cumsum(np.log1p(-betas)), np.arange(betas.size + 1))
        if schedule.alpha_bar[-1] > NOISY_ENOUGH:
            warnings.warn(
                f"alpha_bar_T is {schedule.alpha_bar[-1]:.3g}: x_T still holds that share of the image's variance, "
                "but sampling starts from pure noise; "
                f"take larger betas or more steps (alpha_bar_T should be below {NOISY_ENOUGH})",
                stacklevel=2,
            )
        return schedule

    @classmethod
    def _from_alpha_bar(cls, alpha_bar: np.ndarray) -> Schedule:
        return cls.from_betas(np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], MAX_BETA))

    @classmethod
    def _make(cls, beta: np.ndarray, log_alpha_bar: np.ndarray, timesteps: np.ndarray) -> Schedule:
        """From beta_1..beta_T and log alpha_bar_1..T, whose expm1 gives 1 - alpha_bar without cancellation."""
        beta, log_alpha_bar = np.append(0.0, beta), np.append(0.0, log_alpha_bar)
        variance = 0.0 - np.expm1(log_alpha_bar)  # 1 - alpha_bar
        posterior = np.zeros_like(beta)
        posterior[1:] = beta[1:] * variance[:-1] / variance[1:]
        log_posterior = np.full_like(beta, -np.inf)
        log_posterior[2:] = np.log(posterior[2:])
        log_posterior[1] = log_posterior[2] if beta.size > 2 else np.log(beta[1])
        arrays = (
            beta,
            1 - beta,
            np.exp(log_alpha_bar),
            log_alpha_bar,
            variance,
            posterior,
            log_posterior,
            np.array(timesteps, np.int64),
        )
        for a in arrays:
            a.flags.writeable = False
        return cls(*arrays)

    @property
    def T(self) -> int:
        """The number of steps."""
        return len(self.beta) - 1

    @property
    def log_snr(self) -> np.ndarray:
        """log of alpha_bar / (1 - alpha_bar), the signal-to-noise ratio of x_t; infinite at t = 0."""
        with np.errstate(divide="ignore"):
            return self.log_alpha_bar - np.log(self.one_minus_alpha_bar)

    def __repr__(self) -> str:
        respaced = "" if self.timesteps[-1] == self.T else f", timesteps up to {self.timesteps[-1]}"
        betas = f"beta {self.beta[1]:.3g} to {self.beta[-1]:.3g}"
        return f"Schedule(T={self.T}, {betas}, alpha_bar_T {self.alpha_bar[-1]:.3g}{respaced})"

    def respaced(self, steps: int | Sequence[int] | np.ndarray) -> Schedule:
        """The schedule that visits only some of the steps; between two kept ones alpha_bar is what it was.

        steps: how many, n, for t_i = round(T i / n), i = 1..n, so that sampling starts at T; or the steps to keep,
        increasing integers in 1..T that end in T. The new beta_i is 1 - alpha_bar[t_i] / alpha_bar[t_{i-1}] (Nichol &
        Dhariwal, 2021, eq. 19), and everything else follows from it. InputError for any other steps.
        """
        kept = self._kept(steps)
        if len(kept) == self.T:
            return self
        with np.errstate(divide="ignore"):  # log 0 where beta_T is 1
            log_alpha = np.add.reduceat(np.log1p(-self.beta[1:]), np.append(0, kept[:-1]))
        return self._make(-np.expm1(log_alpha), self.log_alpha_bar[kept], self.timesteps[np.append(0, kept)])

    def _kept(self, steps: Any) -> np.ndarray:
        array = np.asarray(steps)
        if array.dtype.kind not in "iu":
            raise InputError(f"steps must be a number of steps or the steps to keep, integers, not {steps!r}")
        if array.ndim == 0:
            n = int(array)
            if not 1 <= n <= self.T:
                raise InputError(f"steps must be in 1..{self.T}, the steps of the schedule, not {n}")
            return np.array([round(self.T * i / n) for i in range(1, n + 1)])
        if array.ndim != 1 or not array.size or array[0] < 1 or array[-1] != self.T or np.any(array[1:] <= array[:-1]):
            raise InputError(
                f"the steps to keep must increase within 1..{self.T} and end in {self.T}, not {array.tolist()}"
            )
        return array.astype(np.int64)

    def truncated(self, t: int) -> Schedule:
        """The first t steps, for a reverse process that starts from a given x_t. InputError unless t is in 1..T."""
        t = _count(t, "t")
        if t > self.T:
            raise InputError(f"t must be in 1..{self.T}, not {t}")
        return self._make(self.beta[1 : t + 1], self.log_alpha_bar[1 : t + 1], self.timesteps[: t + 1])

    def zero_terminal_snr(self) -> Schedule:
        """The schedule with sqrt(alpha_bar) shifted and stretched so that alpha_bar_T = 0 and alpha_bar_1 stays
        (Lin et al., 2023, algorithm 1).

        beta_T is 1 then and x_T nothing but noise: a model must predict x0 or v. InputError where T = 1.
        """
        if self.T < 2:
            raise InputError("zero_terminal_snr needs a schedule of at least 2 steps")
        root = np.sqrt(self.alpha_bar[1:])
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        alpha = np.append(root[0], root[1:] / root[:-1]) ** 2
        with np.errstate(divide="ignore"):
            return self._make(1 - alpha, np.cumsum(np.log(alpha)), self.timesteps)

    def noise_weights(self, t: int) -> np.ndarray:
        """The weights (t,) of eps_0..eps_{t-1} in x_t = sqrt(alpha_bar_t) x_0 + ..., the chain written out:

            sqrt(prod_{i=tau+2..t} alpha_i - prod_{i=tau+1..t} alpha_i)  for eps_tau (source A, 5.2.4)

        The difference is prod_{i=tau+2..t} alpha_i beta_{tau+1}; the squares add up to 1 - alpha_bar_t (5.2.16).
        """
        after = np.cumprod(np.append(1.0, self.alpha[t:1:-1]))[::-1]  # prod of alpha_{tau+2}..alpha_t, tau = 0..t-1
        return np.sqrt(after * self.beta[1 : t + 1])


def _count(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError(f"{name} must be an integer of at least 1, not {value!r}")
    return int(value)
