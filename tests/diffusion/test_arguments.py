"""Every argument is checked once, at the function that a user calls, however many steps follow."""

import sys
from collections import Counter

import numpy as np
import pytest

from tinydiff.diffusion import Diffusion, Schedule, arguments, ddim_invert, inpaint, interpolate, sample
from tinydiff.random import Generator

D = Diffusion(Schedule.linear(12, 0.01, 0.9))
LEARNED = Diffusion(D.schedule, "v", "learned", min_snr=5.0)
X = np.random.default_rng(0).uniform(-1, 1, (4, 3, 3, 1))
TIMES = np.array([1, 2, 7, 12])


def model(x, t, labels=None):
    return 0.5 * x


def with_variance(x, t, labels=None):
    return np.concatenate([0.5 * x, 0.1 * x], -1)


IMAGES, BOTH = {"as_images": 1}, {"as_images": 1, "as_steps": 1}
CALLS = {
    "a training step": (lambda: D.loss(model, X, Generator(0)), IMAGES),
    "a training step of the variance": (lambda: LEARNED.loss(with_variance, X, Generator(0)), IMAGES),
    "a loss at given t": (lambda: LEARNED.loss(with_variance, X, None, t=TIMES, eps=X), BOTH),
    "q_sample": (lambda: D.q_sample(X, TIMES, X), BOTH),
    "q_step": (lambda: D.q_step(X, TIMES, X), BOTH),
    "q_posterior": (lambda: D.q_posterior(X, X, TIMES), BOTH),
    "q_posterior_from_eps": (lambda: D.q_posterior_from_eps(X, X, TIMES), BOTH),
    "target": (lambda: LEARNED.target(X, X, TIMES), BOTH),
    "predict_x0": (lambda: D.predict_x0(X, X, TIMES), BOTH),
    "predict_eps": (lambda: D.predict_eps(X, X, TIMES), BOTH),
    "reverse": (lambda: LEARNED.reverse(with_variance(X, 0), X, TIMES), BOTH),
    "vlb": (lambda: LEARNED.vlb(with_variance, X, Generator(0)), IMAGES),
    "sample": (lambda: sample(model, D, X.shape, Generator(0), progress=False), {}),
    "ddim_invert": (lambda: ddim_invert(model, D, X, 5), IMAGES),
    "interpolate": (lambda: interpolate(model, D, X[0], X[1], 9, [0, 0.5], Generator(0), progress=False), IMAGES),
    "inpaint": (lambda: inpaint(model, D, X, X > 0, Generator(0), jump=3, rounds=2, progress=False), IMAGES),
}


@pytest.mark.parametrize("name", CALLS)
def test_arguments_are_checked_once(name):
    call, expected = CALLS[name]
    entered = Counter()

    def count(frame, event, _):
        if event == "call" and frame.f_code.co_filename == arguments.__file__ and frame.f_code.co_name[0] != "<":
            entered[frame.f_code.co_name] += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(before)
    assert entered == expected
