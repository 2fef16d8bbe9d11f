"""A `Trace` as text: the backward pass in its order, and the cost by module and operation."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tinydiff.study.arrays import Summary
from tinydiff.study.recorder import Leaf, Operation
from tinydiff.study.steps import steps_of

_MOST_ROWS = 400  # of a table; the middle of a longer one is left out


def described(op: Operation) -> str:
    """An operation, its module and the caller's line, for a sentence."""
    parts = [f"in {op.place.module}"] if op.place.module else []
    parts += [f"at {op.place.shown}: {op.place.text}"] if op.place.file else []
    return " ".join([op.name, *parts])


def name_of(target: Any, output: int = 0) -> str:
    """A leaf or an output of an operation."""
    if isinstance(target, Leaf):
        return target.shown or f"an array {target.shape}"
    several = f"[{output}]" if len(target.outputs) > 1 else ""
    return f"{target.name} #{target.number}{several}"


def shape_text(shape: Sequence[int]) -> str:
    return f"({','.join(map(str, shape))})"


def backward_table(trace: Any, width: int | None = None) -> str:
    """One row for each backward pass and each sum of gradients, in their order; as wide as the terminal, or 120 columns
    where there is none."""
    width = width or shutil.get_terminal_size((_NO_TERMINAL, 24)).columns
    rows = _rows(trace)
    shown = rows
    if len(rows) > _MOST_ROWS:
        half = _MOST_ROWS // 2
        gap = [["..."], [f"{len(rows) - _MOST_ROWS} more"], [], [], [], []]
        shown = [*rows[:half], gap, *rows[-half:]]
    lines = [steps_text(trace)]
    if rows:
        lines += _fitted([[[name] for name in _HEAD], *shown], width)
        lines.append("gradients: shape and |norm|, a step for each; a sum adds gradients that meet")
    if (bad := trace.first_non_finite) is not None:
        lines.append(f"first value that is not finite: {bad}")
    lines += [f"note: {note}" for note in trace.notes]
    return "\n".join(lines)


_HEAD = ("step", "operation", "module", "gradient in", "gradients out", "line")
_NO_TERMINAL = 120  # columns
_LEAST_MODULE = 14  # characters of a module's path
Cells = list[list[str]]  # of a row: the texts of each cell, one below the other where they do not fit side by side


def steps_text(trace: Any) -> str:
    """How many steps there are forward and backward, as the page counts them."""
    counts = Counter(step.kind for step in trace.steps)
    forward, gradients, sums = counts["forward"], counts["gradient"], counts["sum"]
    parts = [_counted(gradients, "gradient"), *([_counted(sums, "sum")] if sums else [])]
    text = f"{_counted(len(trace.operations), 'operation')}, {_counted(forward, 'step')} forward"
    return f"{text} and {gradients + sums} backward: {' and '.join(parts)}" if gradients else text


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _rows(trace: Any) -> list[Cells]:
    rows: list[Cells] = []
    k = 0
    for event in trace.events:
        op = event.operation
        made = [] if event.kind == "forward" else [step.gradient for step in steps_of([event])]
        k += len(made)
        step = [f"{k - len(made) + 1}-{k}" if len(made) > 1 else str(k)]  # one for each gradient
        if event.kind == "sum":
            parts = [_brief(event.first), f"+ {_brief(event.second)}"]
            names = ["from before" if part is None else f"{part[0].name} #{part[0].number}" for part in event.parts]
            origin = [names[0] if len(names) == 2 else f"{len(names) - 1} before", f"+ {names[-1]}"]
            what = f"sum for {name_of(event.target, event.output)}"
            rows.append([step, [what], origin, parts, [_brief(event.total)], []])
        elif event.kind == "backward" and op is not None:
            outgoing = [f"L_{op.names[i]} {_brief(op.L_Xs[i])}" for i in made if i < len(op.L_Xs) and op.L_Xs[i]]
            what = f"{op.name} #{op.number}"
            rows.append([step, [what], [op.place.module], [*map(_brief, op.L_Ys)], outgoing, [op.place.shown]])
    return rows


def _brief(summary: Summary | None) -> str:
    if summary is None:
        return ""
    bad = f" {summary.non_finite} not finite" if summary.non_finite else ""
    return f"{shape_text(summary.shape)} |{number(summary.norm)}|{bad}"


def number(x: float) -> str:
    """Three digits; "NaN", "inf"."""
    return "NaN" if x != x else f"{x:.3g}".replace("e-0", "e-").replace("e+0", "e+")


def _fitted(rows: list[Cells], width: int) -> list[str]:
    """The rows as lines of at most `width` characters. Shapes and norms stay whole as long as they can: gradients go one
    below the other, paths lose their beginning, the line is left out, the module goes below the operation."""
    step, operation, module, incoming, outgoing, line = range(6)
    most = [max(len("  ".join(row[i])) for row in rows) for i in range(6)]  # side by side
    least = [max((len(text) for row in rows for text in row[i]), default=0) for i in range(6)]
    short = min(most[module], max(_LEAST_MODULE, len(_HEAD[module])))
    fixed = least[step] + min(least[operation], 24) + least[incoming] + least[outgoing] + 2 * 4
    wanted = [least[step], min(least[operation], 24), short, least[incoming], least[outgoing], min(least[line], 24)]
    if fixed + short + 2 + wanted[line] > width:
        wanted[line] = 0
    if fixed + short > width:
        wanted[module] = 0
        rows = [rows[0], *([*row[:1], [*row[operation], *filter(None, row[module])], [], *row[3:]] for row in rows[1:])]
    columns = [i for i in range(6) if wanted[i]]
    room = width - sum(wanted) - 2 * (len(columns) - 1)
    for i, natural in (
        (module, most[module]),
        (outgoing, most[outgoing]),
        (incoming, most[incoming]),
        (line, most[line]),
    ):
        if room > 0 and wanted[i]:
            more = min(room, natural - wanted[i])
            wanted[i], room = wanted[i] + more, room - more
    for i in (operation, incoming, outgoing):  # a terminal that is too narrow
        less = min(max(0, -room), max(0, wanted[i] - 12))
        wanted[i], room = wanted[i] - less, room + less
    return [text for row in rows for text in _row(row, columns, wanted, width)]


def _row(row: Cells, columns: list[int], wanted: list[int], width: int) -> list[str]:
    """The lines of a row. Of what does not fit, paths and places lose the beginning and other texts the end."""
    operation, module, incoming, line = 1, 2, 3, 5
    cells = {}
    for i in columns:
        stacked: list[str] = []
        joined = i != operation and (i != module or len("  ".join(row[incoming])) <= wanted[incoming])
        for n, text in enumerate(row[i]):
            if joined and stacked and len(stacked[-1]) + 2 + len(text) <= wanted[i]:
                stacked[-1] += f"  {text}"
            else:
                is_path = i in (module, line) or (i == operation and (n > 0 or text.startswith("sum for")))
                stacked.append(_cut_to(text, wanted[i], is_path))
        cells[i] = stacked
    lines = []
    for k in range(max(map(len, cells.values()))):
        texts = [cells[i][k] if k < len(cells[i]) else "" for i in columns]
        aligned = [t.ljust(wanted[i]) if i else t.rjust(wanted[i]) for i, t in zip(columns, texts, strict=True)]
        lines.append("  ".join(aligned).rstrip()[:width])
    return lines


def _cut_to(text: str, n: int, is_path: bool) -> str:
    if len(text) <= n:
        return text
    if text.startswith("sum for "):
        return "sum " + _cut_to(text[8:], n - 4, True)
    return "…" + text[len(text) - n + 1 :] if is_path else text[: n - 1] + "…"


def size(n: int) -> str:
    """Bytes with three digits and their unit: "12.5 KB"."""
    prefix, unit = next(((p, u) for p, u in (("G", 1e9), ("M", 1e6), ("K", 1e3)) if n >= u), ("", 1))
    return f"{n / unit:.3g} {prefix}B"
