"""One step of a sampler: by tinydiff with given noise, and by the formulas of the papers."""

import numpy as np

from tinydiff.diffusion.noise import reverse_step

SAMPLERS = [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 0.5), ("ddim", 1.0), ("dpm++", 0.0)]


def take(solver, output, xt, i, z=None, x0_before=None):
    """x_{i-1} and the predicted x0."""
    diffusion, move = solver.diffusion, solver.move(i)
    before = x0_before if move.extrapolation else None
    return reverse_step(output, xt, (*diffusion.x0_weights(i), *move), z, diffusion.clip_x0, before)


def by_the_papers(diffusion, sampler, eta, output, xt, i, z, x0_before=None):
    """The same from the papers' numbers; for eta = 1 their 1 - alpha_bar_{t-1} - sigma^2 is written without cancellation."""
    s, channels = diffusion.schedule, xt.shape[-1]
    (a, b), (a_next, b_next) = ((np.sqrt(s.alpha_bar[j]), np.sqrt(s.one_minus_alpha_bar[j])) for j in (i, i - 1))
    prediction, v = output[..., :channels], output[..., channels:]
    x0 = {"eps": (xt - b * prediction) / a, "x0": prediction, "v": a * xt - b * prediction}[diffusion.predict]
    x0 = np.clip(x0, -1, 1) if diffusion.clip_x0 else x0
    eps, posterior = (xt - a * x0) / b, s.beta[i] * (b_next / b) ** 2
    if sampler == "ddpm":  # Ho et al., eq. 7; Nichol & Dhariwal, eq. 15
        mean = a_next * s.beta[i] / b**2 * x0 + np.sqrt(s.alpha[i]) * (b_next / b) ** 2 * xt
        if i == 1:
            return mean, x0
        f = (v + 1) / 2
        variance = {"beta": s.beta[i], "posterior": posterior, "learned": s.beta[i] ** f * posterior ** (1 - f)}
        return mean + np.sqrt(variance[diffusion.variance]) * z, x0
    if sampler == "ddim":  # Song et al., eq. 12 and 16
        direction = b_next * np.sqrt(max(1 - eta**2 * s.beta[i] / s.one_minus_alpha_bar[i], 0))
        return a_next * x0 + direction * eps + eta * np.sqrt(posterior) * z, x0
    if i == 1:
        return x0, x0
    h = s.log_snr[i - 1] / 2 - s.log_snr[i] / 2  # Lu et al., algorithm 2
    if i < s.T:
        r = (s.log_snr[i] / 2 - s.log_snr[i + 1] / 2) / h
        D = (1 + 1 / (2 * r)) * x0 - x0_before / (2 * r)
    else:
        D = x0
    return b_next / b * xt - a_next * np.expm1(-h) * D, x0
