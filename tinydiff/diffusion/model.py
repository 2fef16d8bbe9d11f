"""How diffusion calls a model: any `model(x, t, labels=None)` that returns an image-shaped tensor or array.

x is (N, H, W, C). t are integers 1..T of the schedule it was trained with, always (N,). labels are None or (N,)
integers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from tinydiff.autograd.tape import no_grad
from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import array_module, device_of, is_array, to_device, to_numpy
from tinydiff.errors import InputError


def call(model: Any, x: Any, t: Any, labels: Any = None) -> Any:
    """model(x, t) or model(x, t, labels), with t and labels, numbers or (N,), made (N,) int64 on x's device."""
    t = _per_image(t, x)
    return model(x, t) if labels is None else model(x, t, _per_image(labels, x))


def _per_image(values: Any, x: Any) -> Any:
    values = values.data if isinstance(values, Tensor) else values
    if np.ndim(values) == 0:
        values = np.full(x.shape[0], int(values))
    return to_device(array_module(values).asarray(values, "int64"), device_of(x))


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """A block without tape and with the model in eval mode. Its earlier mode returns afterwards, also after an
    error."""
    parts = list(model.modules()) if hasattr(model, "modules") else [model]
    training = [part for part in parts if getattr(part, "training", False)]
    if training:
        model.eval()
    try:
        with no_grad():
            yield
    finally:
        for part in training:
            part.training = True


class Predictor:
    """A model as sampling and evaluation use it: in eval mode, without tape, with labels and guidance applied.

    Classifier-free guidance (Ho & Salimans, 2022) moves the prediction away from the model's prediction without a
    label: null + guidance * (conditional - null), on the prediction channels. The variance channels stay the
    conditional ones. Both halves are one batch of twice the size. With guidance None or 1 the model is called once.

    InputError for labels that do not fit the model or the number of images n, for guidance that is not a finite number,
    and for guidance without labels or with a model that has no `null_label`.
    """

    def __init__(self, model: Any, n: int, labels: Any = None, guidance: float | None = None) -> None:
        self.model, self.labels, self.guidance = model, check_labels(model, labels, n), None
        self._labels: dict[str, Any] = {}  # by device
        if guidance is None or guidance == 1:
            return
        if not isinstance(guidance, int | float | np.number) or not math.isfinite(guidance):
            raise InputError(f"guidance must be a finite number, not {guidance!r}")
        null = getattr(model, "null_label", None)
        if null is None:
            raise InputError(
                "guidance needs a model with a null label, one that was trained with label dropout; this one has none"
            )
        if labels is None:
            raise InputError("guidance needs labels: it strengthens what distinguishes a label from none")
        self.guidance = float(guidance)
        self.labels = np.concatenate([self.labels, np.full(n, null)])

    def __call__(self, x: Any, t: Any) -> Any:
        """The model's output for images x at t, a number or (N,), as an array of x's dtype."""
        xp, device = array_module(x), device_of(x)
        if self.labels is not None and device not in self._labels:
            self._labels[device] = to_device(self.labels, device)
        labels = self._labels.get(device)
        with evaluating(self.model):
            if self.guidance is None:
                return _plain(call(self.model, x, t, labels), x)
            twice = xp.concatenate([x, x])
            t = t if np.ndim(t) == 0 else array_module(t).concatenate([t, t])
            both = _plain(call(self.model, twice, t, labels), x)
        conditional, null = both[: len(x)], both[len(x) :]
        channels = x.shape[-1]
        prediction = null[..., :channels] + self.guidance * (conditional[..., :channels] - null[..., :channels])
        return xp.concatenate([prediction, conditional[..., channels:]], axis=-1)


def _plain(output: Any, x: Any) -> Any:
    output = output.data if isinstance(output, Tensor) else output
    return output.astype(x.dtype, copy=False) if is_array(output) else array_module(x).asarray(output, x.dtype)


def check_labels(model: Any, labels: Any, n: int) -> np.ndarray | None:
    """Labels, a number or (n,), as (n,) int64 on the host, or None. InputError if they do not fit the model or n."""
    if labels is None:
        return None
    try:
        labels = to_numpy(labels.data if isinstance(labels, Tensor) else labels)
    except ValueError:  # lists in it of several lengths
        raise InputError(f"labels must be one integer or {n} of them, one per image") from None
    if labels.dtype.kind not in "iu" or labels.shape not in ((), (n,)):
        raise InputError(
            f"labels must be one integer or {n} of them, one per image, not {labels.dtype} of shape {labels.shape}"
        )
    classes = getattr(model, "num_classes", -1)
    if classes is None:
        raise InputError("this model was trained without labels, so it takes none")
    if classes >= 0 and labels.size and (labels.min() < 0 or labels.max() >= classes):
        low, high = int(labels.min()), int(labels.max())
        raise InputError(
            f"labels must be in 0..{classes - 1} for this model, not {low if low == high else f'{low}..{high}'}"
        )
    return np.array(np.broadcast_to(labels, (n,)), np.int64)


def model_device(model: Any) -> str:
    """The device of the model's first parameter; "cpu" for a model without parameters."""
    first = next(iter(model.parameters()), None) if hasattr(model, "parameters") else None
    return first.device if isinstance(first, Tensor) else "cpu"
