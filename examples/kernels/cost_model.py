"""A cost model for the rungs of the ladder. What it says is predicted, not measured.

A kernel takes as long as the slowest of what it needs, and no longer: arithmetic, reads by its warps, bytes from the L2 cache,
bytes from memory. Blocks run in rounds of one on each multiprocessor; a round that is not full leaves some of them idle.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """What a GPU does at most. The bandwidths are what programs reach, which is less than data sheets say."""

    name: str = "H100"
    multiprocessors: int = 132
    clock: float = 1.75e9  # Hz
    memory: float = 2.9e12  # bytes a second, copying
    l2: float = 5.5e12  # bytes a second
    warps_multiplying: int = 4  # warps whose multiplications and additions a multiprocessor does in a cycle
    on_tensor_cores: int = 20  # the same by mma in TF32, 62 % of what the data sheet says
    launch: float = 2e-6  # seconds that even an empty kernel takes


@dataclass(frozen=True)
class Rung:
    """What a kernel does. tile: rows and columns of Y that a block computes. reads: cycles that a multiprocessor's shared
    memory or L1 cache needs for a warp, per multiplication of the warp. parts: of the sum. tensor_cores: they multiply."""

    tile: tuple[int, int]
    reads: float
    parts: int = 1
    tensor_cores: bool = False


def predict(rung, M, N, K, card=Card()):
    """Seconds for Y (M, N) = A (M, K) B (K, N), and what bounds them."""
    tiles = math.ceil(M / rung.tile[0]) * math.ceil(N / rung.tile[1])
    blocks = tiles * rung.parts
    rounds = math.ceil(blocks / card.multiprocessors)
    warp_multiplications = rung.tile[0] * rung.tile[1] * math.ceil(K / rung.parts) / 32  # of a block
    cycles = {
        "arithmetic": warp_multiplications / (card.on_tensor_cores if rung.tensor_cores else card.warps_multiplying),
        "reads by warps": warp_multiplications * rung.reads,
    }
    seconds = {name: rounds * c / card.clock for name, c in cycles.items()}
    seconds["bytes from L2"] = 4 * K * tiles * sum(rung.tile) / card.l2
    more = 2 * rung.parts * M * N if rung.parts > 1 else 0
    seconds["bytes from memory"] = 4 * (M * K + K * N + M * N + more) / card.memory
    bound = max(seconds, key=seconds.__getitem__)
    return seconds[bound] + card.launch * (1 if rung.parts == 1 else 2), bound
