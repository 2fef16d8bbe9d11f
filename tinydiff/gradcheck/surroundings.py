"""What functions have beside their arguments: closures, globals, defaults, the objects that they are methods of."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

MOST_OBJECTS = 300  # that are looked into
Random = np.random.Generator | np.random.RandomState


def surroundings(functions: Iterable[Any]) -> Iterator[Any]:
    """What functions take from closures, modules, defaults and the objects that they belong to."""
    seen: set[int] = set()
    queue = [f for f in functions if f is not None]
    while queue:
        fn = queue.pop()
        if id(fn) in seen:
            continue
        seen.add(id(fn))
        if isinstance(fn, functools.partial):
            yield from (*fn.args, *fn.keywords.values())
        if (owner := getattr(fn, "__self__", None)) is not None and not isinstance(owner, types.ModuleType):
            yield from attributes(owner).values()
        fn = inspect.unwrap(getattr(fn, "__func__", getattr(fn, "func", fn)))
        if not isinstance(fn, types.FunctionType):
            continue
        found = [*(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).values()]
        for cell in fn.__closure__ or ():
            try:
                found.append(cell.cell_contents)
            except ValueError:
                continue
        found += [fn.__globals__[name] for name in _names(fn.__code__) if name in fn.__globals__]
        for value in found:
            if isinstance(value, types.FunctionType | types.MethodType):
                queue.append(value)
            else:
                yield value


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def random_sources(functions: Iterable[Any], args: Iterable[Any] = ()) -> list[Random]:
    """NumPy's generators that functions may draw from without having been given them: their own, and those of objects."""
    found = dict.fromkeys(v for v in held([*args, *surroundings(functions)]) if isinstance(v, Random))
    return list(found)


def objects_in(values: Iterable[Any]) -> list[Any]:
    """The objects of the user's own classes among values, and those that they hold: the layers of a network."""
    return [v for v in held(values) if is_object(v)]


def held(values: Iterable[Any]) -> Iterator[Any]:
    """Values, and at any depth those in their lists, dicts and attributes."""
    seen: set[int] = set()
    queue = list(values)
    while queue and len(seen) < MOST_OBJECTS:
        value = queue.pop(0)
        if id(value) in seen or isinstance(value, np.ndarray | str | bytes | int | float | types.ModuleType | type):
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            queue += value.values()
        elif isinstance(value, list | tuple | set):
            queue += value
        else:
            yield value
            if is_object(value):
                queue += attributes(value).values()


def attributes(owner: Any) -> dict[str, Any]:
    """{name: value} of an object's own attributes, those in __slots__ too."""
    found = dict(getattr(owner, "__dict__", {}))
    for kind in type(owner).__mro__:
        names = kind.__dict__.get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if name not in ("__dict__", "__weakref__") and hasattr(owner, name):
                found[name] = getattr(owner, name)
    return found


def restore(owner: Any, values: Mapping[str, Any]) -> None:
    """Gives an object the attributes that it had, and no others."""
    for name in attributes(owner):
        if name not in values:
            delattr(owner, name)
    for name, value in values.items():
        if name in getattr(owner, "__dict__", {}):
            owner.__dict__[name] = value
        else:
            object.__setattr__(owner, name, value)


def is_object(value: Any) -> bool:
    """Whether a value is an instance of a class written in Python, other than those of large libraries."""
    kind = type(value)
    library = kind.__module__.partition(".")[0] in (
        "builtins",
        "numpy",
        "tinydiff",
        "torch",
        "jax",
        "cupy",
        "types",
        "functools",
    )
    return (
        not library
        and not callable(getattr(value, "__code__", None))
        and bool(attributes(value) or hasattr(value, "__dict__"))
    )
