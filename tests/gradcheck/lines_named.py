"""How well a failed check says where a backward pass is wrong, by labels that were written before it was run.

The labels of `wrong` (line and kind of each slip) come from somebody who had not seen the checker.
"""

import inspect
from dataclasses import dataclass

import numpy as np

from tinydiff.gradcheck import GradientError, gradcheck

# The checker's diagnoses that say what a label's kind says.
KINDS = {
    "missing sum over a broadcast axis": {"broadcast", "shape"},
    "missing term": {"missing", "partial", "mean-term", "variance-term", "reuse", "reused", "shared", "direct-term", "branch"},
    "missing factor": {"factor", "ratio", "local-derivative", "ignores-upstream"},
    "wrong factor": {"factor", "ratio", "local-derivative", "sign", "twice"},
    "wrong sign": {"sign", "ratio", "factor"},
    "wrong axis": {"axis", "transposed", "broadcast", "exchanged", "mean-term", "variance-term"},
    "not transposed": {"transposed", "exchanged", "misplaced", "swapaxes"},
    "wrong array": {"operand", "local-derivative", "mask", "variance-term", "exchanged"},
    "no accumulation": {"overwritten", "missing", "partial", "repeat", "repeated-leaf", "reuse"},
    "overwritten": {"overwritten", "missing", "partial", "repeat", "branch", "nonlinear"},
    "off by one": {"shifted", "missing", "partial", "range", "border"},
    "wrong mask": {"mask", "local-derivative", "branch", "misplaced"},
    "not flipped": {"flipped", "transposed"},
    "stride or padding": {"shifted", "shape", "border", "misplaced", "range", "partial"},
}  # fmt: skip


@dataclass
class Answer:
    """What a check said of a wrong pair.

    line: "named", also where the slip may be said to be; "mended elsewhere" where a change of another line is shown after
    which all gradients are right; "accused" where another line is called wrong; "unsaid"; "passed".
    """

    line: str
    kind: bool
    text: str = ""

    @property
    def said(self) -> bool:
        """Whether line or kind is named."""
        return self.line == "named" or self.kind


def ask(wrong, seed: int) -> Answer:
    """Checks a wrong pair and compares what is said with its label."""
    try:
        gradcheck(
            wrong.forward, wrong.inputs(np.random.default_rng(seed)), backward=wrong.backward, cache=True, seed=seed
        )
    except GradientError as error:
        report = error.report
    else:
        return Answer("passed", False)
    codes = {finding.diagnoses[0].code for finding in report.findings if finding.diagnoses}
    blame = next((finding.blame for finding in report.findings if finding.blame), None)
    if blame is None:
        return Answer("unsaid", bool(codes & KINDS.get(wrong.kind, set())))
    kind = bool((codes | {blame.code}) & KINDS.get(wrong.kind, set()))
    source, first = inspect.getsourcelines(wrong.backward)
    labels = [line.strip() for line in source if line.strip() in (wrong.line, *wrong.alternatives)]
    begins = {first + i for i, line in enumerate(source) if line.strip() in labels}
    if begins & {blame.line, *(blame.others if blame.fix else [])}:
        return Answer("named", kind)
    return Answer("mended elsewhere" if blame.fix else "accused", kind, f"line {blame.line}: {blame.text}")
