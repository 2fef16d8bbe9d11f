"""What is evaluated: the labels of images that show some of the network's classes only."""

import numpy as np
import pytest

import tinydiff as td
from tinydiff.data import Dataset
from tinydiff.evaluation.subject import _with_fitting_labels
from tinydiff.random import Generator


@pytest.mark.parametrize(
    ("names", "own", "labels"),
    [
        (["1", "3"], None, [1, 3, 3]),  # a model without names knows its classes by number
        (["cat", "dog"], ["ape", "cat", "cow", "dog"], [1, 3, 3]),
        (["cat", "elk"], ["ape", "cat", "cow", "dog"], None),  # an unknown class: no label fits
    ],
)
def test_labels_of_some_of_the_classes_keep_their_meaning(names, own, labels):
    unet = td.UNet(8, 1, channels=8, channel_mults=(1,), blocks_per_level=1, attention_resolutions=(), groups=4,
                   num_classes=5, null_label=4, generator=Generator(0))  # fmt: skip
    test = Dataset(np.zeros((3, 8, 8, 1), np.uint8), np.array([0, 1, 1]), names)
    found = _with_fitting_labels(test, unet, own).labels
    assert (None if found is None else found.tolist()) == labels
