"""The steps of a trace: a forward pass, one gradient that a backward pass makes, or one sum where gradients meet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tinydiff.study.recorder import Event


class Step(NamedTuple):
    """kind: "forward", "gradient" or "sum". event: the pass or the sum. gradient: the number of the input whose gradient it
    is."""

    kind: str
    event: Event
    gradient: int = 0


def steps_of(events: Iterable[Event]) -> Iterator[Step]:
    """The steps in their order. A backward pass that makes no gradient, as none is wanted, is a step as well."""
    for event in events:
        op = event.operation
        if op is None or event.kind != "backward":
            yield Step(event.kind, event)
            continue
        wanted = op.needs if len(op.needs) == len(op.L_Xs) else (True,) * len(op.L_Xs)
        made = [i for i, L in enumerate(op.L_Xs) if L is not None and wanted[i]]
        yield from (Step("gradient", event, i) for i in made or [0])
