"""From what a user gives to a subject: what is checked, by which gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tinydiff.autograd.function import Function
from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import is_array, to_numpy
from tinydiff.errors import InputError
from tinydiff.gradcheck.pairs import PairSubject, owners_of
from tinydiff.gradcheck.slots import Slot, find_slots, slots_of_keys
from tinydiff.gradcheck.subject import Subject, TapeSubject, float64, input_names, named_tensors
from tinydiff.gradcheck.trees import Tree, as_array


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
        fn, backward = fn.forward, fn.backward
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
        slots = find_slots(parameters, owners_of(fn, backward)) if parameters is not None else []
        if not slots and hasattr(parameters, "__dict__"):  # its gradients may not be there before backward has run
            stored = _stored(_pair(fn, trees, leaves, names, wrt, backward, cache, [], generators))
            slots = find_slots(stored, [parameters])
        return _pair(fn, trees, leaves, names, wrt, backward, cache, slots, generators)
    if (found := _loss_and_gradients(fn, trees, leaves, parameters, generators)) is not None:
        slots, own = found
        return _pair(fn, trees, leaves, names, own if wrt is None else wrt, None, False, slots, generators)
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
    return taped


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
        by_name: dict[Any, Tree] = {**{t.name: t for t in trees}, **dict(enumerate(trees))}
        wide = [[all_names[i] for i in by_name[w].leaves] if w in by_name else [w] for w in wrt]
        wrt = [name for some in wide for name in some]
    checked, _ = _chosen(wrt, everything, all_names, {}, [])
    subject = PairSubject(fn, trees, leaves, names, checked, generators, backward, cache, slots)
    subject.loss = backward is None
    return subject


def _stored(subject: PairSubject) -> list[str]:
    """Names of the parameters whose gradients backward stores."""
    outputs = subject.forward([x.copy() for x in subject.point])
    subject.vjp([x.copy() for x in subject.point], [None if y is None else np.ones(y.shape) for y in outputs])
    return subject.unasked


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
) -> tuple[list[Slot], Any] | None:
    """For a function of plain arrays that returns (loss, gradients): the parameters that its object holds, and what the
    gradients are of (None: of all inputs). None for any other function."""
    if isinstance(fn, type) or hasattr(fn, "named_parameters"):
        return None
    trial = PairSubject(fn, trees, leaves, [t.name for t in trees], [], generators, None, False)
    copies = [a.copy() if _is_floating(a) else a for a in leaves]
    try:
        with trial.same_noise(), trial.borrowed(copies), np.errstate(all="ignore"):
            result = fn(*trial.inputs(copies))
    except Exception:
        return None
    if not isinstance(result, tuple | list) or len(result) < 2 or isinstance(result[0], Tensor):
        return None
    if np.ndim(result[0]) or not np.issubdtype(np.asarray(result[0]).dtype, np.floating):
        return None
    grads = result[1] if len(result) == 2 else result[1:]
    if isinstance(grads, Mapping):
        return _by_name(fn, grads, trees, leaves, parameters)
    grads = list(grads) if isinstance(grads, tuple | list) else [grads]
    if any(isinstance(g, Tensor) for g in grads):
        return None
    floating = [t for t in trees if any(_is_floating(leaves[i]) for i in t.leaves)]
    if len(grads) > len(floating):
        return None
    for tree, g in zip(floating, grads, strict=False):
        if tree.children is None and np.shape(g) != leaves[tree.first].shape:
            return None
    return [], [tree.name for tree in floating[: len(grads)]]


def _by_name(
    fn: Any, grads: Mapping[Any, Any], trees: Sequence[Tree], leaves: Sequence[Any], parameters: Any
) -> tuple[list[Slot], Any] | None:
    from tinydiff.gradcheck.trees import base_of

    if not all(isinstance(key, str) for key in grads) or any(isinstance(g, Tensor) for g in grads.values()):
        return None
    if isinstance(parameters, dict):
        slots = find_slots(parameters, owners_of(fn))
        return slots, [s.name for s in slots]
    names = {n for t in trees for n in ([t.name] if t.children is None else [t.name, *map(str, t.children)])}
    own = [base_of(key, names.__contains__) for key in grads]
    if all(own) and own:
        return [], own
    if owners := owners_of(fn):
        left = [key for key, name in zip(grads, own, strict=True) if name is None]
        slots = slots_of_keys(left, owners[0])
        return slots, [*(n for n in own if n), *(s.name for s in slots)]
    key = next(key for key, name in zip(grads, own, strict=True) if name is None)
    raise InputError(
        f"a gradient is returned under the name {key!r}, and no input has that name; they are "
        f"{', '.join(map(repr, sorted(names)))}"
    )


def _is_layer(fn: Any) -> bool:
    """Whether fn is an object with methods forward and backward on plain arrays."""
    return (
        not isinstance(fn, type)
        and not hasattr(fn, "named_parameters")
        and all(callable(getattr(fn, name, None)) for name in ("forward", "backward"))
        and not _is_torch(fn)
    )


def _is_torch(fn: Any) -> bool:
    kinds = fn.__mro__ if isinstance(fn, type) else type(fn).__mro__
    return any(k.__module__.startswith("torch.") for k in kinds)


def _is_floating(a: Any) -> bool:
    return is_array(a) and a.dtype.kind == "f"
