"""What a gradient check found, and how it says so."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

MOST_VERDICTS, MOST_NAMES = 12, 4  # of more arrays, only the first wrong ones are listed


@dataclass
class Formula:
    """A line of source that computes a gradient."""

    op: str
    text: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.op}: {self.text}    ({self.file}:{self.line})"


@dataclass
class Blame:
    """The line of a backward pass that is wrong.

    text: its statement. fix: the statement after which all gradients are right, where one was found, and code: that of
    the diagnosis. variable: the one whose value is wrong there. right: variables of backward before it whose values
    are right. others: lines where a change would do as well.
    """

    file: str
    line: int
    text: str
    fix: str | None
    code: str
    right: list[str]
    others: list[int]
    variable: str | None = None
    why: str | None = None  # what is wrong with the line, where more than that can be told

    def lines(self) -> list[str]:
        what = f"{self.variable} is the first wrong value" if self.variable else "this line is wrong"
        if self.why:
            what = self.why
        if self.code == "raises":
            what = "this line raises"
        before = (
            f"; {', '.join(self.right)} before it {'is' if len(self.right) == 1 else 'are'} right" if self.right else ""
        )
        lines = [f"{self.file}:{self.line}: {self.text}", f"  {what}{before}"]
        if self.fix:
            also = f" (a change in line {', '.join(map(str, self.others))} would do as well)" if self.others else ""
            lines.append(f"  all gradients are right with: {self.fix}{also}")
        return lines


@dataclass
class Verdict:
    """The main test of one array: <L_X, v> as backward has it and as the differences have it, along a random v."""

    name: str
    shape: tuple[int, ...]
    ok: bool
    backward: float
    differences: float
    allowed: float
    method: str

    @property
    def error(self) -> float:
        return abs(self.backward - self.differences)

    @property
    def relative_error(self) -> float:
        """|analytic - numerical| / max(|analytic|, |numerical|)."""
        return self.error / self._size

    @property
    def tolerance(self) -> float:
        """What the relative error may be."""
        return self.allowed / self._size

    @property
    def _size(self) -> float:
        return max(abs(self.backward), abs(self.differences)) or 1.0


@dataclass
class Diagnosis:
    """What an error looks like: a sentence, and for programs a code.

    How much: sign ratio factor operand small local-derivative direct-term mean-term variance-term nonlinear zero
        ignores-upstream not-finite
    Where: transposed flipped shifted misplaced border branch mask partial exchanged shape
    Of several contributions: overwritten missing twice broadcast
    Memory and use: in-place strides not-repeatable reused needs dropped-output repeated-leaf raises
    At which inputs: square-only size-0 kink not-differentiable
    Otherwise: forward unknown
    """

    code: str
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass
class Finding:
    """One thing that is wrong.

    probe: which probe saw it. input: the name of the array whose gradient is concerned, or None. got, expected: the
    gradients by backward and as they should be, where both are known (NaN where an element was not computed).
    """

    probe: str
    input: str | None
    message: str
    diagnoses: list[Diagnosis] = field(default_factory=list)
    formula: Formula | None = None
    got: np.ndarray | None = None
    expected: np.ndarray | None = None
    array: str | None = None  # what got and expected are gradients of, where that is not the input
    culprit: tuple[str, str | None] | None = None  # the operation inside of fn that is wrong by itself, and its input
    convergence: tuple[float, float] | None = None
    blame: Blame | None = None

    @property
    def worst(self) -> tuple[int, ...] | None:
        """The index of the largest error, where gradients are known."""
        if self.got is None or self.expected is None or not self.expected.size:
            return None
        gap = np.abs(self.got - self.expected)
        gap = np.where(np.isnan(self.expected), -1, np.where(np.isnan(gap), np.inf, gap))
        return tuple(int(i) for i in np.unravel_index(int(np.argmax(gap)), gap.shape))

    @property
    def undecided(self) -> bool:
        """Whether nothing was found but that the gradient cannot be checked at these inputs."""
        return bool(self.diagnoses) and self.diagnoses[0].code == "not-differentiable"

    def lines(self) -> list[str]:
        from tinydiff.gradcheck.picture import draw

        names = (self.input or "").split(", ")
        of = ", ".join(names) if len(names) <= MOST_NAMES else f"{', '.join(names[:2])} and {len(names) - 2} others"
        where = f"{of}: " if of else ""
        lines = [f"{where}{self.message}  [{self.probe}]"]
        if self.blame is not None:
            lines += ["  " + line for line in self.blame.lines()]
        elif self.formula is not None:
            lines.append(f"  {self.formula}")
        if (at := self.worst) is not None and self.got is not None and self.expected is not None:
            of = f" of {self.culprit[0]}" if self.culprit else ""
            place = "" if not at else "[" + ", ".join(map(str, at)) + "]"
            values = f"analytic {self.got[at]:.8g}, numerical {self.expected[at]:.8g}"
            lines.append(f"  worst element: {self.array or self.input}{place}{of}: {values}")
            lines += ["  " + line for line in draw(self.got, self.expected)]
        if self.convergence is not None:
            lines.append(f"  {_slopes(*self.convergence)}")
        for i, diagnosis in enumerate(self.diagnoses):
            lines.append(f"  {'it looks like:' if i == 0 else 'or:'} {diagnosis}")
        return lines


@dataclass(repr=False)
class Report:
    """The result of a gradient check. True if nothing was found; print it to read it."""

    name: str
    seed: int
    dtype: str = "float64"
    tolerance: str = ""
    verdicts: list[Verdict] = field(default_factory=list)
    probes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.findings

    @property
    def diagnosis(self) -> str | None:
        """The code of the first diagnosis, for programs; None if nothing was found."""
        for finding in self.findings:
            for diagnosis in finding.diagnoses:
                return diagnosis.code
        return None if self.ok else "unknown"

    def __bool__(self) -> bool:
        return self.ok

    @property
    def summary(self) -> str:
        """One line: the result and, of a wrong gradient, which and what it looks like."""
        result = "no error found"
        if self.findings:
            first = self.findings[0]
            of = f" (gradient of {first.input})" if first.input else ""
            word = "NOT DECIDED" if all(f.undecided for f in self.findings) else "WRONG"
            result = f"{word}{of}" + (f": {first.diagnoses[0]}" if first.diagnoses else f": {first.message}")
        return f"gradcheck {self.name}: {result}  ({self.dtype}, seed={self.seed})"

    def __repr__(self) -> str:
        if not self.ok:
            return str(self)
        worst = max((v.relative_error for v in self.verdicts), default=0.0)
        checked = ", ".join(v.name for v in self.verdicts[:MOST_NAMES]) + (
            ", ..." if len(self.verdicts) > MOST_NAMES else ""
        )
        return f"{self.summary}, gradients of {checked}: relative error at most {worst:.1e}"

    def __str__(self) -> str:
        lines = [self.summary]
        shown = self.verdicts
        if len(shown) > MOST_VERDICTS:
            shown = [v for v in shown if not v.ok][:MOST_VERDICTS]
        width = max((len(v.name) for v in shown), default=0)
        shapes = [str(v.shape) for v in shown]
        wide = max(map(len, shapes), default=0)
        for v, shape in zip(shown, shapes, strict=True):
            word = "ok   " if v.ok else "WRONG"
            sums = f"analytic {v.backward:+.6e}  numerical {v.differences:+.6e}  relative error {v.relative_error:.1e}"
            lines.append(
                f"  {v.name:{width}}  {shape:{wide}}  {word}  {sums}, tolerance {v.tolerance:.1e}  ({v.method})"
            )
        if len(shown) < len(self.verdicts):
            wrong = sum(not v.ok for v in self.verdicts)
            more = f"{wrong - len(shown)} more WRONG, " if wrong > len(shown) else ""
            lines.append(f"  and {more}{len(self.verdicts) - wrong} ok")
        for finding in self.findings:
            lines += ["", *("  " + line for line in finding.lines())]
        if not self.ok:
            lines.append("")
        if self.probes:
            lines.append(f"  probes: {', '.join(self.probes)}")
        if self.tolerance:
            lines.append(f"  tolerance: {self.tolerance}")
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """What a notebook shows: one line of a passing check, the whole message of a failing one."""
        text = html.escape(repr(self))
        return (
            f"<code>{text}</code>" if self.ok else f'<pre style="line-height: 1.2; white-space: pre-wrap">{text}</pre>'
        )

    def save_png(self, path: str | Path | BinaryIO) -> bool:
        """Draws the first finding that has gradients: backward's, the right one, the error. False if there is none.
        path: of the picture, or a file that is open for writing bytes."""
        from tinydiff.gradcheck.picture import save_png

        for finding in self.findings:
            if finding.got is not None and finding.expected is not None:
                save_png(path, finding.got, finding.expected, f"{self.name}: {finding.input}")
                return True
        return False


class GradientError(AssertionError):
    """A gradient is wrong. The message is the whole report; `.report` holds it for programs."""

    def __init__(self, report: Report) -> None:
        super().__init__(str(report))
        self.report = report


GradientError.__module__ = "tinydiff"  # short, as it is imported: pytest's line of a failure has room for what is wrong


def _slopes(true: float, false: float) -> str:
    """Of the powers of h with which differences approach two values; nan where they are there already."""
    right = f"as h^{true:.1f}" if np.isfinite(true) else "exactly"
    wrong = f"as h^{false:.1f}" if false >= 0.5 else "not at all"
    return f"differences with step h approach the numerical value {right}, the analytic value {wrong}"
