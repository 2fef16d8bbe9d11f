"""What the images of a batch get from a generator does not depend on how the batch is cut into parts."""

import numpy as np
import pytest

from tinydiff.random import DROPOUT, Generator
from tinydiff.runs.inputs import PartOfDraws

SHAPES = [(2, 3, 4), (8,), (4, 1, 1)]  # of what is drawn for an image, one draw after another


def drawn(images, parts, shapes=SHAPES):
    """The draws for a batch in so many parts, and where the generator stands after each."""
    generator, found, ends = PartOfDraws(Generator(3).at(DROPOUT, 7), images), [], []
    size = images // parts
    for part in range(parts):
        generator.begin(slice(part * size, (part + 1) * size))
        found.append([generator.uniform((size, *shape)) for shape in shapes])
        ends.append(generator.offset)
    return [np.concatenate(of_shape) for of_shape in zip(*found, strict=True)], ends


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 12])
def test_images_get_the_same_in_any_part(parts):
    plain = Generator(3).at(DROPOUT, 7)
    whole = [plain.uniform((12, *shape)) for shape in SHAPES]
    found, ends = drawn(12, parts)
    for a, b in zip(found, whole, strict=True):
        np.testing.assert_array_equal(a, b)
    assert set(ends) == {plain.offset}


def test_draws_of_odd_sizes_differ_from_each_other():
    found, ends = drawn(6, 3, [(3,), (5, 1), (1,)])
    numbers = np.concatenate([a.ravel() for a in found])
    assert len(np.unique(numbers)) == len(numbers) and len(set(ends)) == 1


def test_a_part_of_a_generator_with_a_clock_keeps_it():
    clock = np.zeros(2, np.uint32)
    generator = PartOfDraws(Generator(3, DROPOUT, clock=clock), 4)
    generator.begin(slice(2, 4))
    assert generator.advance(16) == (3, DROPOUT, 0, 4, clock) and generator.offset == 8
