"""The diffusion process: forward, its posterior, and the reverse step that a model's output stands for.

Everything is affine in images, with weights that depend on t alone. The weights are computed in float64 and cast only
where they meet an image. x_0 is `x0`, x_t is `xt`, noise is `eps`: images (N, H, W, C), or any shape with N first. t is
an integer in 1..T, or (N,). Given arrays the methods return arrays, given tensors they return tensors that the tape
follows.

Public methods check their arguments, once: TypeError for images that are not floating point and for t that is not an
integer, ValueError for shapes that do not fit and for t out of range. What sampling, loss and bound call in every step
(`levels`, `x0_from`, `eps_from`, `reverse_from`, `log_variance`, weights) checks nothing.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import is_array
from tinydiff.diffusion.arguments import as_images, as_steps
from tinydiff.diffusion.noise import per_image, q_sample, target_of
from tinydiff.diffusion.schedule import Schedule
from tinydiff.errors import InputError

PREDICTIONS = ("eps", "x0", "v")
VARIANCES = ("beta", "posterior", "learned")


class Reverse(NamedTuple):
    """p_theta(x_{t-1} | x_t) = N(mean, exp(log_variance) I), and the predicted x0, clipped or not, behind the mean."""

    mean: Any
    log_variance: Any
    x0: Any


@dataclass(frozen=True)
class Process:
    """The mathematics of a `Diffusion`: what a model predicts, and which p_theta(x_{t-1} | x_t) that makes.

    schedule: the noise schedule.
    predict: "eps", the noise (Ho et al., 2020); "x0", the image; or "v" = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0
        (Salimans & Ho, 2022).
    variance: of the reverse step: "beta", beta_t; "posterior", the variance of q(x_{t-1} | x_t, x_0); "learned",
        between the two, by a second half of the model's channels (Nichol & Dhariwal, 2021).
    clip_x0: limit the predicted x0 to [-1, 1] in sampling and in the bound.
    min_snr: gamma of min-SNR weighting of the training loss (Hang et al., 2023), such as 5; None for no weighting.

    InputError for other values, and for predict="eps" with alpha_bar_T = 0, where x_T says nothing about x0.
    """

    schedule: Schedule
    predict: str = "eps"
    variance: str = "beta"
    clip_x0: bool = True
    min_snr: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, Schedule):
            raise TypeError(f"schedule must be a Schedule, not {type(self.schedule).__name__}")
        for name, value, known in (("predict", self.predict, PREDICTIONS), ("variance", self.variance, VARIANCES)):
            if value not in known:
                raise InputError(f"{name} must be one of {', '.join(known)}, not {value!r}")
        if self.predict == "eps" and self.schedule.alpha_bar[-1] == 0:
            raise InputError(
                'a schedule with alpha_bar_T = 0 needs predict="v" or "x0": x_T is all noise, so its noise says nothing'
            )
        if self.min_snr is not None and not self.min_snr > 0:
            raise InputError(f"min_snr must be greater than 0, or None, not {self.min_snr}")

    def q_sample(self, x0: Any, t: Any, eps: Any) -> Any:
        """x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps (source A, 5.2.18; Ho et al., 2020, eq. 4).

        x0: images (N, H, W, C). t: in 0..T, or (N,). eps: noise of their shape.
        """
        x0, eps = as_images(x0=x0, eps=eps)
        return q_sample(x0, *self.levels(as_steps(t, len(x0), self.schedule.T, first=0)), eps)[0]

    def levels(self, t: Any) -> tuple[Any, Any]:
        """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), the float64 weights of x0 and of eps in x_t, in t's shape."""
        return np.sqrt(self.schedule.alpha_bar[t]), np.sqrt(self.schedule.one_minus_alpha_bar[t])

    def q_step(self, x_before: Any, t: Any, eps: Any) -> Any:
        """One step of the forward chain: x_t = sqrt(alpha_t) x_{t-1} + sqrt(beta_t) eps (source A, 5.2.3).

        x_before: the images x_{t-1}, (N, H, W, C). t: in 1..T, or (N,). eps: noise of their shape.
        """
        x_before, eps = as_images(x_before=x_before, eps=eps)
        t, s = as_steps(t, len(x_before), self.schedule.T), self.schedule
        return per_image(np.sqrt(s.alpha[t]), x_before) * x_before + per_image(np.sqrt(s.beta[t]), x_before) * eps

    def q_posterior(self, x0: Any, xt: Any, t: Any) -> tuple[Any, Any]:
        """Mean and variance of q(x_{t-1} | x_t, x_0) (Ho et al., 2020, eq. 6-7; source E, 1.1(d)):

            mean     = (sqrt(alpha_bar_{t-1}) beta_t x0 + sqrt(alpha_t) (1 - alpha_bar_{t-1}) xt) / (1 - alpha_bar_t)
            variance = (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) beta_t

        x0, xt: images (N, H, W, C). t: in 1..T, or (N,). The variance is a number, or (N, 1, ...) where t is (N,). At t
        = 1 the mean is x0 and the variance 0.
        """
        x0, xt = as_images(x0=x0, xt=xt)
        t = as_steps(t, len(xt), self.schedule.T)
        return self._posterior_mean(x0, xt, t), per_image(self.schedule.posterior_variance[t], xt)

    def _posterior_mean(self, x0: Any, xt: Any, t: Any) -> Any:
        on_x0, on_xt = self.posterior_weights(t)
        return per_image(on_x0, xt) * x0 + per_image(on_xt, xt) * xt

    def q_posterior_from_eps(self, eps: Any, xt: Any, t: Any) -> tuple[Any, Any]:
        """`q_posterior` with x0 expressed by the noise eps, for the same xt and t (Ho et al., 2020, eq. 10-11; source
        B, 3.1.2):

            mean = (xt - beta_t / sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_t)
        """
        eps, xt = as_images(eps=eps, xt=xt)
        t, s = as_steps(t, len(xt), self.schedule.T), self.schedule
        on_eps = s.beta[t] / np.sqrt(s.one_minus_alpha_bar[t] * s.alpha[t])
        mean = per_image(1 / np.sqrt(s.alpha[t]), xt) * xt - per_image(on_eps, xt) * eps
        return mean, per_image(s.posterior_variance[t], xt)

    def posterior_weights(self, t: Any) -> tuple[np.ndarray, np.ndarray]:
        """The float64 weights of x0 and of xt in the mean of q(x_{t-1} | x_t, x_0), in t's shape."""
        s = self.schedule
        on_x0 = np.sqrt(s.alpha_bar[t - 1]) * s.beta[t] / s.one_minus_alpha_bar[t]
        return on_x0, np.sqrt(s.alpha[t]) * s.one_minus_alpha_bar[t - 1] / s.one_minus_alpha_bar[t]

    def target(self, x0: Any, eps: Any, t: Any) -> Any:
        """What the model is trained to return for x_t = q_sample(x0, t, eps): eps, x0 or v, in their shape."""
        x0, eps = as_images(x0=x0, eps=eps)
        return target_of(self.predict, x0, eps, *self.levels(as_steps(t, len(x0), self.schedule.T)))

    def predict_x0(self, output: Any, xt: Any, t: Any) -> Any:
        """The x0 that a model's output for xt at t stands for, (N, H, W, C). Nothing is clipped.

        output: (N, H, W, C), or (N, H, W, 2C) with learned variance, of which the first C channels count.
        From eps: (xt - sqrt(1 - alpha_bar) eps) / sqrt(alpha_bar). From v: sqrt(alpha_bar) xt - sqrt(1 - alpha_bar) v.
        """
        prediction, _, xt, t = self._read(output, xt, t)
        return self.x0_from(prediction, xt, t)

    def x0_from(self, prediction: Any, xt: Any, t: Any) -> Any:
        """`predict_x0` from a prediction without variance channels, and xt and t; nothing is checked."""
        signal, noise = self.levels(t)
        return self.x0_at(prediction, xt, signal, noise, 1 / signal if self.predict == "eps" else None)

    def x0_at(self, prediction: Any, xt: Any, signal: Any, noise: Any, inverse_signal: Any) -> Any:
        """`x0_from` of a prediction and xt, given the levels of t, signal and noise, each a number or (N,). inverse_signal:
        1 / signal, which is used where eps is predicted, else None."""
        if self.predict == "x0":
            return prediction
        if self.predict == "eps":
            return (xt - per_image(noise, xt) * prediction) * per_image(inverse_signal, xt)
        return per_image(signal, xt) * xt - per_image(noise, xt) * prediction

    def x0_weights(self, t: int) -> tuple[float, float]:
        """The weights of xt and of the prediction in `predict_x0` at t, an integer."""
        signal, noise = self.levels(t)
        if self.predict == "x0":
            return 0.0, 1.0
        return (1 / signal, -noise / signal) if self.predict == "eps" else (signal, -noise)

    def predict_eps(self, output: Any, xt: Any, t: Any) -> Any:
        """The noise that a model's output for xt at t stands for, (N, H, W, C). Nothing is clipped.

        output: as for `predict_x0`.
        From x0: (xt - sqrt(alpha_bar) x0) / sqrt(1 - alpha_bar). From v: sqrt(alpha_bar) v + sqrt(1 - alpha_bar) xt.
        """
        prediction, _, xt, t = self._read(output, xt, t)
        return self.eps_from(prediction, xt, t)

    def eps_from(self, prediction: Any, xt: Any, t: Any) -> Any:
        """`predict_eps` from a prediction without variance channels, and xt and t; nothing is checked."""
        signal, noise = self.levels(t)
        if self.predict == "eps":
            return prediction
        if self.predict == "x0":
            return (xt - per_image(signal, xt) * prediction) * per_image(1 / noise, xt)
        return per_image(signal, xt) * prediction + per_image(noise, xt) * xt

    def _read(self, output: Any, xt: Any, t: Any) -> tuple[Any, Any, Any, np.ndarray]:
        """A model's output as prediction and variance channels, with its arguments; all of them checked."""
        (xt,) = as_images(xt=xt)
        t = as_steps(t, len(xt), self.schedule.T)
        return *self.split(output, xt), xt, t

    def split(self, output: Any, xt: Any) -> tuple[Any, Any]:
        """A model's output as prediction and variance channels (None unless the variance is learned).

        ValueError unless the output has the shape of the images xt, or twice the channels where the variance is
        learned.
        """
        output = output if isinstance(output, Tensor) or is_array(output) else np.asarray(output)
        channels = xt.shape[-1]
        learned = self.variance == "learned"
        expected = (*xt.shape[:-1], channels * (2 if learned else 1))
        if output.shape != expected:
            raise ValueError(
                f"for images of shape {xt.shape} and variance={self.variance!r} "
                f"the model must return {expected}, not {output.shape}"
            )
        return (output[..., :channels], output[..., channels:]) if learned else (output, None)

    def reverse(self, output: Any, xt: Any, t: Any, clip: bool | None = None) -> Reverse:
        """The reverse step p_theta(x_{t-1} | x_t): the posterior's mean at the predicted x0, the variance, and that x0.

        output: what the model returned for xt at t, as for `predict_x0`.
        clip: whether to limit the predicted x0 to [-1, 1]; None: as `clip_x0` says. Without it the mean is that of Ho
        et al., eq. 11.
        """
        return self.reverse_from(*self._read(output, xt, t), self.clip_x0 if clip is None else clip)

    def reverse_from(self, prediction: Any, v: Any, xt: Any, t: Any, clip: bool) -> Reverse:
        """`reverse` of a model's output that `split` has divided into prediction and variance channels v, with xt and
        t; nothing is checked. clip: whether to limit x0 to [-1, 1]."""
        x0 = self.x0_from(prediction, xt, t)
        x0 = x0.clip(-1, 1) if clip else x0
        return Reverse(self._posterior_mean(x0, xt, t), self.log_variance(v, xt, t), x0)

    def log_variance(self, v: Any, xt: Any, t: Any) -> Any:
        """log sigma_t^2 of the reverse step: a number, or (N, 1, ...) where t is (N,).

        A learned one has the shape of the images xt: f log beta_t + (1 - f) log posterior_variance_t with f = (v + 1) /
        2, where v are the variance channels (Nichol & Dhariwal, 2021, eq. 15). A fixed sigma_1^2, which only the
        decoder in the bound uses, is the posterior's variance at t = 2, as in the code of Ho et al.
        """
        lower, upper = (table[t] for table in self.log_variance_range())
        if self.variance == "learned":
            return per_image((upper - lower) / 2, xt) * (v + 1) + per_image(lower, xt)
        if self.variance == "posterior":
            return per_image(lower, xt)
        return per_image(np.where(t == 1, lower, upper), xt)

    def log_variance_range(self) -> tuple[np.ndarray, np.ndarray]:
        """log of the posterior's variance and of beta, float64 (T + 1,): the ends of the learned variance's range."""
        with np.errstate(divide="ignore"):  # index 0 is never used
            return self.schedule.log_posterior_variance, np.log(self.schedule.beta)

    def eps_error_weight(self, t: Any) -> tuple[np.ndarray, np.ndarray]:
        """(w, c), float64, such that the bound's L_{t-1} = w (eps - predicted eps)^2 + c nats in each dimension. t:
        integers in 2..T.

        w = beta_t^2 / (2 sigma_t^2 alpha_t (1 - alpha_bar_t)) (Ho et al., 2020, eq. 12; source B). c is the KL of the
        variances, 0 only where sigma_t^2 is the posterior's. ValueError where the variance is learned.
        """
        if self.variance == "learned":
            raise ValueError(
                "the weight of the noise's error is fixed only where the variance is: not with variance='learned'"
            )
        t, s = np.asarray(t), self.schedule
        sigma_squared = s.beta[t] if self.variance == "beta" else s.posterior_variance[t]
        r = np.log(s.posterior_variance[t]) - np.log(sigma_squared)
        return s.beta[t] ** 2 / (2 * sigma_squared * s.alpha[t] * s.one_minus_alpha_bar[t]), (np.expm1(r) - r) / 2
