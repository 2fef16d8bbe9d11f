"""How a backward pass written by hand is called: with which gradients, inputs and outputs, in which order.

It is told by the number of its parameters, and by their names where those say more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tinydiff.errors import InputError
from tinydiff.gradcheck.subject import positional_parameters

CACHES = ("res", "residual", "residuals", "cache", "caches", "ctx", "context", "saved", "tmp", "memory", "tape")
COTANGENTS = (
    *("g", "gy", "ct", "cotangent", "grad", "grad_output", "grad_out", "dout", "dy", "upstream", "delta", "l_y", "dl"),
    *("dz", "dh", "gradient", "grad_outputs", "y_bar", "ybar", "d_out", "dl_dy", "dldy"),
)
OUTPUTS = ("y", "out", "output")


class Plan(NamedTuple):
    """What backward gets, in order: "g" each L_Y, "gs" all of them in forward's structure, "c" the cache, "x" an input,
    "xs" all of them, "y" an output."""

    parts: tuple[tuple[str, int], ...]
    scaled: bool = False  # a gradient of a loss, which backward does not multiply by L_Y
    unsure: bool = False  # of L_Y and a cache, names do not say which is first

    @property
    def remembers(self) -> bool:
        """Whether backward gets nothing but gradients."""
        return all(kind in ("g", "gs") for kind, _ in self.parts)


def plan(backward: Any, fn: Any, outputs: int, inputs: int, cache: bool, is_number: bool) -> Plan:
    """outputs, inputs: how many there are. is_number: whether forward has one number as its value."""
    parameters, more = positional_parameters(backward)
    names = [p.name.lower().lstrip("_") for p in parameters]
    least, most = sum(p.default is p.empty for p in parameters), len(parameters)
    gs = tuple(("g", i) for i in range(outputs))
    xs = tuple(("x", i) for i in range(inputs))

    def takes(count: int) -> bool:
        return least <= count and (count <= most or more is not False)

    if cache:
        if takes(1) and not takes(2) and is_number:
            return Plan((("c", 0),), scaled=True)
        each, together = (*gs, ("c", 0)), (("gs", 0), ("c", 0))
        parts = together if outputs > 1 and not takes(outputs + 1) and takes(2) else each
        unsure = len(parts) == 2 and not set(names) & {*CACHES, *COTANGENTS}
        if cache_first(backward, fn):
            return Plan((parts[-1], *parts[:-1]))
        return Plan(parts, unsure=unsure)
    if is_number and is_gradient(backward, fn, inputs):
        return Plan(xs, scaled=True)
    if more is None:  # nobody knows
        return Plan((*gs, *xs))
    if (named := _by_name(names[: max(least, 1 + inputs)], fn, outputs, inputs, least)) is not None:
        return Plan(named)
    if least == outputs and more is False:
        return Plan(gs)
    for parts in ((*gs, *xs), *([(("gs", 0), *xs), (("gs", 0),)] if outputs > 1 else []), gs):
        if takes(len(parts)) and (more is False or len(parts) > 1):
            return Plan(parts)
    if most == 0 and is_number:
        return Plan((), scaled=True)
    given = f"{outputs} gradient{'s' * (outputs > 1)} and {inputs} input{'s' * (inputs != 1)}"
    takes_text = ", ".join(p.name for p in parameters) or "nothing"
    raise InputError(
        f"backward takes ({takes_text}), and it is to get {given} of forward: write backward(L_Y, *inputs), or "
        "backward(L_Y, cache) with cache=True where forward returns (output, cache)"
    )


def _by_name(
    names: Sequence[str], fn: Any, outputs: int, inputs: int, least: int
) -> tuple[tuple[str, int], ...] | None:
    """The parts where names say another order than backward(L_Y, *inputs): inputs before L_Y, an output beside it."""
    own = [p.name.lower().lstrip("_") for p in positional_parameters(fn)[0]][:inputs]
    known: list[tuple[str, int] | None] = []
    for name in names:
        if name in own:
            known.append(("x", own.index(name)))
        elif name in COTANGENTS:
            known.append(("gs", 0) if outputs > 1 else ("g", 0))
        elif name in OUTPUTS and outputs == 1:
            known.append(("y", 0))
        else:
            known.append(None)
    parts = [p for p in known if p is not None]
    kinds = [kind for kind, _ in parts]
    if len(parts) != len(known) or len(parts) < least or sum(kind in ("g", "gs") for kind in kinds) != 1:
        if outputs == 1 and kinds[-1:] == ["y"] and len(names) == 2 == least and inputs == 1 and known[0] is None:
            return ("g", 0), ("y", 0)  # backward(d, y)
        return None
    if "y" in kinds or (kinds[0] == "x" and [p for p in parts if p[0] == "x"] == [("x", i) for i in range(inputs)]):
        return tuple(parts)
    if kinds[0] == "gs" and len(parts) == 1 + inputs:
        return tuple(parts)
    return None


def is_gradient(backward: Any, fn: Any, inputs: int) -> bool:
    """Whether backward is the gradient of a loss, as SciPy takes it: a function of the inputs alone."""
    parameters, more = positional_parameters(backward)
    required = [p.name for p in parameters if p.default is p.empty]
    if more is not False or len(required) != inputs or not inputs:
        return False
    forward = [p.name for p in positional_parameters(fn)[0]][: len(required)]
    if len(required) > 1 or hasattr(backward, "__self__"):
        return required == forward
    return required == forward or required[0].lower() not in COTANGENTS


def cache_first(backward: Any, fn: Any) -> bool:
    """Whether backward is backward(cache, L_Y), as a rule of JAX is, judged by the names of its parameters."""
    names = [p.name.lower().lstrip("_") for p in positional_parameters(backward)[0]]
    if len(names) < 2:
        return False
    first, last = names[0], names[-1]
    if (first in CACHES and last not in CACHES) or (last in COTANGENTS and first not in COTANGENTS):
        return True
    own = [p.name.lower() for p in positional_parameters(fn)[0]]
    return first in own and last not in own and last not in CACHES and first not in COTANGENTS
