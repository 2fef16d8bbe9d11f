"""The variational bound: how many bits per dimension the model needs to store an image without loss.

-log p(x0) <= L_T + sum_{t>1} L_{t-1} + L_0 in expectation over q (Ho et al., 2020, eq. 5; source B, 3.1.2), with

    L_T      KL(q(x_T | x_0) || N(0, I)): what is left of the image in x_T
    L_{t-1}  KL(q(x_{t-1} | x_t, x_0) || p_theta(x_{t-1} | x_t)): the reverse steps, as fixed or learned Gaussians
    L_0      -log p_theta(x_0 | x_1): the decoder, see `decoder`
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np

from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import array_module, to_numpy
from tinydiff.diffusion.arguments import as_images
from tinydiff.diffusion.decoder import bin_log_prob
from tinydiff.diffusion.model import Predictor
from tinydiff.diffusion.noise import q_sample
from tinydiff.diffusion.process import Process
from tinydiff.errors import InputError
from tinydiff.random import Generator


@dataclass(frozen=True)
class Bound:
    """The bound of N images in bits per dimension, float64 arrays on the host; also a mapping, as in `dict(bound)`.

    L_T       (N,)    the prior's term
    L_t       (N, T)  column t - 1 is step t: for t >= 2 the KL, the paper's L_{t-1}; for t = 1 the decoder's term. NaN
                      where a step was left out
    L_0       (N,)    the decoder's term, column 0 of L_t
    total     (N,)    L_T + L_t.sum(1), or its estimate where steps were left out
    total_se  (N,)    the standard error of that estimate, from the choice of steps; 0 if none was left out
    """

    L_T: np.ndarray
    L_t: np.ndarray
    L_0: np.ndarray
    total: np.ndarray
    total_se: np.ndarray

    def keys(self) -> Iterator[str]:
        """The names of the terms, so that dict(bound) works and bound["total"] is bound.total."""
        return (field.name for field in fields(self))

    def __getitem__(self, name: str) -> np.ndarray:
        return getattr(self, name)


def vlb(
    diffusion: Process,
    model: Any,
    x0: Any,
    generator: Generator,
    labels: Any = None,
    t: Any = None,
    progress: bool = False,
) -> Bound:
    """The bound for given images. Each term is its value at one draw of x_t; its mean over images is what is bounded.

    diffusion: the reverse process that is sampled, so the predicted x0 is clipped if `diffusion.clip_x0`.
    model: model(x, t, labels=None); a network is in eval mode meanwhile.
    x0: images (N, H, W, C), byte values k / 127.5 - 1 in floating point, on the model's device.
    generator: step t takes the t-th of T draws of x0's shape from its sequence, also where not all steps are evaluated.
    labels: None, a number or (N,).
    t: the steps to evaluate, integers in 1..T, one model call each; None: all.
    progress: whether to show a bar on stderr.

    With some steps only, the total is a stratified estimate. Step 1, the decoder's term, is unlike the others and
    should be included. Of the other steps, each two neighbours represent the steps around them, up to half way to the
    next two, by their mean; the spread within the pairs gives `total_se`. InputError for steps outside 1..T and for
    labels that do not fit.
    """
    (x0,) = as_images(x0=x0)
    x0 = x0.data if isinstance(x0, Tensor) else x0
    n, T = x0.shape[0], diffusion.schedule.T
    steps = check_steps(t, T)
    predict = Predictor(model, n, labels)
    terms = np.full((n, T), np.nan)
    first, blocks = generator.offset, -(-x0.size // 4)
    for step in _progress(steps) if progress and sys.stderr is not None else steps:
        state = generator.seed, generator.stream, generator.step, first + (int(step) - 1) * blocks
        xt, _ = q_sample(x0, *diffusion.levels(step), state)
        output = predict(xt, diffusion.schedule.timesteps[step])
        terms[:, step - 1] = to_numpy(reverse_term(diffusion, output, x0, xt, int(step)))
    generator.offset = first + T * blocks
    prior = to_numpy(prior_term(diffusion, x0))
    total, standard_error = estimate_sum(terms, steps)
    return Bound(prior, terms, terms[:, 0].copy(), prior + total, standard_error)


def prior_term(diffusion: Process, x0: Any) -> Any:
    """L_T of each image, (N,) in bits per dimension: KL(N(sqrt(alpha_bar_T) x0, 1 - alpha_bar_T) || N(0, 1)), which is
    (alpha_bar_T x0^2 - alpha_bar_T - ln(1 - alpha_bar_T)) / (2 ln 2), averaged over the pixels (source E, 1.2(a))."""
    alpha_bar = float(diffusion.schedule.alpha_bar[-1])
    square = (x0.astype("float64") ** 2).reshape(len(x0), -1).mean(1)
    return (alpha_bar * square - alpha_bar - math.log1p(-alpha_bar)) / (2 * math.log(2))


def reverse_term(diffusion: Process, output: Any, x0: Any, xt: Any, t: int) -> Any:
    """The term of step t for each image, (N,) in bits per dimension, from the model's output for xt; in float64.

    For t = 1 it is the decoder's -log P(x0). For t >= 2 it is the KL of Gaussians with variances b, the posterior's,
    and s in each dimension, (b/s - 1 - ln(b/s) + d^2 / s) / 2 (source E, 1.2(b)). The means differ by d, the weight of
    x0 in the posterior's mean times the error of the predicted x0.
    """
    xp = array_module(x0)
    x0, xt, output = (a.astype("float64") for a in (x0, xt, output))
    mean, log_s, predicted = diffusion.reverse_from(*diffusion.split(output, xt), xt, t, diffusion.clip_x0)
    log_s = xp.broadcast_to(xp.asarray(log_s, "float64"), x0.shape)
    if t == 1:
        nats = -bin_log_prob(mean, log_s, x0).data
    else:
        r = float(diffusion.schedule.log_posterior_variance[t]) - log_s  # ln(b/s)
        d = float(diffusion.posterior_weights(t)[0]) * (x0 - predicted)
        nats = (xp.expm1(r) - r + d * d * xp.exp(-log_s)) / 2
    return nats.reshape(len(x0), -1).mean(1) / math.log(2)


def check_steps(t: Any, T: int) -> np.ndarray:
    """The steps t to evaluate, sorted, each once; 1..T for None. InputError unless integers in 1..T."""
    if t is None:
        return np.arange(1, T + 1)
    steps = np.unique(to_numpy(t.data if isinstance(t, Tensor) else t))
    if steps.dtype.kind not in "iu" or not steps.size or steps[0] < 1 or steps[-1] > T:
        raise InputError(f"t must be steps to evaluate, integers in 1..{T}, not {t!r}")
    return steps


def estimate_sum(terms: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sum over 1..T of terms (N, T) that are known at the given steps only, and its standard error, both (N,).

    Step 1, if given, is a stratum. The other strata surround two neighbouring steps each (the first three, if their
    number is odd). A stratum of `size` steps, of which n are known with sample variance s^2, adds size * mean to the
    sum and size^2 (1 - n / size) s^2 / n to its variance. NaN where n is too small.
    """
    decoder = int(steps[0] == 1)
    groups = np.array_split(steps[decoder:], max((len(steps) - decoder) // 2, 1))
    edges = [decoder, *[(a[-1] + b[0]) // 2 for a, b in pairwise(groups)], terms.shape[1]]
    total = terms[:, 0].copy() if decoder else np.zeros(len(terms))
    variance = np.zeros(len(terms))
    for group, size in zip(groups, np.diff(edges), strict=True):
        known, n = terms[:, group - 1], len(group)
        total += size * (known.mean(1) if n else np.nan if size else 0.0)
        if n < size:
            variance += size * (size - n) * (known.var(1, ddof=1) / n if n > 1 else np.nan)
    return total, np.sqrt(variance)


def _progress(steps: np.ndarray) -> Any:
    from tqdm import tqdm

    return tqdm(steps, desc="bound", unit="step", leave=False)
