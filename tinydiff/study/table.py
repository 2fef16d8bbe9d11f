"""A `Trace` as text: the backward pass in its order, and the cost by module and operation."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
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
        return target.name or f"a leaf {target.shape}"
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
    lines = [f"{len(trace.operations)} operations, {len(rows)} steps of the backward pass, the last operation first"]
    if rows:
        head = ("#", "operation", "module", "gradient in", "gradients out", "line")
        lines += _aligned([head, *shown], width)
        lines.append("gradients: shape and |norm|, of each input that needs one; + is a sum where gradients meet")
    if (bad := trace.first_non_finite) is not None:
        lines.append(f"first value that is not finite: {bad}")
    lines += [f"note: {note}" for note in trace.notes]
    return "\n".join(lines)


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
    return f"{x:.3g}"


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


@dataclass
class Row:
    """Work of some operations; every pair is (forward, backward)."""

    calls: int = 0
    flops: tuple[int, int] = (0, 0)
    bytes: tuple[int, int] = (0, 0)
    saved: int = 0
    seconds: tuple[float, float] = (0.0, 0.0)

    def add(self, op: Operation) -> None:
        back = op.ran_backward
        self.calls += 1
        self.flops = self.flops[0] + op.flops[0], self.flops[1] + op.flops[1] * back
        self.bytes = self.bytes[0] + op.bytes[0], self.bytes[1] + op.bytes[1]
        self.seconds = self.seconds[0] + op.seconds[0], self.seconds[1] + op.seconds[1]
        self.saved += op.saved


class Cost:
    """The cost of a trace. total: of all operations. by_operation, by_module: by name, the latter by whole paths."""

    def __init__(self, trace: Any) -> None:
        self.total, self.by_operation, self.by_module = Row(), {}, {}  # type: tuple[Row, dict[str, Row], dict[str, Row]]
        for op in trace.operations:
            self.total.add(op)
            self.by_operation.setdefault(op.name, Row()).add(op)
            self.by_module.setdefault(op.place.module or "(outside of modules)", Row()).add(op)

    def __str__(self) -> str:
        operations = sorted(self.by_operation.items(), key=_weight)
        groups = _grouped(self.by_module)
        width = max(len(name) for name in ("operation", *self.by_operation, *groups)) + 1
        above = f"{'':<{width}} {'':5}{'FLOP':>10}{'':10}{'bytes moved':>13}{'':7}{'bytes':>10}{'ms':>10}"
        head = f"calls{'forward':>10}{'backward':>10}{'forward':>10}{'backward':>10}{'saved':>10}{'forward':>10}{'backward':>10}"
        lines = [above, f"{'operation':<{width}} {head}"]
        lines += [_cost_line(name, row, width) for name, row in operations]
        lines += [_cost_line("all", self.total, width), "", "module"]
        lines += [_cost_line(name, row, width) for name, row in groups.items()]
        lines.append(
            "FLOPs: of convolutions, fully connected layers, matmul, einsum and attention in their plain definition; a "
            "multiplication with an addition is two.\nBytes moved: arrays that a pass takes and gives, each once. Bytes "
            "saved: what is kept for backward; memory that several operations keep counts for the first."
        )
        return "\n".join(lines)


def _weight(item: tuple[str, Row]) -> tuple[Any, ...]:
    name, row = item
    return -sum(row.flops), -sum(row.seconds), name


def _grouped(rows: dict[str, Row], most: int = 40) -> dict[str, Row]:
    """The modules by path, cut to as many parts as give at most `most` rows."""
    depth = max((name.count(".") + 1 for name in rows), default=1)
    while depth > 1 and len({_cut(name, depth) for name in rows}) > most:
        depth -= 1
    grouped: dict[str, Row] = {}
    for name, row in rows.items():
        group = grouped.setdefault(_cut(name, depth), Row())
        group.calls += row.calls
        group.saved += row.saved
        group.flops = group.flops[0] + row.flops[0], group.flops[1] + row.flops[1]
        group.bytes = group.bytes[0] + row.bytes[0], group.bytes[1] + row.bytes[1]
        group.seconds = group.seconds[0] + row.seconds[0], group.seconds[1] + row.seconds[1]
    return grouped


def _cut(name: str, depth: int) -> str:
    return ".".join(name.split(".")[:depth])


def _cost_line(name: str, row: Row, width: int) -> str:
    amounts = (*row.flops, *row.bytes, row.saved)
    times = "".join(f"{1e3 * seconds:10.2f}" for seconds in row.seconds)
    return f"{name:<{width}} {row.calls:5}{''.join(f'{amount(x):>10}' for x in amounts)}{times}"


def amount(x: float) -> str:
    """A number with four digits and k, M, G or T behind it; "-" for 0."""
    for unit in ("", "k", "M", "G"):
        if x < 1000:
            return f"{x:.4g} {unit}".strip() if x else "-"
        x /= 1000
    return f"{x:.4g} T"
