"""Sampling by replays of a CUDA graph, on the stand-in for CuPy: the images have the bits of eager steps."""

import numpy as np
import pytest

import tinydiff as td
from tests import cupy_stand_in
from tinydiff.autograd.tape import no_grad
from tinydiff.diffusion import Diffusion, Schedule, sample, sample_steps
from tinydiff.random import Generator


@pytest.fixture(autouse=True)
def cupy(monkeypatch):
    monkeypatch.delenv("TINYDIFF_GRAPH", raising=False)
    with cupy_stand_in.put_in_place(monkeypatch) as module:
        yield module


def test_a_unet_with_attention_and_a_null_label_samples_by_replays(monkeypatch):
    unet = td.UNet(
        4, 1, channels=4, channel_mults=(1,), blocks_per_level=1, attention_resolutions=(4,), groups=2, num_classes=3,
        null_label=2, generator=Generator(1),
    ).to("cuda")  # fmt: skip
    for p in unet.parameters():
        p.data += 0.1
    found = []
    for graph in ("0", "1"):
        monkeypatch.setenv("TINYDIFF_GRAPH", graph)
        x = sample(unet, Diffusion(Schedule.cosine(50)), (1, 4, 4, 1), Generator(5), "ddpm", 6, labels=1, guidance=2.0,
                   progress=False)  # fmt: skip
        found.append(x.get())
    np.testing.assert_array_equal(*found)


class Model(td.nn.Module):
    """Two layers that see the time and the label; with a learned variance it returns twice the channels."""

    num_classes, null_label = 4, 3

    def __init__(self, learned):
        generator = Generator(1)
        self.labels = td.nn.Embedding(4, 2, generator=generator)
        self.layer = td.nn.Linear(2, 4 if learned else 2, generator=generator)

    def forward(self, x, t, labels=None):
        times = (t.astype("float32") / 50).reshape(-1, 1)
        h = td.ops.expand_dims(self.labels(labels) * times, (1, 2))
        return self.layer(td.ops.silu(x + h))


@pytest.mark.parametrize("guidance", [None, 2.0])
@pytest.mark.parametrize("variance", ["posterior", "learned"])
@pytest.mark.parametrize("sampler, eta", [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 0.5), ("dpm++", 0.0)])
def test_every_sampler_has_the_bits_of_eager_steps(sampler, eta, variance, guidance, monkeypatch):
    model = Model(variance == "learned").to("cuda")
    diffusion = Diffusion(Schedule.linear(50, 1e-3, 0.2), predict="v", variance=variance)
    found = {}
    for graph in ("0", "1"):
        monkeypatch.setenv("TINYDIFF_GRAPH", graph)
        generator = Generator(5)
        cupy_stand_in.COUNTS.clear()
        x = sample(model, diffusion, (2, 3, 3, 2), generator, sampler, 8, eta, labels=[0, 1], guidance=guidance,
                   progress=False)  # fmt: skip
        found[graph] = x.get(), generator.state
        # of 8 steps, the first two of each kind compute: with noise or without, extrapolated or not
        replayed = {"dpm++": 4, "ddim": 6 if eta == 0 else 5}.get(sampler, 5)
        assert cupy_stand_in.COUNTS["launches of graphs"] == (0 if graph == "0" else replayed)
    np.testing.assert_array_equal(found["1"][0], found["0"][0])
    assert found["1"][1] == found["0"][1]


def test_the_images_of_each_step_are_arrays_of_their_own():
    model, diffusion = Model(False).to("cuda"), Diffusion(Schedule.linear(50, 1e-3, 0.2))
    chain = list(sample_steps(model, diffusion, (1, 3, 3, 2), Generator(5), "dpm++", 8, labels=1))
    assert len({step.x.data.ptr for step in chain} | {step.x0.data.ptr for step in chain}) == 16


def test_a_replayed_step_copies_its_numbers_and_launches_one_graph():
    model, diffusion = Model(False).to("cuda"), Diffusion(Schedule.linear(50, 1e-3, 0.2))

    def counted(steps):
        cupy_stand_in.COUNTS.clear()
        sample(model, diffusion, (1, 3, 3, 2), Generator(5), "ddim", steps, labels=1, progress=False)
        return dict(cupy_stand_in.COUNTS)

    more, less = counted(10), counted(9)
    assert {name: more[name] - less[name] for name in more if more[name] != less[name]} == {
        "launches of graphs": 1, "copies to the device": 1, "waits for an event": 1,
    }  # fmt: skip


def test_a_model_that_reads_values_samples_without_a_graph(capfd, cupy):
    diffusion = Diffusion(Schedule.linear(50, 1e-3, 0.2))

    def model(x, t, labels=None):
        return x * float(t[0]) * 0.01

    with no_grad():
        x_T = cupy.asarray(np.ones((1, 2, 2, 1), np.float32))
        x = sample(model, diffusion, (1, 2, 2, 1), Generator(5), "ddim", 9, x_T=x_T, progress=False)
        expected = sample(model, diffusion, (1, 2, 2, 1), Generator(5), "ddim", 9, x_T=x_T.get(), progress=False)
    np.testing.assert_allclose(x.get(), expected, rtol=1e-5)
    assert capfd.readouterr().err.count("sampling goes on without a CUDA graph: it reads a value from the GPU") == 1
