"""`td.trace`: records every operation in a block, forward and backward."""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from tinydiff.autograd import tape
from tinydiff.errors import InputError
from tinydiff.study import table
from tinydiff.study.arrays import Summarizer
from tinydiff.study.cost import Cost
from tinydiff.study.recorder import Event, Leaf, Operation, Recorder
from tinydiff.study.steps import Step, steps_of

EACH = 4096  # elements of an array whose values are all kept
TOTAL = 8 << 20  # bytes of values that are kept in all
_SHOWN = 4_000_000  # characters of a page that a notebook takes into itself


class NonFinite(NamedTuple):
    """Where the first value that is not finite appeared. phase: "forward", "backward", "sum", or "input" where it came into
    the trace from outside."""

    operation: Operation | None
    phase: str
    what: str

    def __str__(self) -> str:
        return self.what


class Trace:
    """What happened in a block `with td.trace() as trace:`; made by `td.trace`.

    print(trace) shows the backward pass as a table, `html` writes a page to step through it, `graph` and `memory` write
    pictures, `cost()` tells the work of each module and operation.

    values, total: as for `td.trace`.

    operations: all operations in the order in which they ran. events: every forward pass, backward pass and sum of two
    gradients in order. steps: the same with a step for each gradient of a backward pass. leaves: the tensors that no
    operation made. notes: sentences on what is not shown.
    """

    def __init__(self, values: int = EACH, total: int = TOTAL) -> None:
        self._summarize = Summarizer(values, total)
        self._recorder = Recorder(self._summarize, None)
        self._block: Any = None
        self._notes: list[str] = []

    def __enter__(self) -> Trace:
        if self._block is not None:
            raise RuntimeError("this trace is in use; make another one with td.trace()")
        self._recorder._outer = tape.current_observer()
        self._block = tape.observing(self._recorder)
        self._block.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._block.__exit__(kind, error, where)
        self._recorder.name_leaves(sys._getframe(1))

    @property
    def operations(self) -> list[Operation]:
        return self._recorder.operations

    @property
    def events(self) -> list[Event]:
        return self._recorder.events

    @property
    def steps(self) -> list[Step]:
        """The steps in order: forward passes, gradients and sums of gradients, as the page counts them."""
        return list(steps_of(self.events))

    @property
    def leaves(self) -> list[Leaf]:
        return self._recorder.leaves

    @property
    def notes(self) -> list[str]:
        found = list(self._notes)
        if self._summarize.partial:
            found.append(
                f"{self._summarize.partial} arrays were too large to keep whole (above {self._summarize.each:,} elements, or "
                "the limit for all values was reached): of each, at most 256 elements are shown, and norm, extremes and "
                "share of NaN and infinity, which count all elements"
            )
        if unknown := [op for op in self.operations if not op.known]:
            names = ", ".join(dict.fromkeys(op.name for op in unknown))
            found.append(
                f"of {len(unknown)} operations ({names}) no forward pass was seen: they ran before the trace or again"
            )
        if not any(op.ran_backward for op in self.operations):
            found.append("no backward pass ran in the trace: call backward() on the loss inside of the block")
        return found

    def note(self, sentence: str) -> None:
        """Adds a sentence to `notes`."""
        self._notes.append(sentence)

    @property
    def first_non_finite(self) -> NonFinite | None:
        """Where the first NaN or infinity appeared, or None."""
        for event in self.events:
            op = event.operation
            if event.kind == "sum":
                if event.total is not None and event.total.non_finite:
                    return NonFinite(None, "sum", f"a sum of gradients for {table.name_of(event.target, event.output)}")
                continue
            assert op is not None
            forward = event.kind == "forward"
            for name, given in zip(op.names, op.inputs if forward else op.L_Ys, strict=False):
                if given is not None and given.non_finite:
                    which = (
                        f"input {name} of {table.described(op)}"
                        if forward
                        else f"L_Y, which came to {table.described(op)}"
                    )
                    return NonFinite(op, "input", f"{which}: it was not finite when it came into the trace")
            made: list[Any] = list(op.outputs) if forward else list(op.L_Xs)
            for i, y in enumerate(made):
                if y is not None and y.non_finite:
                    name = ("the output" if len(made) == 1 else f"output {i}") if forward else f"L_{op.names[i]}"
                    share = f"{y.non_finite} of {y.size} elements"
                    return NonFinite(
                        op, event.kind, f"{name} of the {event.kind} pass of {table.described(op)}: {share}"
                    )
        return None

    def __str__(self) -> str:
        return table.backward_table(self)

    def __repr__(self) -> str:
        return f"Trace({len(self.operations)} operations, {sum(op.ran_backward for op in self.operations)} backward passes)"

    def cost(self, sort: str = "flops") -> Cost:
        """FLOPs, bytes, saved memory and time by module and operation, forward and backward, and the single operations with
        the largest; print it.

        FLOPs are those of products of matrices, a multiplication with an addition counts as two. sort: what the rows are
        ordered by, "flops", "bytes", "saved" (memory kept for backward) or "time". InputError for another.
        """
        return Cost(self, sort)

    def html(self, path: str | Path, title: str = "a backward pass") -> None:
        """Writes the page to step through the trace: one HTML file that loads nothing else.

        path: of the file. title: of the page. InputError without igraph (extra `study`), OSError where it cannot be written.
        """
        from tinydiff.study.page import page

        Path(path).write_text(page(self, title), encoding="utf-8")

    def graph(self, path: str | Path) -> None:
        """Writes a picture of the graph; of large ones modules are drawn as one box.

        path: a name that ends in .svg or .png. InputError for another name and without igraph (extra `study`), OSError where
        it cannot be written.
        """
        from tinydiff.study import drawing

        Path(path).write_bytes(drawing.picture(self, Path(path).suffix))

    def memory(self, path: str | Path) -> None:
        """Writes a picture of the memory that is kept for backward over the steps of the trace.

        path: a name that ends in .png. InputError for another name and without matplotlib (extra `plot`), OSError where it
        cannot be written.
        """
        from tinydiff.study.memory import memory_picture

        if Path(path).suffix.lower() != ".png":
            raise InputError(f"{path} would hold a PNG picture, so its name must end in .png")
        Path(path).write_bytes(memory_picture(self))

    def _repr_html_(self) -> str:
        """What a notebook shows: the page in a frame of its own, or the table where there is no igraph."""
        from tinydiff.study.page import page

        try:
            source = page(self)
        except InputError as error:
            return f"<pre>{escape(str(self))}\n{escape(str(error))}</pre>"
        if len(source) > _SHOWN:
            return f"<pre>{escape(str(self))}\nthe page has {len(source) / 1e6:.0f} MB: html(path) writes it to a file</pre>"
        return f'<iframe srcdoc="{escape(source)}" style="width:100%;height:720px;border:1px solid #ccc"></iframe>'


def trace(values: int = EACH, total: int = TOTAL) -> Trace:
    """A block that records every operation in it, forward and backward: `with td.trace() as trace:`.

    values: all values of arrays with at most so many elements are kept; of larger ones at most 256 elements, and norm,
        extremes and share of NaN and infinity. total: bytes that the kept values may take together.

    The block sees the operations of its own thread. Outside of such a block nothing is recorded, and nothing is slower.
    """
    return Trace(values, total)
