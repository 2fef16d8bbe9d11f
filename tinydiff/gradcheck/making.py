"""From what a user gives to a subject: what is checked, by which gradients."""

from __future__ import annotations

import dis
import inspect
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tinydiff.autograd.function import Function
from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import is_array, to_numpy
from tinydiff.errors import InputError
from tinydiff.gradcheck.pairs import PairSubject, owners_of
from tinydiff.gradcheck.slots import Slot, find_slots, slots_of_keys
from tinydiff.gradcheck.subject import Subject, TapeSubject, float64, input_names, named_tensors
from tinydiff.gradcheck.surroundings import attributes, is_object
from tinydiff.gradcheck.trees import Tree, as_array, base_of, by_name, fits, parts_of


class NoBackward(InputError):
    """A function of plain arrays was given alone."""


def make_subject(
    fn: Any,
    inputs: Sequence[Any],
    wrt: int | str | Sequence[int | str] | None = None,
    backward: Any = None,
    cache: bool = False,
    parameters: Any = None,
    generators: Sequence[Any] = (),
) -> Subject:
    """The subject for what a user gives; floating point inputs become float64 copies. InputError if there is none."""
    if isinstance(inputs, Tensor) or is_array(inputs):
        raise InputError("inputs must be a sequence with one entry for each argument of fn: write [x], not x")
    if not isinstance(inputs, Sequence):
        raise InputError(
            f"inputs must be a sequence with one entry for each argument of fn, not {type(inputs).__name__}"
        )
    if backward is None and _is_layer(fn):
        fn, backward = forward_of(fn), fn.backward
    _check_count(fn, inputs)
    torch_inputs = any(type(x).__module__.partition(".")[0] == "torch" and hasattr(x, "detach") for x in inputs)
    if backward is None and (torch_inputs or _is_torch(fn)):
        from tinydiff.gradcheck.torches import TorchSubject

        args = [as_array(x) for x in inputs]
        args = [float64(a) if _is_floating(a) else a for a in args]
        subject = TorchSubject(fn, args, [], generators)
        subject.checked, _ = _chosen(wrt, args, subject.input_names, {}, [])
        subject.names = [subject.input_names[i] for i in subject.checked]
        return subject
    args = [x.data if isinstance(x, Tensor) and x.dtype.kind == "f" else x for x in inputs]
    top = input_names(fn, len(args))
    leaves: list[Any] = []
    names: list[str] = []
    args = [as_array(a) for a in args]
    if not any(map(_is_floating, args)) and (backward is not None or not parameters):
        args = [np.asarray(a) if isinstance(a, float) else a for a in args]
    trees = [Tree(a, name, leaves, names) for a, name in zip(args, top, strict=True)]
    leaves = [float64(a) if _is_floating(a) else a for a in map(as_array, leaves)]
    if (
        bad := next((n for a, n in zip(leaves, names, strict=True) if is_array(a) and a.dtype.kind == "c"), None)
    ) is not None:
        raise InputError(f"input {bad} is complex; gradients are checked with respect to real numbers")
    is_nested = any(tree.children is not None for tree in trees)
    if backward is not None:
        if torch_inputs:
            from tinydiff.gradcheck.torches import on_tensors

            fn, backward = on_tensors(fn), on_tensors(backward)
        slots = find_slots(parameters, owners_of(fn, backward)) if parameters is not None else []
        if parameters is not None and (not slots or _objects(parameters)):  # gradients may come with backward alone
            bare = _pair(fn, trees, leaves, names, wrt, backward, cache, [], generators)
            slots = _stored(bare, parameters)
        pair = _pair(fn, trees, leaves, names, wrt, backward, cache, slots, generators)
        if wrt is None and (numbers := _numbers_with_gradients(pair)):  # settings have none
            leaves = [np.asarray(a) if i in numbers else a for i, a in enumerate(leaves)]
            pair = _pair(fn, trees, leaves, names, wrt, backward, cache, slots, generators)
        if slots and wrt is None and _returns_nothing(pair):  # of the inputs, that is
            pair = _pair(fn, trees, leaves, names, [s.name for s in slots], backward, cache, slots, generators)
        return pair
    if (found := _loss_and_gradients(fn, trees, leaves, parameters, generators)) is not None:
        wrt = found.names if wrt is None else wrt
        pair = _pair(fn, trees, leaves, names, wrt, None, False, found.slots, generators)
        pair.stored = found.stored
        return pair
    if is_nested:
        leaves, names = [as_array(a) for a in args], top
    if backward is None and parameters is None and hasattr(fn, "named_parameters"):
        parameters = fn
    named = named_tensors(parameters)
    checked, names_of_parameters = _chosen(wrt, leaves, names, named, list(named))
    named = {n: named[n] for n in names_of_parameters}
    taped = TapeSubject(fn, leaves, checked, generators, named)
    if isinstance(fn, type) and issubclass(fn, Function):
        taped.fn, taped.function = (lambda *xs: fn.apply(*xs)), fn
    elif not named:
        _check_tape(taped)
    return taped


def _check_tape(taped: TapeSubject) -> None:
    """InputError for a function that computes with NumPy, of which the tape sees nothing, and that has no backward."""
    try:
        with taped.same_noise(), np.errstate(all="ignore"):
            taped.call(taped.point, [True] * len(taped.point))
    except (TypeError, AttributeError) as error:
        try:
            with taped.same_noise(), np.errstate(all="ignore"):
                taped.fn(*taped.filled([x.copy() for x in taped.point]))
        except Exception:
            return  # it raises for arrays, too: the check lets that through
        raise NoBackward(
            f"there is no backward pass to check: pass backward=, or compute with td.ops ({error})"
        ) from error
    except Exception:
        return  # the check sees it, and tells it


def _pair(
    fn: Any,
    trees: Sequence[Tree],
    leaves: list[Any],
    names: list[str],
    wrt: Any,
    backward: Any,
    cache: bool,
    slots: list[Slot],
    generators: Sequence[Any],
) -> PairSubject:
    everything = [*leaves, *(float64(s.kept) for s in slots)]
    all_names = [*names, *(s.name for s in slots)]
    if isinstance(wrt, int | str):
        wrt = [wrt]
    if wrt is not None:  # the name or place of a nested input stands for all that is in it
        by_name: dict[Any, Tree] = {**{t.name: t for t in parts_of(trees)}, **dict(enumerate(trees))}
        wide = [[all_names[i] for i in by_name[w].leaves] if w in by_name else [w] for w in wrt]
        wrt = [name for some in wide for name in some]
    checked, _ = _chosen(wrt, everything, all_names, {}, [])
    subject = PairSubject(fn, trees, leaves, names, checked, generators, backward, cache, slots)
    subject.loss = backward is None
    return subject


def _check_count(fn: Any, inputs: Sequence[Any]) -> None:
    """InputError where fn does not take so many inputs."""
    if isinstance(fn, type) and not issubclass(fn, Function) and not _is_torch(fn):
        raise InputError(f"{fn.__name__} is a class: give an object of it, or its two functions")
    if isinstance(fn, type) or _is_torch(fn):
        return
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*inputs)
    except TypeError as error:
        name = getattr(fn, "__qualname__", type(fn).__name__).rpartition("<locals>.")[2]
        count = f"{len(inputs)} input{'s' * (len(inputs) != 1)}"
        raise InputError(f"{name}{signature} was given {count}: {error}") from None


def _stored(subject: PairSubject, parameters: Any) -> list[Slot]:
    """The parameters of objects whose gradients backward stores. InputError where there are none."""
    _run(subject)
    owners = _objects(parameters)
    slots: list[Slot] = []
    for i, owner in enumerate(owners):
        there = find_slots(owner, [owner])
        more = [n for n in subject.stores.get(id(owner), []) if n not in [s.key for s in there if s.holder is owner]]
        for slot in [*find_slots(more, [owner]), *there]:
            slot.name += f"[{i}]" if len(owners) > 1 else ""
            slots.append(slot)
    if not slots:
        raise InputError("parameters: no array with a gradient beside it was found there after backward")
    return slots


def _objects(parameters: Any) -> list[Any]:
    """The layers among parameters; none where they are arrays or names."""
    found = [parameters] if is_object(parameters) else list(parameters) if isinstance(parameters, list | tuple) else []
    return found if all(map(is_object, found)) else []


def _returns_nothing(subject: PairSubject) -> bool:
    try:
        _run(subject)
    except Exception:
        return False  # the check sees it, and tells it
    return subject.nothing


def _numbers_with_gradients(subject: PairSubject) -> list[int]:
    """Places of Python's floats among the inputs that backward returns a gradient of."""
    if not any(isinstance(a, float) for a in subject.args):
        return []
    try:
        with np.errstate(all="ignore"):
            _run(subject)
    except Exception:
        return []  # the check sees it, and tells it
    return subject.numbers


def _run(subject: PairSubject) -> None:
    outputs = subject.forward([x.copy() for x in subject.point])
    subject.vjp([x.copy() for x in subject.point], [None if y is None else np.ones(y.shape) for y in outputs])


def _chosen(
    wrt: Any, args: Sequence[Any], names: Sequence[str], named: Mapping[str, Any], every: list[str]
) -> tuple[list[int], list[str]]:
    """Positions of the inputs and names of the parameters to check."""
    floating = [i for i, a in enumerate(args) if _is_floating(a)]
    if wrt is None:
        checked = floating
    else:
        wrt = [wrt] if isinstance(wrt, int | str) else wrt
        known: dict[Any, int] = {**{n: i for i, n in enumerate(names)}, **{i: i for i in range(len(args))}}
        if missing := [w for w in wrt if w not in known and w not in named]:
            raise InputError(
                f"wrt names {missing[0]!r}; there are inputs {', '.join(names)} and parameters {list(named)}"
            )
        checked = [known[w] for w in wrt if w in known]
        every = [n for n in named if n in wrt or not any(w in named for w in wrt)]
        if wrong := [i for i in checked if i not in floating]:
            raise InputError(f"input {names[wrong[0]]} has no gradient: it is not a floating point array")
    if not checked and not every:
        given = ", ".join(f"an array of {a.dtype}" if is_array(a) else type(a).__name__ for a in args) or "none"
        raise InputError(
            f"there is nothing to check: among the inputs ({given}) is no floating point array, such as np.array(2.0), "
            "and there are no parameters"
        )
    for i in checked:
        if (bad := np.argwhere(np.isnan(to_numpy(args[i])))).size:
            raise InputError(f"input {names[i]} is NaN at {[int(n) for n in bad[0]]}")
    return checked, every


def _loss_and_gradients(
    fn: Any, trees: Sequence[Tree], leaves: Sequence[Any], parameters: Any, generators: Sequence[Any]
) -> Returned | None:
    """What gradients a function of plain arrays returns beside a loss. None for any other function."""
    if isinstance(fn, type) or hasattr(fn, "named_parameters"):
        return None
    trial = PairSubject(fn, trees, leaves, [t.name for t in trees], [], generators, None, False)
    copies = [a.copy() if _is_floating(a) else a for a in leaves]
    try:
        with trial.same_noise(), trial.borrowed(copies), np.errstate(all="ignore"):
            result = fn(*trial.inputs(copies))
    except Exception:
        return None
    is_named = parameters is not None and not hasattr(parameters, "named_parameters") and not _are_tensors(parameters)
    if is_named and _is_number(result):
        slots = find_slots(parameters, owners_of(fn))
        return Returned(slots, [s.name for s in slots], stored=True)
    if isinstance(result, Mapping) and any(_is_number(v) for v in result.values()):
        raise InputError(f"what is checked returns a dict ({', '.join(map(str, result))}): return (loss, gradients)")
    if not isinstance(result, tuple | list) or len(result) < 2 or not _is_number(result[0]):
        return None
    grads = result[1] if len(result) == 2 else result[1:]
    grads = by_name(grads, {t.name for t in trees}.__contains__)
    if isinstance(grads, Mapping):
        return _by_name(fn, grads, trees, leaves, parameters)
    grads = list(grads) if isinstance(grads, tuple | list) else [grads]
    if any(isinstance(g, Tensor) for g in grads):
        return None
    floating = [t for t in trees if any(_is_floating(leaves[i]) for i in t.leaves)]
    if len(grads) == len(floating[0].children or ()) and len(floating) and not fits(floating[0], grads[0], leaves):
        grads = [grads] if fits(floating[0], grads, leaves) else grads
    fitting = [
        some
        for some in itertools.islice(itertools.combinations(floating, len(grads)), 1000)
        if all(fits(tree, g, leaves) for tree, g in zip(some, grads, strict=True))
    ]
    if fitting:  # the first inputs, or those alone that have such shapes
        if len(fitting) > 1 and fitting[0] != tuple(floating[: len(grads)]):
            names = " or ".join(", ".join(t.name for t in some) for some in fitting[:2])
            raise InputError(
                f"the gradients that are returned have the shapes of {names}: say with wrt= which they are"
            )
        return Returned([], [tree.name for tree in fitting[0]])
    if is_named:
        slots = find_slots(parameters, owners_of(fn))
        if [np.shape(s.kept) for s in slots] == [np.shape(g) for g in grads]:
            return Returned(slots, [s.name for s in slots])
    if all(isinstance(g, np.ndarray) and g.ndim for g in grads) and {g.shape for g in grads} <= {
        np.shape(a) for a in (*leaves, *_arrays_of(fn))
    }:
        raise InputError(
            f"a number and {len(grads)} arrays are returned, and it cannot be told what these are the gradients of: return "
            "(loss, {name: gradient}), or name them with wrt= or parameters="
        )
    return None


class Returned(NamedTuple):
    """What a function of plain arrays returns gradients of: parameters that its object holds, names. stored: it returns
    the loss alone, and keeps the gradients in the object."""

    slots: list[Slot]
    names: list[str]
    stored: bool = False


def _is_number(value: Any) -> bool:
    """Whether a value is one floating point number, in an array or not."""
    if isinstance(value, Tensor) or not (isinstance(value, float | np.floating) or is_array(value)):
        return False
    return np.size(value) == 1 and np.asarray(value).dtype.kind == "f"


def _are_tensors(parameters: Any) -> bool:
    values = parameters.values() if isinstance(parameters, Mapping) else parameters
    if isinstance(values, Tensor):
        return True
    return isinstance(values, Sequence | type({}.values())) and any(isinstance(v, Tensor) for v in values)


def _arrays_of(fn: Any) -> list[Any]:
    """Arrays that the object of a method holds."""
    return [v for o in owners_of(fn) for v in attributes(o).values() if _is_floating(v)]


def _by_name(
    fn: Any, grads: Mapping[Any, Any], trees: Sequence[Tree], leaves: Sequence[Any], parameters: Any
) -> Returned | None:
    if not all(isinstance(key, str) for key in grads) or any(isinstance(g, Tensor) for g in grads.values()):
        return None
    if isinstance(parameters, dict):
        slots = find_slots(parameters, owners_of(fn))
        return Returned(slots, [s.name for s in slots])
    names = {t.name for t in parts_of(trees)}
    own = [base_of(key, names.__contains__) for key in grads]
    if all(own) and own:
        return Returned([], [n for n in own if n])
    if owners := owners_of(fn):
        left = [key for key, name in zip(grads, own, strict=True) if name is None]
        slots = slots_of_keys(left, owners[0])
        return Returned(slots, [*(n for n in own if n), *(s.name for s in slots)])
    key = next(key for key, name in zip(grads, own, strict=True) if name is None)
    raise InputError(
        f"a gradient is returned under the name {key!r}, and no input has that name; they are "
        f"{', '.join(map(repr, sorted(names)))}"
    )


def _is_layer(fn: Any) -> bool:
    """Whether fn is an object with methods forward (or __call__) and backward on plain arrays."""
    return (
        not isinstance(fn, type)
        and not hasattr(fn, "named_parameters")
        and callable(forward_of(fn))
        and callable(getattr(fn, "backward", None))
        and not _is_torch(fn)
    )


def forward_of(fn: Any) -> Any:
    """The forward pass of an object with a backward: its method of that name, or what a call of it does where there is no
    such method, or where the call also keeps what backward needs."""
    called = getattr(fn, "__call__", None)  # noqa: B004 - the method, bound
    forward = getattr(fn, "forward", None)
    if not inspect.ismethod(called):
        return forward
    code = getattr(called.__func__, "__code__", None)
    keeps = code is not None and any(i.opname == "STORE_ATTR" for i in dis.get_instructions(code))
    return called if keeps or forward is None else forward


def _is_torch(fn: Any) -> bool:
    kinds = fn.__mro__ if isinstance(fn, type) else type(fn).__mro__
    return any(k.__module__.startswith("torch.") for k in kinds)


def _is_floating(a: Any) -> bool:
    return is_array(a) and a.dtype.kind == "f"
