"""Which lines and kinds of slips the gradient checker names, of wrong passes that were labelled before it was run on them.

    python tests/benchmarks/gradcheck_lines.py --seeds 3 --out tests/benchmarks/results/gradcheck_lines.md

The wrong passes and their labels are those of tests/gradcheck/wrong. A line is named if it is the labelled one, or a change of
it is among those that are shown. A kind is named if the first diagnosis says what the label says (tests/gradcheck/lines_named.py).
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "gradcheck")]

from lines_named import ask  # noqa: E402
from wrong import WRONG  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="where to write the table")
    options = parser.parse_args()
    rows, others, start = [], {}, time.perf_counter()
    for seed in range(options.seeds):
        answers = {wrong.name: ask(wrong, seed) for wrong in WRONG}
        count = Counter(answer.line for answer in answers.values())
        rows.append((seed, count, sum(answer.said for answer in answers.values())))
        for name, answer in answers.items():
            if answer.line not in ("named", "unsaid") or not answer.said:
                others.setdefault(name, f"{answer.line}{', kind named' * answer.kind} {answer.text}".strip())
    seconds = (time.perf_counter() - start) / options.seeds / len(WRONG)
    n = len(WRONG)
    columns = ("named", "mended elsewhere", "accused", "unsaid", "passed")
    lines = [
        f"`python tests/benchmarks/gradcheck_lines.py --seeds {options.seeds}`, Python {platform.python_version()}, NumPy "
        f"{np.__version__}: {n} wrong passes, {seconds:.2f} s for each",
        "",
        "| seed | line named | another line, with a change that mends all | right line called wrong | no line said | not found "
        "| line or kind named |",
        "| --- " * 7 + "|",
        *(
            f"| {seed} | "
            + " | ".join(f"{count[c]} ({count[c] / n:.0%})" for c in columns)
            + f" | {said} ({said / n:.0%}) |"
            for seed, count, said in rows
        ),
    ]
    if others:
        lines += ["", "Neither line nor kind, or another line, on one of the seeds:", ""]
        lines += [f"- {name}: {what}" for name, what in others.items()]
    print("\n".join(lines))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
