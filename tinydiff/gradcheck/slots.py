"""Parameters that a layer or a network written by hand keeps in itself, and where it puts their gradients."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tinydiff.errors import InputError
from tinydiff.gradcheck.surroundings import attributes, is_object, restore
from tinydiff.gradcheck.trees import base_of, key_of

VALUES = ("value", "data", "array", "w", "val")  # attributes of a parameter that is an object
CONTAINERS = ("grads", "grad", "gradients", "dparams")  # attributes that hold all gradients


class Slot:
    """One array: in an attribute of an object, or under a key of a dict or list."""

    def __init__(self, name: str, holder: Any, key: Any, owners: Sequence[Any], gradient: str | None = None) -> None:
        """owners: the objects that may keep its gradient. gradient: the attribute that does, if it is known."""
        self.name, self.holder, self.key, self.owners, self.gradient = name, holder, key, list(owners), gradient
        self.place: int | None = None  # in a list of all parameters, and so in the list of all gradients
        self.kept = self.get()

    def get(self) -> Any:
        return self.holder[self.key] if isinstance(self.holder, dict | list) else getattr(self.holder, self.key)

    def put(self, value: Any) -> None:
        """In place where that loses no digits, so that other names of the same array see it too."""
        if self.kept.dtype == getattr(value, "dtype", None) and self.kept.flags.writeable:
            self.kept[...] = value
            value = self.kept
        if isinstance(self.holder, dict | list):
            self.holder[self.key] = value
        else:
            setattr(self.holder, self.key, value)

    def read(self) -> Any:
        """The gradient that backward has stored, or None."""
        for own in dict.fromkeys([self.key if isinstance(self.key, str) else self.name, self.name]):
            if (found := self._found(own)) is not None:
                return found
        return None

    def _found(self, own: str) -> Any:
        """The gradient that stands under one of the names of the gradient of `own`."""
        for owner in self.owners:
            names = {n: v for n, v in attributes(owner).items() if v is not None}
            if self.gradient is not None:
                if self.gradient in names:
                    return names[self.gradient]
                continue
            if (key := key_of(own, {n: 0 for n in names if n != own})) is not None:
                return names[key]
            for container in (names[c] for c in CONTAINERS if c in names):
                if isinstance(container, Mapping) and (key := key_of(own, container)) is not None:
                    return container[key]
                if isinstance(container, list | tuple) and self.place is not None and self.place < len(container):
                    return container[self.place]
        return None


def find_slots(parameters: Any, owners: Sequence[Any]) -> list[Slot]:
    """The arrays that `parameters` names: names of attributes, a dict of arrays, or {attribute: attribute of its gradient}, or
    an object, all of whose arrays with a gradient beside them count."""
    if isinstance(parameters, str):
        parameters = [parameters]
    if isinstance(parameters, Mapping):
        if all(isinstance(v, str) for v in parameters.values()):
            return [_of_attribute(name, owners, gradient) for name, gradient in parameters.items()]
        return [_of_entry(parameters, name, owners) for name, a in parameters.items() if _is_floating(a)]
    if isinstance(parameters, Iterable) and not _is_floating(parameters):
        parameters = list(parameters)
        if all(isinstance(p, str) for p in parameters):
            return [_of_attribute(name, owners) for name in parameters]
        if all(_is_floating(p) for p in parameters):
            return [_of_array(a, i, parameters, owners) for i, a in enumerate(parameters)]
        if all(map(is_object, parameters)):
            slots = [_of_object(p, f"[{i}]") for i, p in enumerate(parameters)]
            return [s for some in slots for s in some]
    elif is_object(parameters):
        return _of_object(parameters)
    raise InputError(
        "parameters beside a backward are names of attributes, a dict of arrays or layers, not "
        f"{type(parameters).__name__}"
    )


def slots_of_keys(keys: Sequence[str], owner: Any) -> list[Slot]:
    """The parameters of an object that gradients with these names belong to. InputError for a name that fits none."""
    slots = []
    boxes = [b for b in attributes(owner).values() if isinstance(b, dict)]
    for key in keys:
        for holder, has in (*((b, b.__contains__) for b in boxes), (owner, attributes(owner).__contains__)):
            if (name := base_of(key, has)) is not None:
                slot = Slot(name, holder, name, [owner])
                if _is_floating(slot.kept):
                    slots.append(slot)
                    break
        else:
            known = [*(n for b in boxes for n in b), *(n for n, v in attributes(owner).items() if _is_floating(v))]
            raise InputError(
                f"a gradient is returned under the name {key!r}, and {type(owner).__name__} has no parameter of that "
                f"name; it has {', '.join(map(repr, known)) or 'none'}"
            )
    return slots


def unnamed_gradients(owner: Any, slots: Sequence[Slot], before: Mapping[str, Any]) -> list[str]:
    """Names of parameters whose gradients backward stored in the object, and that nobody has asked about."""
    names = attributes(owner)
    known = {s.key for s in slots if s.holder is owner}
    found = []
    for key, value in names.items():
        new = key not in before or before[key] is not value
        name = base_of(key, lambda n, key=key: n != key and n in names and _is_floating(names[n]))  # type: ignore[misc]
        if new and name is not None and name != key and name not in known and np.shape(value) == names[name].shape:
            found.append(name)
    return found


@contextmanager
def kept(owners: Sequence[Any], slots: Sequence[Slot]) -> Iterator[None]:
    """What a pass changes in the objects is undone after the block: parameters, gradients that were added up, memories."""
    states = [(o, {k: _copied(v) for k, v in attributes(o).items()}, attributes(o)) for o in owners]
    values = [(s, s.kept, s.kept.copy()) for s in slots]
    try:
        yield
    finally:
        for owner, copies, originals in states:
            restore(owner, originals)
            for name, value in copies.items():
                _restore(originals[name], value)
        for slot, array, value in values:
            array[...] = value
            slot.put(array)


def _copied(value: Any) -> Any:
    """A copy of arrays and of containers of arrays; of other things themselves."""
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict):
        return {k: _copied(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_copied(v) for v in value]
    return value if not isinstance(value, np.random.Generator) else copy.deepcopy(value)


def _restore(original: Any, value: Any) -> None:
    if isinstance(original, np.ndarray):
        if original.flags.writeable:
            original[...] = value
    elif isinstance(original, dict):
        kept_values = {k: v for k, v in original.items() if k in value}
        original.clear()
        for k, v in value.items():
            old: Any = kept_values.get(k)
            same = isinstance(old, np.ndarray) and isinstance(v, np.ndarray) and old.shape == v.shape
            if same and old.dtype == v.dtype and old.flags.writeable:
                old[...] = v
            original[k] = old if same and old.dtype == v.dtype else v
    elif isinstance(original, list):
        if len(original) == len(value):
            for i, v in enumerate(value):
                if isinstance(original[i], np.ndarray) and isinstance(v, np.ndarray) and original[i].shape == v.shape:
                    original[i][...] = v
                else:
                    original[i] = v
        else:
            original[:] = value


def _of_attribute(name: str, owners: Sequence[Any], gradient: str | None = None) -> Slot:
    for owner in owners:
        value = getattr(owner, name, None)
        if value is not None and not callable(value):
            if _is_floating(value):
                if isinstance(getattr(type(owner), name, None), property) and (place := _held(value, [owner])):
                    return Slot(name, owner, place[1], owners, gradient)
                return Slot(name, owner, name, owners, gradient)
            if (slot := _of_parameter(value, name)) is not None:
                return slot
            if not isinstance(value, Mapping | list | tuple):
                raise InputError(f"parameter {name!r} is not a floating point array")
        for box in attributes(owner).values():
            if isinstance(box, dict) and _is_floating(box.get(name)):
                return Slot(name, box, name, owners, gradient)
    raise InputError(f"parameters names {name!r}, which no layer has; name attributes that hold arrays")


def _of_parameter(value: Any, name: str) -> Slot | None:
    """Of an object that holds an array and its gradient, as .value and .grad."""
    names = attributes(value) if is_object(value) else {}
    key = next((n for n in VALUES if _is_floating(names.get(n))), None)
    gradient = next((n for n in ("grad", "gradient", f"d{key}") if n in names), None)
    return Slot(name, value, key, [value], gradient) if key is not None and gradient is not None else None


def _of_entry(parameters: Any, name: Any, owners: Sequence[Any]) -> Slot:
    """An array of a dict that a user made: the attribute that it is, or else that place."""
    found = _held(parameters[name], owners)
    if found is None:
        return Slot(str(name), parameters, name, owners)
    owner, attribute = found
    slot = Slot(str(name), owner, attribute, [owner, *owners])
    return slot


def _of_array(array: Any, i: int, parameters: Any, owners: Sequence[Any]) -> Slot:
    found = _held(array, owners)
    slot = Slot(f"parameter {i}", list(parameters), i, owners)
    if found is not None:
        slot = Slot(found[1], found[0], found[1], [found[0], *owners])
    slot.place = i
    return slot


def _held(array: Any, owners: Sequence[Any]) -> tuple[Any, str] | None:
    """The object and the attribute that an array is."""
    return next(((o, name) for o in owners for name, value in attributes(o).items() if value is array), None)


def _of_object(layer: Any, place: str = "") -> list[Slot]:
    """Arrays of a layer that have a gradient beside them, or stand in a dict where the layer has a dict of gradients too,
    or in objects of their own with both."""
    own = attributes(layer)
    slot = _of_parameter(layer, f"parameter{place}")
    if slot is not None and {n for n, v in own.items() if _is_floating(v)} <= {slot.key, slot.gradient}:
        return [slot]
    slots = []
    if any(isinstance(own.get(c), Mapping) for c in CONTAINERS):
        for box in (v for n, v in own.items() if isinstance(v, dict) and n not in CONTAINERS):
            slots += [Slot(f"{k}{place}", box, k, [layer]) for k, v in box.items() if _is_floating(v)]
    for name, value in own.items():
        if _is_floating(value) and key_of(name, [n for n in own if n != name]) is not None:
            slots.append(Slot(f"{name}{place}", layer, name, [layer]))
        elif (slot := _of_parameter(value, f"{name}{place}")) is not None:
            slots.append(slot)
    return slots


def _is_floating(a: Any) -> bool:
    return isinstance(a, np.ndarray) and a.dtype.kind == "f"
