"""How arrays look in a notebook: small ones as numbers, others as a heat map."""

from __future__ import annotations

import html
from collections.abc import Iterable

import numpy as np

ROWS, COLUMNS = 16, 32  # cells of a heat map, at most
FEW_ROWS, FEW_COLUMNS = 10, 8  # with at most so many, the cells are numbers
_WHITE, _RED, _BLUE = (255, 255, 255), (194, 59, 34), (36, 88, 184)
_NOT_FINITE = (176, 0, 122)


def heat_map(values: np.ndarray, title: str) -> str:
    """A table in HTML of an array: red above 0, blue below, white at 0, the largest magnitude in full colour; what is not
    finite is purple. Of long axes the first elements are shown. Of images (N, H, W, C) the first one's first channel is
    shown, of filters (R, S, C, K) the middle, of other arrays with more than two axes the first rows and columns."""
    plane, part = _plane(values)
    shown = plane[:ROWS, :COLUMNS]
    kept = [f":{few}" if few < all_ else ":" for few, all_ in zip(shown.shape, plane.shape, strict=True)][
        -part.count(":") :
    ]
    part = [kept.pop(0) if p == ":" else p for p in part]
    numbers = np.abs(shown).astype(np.float64) if np.iscomplexobj(shown) else shown.astype(np.float64)
    finite = np.abs(numbers[np.isfinite(numbers)])
    top = float(finite.max()) if finite.size else 0.0
    small = shown.shape[0] <= FEW_ROWS and shown.shape[1] <= FEW_COLUMNS
    rows = "".join(
        f"<tr>{''.join(_cell(v, e, top, small) for v, e in zip(row, exact, strict=True))}</tr>"
        for row, exact in zip(numbers, shown, strict=True)
    )
    what = f"a part is shown: [{', '.join(part)}]" if values.size > shown.size else ""
    bad = numbers.size - finite.size
    notes = [title, what, f"{bad} not finite (purple)" if bad else ""]
    caption = html.escape(", ".join(["Tensor " + str(values.shape), *filter(None, notes)]))
    legend = "" if small or not shown.size else _legend(top)
    table = f'<table style="border-collapse:collapse;width:auto;margin:4px 0">{rows}</table>'
    return f"<div><code>{caption}</code>{table}{legend}</div>"


def _plane(values: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Rows and columns of an array, and the index that gives them."""
    if values.ndim == 4 and min(values.shape[1:3]) >= 8 and values.size:
        return values[0, :, :, 0], ["0", ":", ":", "0"]
    if values.ndim == 4 and values.size:
        r, s = values.shape[0] // 2, values.shape[1] // 2
        return values[r, s], [str(r), str(s), ":", ":"]
    plane = values.reshape((1,) * max(0, 2 - values.ndim) + values.shape)
    while plane.ndim > 2:
        plane = plane[0] if len(plane) else np.empty((0, 0))
    return plane, [*["0"] * (values.ndim - 2), *[":"] * min(2, values.ndim)]


def _cell(value: float, exact: object, top: float, small: bool) -> str:
    colour = _colour(value, top)
    style = f"background:rgb{colour};".replace(" ", "")
    if not small:
        return f'<td title="{html.escape(str(exact))}" style="width:10px;height:10px;padding:0;border:0;{style}"></td>'
    text = f"{exact:.4g}" if isinstance(exact, float | np.floating) else str(exact)
    style += f"color:{_ink(colour)};padding:1px 6px;text-align:right;border:1px solid #8884"
    number = f'<code style="color:inherit;background:none">{html.escape(text)}</code>'
    return f'<td title="{html.escape(str(exact))}" style="{style}">{number}</td>'


def _legend(top: float) -> str:
    steps = ",".join(f"rgb{_colour(v, 1.0)}".replace(" ", "") for v in np.linspace(-1, 1, 9))
    bar = (
        f'<span style="display:inline-block;width:90px;height:8px;background:linear-gradient(to right,{steps})"></span>'
    )
    return f"<small><code>-{top:.4g}</code> {bar} <code>{top:.4g}</code></small>"


def _colour(value: float, top: float) -> tuple[int, ...]:
    if not np.isfinite(value):
        return _NOT_FINITE
    share = (abs(value) / top) ** 0.8 if top else 0.0
    return tuple(round(w + (end - w) * share) for w, end in zip(_WHITE, _RED if value > 0 else _BLUE, strict=True))


def _ink(colour: Iterable[int]) -> str:
    """Black or white, whichever is easier to read on a colour."""
    red, green, blue = (((c / 255 + 0.055) / 1.055) ** 2.4 if c > 10 else c / 3295 for c in colour)
    return "#000" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 else "#fff"
