"""The cost of a `Trace` by operation and module: FLOPs, bytes, saved memory, time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tinydiff.errors import InputError
from tinydiff.study.recorder import Operation

SORTS = ("flops", "bytes", "saved", "time")
_LARGEST = 8  # single operations that are listed


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
    """The cost of a trace. total: of all operations. by_operation, by_module: by name, the latter by whole paths. largest:
    the single operations, those with the largest cost first.

    sort: by what the rows are ordered, "flops", "bytes" (moved), "saved" (memory kept for backward) or "time". InputError
    for another.
    """

    def __init__(self, trace: Any, sort: str = "flops") -> None:
        if sort not in SORTS:
            raise InputError(f"sort must be one of {', '.join(SORTS)}, not {sort!r}")
        self.sort = sort
        self.total, self.by_operation, self.by_module = Row(), {}, {}  # type: tuple[Row, dict[str, Row], dict[str, Row]]
        for op in trace.operations:
            self.total.add(op)
            self.by_operation.setdefault(op.name, Row()).add(op)
            self.by_module.setdefault(op.place.module or "(outside of modules)", Row()).add(op)
        self.largest = _sorted([(op, _row(op)) for op in trace.operations], sort)

    def __repr__(self) -> str:
        return str(self)  # what a notebook shows

    def __str__(self) -> str:
        operations = _sorted(list(self.by_operation.items()), self.sort)
        groups = _grouped(self.by_module)
        modules = list(groups.items()) if self.sort == "flops" else _sorted(list(groups.items()), self.sort)
        single = _singles(self.largest, self.sort)
        savers = [] if self.sort == "saved" else _singles(_sorted(self.largest, "saved"), "saved")
        width = max(len(name) for name, _ in (("operation", None), *operations, *modules, *single, *savers)) + 1
        above = f"{'':<{width}} {'':5}{'FLOP':>10}{'':10}{'bytes moved':>13}{'':7}{'bytes':>10}{'ms':>10}"
        head = f"calls{'forward':>10}{'backward':>10}{'forward':>10}{'backward':>10}{'saved':>10}{'forward':>10}{'backward':>10}"
        lines = [above, f"{'operation':<{width}} {head}"]
        lines += [_line(name, row, width) for name, row in operations]
        lines += [_line("all", self.total, width), "", "module"]
        lines += [_line(name, row, width) for name, row in modules]
        for title, rows in ((_TITLES[self.sort], single), (_TITLES["saved"], savers)):
            if rows:
                lines += ["", title, *[_line(name, row, width) for name, row in rows]]
        lines.append(
            "FLOPs: of convolutions, fully connected layers, matmul, einsum and attention in their plain definition; a "
            "multiplication with an addition is two.\nBytes moved: arrays that a pass takes and gives, each once. Bytes "
            "saved: what is kept for backward; memory that several operations keep counts for the first."
        )
        return "\n".join(lines)


_TITLES = {
    "flops": "single operations with the most FLOPs",
    "bytes": "single operations that move the most bytes",
    "saved": "single operations that save the most memory for backward",
    "time": "single operations that take the most time",
}


def _row(op: Operation) -> Row:
    row = Row()
    row.add(op)
    return row


def _sorted(items: list[tuple[Any, Row]], sort: str) -> list[tuple[Any, Row]]:
    """The largest first; equal ones by FLOPs and time."""

    return sorted(items, key=lambda item: [-_amount(item[1], by) for by in (sort, "flops", "time")])


def _amount(row: Row, sort: str) -> float:
    return {"flops": sum(row.flops), "bytes": sum(row.bytes), "saved": row.saved, "time": sum(row.seconds)}[sort]


def _singles(largest: list[tuple[Operation, Row]], sort: str) -> list[tuple[str, Row]]:
    """The first rows of single operations, which are called by number, name and module; none where all are 0."""
    some = [(op, row) for op, row in largest[:_LARGEST] if _amount(row, sort)]
    return [(f"#{op.number} {op.name} {op.place.module}".rstrip(), row) for op, row in some]


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


def _line(name: str, row: Row, width: int) -> str:
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
