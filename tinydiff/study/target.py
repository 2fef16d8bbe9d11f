"""What `tinydiff trace FILE.py:FUNCTION` runs: a function without arguments that computes a loss."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np

from tinydiff import random
from tinydiff.autograd.tensor import Tensor
from tinydiff.errors import InputError, a_type
from tinydiff.gradcheck.subject import positional_parameters
from tinydiff.gradcheck.target import load_module, member, where_raised
from tinydiff.study.tracing import Trace


def trace_target(target: str, trace: Trace) -> None:
    """Runs the function "MODULE:FUNCTION" inside of the trace, and `backward()` on the loss that it returns if it did not
    call that itself. MODULE: a module's name or the path of a .py file.

    InputError where there is no such function, where it needs arguments, raises, or gives no loss.
    """
    module_name, colon, name = target.partition(":")
    if not (module_name and colon and name):
        raise InputError(f"the target must be FILE.py:FUNCTION or the folder of a run, not {target!r}")
    function = member(load_module(module_name), name.strip(), module_name)
    needed = _needed(function)
    if needed:
        raise InputError(
            f"{target} needs arguments ({', '.join(needed)}); write a function without arguments that makes them, computes "
            "the loss and returns it"
        )
    before = _state()
    with trace, random.recording() as draws:
        try:
            loss = function()
        except Exception as error:
            raise InputError(f"{target} raised {where_raised(error)}") from error
        if not any(op.ran_backward for op in trace.operations):
            _backward(loss, target)
    if _state() != before:
        trace.note(
            "the function drew from NumPy's global random numbers, so another run may show other values; np.random.seed(0) at "
            "its beginning repeats them"
        )
    elif draws:
        trace.note("the function drew random numbers from td.random; the same seed gives the same numbers again")


def _needed(function: Any) -> list[str]:
    with suppress(TypeError, ValueError):
        return [p.name for p in positional_parameters(function)[0] if p.default is p.empty]
    return []


def _backward(loss: Any, target: str) -> None:
    what = "the function must return the loss, a tensor with one element, or call backward() itself"
    if loss is None:
        raise InputError(f"{target} returned no loss; {what}")
    if not isinstance(loss, Tensor):
        raise InputError(f"{target} returned {a_type(loss)}, no loss; {what}")
    if loss.size != 1:
        raise InputError(f"{target} returned a tensor of shape {loss.shape}, no loss; {what}")
    if not loss.requires_grad:
        raise InputError(
            f"{target} returned a loss that needs no gradient: none of what it was computed from has requires_grad=True"
        )
    loss.backward()


def _state() -> Any:
    """The state of NumPy's global generator, to be compared."""
    kind, key, *rest = np.random.get_state()
    return kind, bytes(np.asarray(key)), *rest
