"""A `Trace` as text: the backward pass in its order, and the cost by module and operation."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tinydiff.study.arrays import Summary
from tinydiff.study.recorder import Leaf, Operation

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
    """One row for each backward pass and each sum of gradients, in their order; as wide as the terminal."""
    width = width or shutil.get_terminal_size().columns
    rows = _rows(trace, shapes=True)
    if any(sum(map(max, zip(*[map(len, row) for row in rows], strict=True))) + 12 > width for _ in rows[:1]):
        rows = _rows(trace, shapes=False)
    shown = rows
    if len(rows) > _MOST_ROWS:
        half = _MOST_ROWS // 2
        shown = [*rows[:half], ("", f"... {len(rows) - _MOST_ROWS} more ...", "", "", "", ""), *rows[-half:]]
    lines = [steps_text(trace)]
    if rows:
        head = ("#", "operation", "module", "gradient in", "gradients out", "line")
        lines += _aligned([head, *shown], width)
        lines.append("gradients: shape and |norm|, of each input that needs one; + is a sum where gradients meet")
    if (bad := trace.first_non_finite) is not None:
        lines.append(f"first value that is not finite: {bad}")
    lines += [f"note: {note}" for note in trace.notes]
    return "\n".join(lines)


def steps_text(trace: Any) -> str:
    """How many steps there are forward and backward, as the page counts them."""
    counts = Counter(step.kind for step in trace.steps)
    forward, gradients, sums = counts["forward"], counts["gradient"], counts["sum"]
    parts = [_counted(gradients, "gradient"), *([_counted(sums, "sum")] if sums else [])]
    text = f"{_counted(len(trace.operations), 'operation')}, {_counted(forward, 'step')} forward"
    return f"{text} and {gradients + sums} backward: {' and '.join(parts)}" if gradients else text


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _rows(trace: Any, shapes: bool) -> list[tuple[str, ...]]:
    """The table's cells. shapes: whether they have the gradients' shapes, which are also those of outputs and inputs."""

    def brief(summary: Summary | None) -> str:
        if summary is None:
            return ""
        bad = f" {summary.non_finite} not finite" if summary.non_finite else ""
        return f"{shape_text(summary.shape) + ' ' if shapes else ''}|{number(summary.norm)}|{bad}"

    rows: list[tuple[str, ...]] = []
    for event in trace.events:
        op = event.operation
        if event.kind == "sum":
            what = f"sum for {name_of(event.target, event.output)}"
            rows.append(("+", what, "", f"{brief(event.first)} + {brief(event.second)}", brief(event.total), ""))
        elif event.kind == "backward" and op is not None:
            outgoing = [f"L_{name} {brief(L)}" for name, L in zip(op.names, op.L_Xs, strict=False) if L is not None]
            incoming = " ".join(map(brief, op.L_Ys))
            rows.append((str(op.number), op.name, op.place.module, incoming, "  ".join(outgoing), op.place.shown))
    return rows


def number(x: float) -> str:
    """Three digits; "NaN", "inf"."""
    return "NaN" if x != x else f"{x:.3g}"


def _aligned(rows: Sequence[tuple[str, ...]], width: int) -> list[str]:
    """Columns side by side, cut to the width. The longest columns give way first; module and line lose their beginning, the
    others their end."""
    columns = list(zip(*rows, strict=True))
    wanted = [max(map(len, column)) for column in columns]
    room = max(width - 2 * (len(columns) - 1), 6 * len(columns))
    while sum(wanted) > room and max(wanted) > 6:
        longest = wanted.index(max(wanted))
        wanted[longest] -= 1
    lines = []
    for row in rows:
        cells = []
        for i, (text, n) in enumerate(zip(row, wanted, strict=True)):
            if len(text) > n:
                text = "…" + text[len(text) - n + 1 :] if i in (2, 5) else text[: n - 1] + "…"
            cells.append(text.ljust(n) if i else text.rjust(n))
        lines.append("  ".join(cells).rstrip()[:width])
    return lines
