"""The samplers against diffusers' schedulers: the same model outputs and the same noise give the same images."""

import numpy as np
import pytest

from tests.diffusion.steps import take
from tinydiff.diffusion import Diffusion, Schedule
from tinydiff.diffusion.sampler import DDIM, DDPM, DPMSolver

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:__array__ implementation")]

SHAPE = (2, 3, 4, 4)
PREDICTION = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


def channels_last(x):
    return np.asarray(x, np.float64).transpose(0, 2, 3, 1)


def compare(theirs, solver, schedule, n, step, learned=False):
    """Runs both from the same x_T on outputs that depend on t; their images must agree after every step."""
    theirs.set_timesteps(n)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    ours, x0 = channels_last(x), None
    for i, t in zip(range(schedule.T, 0, -1), theirs.timesteps, strict=True):
        assert schedule.timesteps[i] == t + 1
        torch.manual_seed(i)
        output = torch.sin(3 * x + 0.1 * i)
        if learned:
            output = torch.cat([output, torch.cos(x)], dim=1)
        # diffusers adds noise to x_0 where the last kept step is not the first of the schedule: give it none there
        z = torch.randn(SHAPE, dtype=torch.float64) if i > 1 else torch.zeros(SHAPE, dtype=torch.float64)
        x = step(theirs, output, t, x, z)
        ours, x0 = take(solver, channels_last(output), ours, i, channels_last(z), x0)
        np.testing.assert_allclose(ours, channels_last(x), rtol=1e-4, atol=1e-4)  # their alpha_bar is float32


@pytest.mark.parametrize(("n", "predict"), [(1000, "eps"), (20, "eps"), (20, "x0"), (20, "v")])
@pytest.mark.parametrize("variance", ["beta", "posterior", "learned"])
def test_ddpm(n, predict, variance, monkeypatch):
    theirs = diffusers.DDPMScheduler(
        1000,
        variance_type={"beta": "fixed_large", "posterior": "fixed_small", "learned": "learned_range"}[variance],
        prediction_type=PREDICTION[predict],
        timestep_spacing="trailing",
    )
    module = "diffusers.schedulers.scheduling_ddpm.randn_tensor"

    def step(theirs, output, t, x, z):
        monkeypatch.setattr(module, lambda *args, **kwargs: z)
        return theirs.step(output, t, x).prev_sample

    schedule = Schedule.linear().respaced(n)
    diffusion = Diffusion(schedule, predict, variance)
    compare(theirs, DDPM(diffusion), schedule, n, step, learned=variance == "learned")


@pytest.mark.parametrize("predict", ["eps", "x0", "v"])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ddim(predict, eta):
    theirs = diffusers.DDIMScheduler(
        1000, prediction_type=PREDICTION[predict], timestep_spacing="trailing", set_alpha_to_one=True
    )

    def step(theirs, output, t, x, z):
        noise = {"variance_noise": z} if eta else {}
        return theirs.step(output, t, x, eta=eta, use_clipped_model_output=True, **noise).prev_sample

    schedule = Schedule.linear().respaced(20)
    compare(theirs, DDIM(Diffusion(schedule, predict), eta), schedule, 20, step)


@pytest.mark.parametrize("n", [8, 25])
@pytest.mark.parametrize("predict", ["eps", "x0", "v"])
def test_dpm_solver(predict, n):
    theirs = diffusers.DPMSolverMultistepScheduler(
        1000,
        beta_schedule="linear",
        prediction_type=PREDICTION[predict],
        timestep_spacing="trailing",
        final_sigmas_type="zero",
    )
    schedule = Schedule.linear().respaced(n)
    solver = DPMSolver(Diffusion(schedule, predict, clip_x0=False))
    compare(theirs, solver, schedule, n, lambda s, output, t, x, z: s.step(output, t, x).prev_sample)
