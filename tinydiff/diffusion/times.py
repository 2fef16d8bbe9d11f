"""What the training loss needs to know of the times of a batch's images: numbers that depend on t alone."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from tinydiff.backend import is_array, module_for
from tinydiff.diffusion.process import Process
from tinydiff.ops.tables import pick_rows


class Times(NamedTuple):
    """A number for each image, (N,), or one for all; float64 on the host, where they are computed, float32 on the GPU.

    t: as the model takes it, int64. signal, noise: sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), the weights of x0 and eps in
    x_t. weight: of an image's squared error; None for 1.
    The rest is for a learned variance, else None. first: 1 where t = 1, else 0. inverse_signal: 1 / signal, where the model
    predicts eps. low, high: log of the posterior's variance and of beta_t; half_range: (high - low) / 2.
    of_distance: what a squared error of x0 weighs in units of the posterior's variance, 0 where t = 1.
    """

    t: Any
    signal: Any
    noise: Any
    weight: Any = None
    first: Any = None
    inverse_signal: Any = None
    low: Any = None
    high: Any = None
    half_range: Any = None
    of_distance: Any = None

    def rows(self, rows: Any) -> Times:
        """Those of some of the images, chosen by a slice or by indices."""
        return Times(*(column if np.ndim(column) == 0 else column[rows] for column in self))


def times_of(process: Process, t: Any) -> Times:
    """Looks up steps t in 1..T: integers on the host, in whose shape the numbers are, or (N,) on the GPU, where nothing waits
    for them to be checked: a wrong one is an IndexError when a result is next read from there."""
    if isinstance(t, np.ndarray):
        return _on_host(process, t)
    columns = [None if c is None else pick_rows(c, t - 1).reshape(t.shape) for c in _tables(process)[1:]]
    return Times(_known(process)[t.clip(1, process.schedule.T)], *columns)


def _on_host(process: Process, t: np.ndarray) -> Times:
    times = Times(
        process.schedule.timesteps[t],
        *process.levels(t),
        weight=None if process.min_snr is None else min_snr_weight(process, process.min_snr, t),
    )
    if process.variance != "learned":
        return times
    low, high = (table[t] for table in process.log_variance_range())
    later, on_x0 = t > 1, process.posterior_weights(t)[0]
    posterior = np.where(later, process.schedule.posterior_variance[t], np.inf)
    return times._replace(
        first=1.0 - later,
        inverse_signal=1 / times.signal if process.predict == "eps" else None,
        low=low,
        high=high,
        half_range=(high - low) / 2,
        of_distance=on_x0**2 / posterior,
    )


def min_snr_weight(process: Process, gamma: float, t: np.ndarray) -> np.ndarray:
    """The weight of the squared error that makes it min(snr, gamma) times that of x0 (Hang et al., 2023, section 3.4).

    snr is alpha_bar / (1 - alpha_bar), gamma is `process.min_snr`. An error d in x0 is one of sqrt(snr) d in eps and
    of sqrt(snr + 1) d in v.
    """
    snr = process.schedule.alpha_bar[t] / process.schedule.one_minus_alpha_bar[t]
    return np.minimum(snr, gamma) / {"eps": snr, "x0": 1.0, "v": snr + 1}[process.predict]


@functools.lru_cache(16)
def _tables(process: Process) -> Times:
    """The numbers of t = 1..T on the GPU, float32 (T, 1)."""
    xp = module_for("cuda")
    found = _on_host(process, np.arange(1, process.schedule.T + 1))
    return Times(*(xp.asarray(c.astype(np.float32)[:, None]) if is_array(c) else None for c in found))


@functools.lru_cache(16)
def _known(process: Process) -> Any:
    """The t of the model for 0..T on the GPU, int64."""
    return module_for("cuda").asarray(process.schedule.timesteps)
