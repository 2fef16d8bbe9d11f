"""Arrays as others store them, made into images and labels: each layout, range and form of labels by one rule, which is
told."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tinydiff.errors import InputError

_BITS = (8, 10, 12, 14, 16)
_SLACK = 1e-3  # by which rounding takes floats out of their range
_DARK = 16  # floats from 0 to less than this are no bytes
_LEAST = 8  # pixels a side of one grey picture, and 4 of one in colour and of a row of values


class Unfit(InputError):
    """The array is no images, by a reason; `line` converts x with NumPy."""

    def __init__(self, reason: str, line: str) -> None:
        self.reason, self.line = reason, line
        super().__init__(f"{reason}; convert it in NumPy: {line}", limit=700)


class Layout(NamedTuple):
    """An array x holds the images x.reshape(shape).transpose(axes), (N, H, W, C). one: it is a single picture. said: the
    rule that was followed, "" where there was no choice."""

    shape: tuple[int, ...]
    axes: tuple[int, ...] = (0, 1, 2, 3)
    one: bool = False
    said: str = ""

    def images(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(self.shape).transpose(self.axes)


def layout(shape: tuple[int, ...], count: int | None = None) -> Layout:
    """How an array of that shape holds images.

    count: of the labels beside it, which decides whether it is one picture; None without labels.

    Four dimensions are (N, H, W, C), or (N, C, H, W) where only the second is 1 to 4, or (H, W, C, N) where the third is and
    H = W. Three are one picture (H, W, C) if the last is 1 to 4 and the others are more, (H, W, N) if only the first two are
    equal, else (N, H, W). Two are N rows of a square grey picture, or of its red, green and blue planes, else one grey picture.
    Unfit for other shapes.
    """
    if 0 in shape:
        raise Unfit("it is empty", "np.save('new.npy', x) of an array with at least one image")
    if len(shape) == 4:
        return _four(shape)
    if len(shape) == 3:
        return _three(shape, count)
    if len(shape) == 2:
        return _two(shape, count)
    if len(shape) > 4 and 1 in shape:
        raise Unfit(f"{len(shape)} dimensions are too many", "np.save('new.npy', np.squeeze(x))")
    target = "x.reshape(-1, *x.shape[-3:])" if len(shape) > 4 else "x.reshape(-1, height, width)"
    raise Unfit(
        f"{len(shape)} dimension{'s are too many' if len(shape) > 4 else ' is too few'}",
        f"np.save('new.npy', {target})",
    )


def _four(shape: tuple[int, ...]) -> Layout:
    n, second, third, last = shape
    if last <= 4:
        said = {2: "2 channels are read as grey with alpha", 4: "4 channels are read as RGBA"}.get(last, "")
        return Layout(shape, said=said)
    if second <= 4:
        return Layout(shape, (0, 2, 3, 1), said="the channels come first, (N, C, H, W)")
    if third <= 4 and n == second:
        return Layout(shape, (3, 0, 1, 2), said="the number of pictures comes last, (H, W, C, N)")
    reason = "its images need 1 to 4 channels, in the last dimension or in the second"
    if third <= 4:
        raise Unfit(reason, "np.save('new.npy', x.transpose(3, 0, 1, 2))")
    if n in (1, 3):
        raise Unfit(reason, "np.save('new.npy', x.transpose(1, 2, 3, 0))")
    raise Unfit(reason, "np.save('new.npy', x[..., :3])")


def _three(shape: tuple[int, ...], count: int | None) -> Layout:
    first, second, last = shape
    if count is not None and count == first != 1:
        return Layout((*shape, 1))
    if last <= 4 and min(first, second) > 4:
        return Layout((1, *shape), one=True, said="it is read as one picture (H, W, C), since its last dimension is "
                      f"{last} and no other is that small")  # fmt: skip
    if first == second != last:
        return Layout(
            (*shape, 1), (2, 0, 1, 3), said="the number of pictures comes last, (H, W, N), since so they are square"
        )
    if first == 3 and count is None:
        return Layout(
            (*shape, 1), said="it is read as 3 grey pictures (N, H, W); one picture (C, H, W) would be x[None]"
        )
    return Layout((*shape, 1))


def _two(shape: tuple[int, ...], count: int | None) -> Layout:
    n, values = shape
    many = n != values or count == n
    for planes in (1, 3):
        side = round((values / planes) ** 0.5)
        if many and side >= 4 and side * side * planes == values:
            colour = " in colour, a plane for red, for green and for blue" if planes == 3 else ""
            return Layout(
                (n, planes, side, side), (0, 2, 3, 1), said=f"each row is read as a picture of {side}x{side}{colour}"
            )
    side = round((values - 1) ** 0.5) if values > 1 else 0
    if side >= 4 and side * side == values - 1:
        raise Unfit(
            f"{values} values a row are a picture of {side}x{side} and one more, perhaps a label",
            "np.savez('new.npz', images=x[:, 1:], labels=x[:, 0])",
        )
    if min(shape) >= _LEAST and max(shape) <= 8 * min(shape) and count in (None, 1):
        return Layout((1, *shape, 1), one=True, said="it is read as one grey picture (H, W)")
    raise Unfit("its rows are no square pictures", "np.save('new.npy', x.reshape(-1, height, width))")


def to_bytes(images: list[np.ndarray]) -> tuple[list[np.ndarray], str]:
    """The arrays as uint8, and what was done in words, by the range of the values of all of them together.

    bool: black and white. Floats: from [-1, 1] if some are negative, from [0, 1] if none is above 1, else from [0, 255].
    Integers: from 0..255, 0..1023, 0..4095, 0..16383 or 0..65535, the first that holds them all; wider ones that are all 0
    or 1 are black and white. Unfit for other values.
    """
    dtypes = sorted({str(x.dtype.newbyteorder("=")) for x in images})
    if dtypes == ["uint8"]:
        dark = max(int(x.max()) for x in images) == 1
        return images, "all values are 0 or 1 of 0..255, which is black; multiply them by 255" if dark else ""
    if any(x.dtype.kind not in "buif" for x in images):
        raise Unfit(f"{', '.join(dtypes)} are no numbers of pixels", "np.save('new.npy', x.astype(np.uint8))")
    low, high = float(min(x.min() for x in images)), float(max(x.max() for x in images))
    if not (np.isfinite(low) and np.isfinite(high)):
        raise Unfit("it holds NaN or infinite values", "np.save('new.npy', np.nan_to_num(x, posinf=1, neginf=0))")
    kind = ", ".join(dtypes)
    if any(x.dtype.kind == "f" for x in images):
        offset, white, said = _float_range(low, high)
    else:
        offset, white, said = _integer_range(low, high, all(x.dtype.kind == "b" for x in images))
    return [_scaled(x, offset, white) for x in images], f"{kind} values are read as {said}"


def _float_range(low: float, high: float) -> tuple[float, float, str]:
    where = f"its floats lie in {low:.4g}..{high:.4g}, and images are floats in [0, 1], [-1, 1] or [0, 255]"
    line = "np.save('new.npy', (x - x.min()) / (x.max() - x.min()))"
    if low < -_SLACK:
        if low < -1 - _SLACK or high > 1 + _SLACK:
            raise Unfit(where, line)
        return 1, 2, "[-1, 1], since some are negative"
    if high <= 1 + _SLACK:
        return 0, 1, "[0, 1], since none is negative or above 1"
    if _DARK <= high <= 255 + 255 * _SLACK:
        return 0, 255, "[0, 255], since some are above 1"
    raise Unfit(where, line)


def _integer_range(low: float, high: float, black_and_white: bool) -> tuple[float, float, str]:
    if black_and_white:
        return 0, 1, "black and white"
    if low < 0:
        shift = low >= -128 and high <= 127
        line = "(x.astype(int) + 128).astype(np.uint8)" if shift else "(x - x.min()) / (x.max() - x.min())"
        line = "x.astype(float)" if low == -1 and high <= 1 else line
        raise Unfit(
            f"its integers lie in {low:.0f}..{high:.0f}, and pixels are not negative", f"np.save('new.npy', {line})"
        )
    if high == 1:
        return 0, 1, "black and white, since all are 0 or 1"
    for bits in _BITS:
        if high < 2**bits:
            return (
                0,
                2**bits - 1,
                f"0..{2**bits - 1}, the least range of {', '.join(map(str, _BITS))} bits that holds them",
            )
    raise Unfit(f"its integers reach {high:.0f}, more than 16 bits", "np.save('new.npy', x / x.max())")


def _scaled(x: np.ndarray, offset: float, white: float) -> np.ndarray:
    """round((x + offset) / white * 255) as uint8, an image at a time, for the memory."""
    out = np.empty(x.shape, np.uint8)
    for target, image in zip(out, x, strict=True):
        target[...] = np.rint(np.clip((image.astype(np.float64) + offset) * (255 / white), 0, 255))
    return out


def on_white(images: np.ndarray) -> np.ndarray:
    """uint8 images (N, H, W, 2) or (N, H, W, 4), whose last channel is alpha, on white without it."""
    out = np.empty((*images.shape[:-1], images.shape[-1] - 1), np.uint8)
    for target, image in zip(out, images, strict=True):
        colours, alpha = image[..., :-1].astype(np.uint32), image[..., -1:].astype(np.uint32)
        target[...] = (colours * alpha + 255 * (255 - alpha) + 127) // 255
    return out


class Classes(NamedTuple):
    """labels: integers (N,). names: of the classes 0, 1, ..., or None. said: what was done to them."""

    labels: np.ndarray
    names: list[str] | None = None
    said: str = ""


def classes(values: np.ndarray, count: int) -> Classes | None:
    """The classes that an array gives for so many images: whole numbers (N,) or (N, 1), one-hot rows (N, K), or texts. None
    for another array."""
    if values.ndim > 1 and values.size == count == len(values):
        values = values.reshape(count)
    said = ""
    if values.ndim == 2 and len(values) == count and values.dtype.kind in "buif":
        if not (((values == 0) | (values == 1)).all() and (values.sum(axis=1) == 1).all()):
            return None
        return Classes(values.argmax(axis=1), [str(i) for i in range(values.shape[1])], "labels are one-hot")
    if values.shape != (count,):
        return None
    if values.dtype.kind in "US":
        texts = np.array([v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values.tolist()])
        names, labels = np.unique(texts, return_inverse=True)
        return Classes(labels.reshape(count), names.tolist(), "labels are texts, the classes in their order")
    if values.dtype.kind == "f":
        if not (np.isfinite(values).all() and (values == np.rint(values)).all() and np.abs(values).max() < 2**53):
            return None
        values, said = values.astype(np.int64), "labels are whole floats"
    elif values.dtype.kind == "b":
        values = values.astype(np.int64)
    return renumbered(values, said) if values.dtype.kind in "iu" else None


def renumbered(labels: np.ndarray, said: str = "") -> Classes:
    """Integer labels (N,) without empty classes, named by their old numbers, where they do not begin at 0 or most numbers up to
    the largest have no image; else as they are."""
    used, positions = np.unique(labels, return_inverse=True)
    if used[0] < 0 or (used[0] == 0 and 2 * len(used) > int(used[-1])):
        return Classes(labels, said=said)
    told = f"labels {used[0]}..{used[-1]} are {len(used):,} classes, which keep their numbers as names"
    return Classes(
        positions.reshape(labels.shape), [str(number) for number in used], f"{said}{'; ' * bool(said)}{told}"
    )
