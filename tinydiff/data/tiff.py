"""TIFF files of kinds that Pillow does not know: any number of bits up to 16, in grey or RGB, with alpha or not.

Source: TIFF 6.0, sections 2 to 8 and 18.
"""

from __future__ import annotations

import zlib
from typing import Any, BinaryIO, NamedTuple

import numpy as np

CONVERT = "save it as PNG of 8 or 16 bits, where the largest number is white"
_COMPRESSIONS = {
    2: "CCITT", 3: "CCITT fax", 4: "CCITT fax", 5: "LZW", 6: "old JPEG", 7: "JPEG", 32773: "PackBits", 22610: "JPEG XR",
    34712: "JPEG 2000", 34887: "LERC", 34925: "LZMA", 34934: "JPEG XR", 50000: "Zstandard", 50001: "WebP", 50002: "JPEG XL",
}  # fmt: skip
_COLOURS = {
    0: "grey", 1: "grey", 2: "RGB", 3: "a palette", 4: "a mask", 5: "CMYK", 6: "YCbCr", 8: "Lab", 9: "Lab", 10: "Lab",
    32803: "a camera's raw colours", 32844: "LogL", 32845: "LogLuv", 34892: "a camera's raw light",
}  # fmt: skip
_FORMATS = {2: "signed ", 3: "floating-point ", 5: "complex ", 6: "complex "}
_DEFLATE = (8, 32946)


class Tiff(NamedTuple):
    """The first picture of a file. numbers: C to a pixel, of so many `bits`; the one after the colours is alpha, if `alpha` is 1,
    by which the colours have been multiplied, or 2. strips: offset and bytes of each part, of `rows` rows."""

    height: int
    width: int
    bits: int
    colours: int
    numbers: int
    inverted: bool
    alpha: int
    planar: bool
    deflated: bool
    strips: list[tuple[int, int]]
    rows: int
    orientation: int
    profile: bytes | None


def parse(content: BinaryIO) -> Tiff | None:
    """What a TIFF file says of its first picture; None for what is no TIFF file. ValueError, which says what it is, for a kind
    that is not read here either."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    content.seek(0)
    start = content.read(8)
    if start[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return None
    try:
        directory: Any = ImageFileDirectory_v2(start + (content.read(8) if b"+" in start[2:4] else b""))
        content.seek(directory.next)
        directory.load(content)
        tags = {tag: directory[tag] for tag in directory}
        if not {256, 257, 262} <= tags.keys():
            raise KeyError
        return _checked(tags)
    except ValueError:
        raise
    except Exception:  # Pillow's parser fails in many ways
        raise ValueError("a TIFF file that is damaged or was cut off") from None


def _checked(tags: dict[int, Any]) -> Tiff:
    bits, samples = tuple(tags.get(258, (1,))), int(tags.get(277, 1))
    photometric, compression, extra = tags.get(262, -1), tags.get(259, 1), tuple(tags.get(338, ()))
    form, colours = max(tags.get(339, (1,))), 3 if photometric == 2 else 1
    kind = _FORMATS.get(form, "") + "/".join(map(str, sorted(set(bits)))) + " bits in "
    kind += _COLOURS.get(photometric, f"colours of kind {photometric}")
    kind += f" and {len(extra)} more" if extra else f", {samples} numbers to a pixel" if samples not in (1, 3) else ""
    if compression not in (1, *_DEFLATE):
        kind += f", compressed by {_COMPRESSIONS.get(compression, f'method {compression}')}"
    if 322 in tags:
        kind += ", in tiles"
    if tags.get(317, 1) != 1:
        kind += ", as differences"
    known = photometric in (0, 1, 2) and form in (1, 4) and len(set(bits)) == 1 and 1 <= bits[0] <= 16
    known = known and samples in (colours, colours + 1) and compression in (1, *_DEFLATE) and 322 not in tags
    if not known or tags.get(317, 1) != 1 or tags.get(266, 1) != 1 or 273 not in tags or 279 not in tags:
        raise ValueError(f"a TIFF of a kind that is not read: {kind} ({CONVERT})")
    return Tiff(
        int(tags[257]), int(tags[256]), bits[0], colours, samples, photometric == 0,
        extra[0] if samples > colours and extra and extra[0] in (1, 2) else 0,
        tags.get(284, 1) == 2 and samples > 1, compression in _DEFLATE, list(zip(tags[273], tags[279], strict=True)),
        int(min(tags.get(278) or tags[257], tags[257])), int(tags.get(274, 1)), tags.get(34675),
    )  # fmt: skip


def read_numbers(tiff: Tiff, content: BinaryIO, big: bool) -> np.ndarray:
    """The numbers, uint16 (H, W, C). big: whether 16 bits are in big-endian order. ValueError for a file that is cut off."""
    planes = tiff.numbers if tiff.planar else 1
    each = tiff.numbers // planes
    row = (tiff.width * each * tiff.bits + 7) // 8
    out = np.empty((planes, tiff.height, tiff.width, each), np.uint16)
    parts = -(-tiff.height // tiff.rows)
    if len(tiff.strips) < parts * planes:
        raise ValueError("a TIFF file that is damaged: it lacks strips")
    for index, (offset, count) in enumerate(tiff.strips[: parts * planes]):
        plane, top = index // parts, index % parts * tiff.rows
        height = min(tiff.rows, tiff.height - top)
        content.seek(offset)
        data = content.read(min(count, 2 * height * row + 4096))
        try:
            data = zlib.decompressobj().decompress(data, height * row) if tiff.deflated else data[: height * row]
        except zlib.error:
            data = b""
        if len(data) < height * row:
            raise ValueError("a TIFF file that was cut off")
        for y, line in enumerate(np.frombuffer(data, np.uint8).reshape(height, row)):
            out[plane, top + y] = _unpacked(line, tiff, each, big)
    return out.transpose(1, 2, 0, 3).reshape(tiff.height, tiff.width, tiff.numbers)


def _unpacked(line: np.ndarray, tiff: Tiff, each: int, big: bool) -> np.ndarray:
    """The numbers (W, each) in the bytes of a row; the first bits of a byte are the highest."""
    if tiff.bits == 16:
        return line.view(">u2" if big else "<u2").reshape(tiff.width, each)
    count = tiff.width * each
    bits = np.unpackbits(line)[: count * tiff.bits].reshape(count, tiff.bits)
    powers = 1 << np.arange(tiff.bits - 1, -1, -1, dtype=np.uint16)
    return (bits.astype(np.uint16) @ powers).reshape(tiff.width, each)
