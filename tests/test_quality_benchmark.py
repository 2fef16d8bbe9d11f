"""The parts of tests/benchmarks/quality.py: all begin with the same network, take turns, and are told with their errors."""

import numpy as np
import pytest

import tinydiff as td
from tests.benchmarks import quality


def tiny_data(n=24, classes=3):
    rng = np.random.default_rng(0)
    labels = np.arange(n) % classes
    images = (60 * labels[:, None, None, None] + rng.integers(0, 60, (n, 8, 8, 1))).astype(np.uint8)
    return td.data.Dataset(images, labels, num_classes=classes)


def test_each_is_first_in_turn():
    assert [quality.order(seed)[0] for seed in range(3)] == list(quality.CONTESTANTS)
    assert all(sorted(quality.order(seed)) == sorted(quality.CONTESTANTS) for seed in range(3))


def test_means_and_standard_errors():
    figures = ("steps", "images_per_second", "recognised", "frechet_distance")
    rows = [
        {"contestant": name, "seed": seed} | dict.fromkeys(figures, value + i)
        for i, name in enumerate(quality.CONTESTANTS) for seed, value in enumerate((1.0, 3.0))
    ]  # fmt: skip
    found = quality.summary(rows)
    assert found["tinydiff"]["recognised"] == pytest.approx((2.0, 1.0))
    assert "| PyTorch bf16 | 4 ± 1 |" in quality.show(found)
    assert quality.summary(rows[::2])["tinydiff"]["steps"] == (1.0, None)


def test_a_classifier_learns_the_classes():
    data = tiny_data(60).hold_out(0.2, td.random.Generator(0))
    assert quality.train_classifier(data, 40)[1] == 1.0


@pytest.mark.parity
def test_pytorch_trains_the_same_network_and_gives_it_back():
    pytest.importorskip("diffusers", reason="needs the extra `parity`")
    import torch

    data = tiny_data()
    unet = quality.network(data, 0, 8)
    rng = np.random.default_rng(0)
    for p in unet.parameters():
        p.data += (0.05 * rng.normal(size=p.shape)).astype(np.float32)
    x, t, labels = rng.normal(size=(4, 8, 8, 1)).astype(np.float32), np.array([1, 5, 900, 1000]), np.array([0, 1, 2, 0])
    theirs = quality.torch_network(unet).eval()
    with torch.no_grad(), td.no_grad():
        expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2)), torch.from_numpy(t - 1), torch.from_numpy(labels))
        np.testing.assert_allclose(
            unet(x, t, labels).data, expected.sample.numpy().transpose(0, 2, 3, 1), rtol=0, atol=2e-5
        )
    for name in quality.CONTESTANTS:
        trained = quality.network(data, 0, 8)
        before = [p.data.copy() for p in trained.parameters()]
        assert quality.train(name, trained, data, 0, 4, 1e-9) == 1
        assert all(np.isfinite(p.data).all() for p in trained.parameters())
        assert any(not np.array_equal(a, p.data) for a, p in zip(before, trained.parameters(), strict=True)), name
