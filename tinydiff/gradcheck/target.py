"""What `tinydiff gradcheck MODULE:FUNCTION` checks: a name on the command line becomes a function and inputs for it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import itertools
import math
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinydiff.autograd.function import Function
from tinydiff.backend import is_array
from tinydiff.errors import InputError, named, shown
from tinydiff.gradcheck.calling import CACHES
from tinydiff.gradcheck.making import NoBackward, forward_of, make_subject
from tinydiff.gradcheck.pairs import PairSubject
from tinydiff.gradcheck.report import GradientError, Report
from tinydiff.gradcheck.subject import TapeSubject, positional_parameters
from tinydiff.machine.numbers import parsed

MOST_NUMBERS, MOST_AXES = 10**7, 32  # of an input that a shape asks for

# Tried in this order where no shapes are given, by the number of arguments.
GUESSES: dict[int, list[list[tuple[int, ...]]]] = {
    1: [[(4, 5)], [(2, 6, 5, 3)], [(2, 5, 4)], [(7,)], [()]],
    2: [[(4, 5), (4, 5)], [(5, 4), (4, 3)], [(2, 6, 5, 3), (3, 3, 3, 4)], [(4, 5), (5,)]],
    3: [[(5, 4), (4, 3), (3,)], [(4, 5), (5,), (5,)], [(2, 6, 5, 3), (3, 3, 3, 4), (4,)], [(4, 5), (4, 5), (4, 5)],
        [(2, 3, 4), (2, 5, 4), (2, 5, 3)]],
}  # fmt: skip


def check_target(
    target: str,
    *,
    shapes: Sequence[str] = (),
    seed: int = 0,
    png: str | Path | None = None,
    kernels: bool = False,
) -> Report:
    """The report on "MODULE:FUNCTION" or, for a backward pass written by hand, on "MODULE:FORWARD,BACKWARD".

    MODULE is a module's name or the path of a .py file. FUNCTION is a function of tensors, a `td.Function`, a module, or
    an object or class with methods forward (or __call__) and backward on plain arrays; one that takes no arguments is
    called and returns (fn, inputs) or (fn, inputs, options for gradcheck). FORWARD may return (output, cache) where BACKWARD takes
    two arguments. shapes: one for each argument, like "4,3" or "4x3" or "scalar", with "int" behind it for integers 0, 1
    and 2: "4 int". Without shapes, common ones are tried. kernels: as for gradcheck. InputError where all this makes
    nothing to check, or where what is checked raises by itself.
    """
    if seed < 0:
        raise InputError(f"seed must be an integer of at least 0, not {seed}")
    module_name, colon, names = target.partition(":")
    if not colon or not names or not module_name:
        raise InputError(f"the target must be MODULE:FUNCTION or MODULE:FORWARD,BACKWARD, not {target!r}")
    module = load_module(module_name)
    found = [member(module, name.strip(), module_name) for name in names.split(",")]
    if len(found) > 2:
        raise InputError(
            f"{target!r} names {len(found)} functions; it can be one, or a forward and a backward function"
        )
    if len(found) == 1 and (pair := _methods(found[0], target)) is not None:
        found = pair
    if len(found) == 2 or (other := _backward_of(names, module)) is None:
        return _check(target, names, found, shapes, seed, png, kernels)
    hint = f"to check it with {other}, which {module_name} has as well: tinydiff gradcheck {target},{other}"
    try:
        report = _check(target, names, found, shapes, seed, png, kernels)
    except InputError as error:
        raise InputError(f"{error}; {hint}") from error
    report.notes.append(f"this is {names}'s gradient by the tape; {hint}")
    return report


def _backward_of(name: str, module: Any) -> str | None:
    """The name of the function that looks like the backward pass of the one named, if the module has one."""
    other = name.replace("forward", "backward") if "forward" in name else f"{name}_backward"
    return other if callable(getattr(module, other, None)) else None


def _check(
    target: str,
    names: str,
    found: list[Any],
    shapes: Sequence[str],
    seed: int,
    png: str | Path | None,
    kernels: bool,
) -> Report:
    """The report on a function, or on a forward and a backward function."""
    from tinydiff.gradcheck.api import gradcheck

    options: dict[str, Any] = {"backward": found[1]} if len(found) == 2 else {}
    fn, inputs = found[0], None
    if len(found) == 1 and not shapes and _count(fn) == 0:
        try:
            fn, inputs, options = _case(fn, target)
        except GradientError as error:
            return error.report
    if inputs is None:
        inputs = (
            [_array(text, i, seed) for i, text in enumerate(shapes)]
            if shapes
            else _guess(fn, seed, target, len(found) == 2)
        )
    reports = []
    for cache in _readings(fn, found[1], inputs, names) if len(found) == 2 else (None,):
        reading = options if cache is None else {**options, "cache": cache}
        try:
            return gradcheck(fn, inputs, seed=seed, png=png, kernels=kernels, **{"name": names, **reading})
        except GradientError as error:
            reports.append(error.report)
        except Exception as error:
            raise _refusal(names, inputs, error) from error
    return reports[0]


def _refusal(names: str, inputs: Sequence[Any], error: Exception) -> InputError:
    if isinstance(error, InputError):
        return error
    if isinstance(error, TypeError | ValueError | IndexError):
        given = ", ".join(str(getattr(a, "shape", a)) for a in inputs)
        return InputError(f"{names} does not take inputs of shapes {given}: {error}")
    return InputError(f"{names} raised {where_raised(error)}")


def where_raised(error: Exception) -> str:
    """What was raised, and the file and line."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"


def load_module(name: str) -> Any:
    """The module of a name, or of the path of a .py file. InputError where it cannot be imported."""
    path = Path(name)
    try:
        if path.suffix == ".py":
            if not path.is_file():
                raise InputError(f"there is no file {name}")
            spec = importlib.util.spec_from_file_location(path.stem, path)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules.setdefault(path.stem, module)
            sys.path.insert(0, str(path.resolve().parent))
            spec.loader.exec_module(module)
            return module
        sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(name)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"cannot import {name}: {type(error).__name__}: {error}") from error


def member(module: Any, name: str, where: str) -> Any:
    """What is called `name` in a module that was given as `where`. InputError where it cannot be called."""
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part, None)
    if not callable(value) and not (callable(getattr(value, "forward", None)) and hasattr(value, "backward")):
        here = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", None) == module.__name__]
        raise InputError(f"{where} has no function {name!r}; it has {', '.join(sorted(here)) or 'none'}")
    return value


def _methods(value: Any, target: str) -> list[Any] | None:
    """[forward or __call__, backward] of an object that has them on plain arrays, or of a class whose objects do."""
    kind = value if isinstance(value, type) else type(value)
    forward = getattr(kind, "forward", kind.__call__ if inspect.isfunction(kind.__call__) else None)
    if issubclass(kind, Function) or not callable(forward) or not callable(getattr(kind, "backward", None)):
        return None
    if isinstance(value, type):
        try:
            value = value()
        except Exception as error:
            raise InputError(
                f"{target} cannot be made without arguments ({where_raised(error)}): name an object of this class"
            ) from error
    return [forward_of(value), value.backward]


def _readings(forward: Any, backward: Any, inputs: Sequence[Any], names: str) -> tuple[bool, ...]:
    """How to take what forward returns, as `cache`: where backward takes a cache by its name, or as many arguments as
    forward has results, as (output, cache) first; if that does not hold and all are arrays, as outputs."""
    try:
        result = forward(*(np.copy(a) for a in inputs))
    except Exception as error:
        raise _refusal(names, inputs, error) from error
    parameters = [p.name.lower() for p in positional_parameters(backward)[0]]
    if not isinstance(result, tuple) or len(result) < 2:
        return (False,)
    if {*parameters[:1], *parameters[-1:]} & set(CACHES):
        return (True,)
    if len(result) != _count(backward):
        return (False,)
    return (True, False) if is_array(result[-1]) else (True,)


def _count(fn: Any) -> int:
    """How many arguments must be given; at least one for what takes any number."""
    parameters, more = positional_parameters(fn)
    return sum(p.default is p.empty for p in parameters) or int(more is not False)


def _case(fn: Any, target: str) -> tuple[Any, Any, dict[str, Any]]:
    try:
        case = fn()
    except GradientError:  # a test that calls gradcheck itself
        raise
    except Exception as error:
        raise InputError(f"{target} raised {where_raised(error)}") from error
    if isinstance(case, tuple) and len(case) == 2:
        case = (*case, {})
    if not isinstance(case, tuple) or len(case) != 3 or not callable(case[0]) or not isinstance(case[2], dict):
        raise InputError(f"{target} takes no arguments, so it must return (fn, inputs) or (fn, inputs, options)")
    return case


def _array(text: str, i: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, i])
    sizes, _, kind = text.strip().partition(" ")
    integer = kind.strip() == "int" or sizes == "int"
    sizes = "" if sizes in ("scalar", "int") else sizes
    try:
        shape = tuple(parsed(n, int) for n in sizes.replace("x", ",").strip("()").split(",") if n.strip())
        if kind.strip() not in ("", "int") or any(n < 0 for n in shape) or bool(sizes) != bool(shape):
            raise ValueError
    except ValueError:
        raise InputError(
            f"a shape must be like 4,3 or 4x3 or scalar, with int behind it for integers, not {text!r}"
        ) from None
    if math.prod(shape) > MOST_NUMBERS or len(shape) > MOST_AXES:
        raise InputError(
            f"a shape may have {MOST_NUMBERS:,} numbers along {MOST_AXES} axes at most, and {shown(text, 60)} has more"
        )
    return rng.integers(0, 3, shape) if integer else np.asarray(rng.normal(size=shape))


def _guess(fn: Any, seed: int, target: str, plain: bool) -> list[np.ndarray]:
    """Inputs of the first common shapes that fn takes; plain: as arrays."""
    count = _count(fn)
    tried = []
    for shapes in _shapes_to_try(count):
        inputs = [_array(",".join(map(str, shape)) or "scalar", i, seed) for i, shape in enumerate(shapes)]
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            try:
                ys = _run(fn, inputs, plain)
                if all(np.isfinite(y).all() for y in ys if is_array(y)):
                    return inputs
                tried.append((shapes, "its values are not finite"))
            except NoBackward:
                raise
            except Exception as error:
                tried.append((shapes, where_raised(error)))
    shapes, why = tried[0]
    names = [p.name for p in positional_parameters(fn)[0]][:count]
    of = f" ({', '.join(names)})" if names else ""
    either, integers = named("shapes", "4,3"), named("shapes", "4 int")
    raise InputError(
        f"no inputs for {target} were found by trying: with {' '.join(map(str, shapes))}, {why}. Give a shape for each of "
        f"its {count} arguments{of}, such as {either}, or for integers like labels {integers}"
    )


def _run(fn: Any, inputs: list[np.ndarray], plain: bool) -> Sequence[Any]:
    if not plain:
        subject = make_subject(fn, inputs)
        if isinstance(subject, PairSubject) and not any(np.ndim(a) for a in inputs):
            raise InputError("two numbers may be a loss and its gradient, or an output and a cache")
        if isinstance(subject, TapeSubject):  # recorded, as the check does: what would lose a gradient raises here
            with subject.same_noise(), subject.borrowed():
                try:
                    subject.call(subject.point, [True] * len(subject.point))
                except TypeError:
                    fn(*inputs)  # of plain arrays, which may fail for a reason that tells more
                    raise
        return subject.forward(subject.point)
    result = fn(*inputs)
    return result if isinstance(result, tuple | list) else (result,)


def _shapes_to_try(count: int) -> Iterator[list[tuple[int, ...]]]:
    yield from GUESSES.get(count, [[(4, 5)] * count])
    if count == 2:
        yield from ([a, b] for a, b in itertools.product([(5, 4), (2, 5, 4), (4,)], [(4, 3), (4,), (5,), (1, 4)]))
