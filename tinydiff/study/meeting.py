"""Whose gradients meet in a sum of a trace."""

from __future__ import annotations

from typing import Any

from tinydiff.study.recorder import Event, Operation

Giver = tuple[Operation, int]  # an operation and the number of the input whose gradient it gave


class Meeting:
    """Follows the events of a trace in their order."""

    def __init__(self) -> None:
        self._given: dict[tuple[int, int], list[Giver]] = {}  # by target and output
        self._unmet: list[tuple[int, int]] = []  # where the last backward pass gave something

    def givers(self, event: Event) -> list[Giver]:
        """Of a sum, the operations that its gradients came from in the order in which they arrived, `event.second`'s at the
        end; without those that lie outside of the trace. Empty for other events."""
        op = event.operation
        if event.kind == "sum":
            key = id(event.target), event.output
            given = self._given.get(key, [])
            if event.came_from is None or key not in self._unmet:
                return []
            if (
                self._unmet.count(key) == len(given) > 1
                and event.first is not None
                and event.first.equals(_sent(given[0]))
            ):
                self._unmet.remove(key)  # one operation gave several, and the first of them met nothing
            self._unmet.remove(key)
            return given[: len(given) - self._unmet.count(key)]
        for key in self._unmet:  # nothing met there: it was the first gradient, or the first since the last zero_grad()
            self._given[key] = self._given[key][-1:]
        self._unmet = []
        if event.kind == "backward" and op is not None:
            for output in range(len(op.outputs)):
                self._given.pop((id(op), output), None)
            for i, (source, L_X) in enumerate(zip(op.sources, op.L_Xs, strict=False)):
                if L_X is not None and source is not None and (i >= len(op.needs) or op.needs[i]):
                    target, output = source if isinstance(source, tuple) else (source, 0)
                    self._given.setdefault((id(target), output), []).append((op, i))
                    self._unmet.append((id(target), output))
        return []


def _sent(giver: Giver) -> Any:
    return giver[0].L_Xs[giver[1]]
