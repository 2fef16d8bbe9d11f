"""Features for comparing sets of images: the code of a small denoising autoencoder, trained here on the run's own
images.

Nothing is downloaded. So distances between such features can be compared only for one data set and one such network:
they are not FID.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tinydiff import nn, ops, optim
from tinydiff.autograd import tape
from tinydiff.data import Dataset, pixels
from tinydiff.errors import InputError
from tinydiff.random import INIT, NOISE, Generator
from tinydiff.runs import tensorfile
from tinydiff.runs.atomic import temporary_beside

FEATURES = 32
STEPS = 500
_BATCH = 64
_NOISE = 0.3  # standard deviation of what is added to the images that are to be restored
_LARGEST_SIDE = 32  # larger images are scaled down to this
_SEED = 20_061_020
_VERSION = "1"  # of network and training: another version does not use the cached weights


class Autoencoder(nn.Module):
    """Images (N, S, S, C) -> code (N, FEATURES) by three convolutions of stride 2 -> images by two linear layers."""

    def __init__(self, size: int, channels: int, generator: Generator) -> None:
        self.shape = size, size, channels
        self.conv1 = nn.Conv2d(channels, 16, 3, stride=2, padding=1, generator=generator)
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1, generator=generator)
        self.conv3 = nn.Conv2d(32, 64, 3, stride=2, padding=1, generator=generator)
        side = -(-size // 8)
        self.to_code = nn.Linear(side * side * 64, FEATURES, generator=generator)
        self.from_code = nn.Linear(FEATURES, 256, generator=generator)
        self.to_image = nn.Linear(256, size * size * channels, generator=generator)

    def encode(self, x: Any) -> Any:
        h = ops.silu(self.conv3(ops.silu(self.conv2(ops.silu(self.conv1(x))))))
        return self.to_code(h.reshape(len(h), -1))

    def forward(self, x: Any) -> Any:
        code = self.encode(x)
        return self.to_image(ops.silu(self.from_code(code))).reshape(len(x), *self.shape)


class Extractor:
    """Bytes (N, H, W, C) -> features float64 (N, FEATURES), in units in which the training images' variance is 1 on
    average over the features."""

    def __init__(self, network: Autoencoder, training: np.ndarray) -> None:
        self.network = network
        self.scale = 1.0
        variance = float(self(training).var(0).mean())
        self.scale = 1 / np.sqrt(variance) if variance > 0 else 1.0

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        pictures = _scaled(pictures)
        with tape.no_grad():
            codes = [
                self.network.encode(pixels.to_float(pictures[i : i + 256])).data for i in range(0, len(pictures), 256)
            ]
        return np.concatenate(codes).astype(np.float64) * self.scale


def extractor(training: Dataset, file: Path) -> Extractor:
    """The features for a data set. The network is read from `file` if it was trained on these images; otherwise a new
    one is trained and written there. The same images give the same network, up to rounding on another machine."""
    network = Autoencoder(min(training.image_size[0], _LARGEST_SIDE), training.channels, Generator(_SEED).at(INIT))
    identity = f"{_VERSION}, {STEPS} steps, {hashlib.sha256(training.images.data).hexdigest()}"
    if not _read(network, file, identity):
        _train(network, training, STEPS)
        # written whole or not at all: half a network would be trained again, but with a puzzling message
        with temporary_beside(file) as draft:
            tensorfile.write(draft, {n: p.data for n, p in network.named_parameters()}, {"identity": identity})
            draft.replace(file)
    return Extractor(network, training.images)


def _read(network: Autoencoder, file: Path, identity: str) -> bool:
    try:
        if not file.exists() or tensorfile.read_metadata(file).get("identity") != identity:
            return False
        network.load_state_dict(tensorfile.read(file))
    except InputError:  # damaged: a new one is trained
        return False
    return True


def _train(network: Autoencoder, training: Dataset, steps: int) -> None:
    data = replace(training, images=_scaled(training.images), labels=None, class_names=None, num_classes=None)
    optimizer, generator = optim.Adam(network.parameters(), 2e-3), Generator(_SEED)
    for step in range(1, steps + 1):
        x, _ = data.batch(step, _BATCH, generator)
        noisy = x + np.float32(_NOISE) * generator.at(NOISE, step).normal(x.shape)
        optimizer.zero_grad()
        ops.mse_loss(network(noisy), x).backward()
        optimizer.lr = 2e-3 * min(1.0, 2 * (1 - (step - 1) / steps))  # falling to 0 over the second half
        optimizer.step()


def _scaled(pictures: np.ndarray) -> np.ndarray:
    return pixels.resize(pictures, min(pictures.shape[1], _LARGEST_SIDE))
