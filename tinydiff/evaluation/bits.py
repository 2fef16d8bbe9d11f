"""Bits per dimension: how much the model needs to store images without loss, and which steps need it."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import numpy as np

from tinydiff.backend import module_for
from tinydiff.data.pixels import to_float
from tinydiff.diffusion import Diffusion
from tinydiff.diffusion.model import model_device
from tinydiff.machine.terminal import say
from tinydiff.random import Generator
from tinydiff.ranks import even_parts, share_out, world
from tinydiff.runs.compiled import compile_sampling

EVALUATION = 9  # the stream of random numbers for evaluation; training and sampling use others
_IMAGES_AT_ONCE, _PIXELS_AT_ONCE = 64, 1 << 17


class Stratum(NamedTuple):
    """Steps first..last. Some of them are evaluated and represent all."""

    first: int
    last: int
    evaluated: np.ndarray

    @property
    def weight(self) -> float:
        """How many steps each evaluated one represents."""
        return (self.last - self.first + 1) / len(self.evaluated)


class Row(NamedTuple):
    """A line of the table: a part of the bound, its mean over images and the standard error of that. evaluated: how
    many of its steps were, 0 for the prior, which has a closed form."""

    term: str
    steps: str
    evaluated: int
    bits: float
    error: float


@dataclass(frozen=True)
class BitsPerDim:
    """The bound of N images at the evaluated steps, in bits per dimension.

    L_T (N,); terms (N, n): column j is step `steps[j]`; strata: which steps each of them represents.
    """

    L_T: np.ndarray
    terms: np.ndarray
    strata: list[Stratum]

    @property
    def steps(self) -> np.ndarray:
        """(n,), increasing."""
        return np.concatenate([s.evaluated for s in self.strata])

    @property
    def weights(self) -> np.ndarray:
        """(n,): the total is L_T + terms @ weights."""
        return np.concatenate([np.full(len(s.evaluated), s.weight) for s in self.strata])

    @property
    def totals(self) -> np.ndarray:
        """(N,): an estimate for each image where steps were left out, else the bound at one draw of each x_t."""
        return self.L_T + self.terms @ self.weights

    def errors(self) -> tuple[float, float]:
        """Standard errors of the mean total: from the choice of images, and from the choice of steps."""
        return _error_of_mean(self.totals), self._error_of_steps(self.strata)

    def _error_of_steps(self, strata: list[Stratum]) -> float:
        """A stratum of `size` steps, n of them evaluated with sample variance s^2 of their means over images, adds
        size^2 (1 - n / size) s^2 / n (Cochran, Sampling Techniques, 5.3)."""
        variance = 0.0
        for s in strata:
            size, n = s.last - s.first + 1, len(s.evaluated)
            if n < size:
                means = self.terms[:, np.isin(self.steps, s.evaluated)].mean(0)
                variance += size * (size - n) * float(means.var(ddof=1)) / n
        return math.sqrt(variance)

    def rows(self) -> list[Row]:
        """Prior, reverse steps by powers of ten from the noise down, decoder; their bits add up to the total."""
        rows = [Row("L_T  prior", "", 0, float(self.L_T.mean()), _error_of_mean(self.L_T))]
        decades = [list(g) for _, g in groupby(self.strata, lambda s: -1 if s.first == 1 else int(math.log10(s.first)))]
        for strata in reversed(decades):
            chosen = np.isin(self.steps, np.concatenate([s.evaluated for s in strata]))
            per_image = self.terms[:, chosen] @ self.weights[chosen]
            decoder = strata[0].first == 1
            steps = "1" if decoder else f"{strata[0].first}..{strata[-1].last}"
            error = math.hypot(_error_of_mean(per_image), self._error_of_steps(strata))
            name = "L_0  decoder" if decoder else "L_t  reverse steps"
            rows.append(Row(name, steps, int(chosen.sum()), float(per_image.mean()), error))
        return rows

    def total(self) -> Row:
        return Row("total", "", self.terms.shape[1], float(self.totals.mean()), math.hypot(*self.errors()))

    def table(self) -> str:
        lines = [f"{'term':<20}{'steps':<12}{'evaluated':>9}{'bits/dim':>12}{'+- s.e.':>11}"]
        for row in [*self.rows(), self.total()]:
            evaluated = row.evaluated or "exact"
            lines.append(f"{row.term:<20}{row.steps:<12}{evaluated:>9}{row.bits:>12.6f}{row.error:>11.6f}")
        return "\n".join(lines)

    def csv(self) -> str:
        """One line for each evaluated term: the total is the sum of weight times bits_per_dim."""
        lines = ["term,t,weight,bits_per_dim,standard_error"]
        T = self.strata[-1].last
        lines.append(f"L_T,{T},1,{self.L_T.mean():.9g},{_error_of_mean(self.L_T):.9g}")
        for t, weight, terms in zip(self.steps, self.weights, self.terms.T, strict=True):
            name = "L_0" if t == 1 else "L_t"
            lines.append(f"{name},{t},{weight:.9g},{terms.mean():.9g},{_error_of_mean(terms):.9g}")
        return "\n".join(lines) + "\n"

    def plot(self, title: str) -> bytes | None:
        """The terms over t as a PNG file's bytes; None, after one line on stderr, without matplotlib."""
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError:
            say("no plot of L_t drawn: it needs matplotlib, pip install 'tinydiff[plot]'")
            return None
        means, errors = self.terms.mean(0), [_error_of_mean(terms) for terms in self.terms.T]
        figure = Figure(figsize=(8, 4.5), dpi=100, layout="constrained")
        axes = figure.add_subplot()
        axes.errorbar(self.steps, means, errors, fmt=".-", linewidth=0.8, markersize=4, capsize=2, color="tab:blue")
        axes.plot(self.steps[:1], means[:1], "o", color="tab:red", label="t = 1: decoder, L_0")
        axes.axhline(self.L_T.mean(), color="tab:gray", linestyle="--", linewidth=1, label="prior, L_T")
        axes.set(xlabel="t", ylabel="bits per dimension", title=title, xscale="log")
        if means.min() > 0:
            axes.set_yscale("log")
        axes.grid(alpha=0.3, which="both")
        axes.legend()
        buffer = io.BytesIO()
        FigureCanvasAgg(figure).print_png(buffer)
        return buffer.getvalue()


def measure_bits(
    unet: Any,
    diffusion: Diffusion,
    images: np.ndarray,
    labels: np.ndarray | None = None,
    terms: int | None = 50,
    seed: int = 0,
    progress: bool = False,
) -> BitsPerDim:
    """The bound for images uint8 (N, H, W, C), with labels (N,) for a labelled model.

    terms: about how many of the steps to evaluate, at least 3 (see `choose_steps`); None: all. Images are taken in
    batches; batch k draws its noise from step k = 1, 2, ... of the evaluation stream of `seed`, as `Diffusion.vlb` does.
    Several ranks share the batches out, and all get the result.
    """
    generator = Generator(seed).at(EVALUATION)
    strata = choose_steps(diffusion.schedule.T, terms, generator)
    steps = np.concatenate([s.evaluated for s in strata])
    batches = even_parts(len(images), images_at_once(images.shape[1]))
    compile_sampling(unet, sorted({b.stop - b.start for b in batches}), labels)

    def terms_of(batch: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = batches[batch]
        x0 = module_for(model_device(unet)).asarray(to_float(images[chosen]))
        some = None if labels is None else labels[chosen]
        bound = diffusion.vlb(unet, x0, generator.at(EVALUATION, batch + 1), some, steps, progress=progress)
        return bound.L_T, bound.L_t[:, steps - 1]

    parts = share_out(world(), range(len(batches)), terms_of)
    L_T, L_t = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return BitsPerDim(L_T, L_t, strata)


def choose_steps(T: int, terms: int | None, generator: Generator) -> list[Stratum]:
    """At most `terms` of the steps 1..T (all for None or terms >= T), stratified: two at random from each stratum.

    Step 1, the decoder, is a stratum by itself. The borders of the others are in geometric progression, because the
    terms fall by powers of ten from t = 2 on. Strata of one or two steps are evaluated in full. Two random steps give
    an estimate without bias and its standard error. ValueError for fewer than 3 terms.
    """
    if terms is None or terms >= T:
        return [Stratum(t, t, np.array([t])) for t in range(1, T + 1)]
    if terms < 3:
        raise ValueError(f"an estimate needs at least 3 terms, not {terms}")
    for count in range(terms, 0, -1):
        borders = np.unique(np.rint(np.geomspace(2, T + 1, count + 1)).astype(np.int64))
        if np.minimum(np.diff(borders), 2).sum() < terms:
            break
    strata = [Stratum(1, 1, np.array([1]))]
    for first, after in pairwise(borders.tolist()):
        two = np.sort(generator.permutation(after - first)[:2])
        strata.append(Stratum(first, after - 1, first + two))
    return strata


def images_at_once(size: int) -> int:
    """How many images of size x size to give to a network at a time, at most: more take memory and no less time, and are no
    pieces to share out."""
    return max(1, min(_IMAGES_AT_ONCE, _PIXELS_AT_ONCE // size**2))


def _error_of_mean(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
