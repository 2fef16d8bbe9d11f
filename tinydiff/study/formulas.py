"""The formulas of an operation that was recorded: with its sizes and options, and the numbers in them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinydiff.ops.broadcasting import Elementwise
from tinydiff.study.meaning import Meaning
from tinydiff.study.notation import Term, parse, summands
from tinydiff.study.recorder import Operation
from tinydiff.study.rules import Rule, rule_of, shapes_of

_ROWS_ARE_PIXELS = ("Linear", "Linears", "Conv2d", "UpsampleConv2d", "ConvTranspose2d")
EACH = 4096  # elements of the largest array that is computed for the page


@dataclass
class Formula:
    """The formula of one gradient: name = text.

    shapes: of the matrices in it, where it is a product; equation: its number in the source; lit: (block, line) of the
    source; where: sentences on its letters; letters: their definitions. computed: the text that is computed, which is
    without the sum over `axes`, along which an input was repeated.
    """

    name: str
    text: str = ""
    shapes: str = ""
    equation: str = ""
    lit: list[tuple[int, int]] = field(default_factory=list)
    where: list[str] = field(default_factory=list)
    letters: dict[str, str] = field(default_factory=dict)
    computed: str = ""
    axes: tuple[int, ...] = ()


def rule_for(op: Operation) -> Rule:
    """The rule of an operation; an empty one where its Function is not known."""
    return Rule([], []) if op.function is None else rule_of(op.function, tuple(op.names), op.given)  # type: ignore[arg-type]


def formulas_of(op: Operation) -> list[Formula]:
    """A formula for each input of the operation."""
    return [_formula(op, i, gradient) for i, gradient in enumerate(rule_for(op).gradients)]


def _formula(op: Operation, i: int, gradient: Any) -> Formula:
    text, letters, notes = gradient.formula, dict(gradient.letters), [gradient.note] if gradient.note else []
    if op.name == "Einsum" and op.settings:
        text, notes = _einsum(op, i)
    computed, axes = text, _repeated(op, i) if text else ()
    if axes:
        text = f"sum({text})"
        shown = f"axis {axes[0]}" if len(axes) == 1 else f"axes {', '.join(map(str, axes))}"
        notes.append(f"summed over {shown}, along which {op.names[i]} was repeated")
    if text.startswith("sum_i "):
        layers = range(1, len(op.outputs) + 1)
        computed = " + ".join(re.sub("_i(?![a-z])", f"_{k}", text[6:]) for k in layers)
        text = computed if len(layers) < 4 else text
    groups = op.settings.get("groups", 1)
    if op.name in ("Conv2d", "ConvTranspose2d") and groups > 1:
        notes.append(f"separately for each of the {groups} groups of channels")
    where = [f"{letter} = {meaning}" for letter, meaning in letters.items()]
    for letter in dict.fromkeys(
        re.findall(r"(?<![\w.])[A-Za-z][A-Za-z0-9_]*\b(?!ᵀ?\()", " ".join([text, *letters.values()]))
    ):
        value = op.settings.get(letter, {"low": -math.inf, "high": math.inf}.get(letter))
        if letter in ("w", "b") and value is None and letter in op.settings:
            value = 1 if letter == "w" else 0
        is_given = letter in op.names and op.inputs[op.names.index(letter)] is not None
        if isinstance(value, int | float) and not isinstance(value, bool) and not is_given:
            where.append(f"{letter} = {value:.6g}")
    return Formula(
        gradient.name,
        text,
        _shapes(op, i, text),
        gradient.equation,
        gradient.lit,
        [*where, *notes],
        letters,
        computed,
        axes,
    )


def _einsum(op: Operation, i: int) -> tuple[str, list[str]]:
    """The gradient of an operand is a sum of products, too: of L_Y with the others, over the letters that it lacks."""
    operands, output = op.settings["operands"], op.settings["output"]
    others = [k for k in range(len(operands)) if k != i]
    terms = [output, *(operands[k] for k in others)]
    distinct = "".join(dict.fromkeys(operands[i]))
    present = "".join(c for c in distinct if any(c in term for term in terms))
    text = f'einsum("{",".join(terms)}->{present}", {", ".join(["L_Y", *(f"Xs[{k}]" for k in others)])})'
    notes = [] if present == distinct else [f"repeated along {', '.join(c for c in distinct if c not in present)}"]
    return text, notes + (["on the diagonal, 0 elsewhere"] if distinct != operands[i] else [])


def _repeated(op: Operation, i: int) -> tuple[int, ...]:
    """The axes of the result along which an input was repeated to fit the others."""
    x, Y = op.inputs[i] if i < len(op.inputs) else None, op.outputs
    if x is None or not Y or op.function is None:
        return ()
    full = Y[0].shape
    if op.name in ("Matmul", "Attention"):
        full = (*full[:-2], *x.shape[-2:])
        if op.name == "Attention" and i == 3:  # the mask, of (..., L, M)
            full = (*Y[0].shape[:-1], op.inputs[1].shape[-2])  # type: ignore[union-attr]
    elif not issubclass(op.function, Elementwise):
        return ()
    extra = len(full) - len(x.shape)
    return *range(extra), *(extra + k for k, n in enumerate(x.shape) if n == 1 and full[extra + k] != 1)


def _shapes(op: Operation, i: int, text: str) -> str:
    if op.settings.get("groups", 1) != 1 and op.name != "GroupNorm":
        return ""
    known: dict[str, Sequence[int]] = {"L_Y": op.outputs[0].shape} if op.outputs else {}
    known |= {f"L_Y_{k + 1}": y.shape for k, y in enumerate(op.outputs)}
    known |= {name: x.shape for name, x in zip(op.names, op.inputs, strict=False) if x is not None}
    if op.name in ("Conv2d", "UpsampleConv2d") and op.outputs and (W := known.get("W")):
        known |= {"P": (*op.outputs[0].shape[:3], math.prod(W[:3])), "W": (math.prod(W[:3]), W[3])}
    x = op.inputs[i] if i < len(op.inputs) else None
    return shapes_of(text, () if x is None else x.shape, known, op.name in _ROWS_ARE_PIXELS)


def value_of(op: Operation, i: int, formula: Formula) -> np.ndarray | None:
    """The gradient of input i as its formula gives it, from the values that the trace kept. None where there is no such
    formula or some values were not kept."""
    x = op.inputs[i] if i < len(op.inputs) else None
    meaning = _meaning(op, formula)
    if x is None or meaning is None:
        return None
    try:
        value = meaning.value(parse(formula.computed))
        if formula.axes:
            full = (
                np.broadcast_to(value, np.broadcast_shapes(np.shape(value), op.outputs[0].shape))
                if meaning.spreads
                else value
            )
            value = full.sum(formula.axes)
        if op.name == "Einsum":
            return _spread(op.settings["operands"][i], formula.computed, value, x.shape)
        return meaning.restore(value, x.shape)
    except (KeyError, ValueError):
        return None


def _spread(letters: str, text: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The result of an einsum repeated along the letters that it lacks, on the diagonal of letters that come twice."""
    present = re.search(r'->(\w*)"', text).group(1)  # type: ignore[union-attr]
    lengths = dict(zip(letters, shape, strict=True))
    index = np.indices(shape).reshape(len(shape), -1)
    at = {c: index[k] for k, c in enumerate(letters)}
    value = np.broadcast_to(value, [lengths[c] for c in present])
    made = value[tuple(at[c] for c in present)] if present else np.full(index.shape[1], value)
    for k, c in enumerate(letters):
        made = np.where(index[k] == at[c], made, 0)
    return made.reshape(shape)


def parts_of(op: Operation, formula: Formula) -> list[tuple[str, np.ndarray]]:
    """The terms of the sum in a formula, such as the three of group normalisation, and the arrays behind its letters, such as
    P of a convolution, without inputs and outputs: (text, array), as far as they are small and all values were kept."""
    meaning = _meaning(op, formula)
    if meaning is None:
        return []
    found: dict[str, np.ndarray] = {}
    try:
        term = parse(formula.computed)
        terms = [*summands(term), *(Term("name", letter, (), letter) for letter in formula.letters)]
        for part in terms:
            name = part.written
            if name in ("L_Y", *op.names):
                continue
            value = np.asarray(meaning.value(part), float)
            if 1 < value.size <= EACH and not isinstance(op.settings.get(name), int | float):
                found[name] = value[0] if value.ndim == 3 and len(value) == 1 else value
    except (KeyError, ValueError):
        pass
    return list(found.items())


def _meaning(op: Operation, formula: Formula) -> Meaning | None:
    try:
        return Meaning(op, formula.letters) if formula.text and op.known and op.L_Ys else None
    except (KeyError, ValueError):
        return None
