"""Modes, labels and guidance: how sampling calls a model."""

import numpy as np
import pytest

from tinydiff.autograd.tape import is_recording
from tinydiff.autograd.tensor import Tensor
from tinydiff.diffusion import Diffusion, Schedule, sample, sample_steps
from tinydiff.diffusion.model import Predictor, call
from tinydiff.errors import InputError
from tinydiff.random import Generator

S = Schedule.linear(20, 0.02, 0.8)
SHAPE = (3, 2, 2, 1)


class Network:
    """Stands for a network with labels: says label * x, and twice that where there is a variance half."""

    num_classes, null_label, training, generator = 5, 4, True, None

    def __init__(self, error=None, channels=1):
        self.calls, self.modes, self.error, self.channels = [], [], error, channels

    def train(self, generator=None):
        self.training, self.generator = True, generator

    def eval(self):
        self.training = False

    def __call__(self, x, t, labels=None):
        self.calls.append((x, t, labels))
        self.modes.append((self.training, is_recording()))
        if self.error and len(self.calls) == 2:
            raise self.error
        labels = np.full(len(x), self.null_label) if labels is None else labels
        out = labels.reshape(-1, 1, 1, 1).astype(x.dtype) * x
        return Tensor(np.concatenate([out] * self.channels, axis=-1))


def run(model, diffusion=None, **options):
    return sample(model, diffusion or Diffusion(S), SHAPE, Generator(0), steps=3, progress=False, **options)


def test_eval_mode_without_tape_and_the_former_mode_afterwards():
    model, dropout = Network(), Generator(9)
    model.train(dropout)
    run(model)
    assert model.modes == [(False, False)] * 3
    assert model.training and model.generator is dropout and is_recording()
    model.eval()
    run(model)
    assert not model.training


def test_the_mode_comes_back_after_an_error_and_between_steps():
    model = Network(error=RuntimeError("out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        run(model)
    assert model.training and is_recording()
    model = Network()
    steps = sample_steps(model, Diffusion(S), SHAPE, Generator(0))
    next(steps)
    assert model.training and is_recording()
    del steps
    assert model.training


def test_plain_functions_need_no_modes_and_may_return_tensors_or_arrays():
    arrays = run(lambda x, t: 0.1 * x)
    np.testing.assert_array_equal(arrays, run(lambda x, t: Tensor(0.1 * x)))
    np.testing.assert_allclose(arrays, run(lambda x, t: (0.1 * x).astype(np.float64)), rtol=1e-5)


@pytest.mark.parametrize("guidance", [None, 1, 1.0])
def test_without_guidance_there_is_one_plain_conditional_call(guidance):
    model = Network()
    run(model, labels=2, guidance=guidance)
    assert len(model.calls) == 3
    for x, t, labels in model.calls:
        assert x.shape == SHAPE and t.shape == (3,)
        np.testing.assert_array_equal(labels, [2, 2, 2])


def test_without_labels_the_model_is_called_without():
    model = Network()
    run(model)
    assert all(labels is None for _, _, labels in model.calls)


@pytest.mark.parametrize("guidance", [0, 0.5, 2.5, -1])
def test_guidance_extrapolates_from_the_null_label(guidance):
    x = np.random.default_rng(0).standard_normal(SHAPE)
    labels = np.array([0, 1, 3])
    out = Predictor(Network(), 3, labels, guidance)(x, 7)
    column = labels.reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(out, (4 + guidance * (column - 4)) * x)
    np.testing.assert_allclose(out, Predictor(Network(), 3, labels, guidance)(x, np.full(3, 7)))


def test_guidance_leaves_the_variance_channels_alone():
    x = np.random.default_rng(0).standard_normal(SHAPE)
    out = Predictor(Network(channels=2), 3, 1, 3.0)(x, 7)
    np.testing.assert_allclose(out[..., :1], (4 + 3 * (1 - 4)) * x)
    np.testing.assert_allclose(out[..., 1:], 1 * x)


def test_guidance_comes_before_clipping():
    x = np.full(SHAPE, 0.5)
    d = Diffusion(S, "x0")
    step = next(sample_steps(Network(), d, SHAPE, Generator(0), labels=1, guidance=3.0, x_T=x))
    np.testing.assert_allclose(
        step.x0, -1.0
    )  # (4 + 3 (1 - 4)) 0.5 = -2.5, clipped; clipping the two first gives 0.5 - 0.5
    step = next(sample_steps(Network(), d, SHAPE, Generator(0), labels=0, guidance=1.05, x_T=x))
    np.testing.assert_allclose(step.x0, -0.1)  # (4 - 1.05 * 4) 0.5; with null clipped to 1 it were -0.05


def test_labels_are_checked_against_the_model():
    for labels, sentence in (
        (5, r"in 0..4 for this model, not 5$"),
        (-1, "not -1"),
        (1.0, "must be one integer or 3"),
    ):
        with pytest.raises(InputError, match=sentence):
            run(Network(), labels=labels)
    model = Network()
    model.num_classes = None
    with pytest.raises(InputError, match="trained without labels"):
        run(model, labels=1)


def test_guidance_is_checked_against_the_model():
    with pytest.raises(InputError, match="guidance needs labels"):
        run(Network(), guidance=2)
    for wrong in (float("nan"), float("inf"), "2"):
        with pytest.raises(InputError, match="finite number"):
            run(Network(), labels=1, guidance=wrong)
    model = Network()
    model.null_label = None
    with pytest.raises(InputError, match="null label"):
        run(model, labels=1, guidance=2)


def test_t_and_labels_are_int64_per_image():
    model = Network()
    x = np.zeros(SHAPE, np.float32)
    call(model, x, 3, np.int32(2))
    call(model, x, np.array([1, 2, 3], np.uint8), [0, 1, 2])
    for _, t, labels in model.calls:
        assert t.shape == labels.shape == (3,) and t.dtype == labels.dtype == np.int64
    np.testing.assert_array_equal(model.calls[1][1], [1, 2, 3])
