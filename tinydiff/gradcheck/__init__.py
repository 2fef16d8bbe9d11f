"""gradcheck: is a gradient right, and if it is not, what does the error look like?

td.gradcheck(fn, inputs)      one assertion: a Report, or GradientError with the whole report as its message

api.py         the public function: the order in which things are checked
making.py      from what a user gives to a subject of one form: values and gradients of arrays
subject.py     what a subject is; functions of tensors
pairs.py       backward passes written by hand: trees.py (nested inputs, gradients by name), slots.py (stored gradients)
torches.py     functions of PyTorch's tensors
numeric.py     slopes by evaluating a function only, with a bound on their error
check.py       one subject at one point: what every question to it needs, and a record of what was seen
slopes.py      the first questions: are the passes pure, are the gradients those that the differences find?
kinks.py       what can be asked where there is no derivative
rounding.py    whether forward or backward has lost its digits at the inputs; inexact.py: what rounds
probes.py      what a right formula can still get wrong: strides, needs, repeated leaves, ...
repeats.py     indices that name a row twice
scaling.py     the same with one length three times as long
structure.py   whether an array is more than generic numbers
sizes.py       the same at lengths 0 and 1, and with squares made oblong: notes, if not asked for
diagnosis.py   from what was seen to a diagnosis, afterwards: evidence.py, patterns/, formula.py
blame.py       which line is wrong: rerun.py and taps.py (other code for a while), flow.py (what a line reads), repairs.py
locate.py      where a gradient of many elements is wrong, by halving
source.py      the syntax tree of a function, file and line of an exception
report.py      what is said, picture.py what is drawn
kernels.py     the same by the CUDA kernels, on the host
backends.py    what cpu/ and cuda/ compute beside the definitions, on the arrays of cases.py
tools.py       td.numerical_gradient, td.numerical_jacobian, td.jacobian
target.py      MODULE:FUNCTION on the command line
"""

from tinydiff.gradcheck.api import gradcheck
from tinydiff.gradcheck.report import Diagnosis, Finding, GradientError, Report, Verdict

__all__ = ["Diagnosis", "Finding", "GradientError", "Report", "Verdict", "gradcheck"]
