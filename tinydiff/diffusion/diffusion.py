"""A diffusion: the process, with what trains a model of it and what measures how good the model is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tinydiff.autograd.tensor import Tensor
from tinydiff.diffusion.bound import Bound, vlb
from tinydiff.diffusion.loss import draw, training_loss
from tinydiff.diffusion.process import Process
from tinydiff.random import Generator


@dataclass(frozen=True)
class Diffusion(Process):
    """What a model predicts, the reverse process p_theta(x_{t-1} | x_t) that follows, and how to train and judge the
    model.

    schedule: the noise schedule.
    predict: "eps", the noise (Ho et al., 2020); "x0", the image; or "v" = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0
        (Salimans & Ho, 2022).
    variance: of the reverse step: "beta", beta_t; "posterior", that of q(x_{t-1} | x_t, x_0); or "learned", between the
        two (Nichol & Dhariwal, 2021).
    clip_x0: limit the predicted x0 to [-1, 1] in sampling and in the bound.
    min_snr: gamma of min-SNR weighting of the training loss (Hang et al., 2023), such as 5; None for no weighting.

    The mathematics and the errors are those of `Process`.
    """

    def loss(
        self, model: Any, x0: Any, generator: Generator | None, labels: Any = None, t: Any = None, eps: Any = None
    ) -> Tensor:
        """The training loss, a scalar tensor: the mean over all elements of (target - prediction)^2 at random t (Ho et
        al., 2020, eq. 14).

        model: model(x, t, labels=None). x0: images (N, H, W, C), floating point in [-1, 1], on the model's device.
        generator: its seed and step choose t and eps, see `draw`. It may be None where both are given.
        labels: None, an int or (N,). t: None, or integers in 1..T, a number or (N,). eps: None, or noise of x0's shape.

        With `min_snr` each image's error is weighted. With learned variance (T / 1000) L_t in bits is added (Nichol &
        Dhariwal, 2021, section 3.1). ValueError or TypeError for images, t or a model's output of the wrong shape or
        dtype.
        """
        return training_loss(self, model, x0, generator, labels, t, eps)

    def draw(self, x0: Any, generator: Generator) -> tuple[np.ndarray, Any]:
        """The t (N,) and the eps, like x0, that `loss` takes for the images x0 at training step `generator.step`.

        They come from streams of the generator's seed at that step, so they are the same each time.
        """
        return draw(self, x0, generator)

    def vlb(
        self, model: Any, x0: Any, generator: Generator, labels: Any = None, t: Any = None, progress: bool = False
    ) -> Bound:
        """The variational bound on -log p(x0), in bits per dimension, with all its terms: a `Bound` (Ho et al., 2020,
        eq. 5).

        model: model(x, t, labels=None); a network is in eval mode meanwhile. x0: images (N, H, W, C), byte values k /
        127.5 - 1 in floating point, on the model's device. generator: step t takes the t-th of T draws of x0's shape
        from it. labels: None, an int or (N,). t: the steps to evaluate, integers in 1..T, one model call each; None:
        all. progress: whether to show a bar on stderr.

        With some t only, `total` is an estimate, see `bound.vlb`. InputError for steps outside 1..T and labels that do
        not fit.
        """
        return vlb(self, model, x0, generator, labels, t, progress)
