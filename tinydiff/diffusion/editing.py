"""What a trained model can do with given images: encode them as noise, blend two of them, fill in a part.

To vary an image (SDEdit; Meng et al., 2022) no function is needed: noise it to a level t and sample from there,

    half = replace(diffusion, schedule=diffusion.schedule.truncated(t))
    sample(model, half, x0.shape, generator, x_T=half.q_sample(x0, t, eps))
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import array_module, device_of
from tinydiff.diffusion.arguments import as_images
from tinydiff.diffusion.model import Predictor
from tinydiff.diffusion.noise import next_noise, q_sample
from tinydiff.diffusion.process import Process
from tinydiff.diffusion.sampler import DDPM, sample, step_back
from tinydiff.errors import InputError
from tinydiff.random import Generator


def ddim_invert(
    model: Any,
    diffusion: Process,
    x0: Any,
    steps: int | Sequence[int] | None = None,
    labels: Any = None,
    guidance: float | None = None,
    refinements: int = 0,
) -> Any:
    """The noise x_T from which DDIM with eta = 0 makes the images x0 (N, H, W, C) again (Song et al., 2021, 4.3).

        x_i = sqrt(alpha_i) (x_{i-1} - sqrt(1 - alpha_bar_{i-1}) eps) + sqrt(1 - alpha_bar_i) eps

    model, diffusion, steps, labels, guidance: as for `sample`, which must be given the same.
    refinements: on its way down DDIM predicts eps at x_i, but here only x_{i-1} is known. With eps predicted there, the
        error falls like the length of the steps. Each refinement predicts eps again at the x_i just found; a few make
        the inverse exact. A step costs 1 + refinements model calls.

    Nothing is clipped: clipping loses what it cuts off. InputError as for `sample`.
    """
    (x,) = as_images(x0=x0)
    x = x.data if isinstance(x, Tensor) else x
    schedule = diffusion.schedule if steps is None else diffusion.schedule.respaced(steps)
    diffusion = replace(diffusion, schedule=schedule)
    predict = Predictor(model, len(x), labels, guidance)
    for i in range(1, schedule.T + 1):
        shrink = float(np.sqrt(schedule.alpha[i]))
        noise_now, noise_before = (float(np.sqrt(schedule.one_minus_alpha_bar[j])) for j in (i, i - 1))
        known, at = x, max(i - 1, 1)  # no model was trained at t = 0
        for _ in range(1 + refinements):
            prediction, _ = diffusion.split(predict(x, schedule.timesteps[at]), x)
            eps = diffusion.eps_from(prediction, x, at)
            x, at = shrink * (known - noise_before * eps) + noise_now * eps, i
    return x


def interpolate(
    model: Any,
    diffusion: Process,
    a: Any,
    b: Any,
    t: int,
    shares: Sequence[float],
    generator: Generator,
    **options: Any,
) -> Any:
    """Images (K, H, W, C) between a and b, both (H, W, C), blended at noise level t (Ho et al., 2020, figure 8).

    model, diffusion, generator: as for `sample`.
    t: in 1..T; the larger it is, the more the model invents.
    shares: of b, one for each of the K images, in 0..1; 0 gives a, 1 gives b.
    options: further arguments of `sample`, such as sampler and steps, which counts the steps from t down.

    Each image is noised once, for all shares. The noises are blended to unit variance: a plain mean of two independent
    ones has half of it, which the model would take for a smoother image. InputError for t and shares out of range.
    """
    a, b = as_images(a=a, b=b)
    xp = array_module(a)
    share = _shares(shares)
    part = replace(diffusion, schedule=diffusion.schedule.truncated(t))
    noise_a, noise_b = (generator.normal(a.shape, a.dtype, device_of(a)) for _ in "ab")
    w = xp.asarray(share.astype(a.dtype)).reshape(-1, *[1] * a.ndim)
    image = (1 - w) * a + w * b
    noise = ((1 - w) * noise_a + w * noise_b) / xp.sqrt((1 - w) ** 2 + w**2)
    x_t, _ = q_sample(image, *part.levels(part.schedule.T), noise)
    return sample(model, part, image.shape, generator, x_T=x_t, **options)


def slerp(a: Any, b: Any, shares: Sequence[float]) -> Any:
    """Noises (K, ...) on the way from a to b, both (...), along an arc (Shoemake, 1985; Song et al., 2021, D.2):

        (sin((1 - s) w) a + sin(s w) b) / sin w        with w the angle between a and b

    shares: s of each of the K, in 0..1; 0 gives a, 1 gives b. On a straight way noise would lose up to half of its variance.
    InputError for shares out of range.
    """
    a, b = as_images(a=a, b=b)
    xp, share = array_module(a), _shares(shares)
    cosine = float((a * b).sum(dtype="float64") / max(float((a * a).sum() * (b * b).sum()) ** 0.5, 1e-30))
    angle = float(np.arccos(min(1.0, max(-1.0, cosine))))
    if np.sin(angle) < 1e-6:  # the same direction: the arc is straight
        of_a, of_b = 1 - share, share
    else:
        of_a, of_b = np.sin((1 - share) * angle) / np.sin(angle), np.sin(share * angle) / np.sin(angle)
    of_a, of_b = (xp.asarray(w.astype(a.dtype)).reshape(-1, *[1] * a.ndim) for w in (of_a, of_b))
    return of_a * a + of_b * b


def _shares(shares: Sequence[float]) -> np.ndarray:
    share = np.asarray(shares, np.float64)
    if share.ndim != 1 or not share.size or not np.all((share >= 0) & (share <= 1)):
        raise InputError(f"shares must be numbers in 0..1, at least one, not {share.tolist()}")
    return share


def inpaint(
    model: Any,
    diffusion: Process,
    x0: Any,
    known: Any,
    generator: Generator,
    steps: int | Sequence[int] | None = None,
    jump: int = 10,
    rounds: int = 10,
    labels: Any = None,
    guidance: float | None = None,
    progress: bool = True,
) -> Any:
    """The images x0 (N, H, W, C), where the model draws everything that is not `known` to fit (RePaint; Lugmayr et al.,
    2022).

    known: boolean, broadcasting to x0's shape. True keeps the pixel exactly; the other pixels of x0 do not matter.
    model, diffusion, generator, steps, labels, guidance, progress: as for `sample`; the sampler is ancestral sampling.
    jump, rounds: each stretch of `jump` steps is walked down `rounds` times, and up in between by the forward process,
        so that the drawn part comes to agree with the known one. 1 round is plain replacement, which often does not.
        Shorter jumps agree better, longer ones vary more. The model is called about steps * rounds times.

    InputError for jump or rounds below 1, a mask that is not boolean or does not fit, and as for `sample`.
    """
    (x0,) = as_images(x0=x0)
    x0 = x0.data if isinstance(x0, Tensor) else x0
    xp = array_module(x0)
    known = xp.asarray(known.data if isinstance(known, Tensor) else known)
    sizes = zip(known.shape[::-1], x0.shape[::-1], strict=False)
    if known.dtype != bool or known.ndim > x0.ndim or any(k not in (1, n) for k, n in sizes):
        raise InputError(f"known must be boolean and broadcast to {x0.shape}, not {known.dtype} of shape {known.shape}")
    if min(jump, rounds) < 1:
        raise InputError(f"jump and rounds must be at least 1, not {jump} and {rounds}")
    schedule = diffusion.schedule if steps is None else diffusion.schedule.respaced(steps)
    diffusion = replace(diffusion, schedule=schedule)
    predict, solver = Predictor(model, len(x0), labels, guidance), DDPM(diffusion)
    x, i = generator.normal(x0.shape, x0.dtype, device_of(x0)), schedule.T
    path = repaint_path(schedule.T, jump, rounds)
    if progress and sys.stderr is not None:
        from tqdm import tqdm

        path = tqdm(path, desc="inpainting", unit="step", leave=False)
    for target in path:
        if target > i:
            shrink, grow = np.sqrt(schedule.alpha[target]), np.sqrt(schedule.beta[target])
            x, _ = q_sample(x, shrink, grow, next_noise(generator, x))  # one step of the forward chain
        else:
            x, _ = step_back(solver, predict(x, schedule.timesteps[i]), x, i, generator)
            kept = q_sample(x0, *diffusion.levels(target), next_noise(generator, x))[0] if target else x0
            x = xp.where(known, kept, x)
        i = target
    return x


def repaint_path(T: int, jump: int, rounds: int) -> list[int]:
    """The levels after T that inpainting visits, one at a time, to 0. From each of the levels 1, 1 + jump, ... that is
    at least `jump` below T, it goes up by `jump` and down again until it has come down that stretch `rounds` times."""
    left = dict.fromkeys(range(1, T - jump + 1, jump), rounds - 1)
    path, i = [], T
    while i > 0:
        i -= 1
        path.append(i)
        if left.get(i, 0) > 0:
            left[i] -= 1
            path.extend(range(i + 1, i + jump + 1))
            i += jump
    return path
