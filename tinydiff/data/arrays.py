"""Images from NumPy's own files: .npy with an array, .npz with `images` and perhaps `labels`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tinydiff.data.dataset import Dataset
from tinydiff.errors import InputError


def read_arrays(path: Path, labels: bool | None = None) -> Dataset:
    """Images uint8 (N, H, W) or (N, H, W, C) with 1 to 4 channels from an .npy or .npz file.

    path: the file's, a pathlib.Path. In an .npz the images are `images`, else `arr_0`, else the only uint8 array of three or four
        dimensions.
    labels: True demands an array `labels`, integers (N,); None takes it if there is one, False ignores it.

    Nothing is unpickled. InputError for anything else in the file.
    """
    arrays = _arrays(path)
    images = _checked(path, _pick_images(path, arrays))
    values = None if labels is False else arrays.get("labels")
    if labels and values is None:
        raise InputError(f"{path} holds no array named labels, only {_listing(arrays)}")
    return Dataset(images, values, name=path.name, source=str(path))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"images": loaded}
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged file fails in zipfile, zlib, ast or NumPy, each in its own way
        reason = str(error).partition("\n")[0] or type(error).__name__
        if "pickle" in reason:  # NumPy's guess for any file it does not know
            reason = "it is neither an .npy nor an .npz file, or it holds Python objects, which are not read"
        raise InputError(f"{path} cannot be read as a NumPy file: {reason}") from error


def _pick_images(path: Path, arrays: dict[str, np.ndarray]) -> np.ndarray:
    for name in ("images", "arr_0"):
        if name in arrays:
            return arrays[name]
    likely = [array for array in arrays.values() if array.dtype == np.uint8 and array.ndim in (3, 4)]
    if len(likely) != 1:
        raise InputError(f"{path} needs an array named images, uint8 (N, H, W, C), and holds {_listing(arrays)}")
    return likely[0]


def _checked(path: Path, images: np.ndarray) -> np.ndarray:
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or 0 in images.shape:
        raise InputError(
            f"{path} must hold images as uint8 (N, H, W) or (N, H, W, C), not {images.dtype} {images.shape}"
        )
    if images.ndim == 3:
        return images[..., None]
    if images.shape[3] > 4:
        hint = ", the channels must come last" if images.shape[1] <= 4 else ""
        raise InputError(f"{path} must hold images (N, H, W, C) with 1 to 4 channels, not {images.shape}{hint}")
    return images


def _listing(arrays: dict[str, np.ndarray]) -> str:
    return ", ".join(f"{name}: {array.dtype} {array.shape}" for name, array in arrays.items()) or "no arrays"
