"""The memory that operations keep for their backward passes, over the steps of a `Trace`."""

from __future__ import annotations

import io
from typing import Any

from tinydiff.errors import InputError
from tinydiff.study.table import size

_NAMED = 8  # operations with a colour of their own; the others share one


def _starts(trace: Any) -> list[int]:
    """The first step of each event."""
    starts: list[int] = []
    for i, step in enumerate(trace.steps):
        if i == 0 or step.event is not trace.events[len(starts) - 1]:
            starts.append(i)
    return starts


def memory_picture(trace: Any) -> bytes:
    """A PNG: how many bytes were kept after each step, by operation. InputError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("the picture of memory needs matplotlib: pip install 'tinydiff[plot]'") from None
    shown = trace.steps
    live = [step.event.live for step in shown]
    steps, starts = len(live), _starts(trace)
    totals = {name: row.saved for name, row in trace.cost().by_operation.items() if row.saved}
    named = sorted(totals, key=lambda name: -totals[name])[:_NAMED]
    heights = {name: [0] * steps for name in named}
    for op in trace.operations:
        if op.kept_at is None or not op.saved:
            continue
        row = heights.setdefault(op.name if op.name in named else "others", [0] * steps)
        end = steps if op.freed_at is None else starts[op.freed_at]
        for step in range(starts[op.kept_at], end):
            row[step] += op.saved
    peak = max(live, default=0)
    unit, name = next(((u, n) for u, n in ((1e9, "GB"), (1e6, "MB"), (1e3, "KB")) if peak >= u), (1.0, "bytes"))
    figure = Figure(figsize=(9, 4.5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    if heights and steps:
        axes.stackplot(
            range(steps),
            [[value / unit for value in row] for row in heights.values()],
            labels=list(heights),
            step="post",
            colors=[f"C{i}" for i in range(len(heights))],
        )
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(
            handles[::-1], labels[::-1], loc="upper right", fontsize="small"
        )  # from top to bottom, as they are stacked
    axes.plot(range(steps), [value / unit for value in live], "k", linewidth=1, drawstyle="steps-post")
    first = next((i for i, step in enumerate(shown) if step.kind != "forward"), None)
    if first is not None:
        axes.axvline(first, color="gray", linestyle="--", linewidth=1)
        axes.text(first, 0.01, " backward →", fontsize="small", va="bottom", transform=axes.get_xaxis_transform())
    if live:
        highest = live.index(peak)
        op = shown[highest].event.operation
        made = "" if op is None else f", {op.name} #{op.number}"
        axes.plot([highest], [peak / unit], "ko", markersize=4)
        axes.annotate(
            f"peak {size(peak)}{made}", (highest, peak / unit), (6, 4), textcoords="offset points", fontsize="small"
        )
        axes.margins(y=0.1)
    axes.set_title("Memory kept for the backward pass", fontsize="medium")
    axes.set(
        xlabel="step: a forward pass, a gradient or a sum of gradients",
        ylabel=f"kept for backward, {name}",
        xlim=(0, max(1, steps - 1)),
    )
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
