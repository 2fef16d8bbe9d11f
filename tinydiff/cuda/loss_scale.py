"""The launch that moves fp16's loss scale after a step, by the kernel in kernels/loss_scale.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinydiff.cuda.launch import launch
from tinydiff.ops.optim import GOOD_STEPS, LEAST_SCALE, MOST_SCALE

SOURCE = "loss_scale.cu"
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = ((SOURCE, {}),)


def launch_move_loss_scale(state: Any, factor: Any, clock: Any, failed: Any) -> None:
    """`ops.optim.move_loss_scale` on the device. state: float32 (2,). factor: float32 (1,), what `launch_squared_norm` made, NaN
    where the step is not finite; it becomes NaN after a failure. clock, failed: as in `updates.Prepared`; failed becomes the
    number of the step where it is not finite with the least scale."""
    numbers = np.float32(LEAST_SCALE), np.float32(MOST_SCALE), np.int32(GOOD_STEPS)
    launch(SOURCE, "move_loss_scale", (1, 1, 1), (32, 1, 1), (state, factor, clock, failed, *numbers))
