"""The features of the Frechet distance: deterministic, cached, and able to tell images apart."""

import dataclasses

import numpy as np
import pytest

import tinydiff as td
from tinydiff.data import Dataset
from tinydiff.data.pixels import to_float
from tinydiff.evaluation import features
from tinydiff.evaluation.frechet import frechet_distance, moments


def test_features_are_deterministic_cached_and_made_anew_for_other_images(tmp_path, monkeypatch, pictures):
    data, file = Dataset(pictures(20)), tmp_path / "features.safetensors"
    first = features.extractor(data, file)
    values = first(data.images)
    assert values.shape == (20, features.FEATURES) and values.var(0).mean() == pytest.approx(1)
    with monkeypatch.context() as m:
        m.setattr(features, "_train", lambda *_: pytest.fail("the cached network was not taken"))
        np.testing.assert_array_equal(features.extractor(data, file)(data.images), values)
    file.write_bytes(file.read_bytes()[:100])  # damaged
    np.testing.assert_array_equal(features.extractor(data, file)(data.images), values)
    before = file.read_bytes()
    features.extractor(Dataset(pictures(20, 9)), file)
    assert file.read_bytes()[-5000:] != before[-5000:]
    assert not list(tmp_path.glob("*.new"))


def test_features_tell_images_apart(tmp_path, monkeypatch):
    """Held-out glyphs are nearer to the training images than the same glyphs under noise, more noise being farther."""
    monkeypatch.setattr(features, "STEPS", 40)
    data = td.data.load("glyphs", image_size=12, holdout=0.02)
    data = dataclasses.replace(data, images=data.images[:1000], labels=data.labels[:1000])
    extract = features.extractor(data, tmp_path / "f")
    x = to_float(data.images[:200])
    error = float(((extract.network(x).data - x) ** 2).mean())
    assert error < 0.7 * x.var()  # it has learned more than the mean
    reference = moments(extract(data.images))
    held_out, noise = data.held_out.images, np.random.default_rng(0).normal(size=data.held_out.images.shape)
    distances = [
        frechet_distance(*moments(extract((held_out + s * noise).clip(0, 255).astype(np.uint8))), *reference)
        for s in (0, 60, 120)
    ]
    assert distances[0] < 0.5 * distances[1] < 0.5 * distances[2], distances
