"""How arrays look in a notebook: a small heat map."""

from __future__ import annotations

import html

import numpy as np

ROWS, COLUMNS = 16, 32  # cells shown at most


def heat_map(values: np.ndarray, title: str) -> str:
    """A table in HTML of an array (..., rows, columns): red above 0, blue below, white at 0, the largest magnitude in full
    colour; values that are not finite are yellow. Of long axes the first elements are shown, of further axes the first."""
    shape = values.shape
    plane = values.reshape((1,) * max(0, 2 - values.ndim) + shape)
    while plane.ndim > 2:
        plane = plane[0] if len(plane) else np.empty((0, 0))
    shown = plane[:ROWS, :COLUMNS]
    if np.iscomplexobj(shown):
        shown = abs(shown)
    numbers = shown.astype(np.float64)
    finite = np.abs(numbers[np.isfinite(numbers)])
    largest = float(finite.max()) if finite.size else 0.0
    lines = []
    for row, exact in zip(numbers, shown, strict=True):
        cells = (
            f'<td title="{html.escape(str(e))}" style="width:10px;height:10px;padding:0;background:{_colour(v, largest)}"></td>'
            for v, e in zip(row, exact, strict=True)
        )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    left_out = ", the first elements" if values.size > shown.size else ""
    caption = html.escape(f"Tensor {shape}, {title}{left_out}, largest magnitude {largest:.4g}")
    return f'<div><code>{caption}</code><table style="border-collapse:collapse">{"".join(lines)}</table></div>'


def _colour(value: float, largest: float) -> str:
    if not np.isfinite(value):
        return "#ffd000"
    faint = round(255 * (1 - abs(value) / largest)) if largest else 255
    return f"rgb(255,{faint},{faint})" if value >= 0 else f"rgb({faint},{faint},255)"
