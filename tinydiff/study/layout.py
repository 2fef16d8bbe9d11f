"""Where the operations of a trace stand in a drawing, and which of them fold into one box.

The layers follow from the order of computation: an operation stands below all that it was computed from, and just above the
first one that takes it. The places within a layer are Sugiyama's, by igraph (extra `study`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tinydiff.errors import InputError
from tinydiff.study.recorder import Leaf, Operation

FEW = 60  # boxes that a reader can take in at a time; with so few operations, weights are drawn as well
_LONG = 20_000  # layers that all arrows together cross; Sugiyama's algorithm then takes minutes


@dataclass
class Box:
    """An operation, a leaf or a folded module. x: its place from left to right; layer: from top to bottom. members: the
    operations of a folded module."""

    what: Any
    x: float = 0.0
    layer: int = 0
    label: str = ""
    members: list[Operation] = field(default_factory=list)


@dataclass
class Group:
    """A run of operations in one module. first, last: their numbers. depth: how many parts the path has."""

    path: str
    first: int
    last: int
    depth: int


def groups_of(operations: Sequence[Operation]) -> list[Group]:
    """The runs of at least two operations in a row whose module is, or lies in, the same path; outer groups first."""
    found: list[Group] = []
    paths = [[] if op.place.is_root or not op.place.module else op.place.module.split(".") for op in operations]

    def split(start: int, end: int, depth: int) -> None:
        i = start
        while i < end:
            j = i + 1
            if len(paths[i]) >= depth:
                prefix = paths[i][:depth]
                while j < end and paths[j][:depth] == prefix:
                    j += 1
                if j - i > 1:
                    if j - i < end - start or depth == 1:
                        found.append(Group(".".join(prefix), operations[i].number, operations[j - 1].number, depth))
                    else:  # all of the outer group: its path may be longer
                        found[-1].path = ".".join(prefix)
                    split(i, j, depth + 1)
            i = j

    split(0, len(operations), 1)
    return found


def boxes(operations: Sequence[Operation], most: int | None = None) -> tuple[list[Box], list[tuple[int, int]]]:
    """The boxes of operations and the arrows between them, as pairs of indices, placed. most: with more operations than
    that, modules become one box each, the outer ones last. InputError without igraph."""
    drawn: dict[Any, Box] = {}  # by operation or leaf
    if most is not None and len(operations) > most:
        groups = groups_of(operations)
        depth = max((g.depth for g in groups), default=0)
        while depth > 1 and _count(operations, groups, depth) > most:
            depth -= 1
        for group in folded(groups, depth):
            members = [op for op in operations if group.first <= op.number <= group.last]
            box = Box(group, label=group.path, members=members)
            drawn.update((op, box) for op in members)
    small = most is None or len(operations) <= most
    for op in operations:
        drawn.setdefault(op, Box(op, label=op.name))
        for source in op.sources:
            if isinstance(source, Leaf) and (len(operations) <= FEW if source.is_weight else source.needs or small):
                drawn.setdefault(source, Box(source, label=source.shown or "unnamed array"))
    found = list({id(box): box for box in drawn.values()}.values())
    index = {id(box): i for i, box in enumerate(found)}
    arrows: dict[tuple[int, int], None] = {}
    for op in operations:
        for source in op.sources:
            origin = source[0] if isinstance(source, tuple) else source
            if origin in drawn and drawn[origin] is not drawn[op]:
                arrows[index[id(drawn[origin])], index[id(drawn[op])]] = None
    _place(found, list(arrows))
    return found, list(arrows)


def folded(groups: Sequence[Group], depth: int) -> list[Group]:
    """The groups that are one box each when paths are cut to `depth` parts: the innermost ones."""
    shallow = [g for g in groups if g.depth <= depth]
    return [g for g in shallow if not any(h is not g and g.first <= h.first and h.last <= g.last for h in shallow)]


def _count(operations: Sequence[Operation], groups: Sequence[Group], depth: int) -> int:
    """How many boxes there are when the groups of a depth are folded."""
    return len(operations) - sum(g.last - g.first for g in folded(groups, depth))


def _place(found: list[Box], arrows: list[tuple[int, int]]) -> None:
    try:
        import igraph
    except ImportError:
        raise InputError("drawing a graph needs igraph: pip install 'tinydiff[study]'") from None
    if not found:
        return
    before: list[list[int]] = [[] for _ in found]
    after: list[list[int]] = [[] for _ in found]
    for a, b in arrows:
        before[b].append(a)
        after[a].append(b)

    def newest(i: int) -> int:
        what = found[i].what
        return what.last if isinstance(what, Group) else what.number if isinstance(what, Operation) else -1

    layers = [0] * len(found)
    in_order = sorted(range(len(found)), key=newest)
    for i in in_order:
        layers[i] = max((layers[j] + 1 for j in before[i]), default=1)
    for i in reversed(in_order):  # just above the first one that takes it
        layers[i] = min((layers[j] for j in after[i]), default=layers[i] + 1) - 1
    used = {layer: rank for rank, layer in enumerate(sorted(set(layers)))}
    for box, layer in zip(found, layers, strict=True):
        box.layer = used[layer]
    if sum(layers[b] - layers[a] for a, b in arrows) > _LONG:
        seen: dict[int, int] = {}
        for box in found:  # from left to right as they come
            box.x = float(seen.setdefault(box.layer, 0))
            seen[box.layer] += 1
        return
    graph = igraph.Graph(n=len(found), edges=arrows, directed=True)
    places = graph.layout_sugiyama(layers=layers, hgap=1, vgap=1, maxiter=40)
    for box, place in zip(found, places, strict=False):
        box.x = float(place[0])
