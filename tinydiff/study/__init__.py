"""Seeing a backward pass: one recording, many views.

tracing.py     `td.trace`, the recording and its views
recorder.py    what is recorded: operations, gradients on their way, what is kept for backward
arrays.py      what is kept of an array
places.py      the module and the line that called an operation
flops.py       how much work an operation is
table.py       the trace and its cost as text
target.py      what `tinydiff trace FILE.py:FUNCTION` runs
"""

from tinydiff.study.tracing import Trace, trace

__all__ = ["Trace", "trace"]
