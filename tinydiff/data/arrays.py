"""Images from NumPy's own files: .npy with an array, .npz with several, labels among them or not."""

from __future__ import annotations

import math
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from tinydiff.data.dataset import Dataset, scaled_from
from tinydiff.data.layouts import Classes, Layout, Unfit, classes, layout, on_white, to_bytes
from tinydiff.data.pixels import resize
from tinydiff.data.sources import UNPACKED_AT_ONCE, open_member
from tinydiff.errors import InputError, named
from tinydiff.machine import limits
from tinydiff.machine.files import open_file

_STEP = 1 << 20  # bytes
_BY_STEPS = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED  # members of which no more is unpacked than was asked for
_LONG = 700  # characters of a message with a line to copy
# Names that others give, in small letters and digits: Keras, MedMNIST, scikit-learn, NumPy.
_IMAGES = (
    "images", "trainimages", "imagestrain", "xtrain", "trainx", "traindata", "datatrain", "x", "data", "image", "pictures",
    "imgs", "img", "samples", "arr0",
)  # fmt: skip
_LABELS = ("labels", "label", "y", "targets", "target", "classes", "class", "finelabels", "finelabel")
_NAMES = {"classnames", "labelnames", "targetnames", "classes", "names", "categories", "classlabels"}  # of classes
_PARTS = ("train", "test", "val")
_ALL_LABELS = {*_LABELS} | {joined for part in _PARTS for word in _LABELS for joined in (part + word, word + part)}


def read_arrays(path: Path, labels: bool | None = None, image_size: int | None = None) -> Dataset:
    """Images, with 1 to 4 channels, from an .npy or .npz file, read by the rules of `layouts.py`; `notes` says what was decided.

    path: the file's, a pathlib.Path. In an .npz the images are the first of `images`, `train_images`, `x_train`, `x`, `data` and
        so on, of `arr_0`, else the only array of uint8 that can be images, else the only one at all. Where those are single
        pictures, all single pictures in the file are read.
    labels: True demands labels, one for each image: `labels`, `label`, `y`, `target` or `classes`, or the same with `train`, as
        `y_train` and `train_labels`; None takes them if they are there, False ignores them.
    image_size: to which single pictures of several sizes are scaled.

    Nothing is unpickled. InputError for anything else in the file.
    """
    try:
        with open_file(path) as file:
            return _read(path, file, labels, image_size)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged file fails in zipfile, zlib, ast or NumPy, each in its own way
        reason = str(error).partition("\n")[0] or type(error).__name__
        if "pickle" in reason or "magic" in reason:  # NumPy's guesses for any file it does not know
            reason = (
                "it is neither an .npy nor an .npz file, or it holds Python objects, which are not read; save them as a plain "
                "array, np.save('new.npy', np.stack(list(x)))"
            )
        raise InputError(f"{path} cannot be read as a NumPy file: {reason}", limit=_LONG) from error


class _Header(NamedTuple):
    """What an .npy file says of its array before the array comes."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _read(path: Path, file: BinaryIO, labels: bool | None, image_size: int | None) -> Dataset:
    start = file.read(4)
    file.seek(0)
    if start[:2] != b"PK":
        header = _header(file)
        if labels:
            raise InputError(f"{path} holds no array named labels, only {_listing({'images': header})}")
        form = _fitting(path, "its array", header)
        return _dataset(path, [form.images(_array(path, file, header))], [form.said], None, image_size)
    with zipfile.ZipFile(file) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        headers = {}
        for name, info in members.items():
            with open_member(archive, info) as member:
                if member.read(6) == b"\x93NUMPY":
                    with open_member(archive, info) as again:
                        headers[name] = _header(again)

        def read(name: str) -> np.ndarray:
            with open_member(archive, members[name]) as member:
                step = _STEP if members[name].compress_type in _BY_STEPS else UNPACKED_AT_ONCE
                return _array(path, member, _header(member), step)

        chosen, label_name = _choose(path, headers)
        count = None if label_name is None or labels is False else headers[label_name].shape[:1]
        forms = [_fitting(path, name, headers[name], *(count or ())) for name in chosen]
        arrays = [form.images(read(name)) for name, form in zip(chosen, forms, strict=True)]
        notes = (
            [form.said for form in forms] if len(forms) == 1 else [f"{len(forms)} arrays are read as a picture each"]
        )
        known, used = None, None
        if labels is not False and label_name is not None:
            n, found = sum(map(len, arrays)), headers[label_name]
            known = (
                classes(read(label_name), n) if found.dtype.kind in "buifSU" and len(found.shape) in (1, 2) else None
            )
            if known is None:
                raise InputError(
                    f"{path}: {label_name} must be integers ({n},), one for each image, or one-hot rows, not {found.dtype} "
                    f"{found.shape}; give {named('labels', False)} to go without"
                )
            notes += [f"labels are those in {label_name}"] * (label_name != "labels") + [known.said]
        elif labels:
            raise InputError(f"{path} holds no array named labels, only {_listing(headers)}")
        names = [name for name in headers if _plain(name) in _NAMES and headers[name].dtype.kind in "US"]
        if known is not None and known.names is None and len(names) == 1:
            texts = [str(text) for text in read(names[0]).astype(str).ravel()]
            if len(texts) > known.labels.max() and len(set(texts)) == len(texts):
                known, used = known._replace(names=texts), names[0]
                notes.append(f"the classes' names are those in {used}")
        if rest := {name: headers[name] for name in headers if name not in (*chosen, label_name, used)}:
            notes.append(f"not used: {_listing(rest)}")
        return _dataset(path, arrays, notes, known, image_size)


def _dataset(
    path: Path, arrays: list[np.ndarray], notes: list[str], known: Classes | None, image_size: int | None
) -> Dataset:
    """The arrays (N, H, W, C) of one or several sizes, in one."""
    try:
        arrays, said = to_bytes(arrays)
    except Unfit as error:
        raise InputError(f"{path}: {error}", limit=_LONG) from None
    if len({x.shape[3] for x in arrays}) > 1:
        arrays = [on_white(x) if x.shape[3] in (2, 4) else x for x in arrays]
        arrays = [np.repeat(x, 3, axis=3) if x.shape[3] == 1 else x for x in arrays]
    sizes = {x.shape[1:3] for x in arrays}
    if len(sizes) > 1:
        if image_size is None:
            some = ", ".join(f"{height}x{width}" for height, width in sorted(sizes)[:3])
            raise InputError(
                f"{path} holds pictures of several sizes, as {some}, so give {named('image_size')} to crop and scale to"
            )
        arrays = [resize(x, image_size) for x in arrays]
    images = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return Dataset(
        images, None if known is None else known.labels, None if known is None else known.names, name=path.name,
        source=str(path), notes=[note for note in (*notes, said) if note], fitted=scaled_from(sizes) if len(sizes) > 1 else "",
    )  # fmt: skip


def _header(file: BinaryIO) -> _Header:
    """Reads the head of an .npy file; ValueError for one that makes no sense."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        header = _Header(*np.lib.format.read_array_header_1_0(file))
    elif version == (2, 0):
        header = _Header(*np.lib.format.read_array_header_2_0(file))
    else:
        raise ValueError(f"version {version} of .npy files is not read")
    if any(d < 0 for d in header.shape):
        raise ValueError(f"the shape {header.shape} makes no sense")
    if header.dtype.hasobject:
        raise ValueError("pickled objects")
    return header


def _array(path: Path, file: BinaryIO, header: _Header, step: int = _STEP) -> np.ndarray:
    """The array behind its header, and no memory for more than there is. step: bytes to read at once."""
    everything, _ = limits.memory()
    if everything is not None and header.size > everything // 2:
        raise InputError(f"{path} holds {header.size:,} bytes in one array, more than fit into memory")
    pieces, have = [], 0
    while have < header.size and (piece := file.read(min(step, header.size - have))):
        pieces.append(piece)
        have += len(piece)
    file.read(1)  # the end of an archived file, where its sum is checked
    if have < header.size:
        raise ValueError(f"it is cut off: {have:,} of {header.size:,} bytes are there")
    flat = np.frombuffer(b"".join(pieces), header.dtype)
    return flat.reshape(header.shape[::-1]).T if header.fortran else flat.reshape(header.shape)


def _choose(path: Path, arrays: dict[str, _Header]) -> tuple[list[str], str | None]:
    """The names of the arrays of images, several if each is a picture, and that of their labels, if there is one."""
    plain = {name: _plain(name) for name in arrays}
    likely = [name for wanted in _IMAGES for name in arrays if plain[name] == wanted][:1]
    fitting = [name for name in arrays if plain[name] not in _ALL_LABELS and _layout(arrays[name]) is not None]
    if not likely:
        many = [name for name in fitting if not _one(arrays[name]) and len(arrays[name].shape) > 2]
        many = [name for name in many if arrays[name].dtype == np.uint8] or many
        likely = many or [name for name in fitting if not _one(arrays[name])] or fitting
    if not likely or (len(likely) > 1 and not _one(arrays[likely[0]])):
        raise InputError(
            f"{path} needs an array named images, uint8 (N, H, W, C), and holds {_listing(arrays)}; save it anew as by "
            "np.savez('new.npz', images=x, labels=y)",
            limit=_LONG,
        )
    labels = _labels_for(likely[0], plain, arrays)
    if labels is None or arrays[labels].shape[:1] != arrays[likely[0]].shape[:1]:
        pictures = [
            name for name in fitting if _one(arrays[name]) and len(arrays[name].shape) == len(arrays[likely[0]].shape)
        ]
        if likely[0] in pictures and len(pictures) > 1:
            return pictures, labels
    return likely[:1], labels


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def _labels_for(images: str, plain: dict[str, str], arrays: dict[str, _Header]) -> str | None:
    """The name of the labels of the images: of the same part of the data set, if their name has one."""
    part = next((part for part in _PARTS if part in plain[images]), "")
    for each in (part, "") if part else ("", "train"):
        for word in _LABELS:
            for name in arrays:
                if plain[name] in (each + word, word + each):
                    return name
    count = arrays[images].shape[:1]
    near = [name for name in arrays if any(word in plain[name] for word in ("label", "lbl", "class", "target"))]
    near = [name for name in near if not any(other in plain[name] for other in _PARTS if other != part)]
    near = [n for n in near if arrays[n].dtype.kind in "iuUS" and arrays[n].shape in (count, (*count, 1))]
    if len(near) == 1:
        return near[0]
    second = arrays.get("arr_1")  # of np.savez(path, images, labels)
    if images == "arr_0" and second is not None and second.dtype.kind in "iu":
        return "arr_1" if second.shape in (arrays[images].shape[:1], (*arrays[images].shape[:1], 1)) else None
    return None


def _layout(header: _Header) -> Layout | None:
    with suppress(Unfit):
        return layout(header.shape) if header.dtype.kind in "buif" else None
    return None


def _one(header: _Header) -> bool:
    found = _layout(header)
    return found is not None and found.one


def _fitting(path: Path, name: str, header: _Header, count: int | None = None) -> Layout:
    if header.dtype.names:
        parts = ", ".join(f"{part}=x[{part!r}]" for part in header.dtype.names)
        raise InputError(
            f"{path}: {name} has fields; save them as arrays, as by np.savez('new.npz', {parts})", limit=_LONG
        )
    try:
        return layout(header.shape, count)
    except Unfit as error:
        raise InputError(
            f"{path} must hold images as uint8 (N, H, W) or (N, H, W, C) with 1 to 4 channels, not {header.dtype} "
            f"{header.shape}: of {name}, {error}", limit=_LONG
        ) from None  # fmt: skip


def _listing(arrays: dict[str, _Header]) -> str:
    return ", ".join(f"{name}: {array.dtype} {array.shape}" for name, array in arrays.items()) or "no arrays"
