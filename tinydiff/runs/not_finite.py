"""A loss that became infinite or NaN, and where it began."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tinydiff import optim
from tinydiff.autograd import tape
from tinydiff.errors import RunFailed

OTHERWISE = "the norm of the gradient"  # where all else is finite


class NotFinite(RunFailed):
    """The loss, or the norm of its gradient, became infinite or NaN. message, limit: as for `RunFailed`."""

    @classmethod
    def at(cls, step: int, loss: float, cause: str, saved: int | None, lr: str) -> NotFinite:
        """The failure of a step by its loss. cause: of the first bad value. saved: the step of the last checkpoint. lr: what the
        learning rate is called."""
        kept = f"the checkpoint of step {saved} is kept" if saved else "there is no checkpoint yet"
        return cls(
            f"the loss became {loss:g} at step {step}: the first value that is not finite came from {cause}; {kept}; "
            f"try a lower {lr}"
        )


def first_non_finite(gradients: Callable[[], Any], parameters: Sequence[Any]) -> str:
    """What made the first value that is not finite. gradients: computes those of a step once more; it is the same step, so it
    fails at the same place."""
    try:
        with tape.check_finite(), np.errstate(all="ignore"):
            gradients()
            optim.clip_grad_norm(parameters, math.inf)
    except tape.NonFiniteError as error:
        return str(error)
    return OTHERWISE
