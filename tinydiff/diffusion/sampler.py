"""Sampling: from noise x_T back to images x_0, step by step.

Every sampler predicts x0 from x_t, clips it if the diffusion says so, and moves to x_{t-1} = a x0 + b x_t + sigma z
with fresh noise z. Samplers differ in a, b and sigma alone. So a sampler is a `move`, which gives these numbers for a
step, and `step_back` takes the step.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from tinydiff import replay
from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import array_module, device_of, is_array, is_float
from tinydiff.diffusion.model import Predictor, model_device
from tinydiff.diffusion.noise import next_noise, reverse_step
from tinydiff.diffusion.process import Process
from tinydiff.diffusion.schedule import Schedule
from tinydiff.errors import InputError
from tinydiff.random import Generator

SAMPLERS = ("ddpm", "ddim", "dpm++")
WORTH = 6  # steps from which on a CUDA graph is worth its capture


class Step(NamedTuple):
    """The state of sampling: images x = x_t, and the x0 predicted on the way there. t is the model's, 0 at the end."""

    t: int
    x: Any
    x0: Any


def sample(
    model: Any,
    diffusion: Process,
    shape: Sequence[int],
    generator: Generator,
    sampler: str = "ddpm",
    steps: int | Sequence[int] | None = None,
    eta: float = 0.0,
    labels: Any = None,
    guidance: float | None = None,
    progress: bool = True,
    *,
    x_T: Any = None,
    device: str | None = None,
) -> Any:
    """Images that the model makes from noise: a float32 array of the given shape, on the model's device.

    model: model(x, t, labels=None), a network or any other function; a network is in eval mode meanwhile.
    diffusion: what the model was trained for.
    shape: (N, H, W, C).
    generator: gives x_T, then the noise of each step that takes some. The images are a function of its state.
    sampler: "ddpm", ancestral sampling (Ho et al., 2020, algorithm 2); "ddim" (Song et al., 2021); "dpm++",
        DPM-Solver++ 2M (Lu et al., 2022).
    steps: how many steps, evenly spaced from T on, or the steps to visit, as for `Schedule.respaced`; None: all.
    eta: the share of noise in DDIM, from 0 (none) to 1 (as much as ancestral sampling with the posterior's variance).
    labels: None, a number or (N,).
    guidance: the scale of classifier-free guidance (Ho & Salimans, 2022); None or 1 for none.
    progress: whether to show a bar on stderr.
    x_T: start from these images instead of a draw; the result has their dtype.
    device: where to draw x_T; None: where the model is.

    The images are in [-1, 1] if `diffusion.clip_x0`, otherwise they may leave that range. InputError for a sampler,
    steps, eta, labels or guidance that are impossible, or not possible for this model.
    """
    chain = chain_of(
        model, diffusion, shape, generator, sampler, steps, eta, labels, guidance, x_T=x_T, device=device, watched=False
    )
    if progress and sys.stderr is not None:
        from tqdm import tqdm

        n = diffusion.schedule.T if steps is None else diffusion.schedule.respaced(steps).T
        chain = tqdm(chain, total=n, desc="sampling", unit="step", leave=False)
    for step in chain:
        x = step.x
    return x


def sample_steps(
    model: Any,
    diffusion: Process,
    shape: Sequence[int],
    generator: Generator,
    sampler: str = "ddpm",
    steps: int | Sequence[int] | None = None,
    eta: float = 0.0,
    labels: Any = None,
    guidance: float | None = None,
    *,
    x_T: Any = None,
    device: str | None = None,
) -> Iterator[Step]:
    """`sample`, one `Step` at a time, for animations and other uses of the images on the way.

        for step in sample_steps(model, diffusion, (16, 32, 32, 3), generator, "ddim", steps=50):
            frames.append(step.x0)      # the predicted image at step.t

    model, diffusion, shape, generator, sampler, steps, eta, labels, guidance, x_T, device: as for `sample`, and so are
    the errors. Arguments are checked at the call; the work is done when steps are asked for. Between steps the model is
    in the mode that it was in before.
    """
    return chain_of(model, diffusion, shape, generator, sampler, steps, eta, labels, guidance, x_T=x_T, device=device)


def chain_of(
    model: Any,
    diffusion: Process,
    shape: Sequence[int],
    generator: Generator,
    sampler: str,
    steps: int | Sequence[int] | None,
    eta: float,
    labels: Any,
    guidance: float | None,
    *,
    x_T: Any = None,
    device: str | None = None,
    watched: bool = True,
) -> Iterator[Step]:
    """`sample_steps`. watched: whether the images of each step are arrays of their own; else the next step may replace
    them."""
    schedule = diffusion.schedule if steps is None else diffusion.schedule.respaced(steps)
    diffusion = replace(diffusion, schedule=schedule)
    solver = make_solver(sampler, diffusion, eta)
    shape = _check_shape(shape)
    predict = Predictor(model, shape[0], labels, guidance)
    if x_T is None:
        x_T = generator.normal(shape, device=device or model_device(model))
    else:
        x_T = x_T.data if isinstance(x_T, Tensor) else x_T if is_array(x_T) else np.asarray(x_T, np.float32)
        if x_T.shape != shape or not is_float(x_T.dtype):
            raise InputError(f"x_T must be floating point of shape {shape}, not {x_T.dtype} of shape {x_T.shape}")
    return _steps(predict, solver, schedule, x_T, generator, watched)


def _steps(
    predict: Predictor, solver: "Solver", schedule: Schedule, x: Any, generator: Generator, watched: bool
) -> Iterator[Step]:
    x0, back = None, Back(predict, solver, schedule, generator, watched)
    for i in range(schedule.T, 0, -1):
        x, x0 = back(x, x0, i)
        yield Step(int(schedule.timesteps[i - 1]), x, x0)


class Back:
    """Steps back of one chain. On a GPU the first two of a kind compute as they are, the others replay a CUDA graph."""

    def __init__(
        self, predict: Predictor, solver: "Solver", schedule: Schedule, generator: Generator, watched: bool = True
    ) -> None:
        self._predict, self._solver, self._schedule, self._generator = predict, solver, schedule, generator
        self._watched = watched
        self._i = 0  # the step, which replays read
        self._places: tuple[Any, Any] | None = None  # of x and x0, which a graph changes in place
        self._graphs: dict[
            tuple[bool, bool], Any
        ] = {}  # by `pattern`; None: it has computed, but not inside a rehearsal
        self._plain = schedule.T < WORTH or type(generator) is not Generator or replay.current() is not None

    def __call__(self, x: Any, x0: Any, i: int) -> tuple[Any, Any]:
        """x_{i-1} and the x0 predicted on the way, from x_i and the x0 of the step before."""
        self._i, takes = i, pattern(self._solver.move(i))
        if self._plain or device_of(x) == "cpu" or not replay.tools().wanted() or takes not in self._graphs:
            self._graphs.setdefault(takes, None)
            output = self._predict(x, self._schedule.timesteps[i])
            return step_back(self._solver, output, x, i, self._generator, x0)
        if self._places is None:
            self._places = x.copy(), x.copy()
        for place, given in zip(self._places, (x, x0), strict=True):
            if given is not None and given is not place:
                place[...] = given
        self._go(takes)
        return (self._places[0].copy(), self._places[1].copy()) if self._watched else self._places

    def _go(self, takes: tuple[bool, bool]) -> None:
        """The step from what lies in the places, by a replay if it can be."""
        tools = replay.tools()
        if self._graphs[takes] is None:
            with tools.rehearsal([self._generator]):
                self._compute(takes)
            self._graphs[takes] = ()
            return
        if self._graphs[takes] == ():
            try:
                self._graphs[takes] = tools.Captured(lambda: self._compute(takes), [self._generator])
            except (tools.NotCapturable, replay.NotRepeatable, MemoryError) as error:
                replay.give_up("sampling", error)
                self._plain = True
        if self._plain:  # out here, where the error no longer holds the capture's memory
            self._compute(takes)
        else:
            self._graphs[takes].replay()

    def _compute(self, takes: tuple[bool, bool]) -> None:
        """The step in place. Its numbers are those of `self._i`, in each replay."""
        assert self._places is not None
        x, x0 = self._places
        xp = array_module(x)
        t = replay.fed(xp, lambda: self._schedule.timesteps[self._i : self._i + 1].astype(np.int64))
        weights = replay.fed(xp, lambda: np.array(weights_of(self._solver, self._i), np.float32))
        output = self._predict(x, xp.broadcast_to(t, (len(x),)))
        x[...], x0[...] = take_step(self._solver.diffusion, output, x, weights, takes, self._generator, x0)


def step_back(
    solver: "Solver", output: Any, xt: Any, i: int, generator: Generator, x0_before: Any = None
) -> tuple[Any, Any]:
    """x_{i-1} and the predicted x0, from the model's output for xt = x_i. x0_before: the x0 predicted one step before.

    The generator gives noise where the step takes some; none enters x_0. ValueError for an output of the wrong shape.
    """
    move = solver.move(i)
    return take_step(solver.diffusion, output, xt, weights_of(solver, i), pattern(move), generator, x0_before)


def pattern(move: "Move") -> tuple[bool, bool]:
    """Whether a move takes noise, and the x0 of the step before."""
    return bool(move.sigma), bool(move.extrapolation)


def weights_of(solver: "Solver", i: int) -> tuple[float, ...]:
    """The coefficients of `noise.reverse_step` for the step from x_i."""
    return *solver.diffusion.x0_weights(i), *solver.move(i)


def take_step(
    diffusion: Process,
    output: Any,
    xt: Any,
    weights: Any,
    takes: tuple[bool, bool],
    generator: Generator,
    x0_before: Any = None,
) -> tuple[Any, Any]:
    """`step_back` by given weights, numbers or an array (8,). takes: see `pattern`."""
    diffusion.split(output, xt)  # for its check of the shape
    noise = next_noise(generator, xt) if takes[0] else generator.state
    return reverse_step(output, xt, weights, noise, diffusion.clip_x0, x0_before if takes[1] else None)


class Move(NamedTuple):
    """x_{i-1} = on_x0 D + on_xt x_i + sigma z with D = x0 + extrapolation (x0 - x0_before).

    Where the variance is learned, v from the model multiplies sigma by exp((low + slope (v + 1)) / 2).
    """

    on_x0: float
    on_xt: float
    sigma: float
    low: float = 0.0
    slope: float = 0.0
    extrapolation: float = 0.0


class Solver(Protocol):
    """One way down from x_i to x_{i-1}. Steps are counted in the (respaced) schedule; i falls from T to 1."""

    diffusion: Process

    def move(self, i: int) -> Move:
        """The step from x_i to x_{i-1}, in numbers."""


class DDPM:
    """Ancestral sampling: a draw from p_theta(x_{t-1} | x_t) (Ho et al., 2020, algorithm 2)."""

    def __init__(self, diffusion: Process) -> None:
        self.diffusion = diffusion

    def move(self, i: int) -> Move:
        on_x0, on_xt = (float(weight) for weight in self.diffusion.posterior_weights(i))
        lower, upper = (float(table[i]) for table in self.diffusion.log_variance_range())
        if i == 1:
            return Move(on_x0, on_xt, 0.0)
        if self.diffusion.variance == "learned":
            return Move(on_x0, on_xt, 1.0, lower, (upper - lower) / 2)
        return Move(on_x0, on_xt, float(np.exp((lower if self.diffusion.variance == "posterior" else upper) / 2)))


class DDIM:
    """Denoising diffusion implicit models (Song et al., 2021, eq. 12):

        x_{t-1} = sqrt(alpha_bar_{t-1}) x0 + sqrt(1 - alpha_bar_{t-1} - sigma^2) eps + sigma z

    with sigma = eta times the posterior's standard deviation (eq. 16). eps is what remains of x_t without x0,
    (x_t - sqrt(alpha_bar_t) x0) / sqrt(1 - alpha_bar_t). So where x0 was clipped, eps is not the predicted one.
    """

    def __init__(self, diffusion: Process, eta: float = 0.0) -> None:
        self.diffusion, self.eta = diffusion, eta

    def move(self, i: int) -> Move:
        return Move(*ddim_weights(self.diffusion.schedule, i, self.eta))


def ddim_weights(schedule: Schedule, i: int, eta: float = 0.0) -> tuple[float, float, float]:
    """DDIM's x_{i-1} = a x0 + b x_i + sigma z, with eps written out: (a, b, sigma)."""
    s = schedule
    sigma = eta * np.sqrt(s.posterior_variance[i])
    # 1 - alpha_bar_{i-1} - sigma^2 without the subtraction of nearly equal numbers
    on_eps = np.sqrt(s.one_minus_alpha_bar[i - 1] * max(1 - eta**2 * s.beta[i] / s.one_minus_alpha_bar[i], 0))
    on_xt = on_eps / np.sqrt(s.one_minus_alpha_bar[i])
    return float(np.sqrt(s.alpha_bar[i - 1]) - on_xt * np.sqrt(s.alpha_bar[i])), float(on_xt), float(sigma)


class DPMSolver:
    """DPM-Solver++(2M) (Lu et al., 2022, algorithm 2): DDIM's step with an extrapolated x0.

    D = x0 + h / (2 h_before) (x0 - x0_before), where h and h_before are the lengths of this step and of the one before
    in half the log-SNR. The first and the last step are DDIM's.
    """

    def __init__(self, diffusion: Process) -> None:
        self.diffusion = diffusion
        self.half_log_snr = diffusion.schedule.log_snr / 2

    def move(self, i: int) -> Move:
        extrapolation, level = 0.0, self.half_log_snr
        if 1 < i < self.diffusion.schedule.T:
            extrapolation = float((level[i - 1] - level[i]) / (2 * (level[i] - level[i + 1])))
        return Move(*ddim_weights(self.diffusion.schedule, i), extrapolation=extrapolation)


def make_solver(sampler: str, diffusion: Process, eta: float = 0.0) -> Solver:
    """The solver of that name. InputError for an unknown one, an eta outside 0..1, or one that is not for ddim."""
    if sampler not in SAMPLERS:
        raise InputError(f"sampler must be one of {', '.join(SAMPLERS)}, not {sampler!r}")
    if not isinstance(eta, int | float | np.number) or not 0 <= eta <= 1:
        raise InputError(f"eta must be between 0 and 1, not {eta}")
    if eta and sampler != "ddim":
        raise InputError(f"eta belongs to the ddim sampler; {sampler} has none")
    if sampler == "ddpm":
        return DDPM(diffusion)
    return DDIM(diffusion, eta) if sampler == "ddim" else DPMSolver(diffusion)


def _check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    if len(sizes) < 2 or any(isinstance(s, bool) or not isinstance(s, int | np.integer) or s < 1 for s in sizes):
        raise InputError(f"shape must be that of the images, such as (N, H, W, C), all positive, not {shape!r}")
    return tuple(int(s) for s in sizes)
