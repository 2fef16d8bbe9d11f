"""How large settings may be, whoever gives them: what lies beyond is a mistake or an attack, and is refused before anything of
that size is made."""

from __future__ import annotations

from collections.abc import Sequence

from tinydiff.data.dataset import MOST_CLASSES
from tinydiff.errors import InputError, named
from tinydiff.machine import limits
from tinydiff.runs.memory import show

TIMESTEPS = 100_000
BLOCKS = 64  # residual blocks of a level
LEVELS = 12
WIDTH = 16_384  # channels of a level
IMAGE_SIZE = 4096
IMAGE_CHANNELS = 64
CLASSES = MOST_CLASSES + 1
BATCH = 65_536  # and batches to a step
THREADS = 256
STEPS = 10**12


def require_weights(widths: Sequence[float], blocks: int, copies: int = 1) -> None:
    """InputError if a U-Net has more weights than fit into memory: of each block two 3x3 convolutions, down and up.

    widths: the channels of its levels. blocks: of each level. copies: of the weights, as training needs several.
    """
    needed = copies * 4 * sum(2 * blocks * 2 * 9 * width**2 for width in widths)
    everything, _ = limits.memory()
    if everything is not None and needed > everything:
        raise InputError(
            f"a network with {blocks} blocks of {max(widths):g} channels needs more than {show(needed)} of memory, and this "
            f"machine has {show(everything)}"
        )


def require_step(images: int, size: int, channels: int) -> None:
    """InputError if an array (images, size, size, channels) of float32 does not fit into memory: the images of a step, or
    what the first layer makes of those of them that are computed at once."""
    needed = 4 * images * size**2 * channels
    everything, _ = limits.memory()
    if everything is not None and needed > everything:
        raise InputError(
            f"a step of {images:,} images of {size}x{size} needs more than {show(needed)} of memory, and this machine has "
            f"{show(everything)}; a smaller {named('batch_size')} needs less"
        )
