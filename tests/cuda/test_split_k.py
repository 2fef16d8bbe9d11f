"""kernels/split_k.cuh and tinydiff/cuda/split_k.py alone, bit for bit: parts are added in groups of 8, in their order."""

from pathlib import Path

import numpy as np
import pytest

from tinydiff.cuda import launch, split_k

FILE = str(Path(__file__).with_suffix(".cu"))


def in_groups(x):
    """The sum over the first axis."""
    while len(x) > 1:
        x = [sum(x[i : i + split_k.GROUP], np.float32(0)) for i in range(0, len(x), split_k.GROUP)]
    return x[0]


# One part; a group that is full, and one more; groups of groups; three levels of them.
@pytest.mark.parametrize("parts", [1, 3, 8, 9, 18, 73])
def test_parts_of_several_tiles(device, parts):
    numbers = 128  # of a thread: of more than 64, 64 are added after the others
    tiles = 3, 2
    x = np.random.default_rng(parts).standard_normal((parts, 6, numbers, 32)).astype(np.float32)

    def run(x, Y):
        memory, counters = split_k.slots(device.xp, parts, 6, 32 * numbers)
        if parts > 1:  # no more than are said to be needed
            counters = counters[: 6 * split_k.counters_of_tile(parts)].copy()
        args = x, Y, memory, counters
        launch.launch(FILE, "add_up", (*tiles, parts), (32, 1, 1), args, defines={"NUMBERS": numbers})
        return Y, counters

    for seed in (1, 2):  # of the order of blocks
        Y, counters = device.run(run, x, np.full(x.shape[1:], np.nan, np.float32), seed=seed)
        np.testing.assert_array_equal(Y, in_groups(x))
        assert parts == 1 or not counters.any()
