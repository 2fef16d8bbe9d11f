"""Folders go both ways between tinydiff and diffusers, and mean the same on both sides."""

import inspect
import json
import logging
import warnings

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import tinydiff as td
from tinydiff.diffusion import Diffusion, Schedule
from tinydiff.random import Generator
from tinydiff.runs import checkpoint
from tinydiff.runs import diffusers as exchange

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:__array__ implementation")]

PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
VARIANCES = {"beta": "fixed_large", "posterior": "fixed_small", "learned": "learned_range"}


@pytest.fixture(autouse=True)
def one_thread():
    """For networks as small as these, threads only get into each other's way."""
    with threadpool_limits(1):
        yield


def nchw(x):
    return torch.tensor(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def nhwc(x):
    return np.ascontiguousarray(x.detach().numpy().transpose(0, 2, 3, 1))


def make_theirs(channels=3, out_channels=None, **settings):
    """A pipeline of diffusers with random weights; attention has heads, the rest is diffusers' own defaults."""
    torch.manual_seed(3)
    unet = diffusers.UNet2DModel(
        sample_size=16, in_channels=channels, out_channels=out_channels or channels, block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1, norm_num_groups=8, **settings,
    ).eval()  # fmt: skip
    return DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=60, beta_schedule="squaredcos_cap_v2"))


def make_ours(learned=False, labels=None, **options):
    """A network of random weights and a diffusion of 40 steps."""
    unet = td.UNet(
        12, 1, 2 if learned else 1, 16, (1, 2), 1, (6,), 8, generator=Generator(1),
        num_classes=labels, null_label=None if labels is None else labels - 1,
    ).eval()  # fmt: skip
    for p in unet.parameters():
        p.data += Generator(2, 1).normal(p.shape) * np.float32(0.1)
    variance = {"variance": "learned"} if learned else {}
    return unet, Diffusion(Schedule.linear(40, 1e-3, 0.3), **variance, **options)


def agree(pipeline, unet):
    """The network that was read, and diffusers', on the same images and times."""
    size, channels = pipeline.image_size, pipeline.unet.in_channels
    x = np.random.default_rng(0).normal(size=(2, size, size, channels)).astype(np.float32)
    t = np.array([1, 37])
    with torch.no_grad():
        theirs = nhwc(unet(nchw(x), torch.tensor(t - 1)).sample)
    np.testing.assert_allclose(pipeline.unet(x, t).data, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


# ------------------------------------------------------------------------------------------ diffusers -> tinydiff


@pytest.mark.parametrize("shards", [None, "40KB"])
def test_what_a_pipeline_saves_is_read(tmp_path, shards):
    theirs = make_theirs()
    options = {} if shards is None else {"max_shard_size": shards}
    theirs.save_pretrained(tmp_path, **options)
    files = [path.name for path in (tmp_path / "unet").glob("*.safetensors")]
    assert (len(files) > 3) == (shards is not None)
    pipeline = td.load(tmp_path)
    agree(pipeline, theirs.unet)
    assert (pipeline.diffusion.predict, pipeline.diffusion.variance) == ("eps", "posterior")
    betas = theirs.scheduler.betas.numpy()
    np.testing.assert_allclose(pipeline.diffusion.schedule.beta[1:], betas, rtol=1e-6)
    assert pipeline.sample(2, sampler="ddim", steps=3, progress=False).shape == (2, 16, 16, 3)


def test_a_pickle_is_converted_by_the_command_that_is_told(tmp_path):
    theirs = make_theirs(attention_head_dim=None)
    theirs.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(td.errors.InputError) as told:
        td.load(tmp_path)
    exec(str(told.value).partition("python -c ")[2].strip('"'))
    agree(td.load(tmp_path), theirs.unet)


def test_a_pipeline_with_another_scheduler_is_read(tmp_path):
    theirs = make_theirs()
    theirs = diffusers.DDIMPipeline(theirs.unet, DDIMScheduler(num_train_timesteps=60, prediction_type="sample"))
    theirs.save_pretrained(tmp_path)
    pipeline = td.load(tmp_path)
    agree(pipeline, theirs.unet)
    assert pipeline.diffusion.predict == "x0"


def test_models_of_other_samplers_are_read_with_their_betas(tmp_path):
    theirs = make_theirs().unet
    theirs.save_pretrained(tmp_path / "unet")
    tried = 0
    for name in exchange.SCHEDULERS:
        for how in ("defaults", "from DDPM"):
            kind = getattr(diffusers, name)
            try:
                one = DDPMScheduler(
                    num_train_timesteps=40, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"
                )
                scheduler = kind() if how == "defaults" else kind.from_config(one.config)
            except ImportError:  # some need SciPy or torchsde
                continue
            scheduler.save_pretrained(tmp_path / "scheduler")
            diffusion = td.load(tmp_path).diffusion
            np.testing.assert_allclose(diffusion.schedule.beta[1:], scheduler.betas.numpy(), rtol=2e-6, err_msg=name)
            assert diffusion.predict == ("eps" if how == "defaults" else "v")
            assert diffusion.clip_x0 == scheduler.config.get("clip_sample", False), name
            tried += 1
    assert tried >= 20


def test_every_scheduler_setting_is_known_and_has_its_default():
    known = exchange._SCHEDULER_DEFAULTS
    for scheduler in (DDPMScheduler, DDIMScheduler):
        for p in inspect.signature(scheduler.__init__).parameters.values():
            assert p.name == "self" or known[p.name] == p.default, p.name


# ------------------------------------------------------------------------------------------ tinydiff -> diffusers


class Silence(logging.Handler):
    """Fails on anything that diffusers has to say, but for how fast it could load with another package."""

    def emit(self, record):
        assert "accelerate" in record.getMessage(), record.getMessage()


def from_pretrained(folder):
    logger, silence = logging.getLogger("diffusers"), Silence()
    logger.addHandler(silence)
    try:
        with warnings.catch_warnings(action="error"):
            return DDPMPipeline.from_pretrained(folder)
    finally:
        logger.removeHandler(silence)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("predict", PREDICTIONS)
def test_a_checkpoint_opens_in_diffusers_without_a_warning(tmp_path, learned, predict):
    unet, diffusion = make_ours(learned, predict=predict, clip_x0=predict != "v")
    checkpoint.save(tmp_path, unet, diffusion, training_state=({"a": np.zeros(1)}, {"step": "1"}))
    theirs = from_pretrained(tmp_path / "checkpoint")
    agree(td.load(tmp_path), theirs.unet)
    assert theirs.scheduler.config.prediction_type == PREDICTIONS[predict]
    assert theirs.scheduler.config.variance_type == ("learned_range" if learned else "fixed_large")
    assert theirs.scheduler.config.clip_sample == (predict != "v")
    theirs.set_progress_bar_config(disable=True)
    assert theirs(batch_size=2, num_inference_steps=3, output_type="np").images.shape == (2, 12, 12, 1)


def test_a_labelled_checkpoint_opens_in_diffusers(tmp_path):
    unet, diffusion = make_ours(labels=4)
    checkpoint.Pipeline(unet, diffusion, ["a", "b", "c"]).save(tmp_path / "model")
    theirs = from_pretrained(tmp_path / "model")
    x = Generator(5).normal((3, 12, 12, 1))
    for labels in (np.array([0, 1, 2]), None):
        told = torch.tensor([3, 3, 3] if labels is None else labels)
        with torch.no_grad():
            output = nhwc(theirs.unet(nchw(x), 9, class_labels=told).sample)
        np.testing.assert_allclose(unet(x, 10, labels).data, output, rtol=0, atol=1e-4 * np.abs(output).max())
    # and what diffusers saves of it comes back, but for what only tinydiff.json tells
    theirs.save_pretrained(tmp_path / "again")
    again = td.load(tmp_path / "again")
    assert again.unet.num_classes == 4 and again.unet.null_label is None and again.class_names is None
    a, b = unet.state_dict(), again.unet.state_dict()
    assert all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "name",
    [
        "DDIMScheduler",
        "DPMSolverMultistepScheduler",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "PNDMScheduler",
        "UniPCMultistepScheduler",
    ],
)
def test_other_schedulers_work_from_the_configuration(tmp_path, name):
    unet, diffusion = make_ours()
    checkpoint.save(tmp_path, unet, diffusion)
    theirs = from_pretrained(tmp_path / "checkpoint")
    scheduler = getattr(diffusers, name).from_config(theirs.scheduler.config)
    scheduler.set_timesteps(8)
    assert int(scheduler.timesteps[0]) == 39  # the last step, where sampling must start
    torch.manual_seed(0)
    x = torch.randn(1, 1, 12, 12) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        with torch.no_grad():
            output = theirs.unet(scheduler.scale_model_input(x, t), t).sample
        x = scheduler.step(output, t, x).prev_sample
    assert torch.isfinite(x).all()


class Draws(Generator):
    """A generator that keeps what was drawn."""

    def __init__(self, *state):
        super().__init__(*state)
        self.kept = []

    def normal(self, *args, **kwargs):
        self.kept.append(super().normal(*args, **kwargs))
        return self.kept[-1]


def trajectories(folder, scheduler, monkeypatch, sampling, **step_options):
    """x_0 of one trajectory: by tinydiff, and by diffusers with its network, its scheduler and the same noise.

    Into x_0 itself tinydiff puts no noise; diffusers does where the last step that it visits is not the first of the
    schedule (`test_noise_in_the_image`), so there it is given zeros.
    """
    pipeline, theirs = td.load(folder), DDPMPipeline.from_pretrained(folder / "checkpoint")
    draws, shape = Draws(7), (2, 12, 12, 1)
    ours = td.diffusion.sample(pipeline.unet, pipeline.diffusion, shape, draws, *sampling, progress=False)
    scheduler = scheduler.from_config(theirs.scheduler.config)
    scheduler.set_timesteps(sampling[1])
    noise = iter(draws.kept)
    x = nchw(next(noise))
    for module in ("scheduling_ddpm", "scheduling_ddim"):
        name = f"diffusers.schedulers.{module}.randn_tensor"
        monkeypatch.setattr(name, lambda *args, **kwargs: nchw(next(noise, np.zeros(shape, np.float32))))
    for t in scheduler.timesteps:
        with torch.no_grad():
            output = theirs.unet(x, t).sample
        x = scheduler.step(output, t, x, **step_options).prev_sample
    assert next(noise, None) is None  # neither drew more than the other
    return ours, nhwc(x)


@pytest.mark.parametrize("steps", [40, 7])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("variance", VARIANCES)
def test_one_trajectory_gives_the_same_images(tmp_path, monkeypatch, variance, clip, steps):
    unet, diffusion = make_ours(variance == "learned", clip_x0=clip)
    diffusion = Diffusion(diffusion.schedule, "eps", variance, clip)
    checkpoint.save(tmp_path, unet, diffusion)
    ours, theirs = trajectories(tmp_path, DDPMScheduler, monkeypatch, ("ddpm", steps))
    scale = np.abs(theirs).max()
    assert clip == (scale <= 1 + 1e-6)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-4 * scale)


@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_one_ddim_trajectory_gives_the_same_images(tmp_path, monkeypatch, predict, eta):
    unet, diffusion = make_ours(predict=predict)
    checkpoint.save(tmp_path, unet, diffusion)
    step = {"eta": eta, "use_clipped_model_output": True}
    ours, theirs = trajectories(tmp_path, DDIMScheduler, monkeypatch, ("ddim", 10, eta), **step)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-4)


# ------------------------------------------------------------------------------------------------------ schedulers


SCHEDULES = {
    "linear": {"num_train_timesteps": 1000},
    "other linear": {"num_train_timesteps": 30, "beta_start": 0.01, "beta_end": 0.4},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "sigmoid": {"beta_schedule": "sigmoid"},
    "numbers": {"num_train_timesteps": 3, "trained_betas": [0.1, 0.5, 0.9]},
    "zero terminal SNR": {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
}


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [
        (name, s)
        for name in SCHEDULES
        for s in (DDPMScheduler, DDIMScheduler)
        if (name, s) != ("sigmoid", DDIMScheduler)
    ],
)
def test_schedules_agree(name, scheduler):
    theirs = scheduler(**SCHEDULES[name])
    unet = make_ours()[0]
    schedule = exchange.diffusion_from_config(dict(theirs.config), unet, "config").schedule
    np.testing.assert_allclose(schedule.beta[1:], theirs.betas.numpy(), rtol=2e-4, atol=3e-7)
    np.testing.assert_allclose(schedule.alpha_bar[1:], theirs.alphas_cumprod.numpy(), rtol=1e-4, atol=1e-6)
    if scheduler is DDPMScheduler:
        variance = [float(theirs._get_variance(t)) for t in range(1, schedule.T)]  # theirs at t = 0 is 1e-20 for 0
        np.testing.assert_allclose(schedule.posterior_variance[2:], variance, rtol=1e-3)
        assert schedule.posterior_variance[1] == 0


@pytest.mark.parametrize("T", [10, 40, 1000])
def test_kept_steps_agree_for_every_number_of_them(T):
    theirs, schedule = DDPMScheduler(T, timestep_spacing="trailing"), Schedule.cosine(T)
    for n in range(1, T + 1, max(T // 100, 1)):
        theirs.set_timesteps(n)
        kept = np.sort(theirs.timesteps.numpy()) + 1
        if len(kept) > n:  # by adding up T / n in floating point, diffusers may come to a step before the first
            assert len(kept) == n + 1 and kept[0] == 0
            kept = kept[1:]
        np.testing.assert_array_equal(schedule.respaced(n).timesteps[1:], kept, err_msg=str(n))


def test_leading_spacing_starts_too_early():
    """diffusers' default, "leading", never visits T, the only step whose image is pure noise; "trailing" does, and that
    is what tinydiff does and writes."""
    theirs = DDPMScheduler(1000)
    theirs.set_timesteps(10)
    assert theirs.config.timestep_spacing == "leading" and int(theirs.timesteps[0]) == 900
    schedule = Schedule.linear().respaced(10)
    assert schedule.timesteps[-1] == 1000
    assert 1 - schedule.alpha_bar[-1] > 0.9999 and 1 - float(theirs.alphas_cumprod[900]) < 0.9999


def test_ddims_step_goes_to_the_step_that_comes_next():
    """Where T is not divisible by the number of steps, diffusers' DDIM steps to t - T // n, which is not the step that
    it visits next. For a model that knows the noise, a right step ends where the forward process has that image at the
    next step: tinydiff's does, diffusers' does not."""
    T, n = 40, 7
    schedule = Schedule.linear(T, 1e-3, 0.3)
    kept = schedule.respaced(n)
    theirs = DDIMScheduler(T, 1e-3, 0.3, timestep_spacing="trailing", clip_sample=False)
    theirs.set_timesteps(n)
    rng = np.random.default_rng(0)
    x0, eps = rng.uniform(-1, 1, (1, 4, 4, 1)), rng.normal(size=(1, 4, 4, 1))
    diffusion = Diffusion(schedule, clip_x0=False)
    after = int(kept.timesteps[n - 1])
    right = diffusion.q_sample(x0, after, eps)
    steps = td.diffusion.sample_steps(
        lambda x, t: eps, diffusion, x0.shape, Generator(0), "ddim", n, x_T=diffusion.q_sample(x0, T, eps)
    )
    np.testing.assert_allclose(next(steps).x, right, rtol=0, atol=1e-12)
    x = theirs.step(nchw(eps), theirs.timesteps[0], nchw(diffusion.q_sample(x0, T, eps))).prev_sample
    assert int(theirs.timesteps[1]) == after - 1 and T - T // n != after
    assert np.abs(nhwc(x) - right).max() > 0.01
    np.testing.assert_allclose(nhwc(x), diffusion.q_sample(x0, T - T // n, eps), rtol=0, atol=1e-5)


def test_noise_in_the_image():
    """With the variance beta and skipped steps, diffusers adds noise in the last step, to the image itself, unless that
    step is the first of the schedule. For a model that knows the image, tinydiff ends in that image."""
    x0, z = np.full((1, 2, 2, 1), 0.5), torch.ones(1, 1, 2, 2, dtype=torch.float64)
    theirs = DDPMScheduler(
        40, 1e-3, 0.3, variance_type="fixed_large", prediction_type="sample", timestep_spacing="trailing"
    )
    theirs.set_timesteps(7)
    last = theirs.timesteps[-1]
    assert int(last) == 5
    torch.manual_seed(0)
    x = theirs.step(nchw(x0), last, z).prev_sample
    assert np.abs(nhwc(x) - x0).min() > 0.01
    diffusion = Diffusion(Schedule.linear(40, 1e-3, 0.3), "x0", "beta")
    ours = td.diffusion.sample(lambda x, t: x0, diffusion, x0.shape, Generator(0), "ddpm", 7, progress=False)
    np.testing.assert_allclose(ours, x0, rtol=0, atol=1e-6)


def test_fixed_large_log_is_no_variance():
    """diffusers takes the square root of a negative logarithm there; tinydiff refuses the setting."""
    theirs = DDPMScheduler(40, variance_type="fixed_large_log")
    x = torch.ones(1, 1, 2, 2)
    assert torch.isnan(theirs.step(x, 5, x).prev_sample).all()


def test_json_of_a_checkpoint_is_what_diffusers_writes(tmp_path):
    """The keys of both configurations, so that nothing in them is silently ignored."""
    unet, diffusion = make_ours()
    checkpoint.save(tmp_path, unet, diffusion)
    DDPMPipeline.from_pretrained(tmp_path / "checkpoint").save_pretrained(tmp_path / "theirs")
    for name in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"):
        ours, theirs = (json.loads((tmp_path / folder / name).read_text()) for folder in ("checkpoint", "theirs"))
        versions = {"_diffusers_version", "_name_or_path"}
        assert {k: v for k, v in ours.items() if k not in versions} == {
            k: v for k, v in theirs.items() if k not in versions
        }, name
