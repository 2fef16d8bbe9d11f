"""What the functions on images share in reading their arguments."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import device_of, is_array, is_float, to_numpy


def as_images(**images: Any) -> list[Any]:
    """The images as tensors or arrays. TypeError unless floating point, ValueError unless all have one shape."""
    found = {k: x if isinstance(x, Tensor) or is_array(x) else np.asarray(x, np.float32) for k, x in images.items()}
    for name, x in found.items():
        if not is_float(x.dtype):
            raise TypeError(f"{name} must be floating point in [-1, 1] (byte k is k / 127.5 - 1), not {x.dtype}")
        if not x.ndim:
            raise ValueError(f"{name} must have images along its first axis, not shape ()")
    if len({x.shape for x in found.values()}) > 1:
        shapes = " and ".join(f"{name} {x.shape}" for name, x in found.items())
        raise ValueError(f"the images must have one shape, not {shapes}")
    return list(found.values())


def as_steps(t: Any, n: int, T: int, first: int = 1, stay: bool = False) -> Any:
    """t as int64 on the host, () or (n,). TypeError unless integers, ValueError outside first..T or of other length.

    stay: leaves t (n,) on the GPU if it is there; then its values are not looked at."""
    t = t.data if isinstance(t, Tensor) else t
    if stay and device_of(t) != "cpu" and t.dtype == np.int64 and t.shape == (n,):
        return t
    t = to_numpy(t)
    if t.dtype.kind not in "iu":
        raise TypeError(f"t must be integers, not {t.dtype}")
    if t.shape not in ((), (n,)):
        raise ValueError(f"t must be a number or have one element per image, ({n},), not shape {t.shape}")
    if t.size and not (first <= t.min() and t.max() <= T):
        raise ValueError(f"t must be in {first}..{T}, not {t.min()}..{t.max()}")
    return t.astype(np.int64)
