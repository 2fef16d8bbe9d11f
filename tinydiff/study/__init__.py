"""Seeing a backward pass: one recording, many views.

tracing.py     `td.trace`, the recording and its views
recorder.py    what is recorded: operations, gradients on their way, what is kept for backward
arrays.py      what is kept of an array
places.py      the module and the line that called an operation
flops.py       how much work an operation is
rules.py       the source and the formulas behind a backward pass
layout.py      where operations stand in a drawing, what folds into one box
drawing.py     the graph as a picture
steps.py       the steps of a trace: forward passes, gradients, sums
meeting.py     whose gradients meet in a sum
page.py        the page to step through a backward pass; its program is the .js files, its looks page.css
memory.py      the picture of memory
table.py       the trace and its cost as text
target.py      what `tinydiff trace FILE.py:FUNCTION` runs
"""

from importlib.util import find_spec

from tinydiff.errors import InputError
from tinydiff.study.tracing import Trace, trace

__all__ = ["Trace", "check_libraries", "trace"]


def check_libraries(graph: object, memory: object) -> None:
    """InputError, before long work, where the library is missing that draws the graph or the memory, if these are wanted."""
    if graph and find_spec("igraph") is None:
        raise InputError("drawing a graph needs igraph: pip install 'tinydiff[study]'")
    if memory and find_spec("matplotlib") is None:
        raise InputError("the picture of memory needs matplotlib: pip install 'tinydiff[plot]'")
