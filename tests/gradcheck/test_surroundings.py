"""tinydiff/gradcheck/surroundings.py: what functions have beside their arguments."""

import functools

import numpy as np

from tinydiff.gradcheck.surroundings import attributes, objects_in, random_sources, restore

GLOBAL = np.random.default_rng(0)


class Slotted:
    __slots__ = ("x",)


class Holder:
    def __init__(self):
        self.layers, self.rng = [Slotted(), {"inner": Slotted()}], np.random.RandomState(0)

    def forward(self, x):
        return x


def test_generators_wherever_they_are():
    inner = np.random.default_rng(1)
    assert random_sources([lambda x: inner.normal() * x]) == [inner]
    assert random_sources([lambda x: GLOBAL.normal() * x]) == [GLOBAL]
    assert random_sources([lambda x, rng=inner: x]) == [inner] == random_sources([functools.partial(max, inner)])
    holder = Holder()
    assert random_sources([holder.forward]) == [holder.rng]


def test_objects_inside_of_objects():
    holder = Holder()
    holder.layers[0].x, holder.layers[1]["inner"].x = holder, 1  # one that holds its holder, too
    assert objects_in([holder, np.zeros(3), "text"]) == [holder, holder.layers[0], holder.layers[1]["inner"]]


def test_attributes_are_given_back():
    one, two = Slotted(), Holder()
    before = attributes(one), attributes(two)
    assert before[0] == {} and set(before[1]) == {"layers", "rng"}
    one.x, two.new, two.layers = 1, 2, 3
    restore(one, before[0])
    restore(two, before[1])
    assert attributes(one) == {} and attributes(two) == before[1]
