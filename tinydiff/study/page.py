"""The page of a trace: one self-contained HTML file to step through a backward pass.

The program of the page is the .js files beside this one, its looks are page.css. This file puts the data in: JSON, with the
values of arrays as base64.
"""

from __future__ import annotations

import base64
import json
import math
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from tinydiff.study import table
from tinydiff.study.arrays import Summarizer, Summary
from tinydiff.study.formulas import EACH, Formula, formulas_of, parts_of, rule_for
from tinydiff.study.layout import boxes, groups_of
from tinydiff.study.recorder import Leaf, Operation
from tinydiff.study.rules import Rule
from tinydiff.study.steps import steps_of

MOST = 4000  # operations of a page
PROGRAM = (
    "page.js",
    "values.js",
    "made.js",
    "panel.js",
    "graph.js",
    "view.js",
    "strip.js",
    "costs.js",
    "keys.js",
)  # as they are joined
_PARTS = 4 << 20  # bytes of the arrays that formulas stand on
_FRAME = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; \
style-src 'unsafe-inline'; img-src data:">
<title>{title}</title>
<style>
{css}
</style>
</head>
<body>
<div id="app"></div>
<noscript>This page needs JavaScript, which is in this file; nothing is loaded.</noscript>
<script type="application/json" id="data">{data}</script>
<script>
{js}
</script>
</body>
</html>
"""


def page(trace: Any, title: str = "trace") -> str:
    """The page as text. title: its title. InputError without igraph."""
    here = Path(__file__).parent
    data = json.dumps(_Data(trace, title).made, separators=(",", ":"), allow_nan=False)
    return _FRAME.format(
        title=escape(title),
        css=(here / "page.css").read_text(encoding="utf-8"),
        js="\n".join((here / name).read_text(encoding="utf-8") for name in PROGRAM),
        # no tag can end the element, no line separator the script
        data=data.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"),
    )


class _Data:
    """What the page shows, as plain lists and dicts: `made`. Arrays, rules and leaves are referred to by their number."""

    def __init__(self, trace: Any, title: str) -> None:
        self.arrays: list[dict[str, Any]] = []
        self.rules: list[dict[str, Any]] = []
        self._array_of: dict[Summary, int] = {}
        self._part_of: dict[tuple[Operation, str], int | None] = {}
        self._summarize = Summarizer(EACH, _PARTS)
        self._rule_of: dict[int, int] = {}
        bad, notes = trace.first_non_finite, trace.notes
        self.first = max(0, len(trace.operations) - MOST)  # the number of the first operation shown
        shown = trace.operations[self.first :]
        if self.first:
            notes.append(
                f"only the last {MOST:,} of {len(trace.operations):,} operations are shown: trace a smaller part to see the rest"
            )
        nodes = [self._node(op) for op in shown]
        self.counts = [0, 0]  # steps forward; gradients and sums
        steps, first_bad = self._steps(trace)
        found, arrows = boxes(shown)
        self.made = {
            "title": title,
            "notes": notes,
            "first": self.first,
            "nodes": nodes,
            "leaves": [{"name": leaf.shown, "shape": leaf.shape, "weight": leaf.is_weight} for leaf in trace.leaves],
            "steps": steps,
            "counts": self.counts,
            "boxes": [
                {"k": self._key(box.what), "label": box.label, "x": round(box.x, 3), "layer": box.layer}
                for box in found
            ],
            "arrows": arrows,
            "groups": [
                {"path": g.path, "first": g.first - self.first, "last": g.last - self.first, "depth": g.depth}
                for g in groups_of(shown)
            ],
            "bad": None if bad is None else {"step": first_bad, "text": str(bad)},
            "arrays": self.arrays,
            "rules": self.rules,
        }

    def _node(self, op: Operation) -> dict[str, Any]:
        formulas = [
            [f.text, f.shapes, f.equation, f.lit, f.where, self._parts(op, i, f)] for i, f in enumerate(formulas_of(op))
        ]
        return {
            "name": op.name,
            "module": op.place.module,
            "line": op.place.shown,
            "text": op.place.text,
            "options": op.options,
            "doc": _first_sentence(op.function),
            "names": op.names,
            "inputs": [self._array(x) for x in op.inputs],
            "from": [self._key(s[0] if isinstance(s, tuple) else s) for s in op.sources],
            "outs": [s[1] if isinstance(s, tuple) else 0 for s in op.sources],
            "outputs": [self._array(y) for y in op.outputs],
            "LY": [self._array(L) for L in op.L_Ys],
            "LX": [self._array(L) if i >= len(op.needs) or op.needs[i] else None for i, L in enumerate(op.L_Xs)],
            "known": op.known,
            "flops": op.flops,
            "bytes": op.bytes,
            "ms": [round(1e3 * s, 4) for s in op.seconds],
            "saved": op.saved,
            "kept": [[name, table.shape_text(shape), kind, size] for name, shape, kind, size in op.saved_arrays],
            "rule": self._rule(rule_for(op)),
            "formulas": formulas,
        }

    def _parts(self, op: Operation, i: int, formula: Formula) -> list[list[Any]]:
        """[text, array] of what stands between L_Y and the gradient; nothing for gradients that were not computed."""
        if i >= len(op.L_Xs) or op.L_Xs[i] is None or not op.needs[i : i + 1] or not op.needs[i]:
            return []
        kind = op.L_Xs[i].dtype  # type: ignore[union-attr]
        found = []
        for text, value in parts_of(op, formula):
            if (op, text) not in self._part_of:  # the gradients of an operation share letters
                self._part_of[op, text] = self._array(self._summarize(value.astype(kind)))
            found.append([text, self._part_of[op, text]])
        return found

    def _steps(self, trace: Any) -> tuple[list[dict[str, Any]], int | None]:
        """The steps of the page, and the first one with a value that is not finite. k counts the steps of a direction; the
        gradients of one backward pass have the same `pass`."""
        steps: list[dict[str, Any]] = []
        bad: int | None = None
        before, number = None, -1
        for kind, event, i in steps_of(trace.events):
            self.counts[kind != "forward"] += 1
            if event is not before:
                before, number = event, number + 1
            op: Any = event.operation
            if self._key(event.target if kind == "sum" else op) is None:
                continue
            step: dict[str, Any] = {
                "kind": kind,
                "k": self.counts[kind != "forward"],
                "pass": number,
                "live": event.live,
            }
            if kind == "sum":
                step |= {name: self._array(getattr(event, name)) for name in ("first", "second", "total")}
                step |= {"where": self._key(event.target), "output": event.output}
                step["givers"] = [
                    p and [p[0].number - self.first, p[1]] for p in event.parts if p is None or self._key(p[0])
                ]
            else:
                step |= {"node": op.number - self.first, "gradient": i}
            steps.append(step)
            if bad is None and self._is_bad(step, trace):
                bad = len(steps) - 1
        return steps, bad

    def _is_bad(self, step: dict[str, Any], trace: Any) -> bool:
        if step["kind"] == "sum":
            return bool(self.arrays[step["total"]]["bad"])
        op = trace.operations[step["node"] + self.first]
        if step["kind"] == "forward":
            seen = [*op.inputs, *op.outputs]
        else:
            seen = [*op.L_Ys, *op.L_Xs[step["gradient"] : step["gradient"] + 1]]
        return any(a is not None and a.non_finite for a in seen)

    def _key(self, what: Any) -> str | None:
        """n7 for the operation shown as number 7, l3 for leaf 3; None for what is not shown."""
        if isinstance(what, Operation):
            return f"n{what.number - self.first}" if what.number >= self.first else None
        return f"l{what.number}" if isinstance(what, Leaf) else None

    def _array(self, summary: Summary | None) -> int | None:
        if summary is None:
            return None
        if summary not in self._array_of:
            self._array_of[summary] = len(self.arrays)
            values = summary.values
            made: dict[str, Any] = {
                "shape": summary.shape,
                "dtype": summary.dtype,
                "norm": summary.norm if math.isfinite(summary.norm) else table.number(summary.norm),
                "low": _finite(summary.low),
                "high": _finite(summary.high),
                "bad": summary.non_finite,
                "index": summary.index,
            }
            if values is not None and values.dtype.kind in "fiub":
                kind = "f8" if values.dtype.itemsize > 4 and values.dtype.kind == "f" else "f4"
                if values.dtype.kind in "iu" and values.size and np.abs(values).max() >= 1 << 24:
                    kind = "f8"
                made |= {
                    "part": values.shape,
                    "type": kind,
                    "values": base64.b64encode(values.astype("<" + kind).tobytes()).decode(),
                }
            self.arrays.append(made)
        return self._array_of[summary]

    def _rule(self, rule: Rule) -> int | None:
        if not rule.blocks:
            return None
        if id(rule) not in self._rule_of:
            self._rule_of[id(rule)] = len(self.rules)
            self.rules.append(
                {
                    "blocks": [{"title": b.title, "file": b.file, "lines": b.lines} for b in rule.blocks],
                    "id": len(self.rules),
                }
            )
        return self._rule_of[id(rule)]


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def _first_sentence(function: type[Any] | None) -> str:
    text = "" if function is None else (vars(function).get("__doc__") or "")
    return " ".join(text.split())[:300]
