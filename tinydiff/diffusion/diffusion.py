"""A diffusion: the process, with what trains a model of it and what tells how good the model is."""

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
    """What a model predicts and which reverse process p_theta(x_{t-1} | x_t) that makes; how to train and to judge it.

    schedule: the noise schedule.
    predict: "eps", the noise; "x0", the image; or "v" = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0.
    variance: of the reverse step: "beta", beta_t; "posterior", that of q(x_{t-1} | x_t, x_0); or "learned".
    clip_x0: limit the predicted x0 to [-1, 1] in sampling and in the bound.
    min_snr: gamma of min-SNR weighting of the training loss, such as 5; None for no weighting.

    More on these, and the errors raised, in `Process`, which holds the mathematics.
    """

    def loss(
        self, model: Any, x0: Any, generator: Generator | None, labels: Any = None, t: Any = None, eps: Any = None
    ) -> Tensor:
        """The training loss, a scalar: the prediction's mean squared error at random t; see `loss.training_loss`."""
        return training_loss(self, model, x0, generator, labels, t, eps)

    def draw(self, x0: Any, generator: Generator) -> tuple[np.ndarray, Any]:
        """The t (N,) and eps of training step `generator.step` that `loss` would take for x0; see `loss.draw`."""
        return draw(self, x0, generator)

    def vlb(
        self, model: Any, x0: Any, generator: Generator, labels: Any = None, t: Any = None, progress: bool = False
    ) -> Bound:
        """The variational bound in bits per dimension, with all its terms; see `bound.vlb`."""
        return vlb(self, model, x0, generator, labels, t, progress)
