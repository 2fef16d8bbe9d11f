"""The graph of a trace as a picture, SVG or PNG: operations as boxes, modules of large networks folded into one box each."""

from __future__ import annotations

import io
from html import escape
from typing import Any

from tinydiff.errors import InputError
from tinydiff.study.cost import amount
from tinydiff.study.layout import FEW, Box, boxes
from tinydiff.study.recorder import Leaf, Operation
from tinydiff.study.table import shape_text

_WIDE, _HIGH, _GAP_X, _GAP_Y, _MARGIN = 190, 46, 24, 34, 20  # pixels
_COLUMN = 24  # boxes above which a graph stands in one column
_FILL = {"operation": "#eaf1fb", "module": "#fdf3df", "leaf": "#eef7ea", "weight": "#f3ecfa"}
_EDGE = "#5b6b7f"
_INK = "#1c2430"


Point = tuple[float, float]
Cell = tuple[float, float, str, str, str]  # x, y, kind, title, second line


def _drawn(trace: Any) -> tuple[list[Cell], list[list[Point]], int, int]:
    """Boxes, arrows as the points of cubic curves, width and height in pixels."""
    found, arrows = boxes(trace.operations, FEW)
    rows: dict[int, list[Box]] = {}
    for box in found:
        rows.setdefault(box.layer, []).append(box)
    column = len(found) > _COLUMN
    x_of: dict[int, float] = {}
    for row in rows.values():
        row.sort(key=lambda b: b.x)
        xs: list[float] = []
        for box in row:
            xs.append(max(0.0 if column else box.x * (_WIDE + _GAP_X) / 1.2, xs[-1] + _WIDE + _GAP_X if xs else -1e9))
        shift = sum(xs) / len(xs) if column else 0.0
        x_of |= {id(box): x - shift for box, x in zip(row, xs, strict=True)}
    left = min(x_of.values(), default=0) - _MARGIN
    cells = [(x_of[id(b)] - left, float(b.layer * (_HIGH + _GAP_Y) + _MARGIN), *_texts(b)) for b in found]
    lanes: dict[int, float] = {layer: max(x_of[id(b)] - left + _WIDE for b in row) for layer, row in rows.items()}
    lines = []
    for a, b in sorted(arrows, key=lambda ab: found[ab[1]].layer - found[ab[0]].layer):
        (xa, ya), (xb, yb) = cells[a][:2], cells[b][:2]
        lines.append(_curve(xa + _WIDE / 2, ya + _HIGH, xb + _WIDE / 2, yb))
        between = range(found[a].layer + 1, found[b].layer)
        crossed = [
            cell
            for layer in between
            for box in rows[layer]
            if (cell := x_of[id(box)] - left) - 10
            < xa + _WIDE / 2 + (xb - xa) * (layer - found[a].layer) / (found[b].layer - found[a].layer)
            < cell + _WIDE + 10
        ]
        if crossed:  # in a lane at the right of what is in the way
            lane = max(lanes[layer] for layer in between) + 14
            lanes |= dict.fromkeys(between, lane)
            top, bottom = ya + _HIGH + _GAP_Y, yb - _GAP_Y
            straight = [(lane, top), (lane, bottom), (lane, bottom)]
            lines[-1] = [
                *_curve(xa + _WIDE / 2, ya + _HIGH, lane, top), *straight, *_curve(lane, bottom, xb + _WIDE / 2, yb)[1:]
            ]  # fmt: skip
    width = int(max([*(c[0] + _WIDE for c in cells), *lanes.values()], default=0) + _MARGIN)
    height = int(max((c[1] for c in cells), default=0) + _HIGH + _MARGIN)
    return cells, lines, width, height


def _curve(xa: float, ya: float, xb: float, yb: float) -> list[Point]:
    bend = max(14.0, (yb - ya) / 2)
    return [(xa, ya), (xa, ya + bend), (xb, yb - bend), (xb, yb)]


def _texts(box: Box) -> tuple[str, str, str]:
    what = box.what
    if isinstance(what, Leaf):
        return ("weight" if what.is_weight else "leaf"), box.label, shape_text(what.shape)
    if isinstance(what, Operation):
        shapes = " ".join(shape_text(y.shape) for y in what.outputs)
        return "operation", what.name, f"{what.place.module}  {shapes}".strip()
    saved = amount(sum(op.saved for op in box.members))
    return "module", box.label, f"{len(box.members)} operations, {saved} bytes kept"


def _fit(text: str, n: int) -> str:
    return text if len(text) <= n else text[: n // 2 - 1] + "…" + text[len(text) - n // 2 :]


def picture(trace: Any, ending: str) -> bytes:
    """The picture in the format of a file's ending. InputError for one other than ".svg" and ".png"."""
    if ending.lower() == ".png":
        return png(trace)
    if ending.lower() != ".svg":
        raise InputError(f"a picture of the graph is an .svg or a .png, not {ending or 'a file without an ending'}")
    return svg(trace).encode()


def svg(trace: Any) -> str:
    """The picture as SVG. InputError without igraph."""
    cells, lines, width, height = _drawn(trace)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="system-ui, sans-serif">',
        '<defs><marker id="head" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{_EDGE}"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for line in lines:
        first, *others = [f"{x:.0f} {y:.0f}" for x, y in line]
        out.append(
            f'<path d="M{first} C{" ".join(others)}" fill="none" stroke="{_EDGE}" stroke-width="1.2" marker-end="url(#head)"/>'
        )
    for x, y, kind, title, second in cells:
        round_ = 18 if kind in ("leaf", "weight") else 6
        out.append(
            f'<g><title>{escape(title)} {escape(second)}</title><rect x="{x:.0f}" y="{y:.0f}" width="{_WIDE}" height="{_HIGH}" '
            f'rx="{round_}" fill="{_FILL[kind]}" stroke="{_EDGE}"/>'
            f'<text x="{x + _WIDE / 2:.0f}" y="{y + 19:.0f}" text-anchor="middle" font-size="13" font-weight="600" '
            f'fill="{_INK}">{escape(_fit(title, 26))}</text>'
            f'<text x="{x + _WIDE / 2:.0f}" y="{y + 36:.0f}" text-anchor="middle" font-size="10.5" fill="{_INK}">'
            f"{escape(_fit(second, 34))}</text></g>"
        )
    return "\n".join([*out, "</svg>"]) + "\n"


def png(trace: Any) -> bytes:
    """The picture as PNG, at most 20,000 pixels high. InputError without igraph."""
    from PIL import Image, ImageDraw, ImageFont

    cells, lines, width, height = _drawn(trace)
    scale = min(2.0, 20_000 / max(width, height))
    image = Image.new("RGB", (max(1, int(width * scale)), max(1, int(height * scale))), "white")
    pen = ImageDraw.Draw(image)
    fonts = [ImageFont.load_default(size=max(6, s * scale)) for s in (13, 10.5)]
    for line in lines:
        points = [
            tuple(
                scale * ((1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t * t * c + t**3 * d)
                for a, b, c, d in zip(*line[k : k + 4], strict=True)
            )
            for k in range(0, len(line) - 3, 3)
            for t in (i / 24 for i in range(25))
        ]
        xb, yb = line[-1]
        pen.line(points, fill=_EDGE, width=max(1, round(1.2 * scale)))
        tip = (xb * scale, yb * scale)
        pen.polygon(
            [tip, (tip[0] - 4 * scale, tip[1] - 8 * scale), (tip[0] + 4 * scale, tip[1] - 8 * scale)], fill=_EDGE
        )
    for x, y, kind, title, second in cells:
        corner = [scale * v for v in (x, y, x + _WIDE, y + _HIGH)]
        round_ = 18 if kind in ("leaf", "weight") else 6
        pen.rounded_rectangle(corner, round_ * scale, fill=_FILL[kind], outline=_EDGE, width=max(1, round(scale)))
        middle = (x + _WIDE / 2) * scale
        for text, top, font in ((_fit(title, 26), 14, fonts[0]), (_fit(second, 34), 33, fonts[1])):
            pen.text((middle, (y + top) * scale), text, fill=_INK, font=font, anchor="mm")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
