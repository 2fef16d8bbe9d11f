"""With a real network: gradients arrive, dropout is off in sampling and comes back, labels and guidance get through."""

import numpy as np
import pytest

import tinydiff as td
from tinydiff.diffusion import Diffusion, Schedule, sample
from tinydiff.random import Generator

S = Schedule.linear(30, 0.01, 0.6)
X0 = np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 1)).astype(np.float32)


def network(**options):
    options = {"channels": 8, "channel_mults": (1, 2), "blocks_per_level": 1, "groups": 4, **options}
    unet = td.UNet(8, 1, attention_resolutions=(4,), **options)
    rng = np.random.default_rng(1)
    for p in unet.parameters():  # second convolutions start at zero
        p.data = p.data + rng.normal(0, 0.05, p.shape).astype(np.float32)
    return unet


@pytest.mark.parametrize("variance", ["beta", "learned"])
def test_every_weight_gets_a_gradient(variance):
    unet = network(out_channels=2 if variance == "learned" else 1)
    Diffusion(S, variance=variance).loss(unet, X0, Generator(0)).backward()
    assert all(p.grad is not None and np.isfinite(p.grad).all() and np.abs(p.grad).max() > 0 for p in unet.parameters())


def test_dropout_is_off_in_sampling_and_bound_and_comes_back():
    unet, draws, d = network(dropout=0.5), Generator(3, stream=5), Diffusion(S)
    unet.train(draws)
    images = [sample(unet, d, X0.shape, Generator(1), steps=3, progress=False) for _ in range(2)]
    np.testing.assert_array_equal(*images)
    bounds = [d.vlb(unet, X0, Generator(1), t=[1, 9, 20]).total for _ in range(2)]
    np.testing.assert_array_equal(*bounds)
    assert draws.offset == 0
    assert all(module.training and module.generator is draws for module in unet.modules())
    assert d.loss(unet, X0, Generator(0)).item() != d.loss(unet, X0, Generator(0)).item()
    assert draws.offset > 0


def test_labels_and_guidance():
    unet, d = network(num_classes=4, null_label=3), Diffusion(S)

    def draw(**options):
        return sample(unet, d, X0.shape, Generator(1), steps=3, progress=False, **options)

    np.testing.assert_array_equal(draw(), draw(labels=3))
    np.testing.assert_allclose(draw(labels=1, guidance=0.0), draw(), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(draw(labels=1, guidance=1.0), draw(labels=1))
    assert not np.allclose(draw(labels=1, guidance=3.0), draw(labels=1), atol=1e-3)
    mixed = draw(labels=[0, 1, 2, 3])
    np.testing.assert_allclose(mixed[1], draw(labels=1)[1], rtol=1e-4, atol=1e-4)


def test_a_few_steps_of_training_lower_the_loss():
    unet, d = network(), Diffusion(S)
    optimizer = td.optim.Adam(list(unet.parameters()), lr=3e-3)

    def held_out():
        with td.no_grad():
            return np.mean([d.loss(unet, X0, Generator(9, step=k)).item() for k in range(8)])

    before = held_out()
    for step in range(1, 31):
        optimizer.zero_grad()
        d.loss(unet, X0, Generator(0, step=step)).backward()
        optimizer.step()
    assert held_out() < 0.8 * before
