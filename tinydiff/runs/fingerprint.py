"""What a run remembers of its data, to notice on a resume that they are others.

A checkpoint carries the fingerprint, so the two are replaced together. Where the data lie is not part of it: they may move.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tinydiff.data import Dataset
from tinydiff.errors import InputError, named, shown

NAME = "data"  # of the text in a checkpoint's training state
CHANGES = "data_changes"  # of the text with what was accepted, a sentence for each change


@dataclass(frozen=True)
class Fingerprint:
    """Of a data set and what is held out of it.

    count, held_out: numbers of images. size: (H, W, C). num_classes, class_names: None without labels.
    pixels, labels: SHA-256 of images and of labels, held-out ones included, in their order; labels is None without them.
    """

    count: int
    held_out: int
    size: tuple[int, int, int]
    num_classes: int | None
    class_names: tuple[str, ...] | None
    pixels: str
    labels: str | None

    def text(self) -> str:
        """As JSON, in ASCII."""
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        classes = "" if self.num_classes is None else f", {_count(self.num_classes, 'class', 'classes')}"
        held_out = f", {self.held_out} held out" if self.held_out else ""
        size = "x".join(map(str, self.size))
        return f"{_images(self.count)} {size}{classes}{held_out}, fingerprint {self.pixels[:12]}"


def of(data: Dataset, labelled: bool) -> Fingerprint:
    """The fingerprint of the data. labelled: whether their labels are used."""
    parts = [data] if data.held_out is None else [data, data.held_out]
    labelled = labelled and data.labels is not None
    names = None if not labelled or data.class_names is None else tuple(data.class_names)
    return Fingerprint(
        len(data),
        sum(map(len, parts[1:])),
        (*data.image_size, data.channels),
        data.num_classes if labelled else None,
        names,
        _digest([part.images for part in parts]),
        _digest([np.asarray(part.labels, "<i8") for part in parts]) if labelled else None,
    )


def read(text: str, where: object) -> Fingerprint:
    """The fingerprint in a text that `Fingerprint.text` made; InputError, which begins with `where`, for another."""
    try:
        values = json.loads(text)
        names = values["class_names"]
        found = Fingerprint(
            **values | {"size": tuple(values["size"]), "class_names": None if names is None else tuple(names)}
        )
        numbers = (found.count, found.held_out, *found.size)
        texts = (found.pixels, found.labels or "", *(found.class_names or ()))
        if not all(type(n) is int for n in numbers) or not all(isinstance(t, str) for t in texts) or len(numbers) != 5:
            raise ValueError("its values are of other kinds")
        return found
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"{where}: the fingerprint of the data is damaged: {error}") from None


def metadata(fingerprint: Fingerprint, accepted: list[str]) -> dict[str, str]:
    """For a checkpoint: the fingerprint of the data, and the changes of it that were accepted."""
    return {NAME: fingerprint.text(), CHANGES: json.dumps(accepted)}


def changes(text: str | None) -> list[str]:
    """The sentences on earlier changes that a checkpoint carries; none where they cannot be read."""
    try:
        found = json.loads(text or "[]")
    except (ValueError, RecursionError):
        return []
    return [line for line in found if isinstance(line, str)] if isinstance(found, list) else []


def check(before: Fingerprint, now: Fingerprint, accept: bool, folder: Any) -> str | None:
    """What has changed, where that is accepted; None where nothing has.

    InputError, which says what has changed, where the run in `folder` would learn something wrong from these data, and, without
    `accept`, where they are merely others.
    """
    if before == now:
        return None
    wrong = _wrong(before, now)
    if wrong is not None:
        raise InputError(
            f"the data are not those of the run in {folder}: {wrong}; give the data it was made with, or begin a new run"
        )
    what = _different(before, now)
    if not accept:
        raise InputError(
            f"the data are not those of the run in {folder}: {what}; {named('data_changed', True)} goes on with them all the "
            "same, but not bit for bit as with the old"
        )
    return what


def _wrong(before: Fingerprint, now: Fingerprint) -> str | None:
    """What makes a network that has learnt from `before` useless for `now`."""
    if before.size != now.size:
        return f"the images are {_size(now)} and were {_size(before)} (height x width x channels)"
    if (before.labels is None) != (now.labels is None):
        return "they have labels now and had none" if before.labels is None else "they have no labels and had some"
    if before.num_classes == now.num_classes and (before.pixels, before.labels) == (now.pixels, now.labels):
        return None  # classes that are called otherwise
    old, new = before.class_names, now.class_names
    if old is not None and new is not None and old != new:
        gone, added = [n for n in old if n not in new], [n for n in new if n not in old]
        if not gone and not added:
            first = next(i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b)
            return f"the classes are in another order, so class {first} is {shown(new[first])!r} and was {shown(old[first])!r}"
        parts = [f"{verb} {_listed(names)}" for verb, names in (("without", gone), ("with the new", added)) if names]
        return f"the classes are others, {' and '.join(parts)}"
    if before.num_classes != now.num_classes:
        return f"there are {now.num_classes} classes and were {before.num_classes}"
    if (old is None) != (new is None):
        return "the classes have names now and had none" if old is None else "the classes have no names and had some"
    return None


def _different(before: Fingerprint, now: Fingerprint) -> str:
    parts = []
    if before.class_names != now.class_names and before.pixels == now.pixels:
        pairs = zip(before.class_names or (), now.class_names or (), strict=False)
        renamed = [f"{shown(a, 40)} is called {shown(b, 40)}" for a, b in pairs if a != b]
        parts.append(", ".join(renamed[:3]) + ", ..." * (len(renamed) > 3) or "the names of the classes")
    if before.count + before.held_out != now.count + now.held_out:
        parts.append(f"{_images(now.count + now.held_out)} instead of {before.count + before.held_out}")
    if (before.count, before.held_out) != (now.count, now.held_out):
        if before.held_out or now.held_out:
            parts.append(f"{now.held_out} held out instead of {before.held_out}")
    elif before.pixels != now.pixels:
        parts.append("as many images, but other pixels or another order")
    elif before.labels != now.labels:
        parts.append("the same images with other labels")
    return " and ".join(parts)


def _digest(arrays: list[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _listed(names: list[str]) -> str:
    return ", ".join(repr(shown(name, 40)) for name in names[:3]) + (", ..." if len(names) > 3 else "")


def _size(fingerprint: Fingerprint) -> str:
    return "x".join(map(str, fingerprint.size))


def _images(n: int) -> str:
    return _count(n, "image", "images")


def _count(n: int, one: str, many: str) -> str:
    return f"{n} {one if n == 1 else many}"
