"""The pixels that a picture file means, as bytes: 0 is black and 255 is white, as a screen shows them.

| what the file says          | what is done                                                                       |
|-----------------------------|------------------------------------------------------------------------------------|
| 1, 2, 4, 8 bits             | scaled, so that the largest number is white                                        |
| another depth (TIFF)        | the largest number of so many bits is white, as 4095 of 12                         |
| 16 bits, grey or colour     | 65535 is white; in a folder whose 16-bit files all stay below 2^14, 2^12, 2^10 or  |
|                             | 2^8, the largest number below that (`white_of`)                                    |
| another PGM or PPM maximum  | that is white                                                                      |
| 32 bits, floats, signed     | refused: nothing says what is white                                                |
| white is zero (TIFF)        | inverted                                                                           |
| palette                     | its colours; a TIFF palette of bytes, where 16-bit numbers are due, as bytes       |
| CMYK, YCbCr, Lab            | to RGB; the inverted CMYK of Adobe's JPEG files, too                               |
| alpha, tRNS, no frame (GIF) | blended with white; premultiplied colours are divided by alpha first; tRNS is      |
|                             | compared at the depth of the file; TGA's fourth byte is no alpha where it is 0     |
|                             | everywhere and the header names no alpha                                           |
| sBIT (PNG)                  | nothing: PNG's numbers are scaled to the full depth already                        |
| gAMA (PNG)                  | to the gamma 1/2.2 of a screen, unless it is within 5 % or a profile or sRGB chunk |
|                             | stands beside it                                                                   |
| colour profile (ICC)        | to sRGB, unless it is sRGB or cannot be used                                       |

Sources: TIFF 6.0 and the PNG specification, third edition.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Collection
from functools import lru_cache
from typing import Any, BinaryIO

import numpy as np

from tinydiff.data.pixels import fit
from tinydiff.data.tiff import CONVERT, Tiff, read_numbers

_SCREEN_GAMMA = 1 / 2.2
_BLACK_POINT_COMPENSATION: Any = 0x2000  # a flag of LittleCMS that Pillow before 10.3 does not name
FULL = 0xFFFF  # white of 16 bits
# Bytes of a pixel while it is decoded. Pillow keeps colours in four; some of its libraries hold more of their own.
_BYTES = {"": 13, "WEBP": 18, "AVIF": 18, "JPEG2000": 25, "ICO": 24}
_DEEP, _PROFILE = 30, 8  # more for numbers above 8 bits, and for colours of a profile
_ROWS = 64  # worked on at a time where a step would hold more copies
_ORIENTATION = 274
_BITS, _PHOTOMETRIC, _FILL, _PLANES, _PALETTE, _EXTRA, _FORMAT = 258, 262, 266, 284, 320, 338, 339  # TIFF tags
_SWAPPED = {
    ";16B": ";16L",
    ";16L": ";16B",
    ";16N": ";16B" if sys.byteorder == "little" else ";16L",
}


def memory_of_pixel(file: Any) -> int:
    """Bytes that `read_pixels` needs for a pixel of an opened file (measured)."""
    each = _BYTES.get(file.format or "", _BYTES[""]) + (_DEEP if _depth(file) > 8 else 0)
    return each + (_PROFILE if "icc_profile" in file.info else 0)


def memory_of_tiff_pixel(tiff: Tiff) -> int:
    """Bytes that `read_tiff` needs for a pixel."""
    return _BYTES[""] + _DEEP + (_PROFILE if tiff.profile else 0)


# The first bytes of what is often called a picture.
_STARTS = {
    b"<": "a page or SVG, not pixels",
    b"%PDF": "a PDF",
    b"%!PS": "PostScript",
    b"8BPS": "Photoshop's own format",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL": "JPEG XL",
    b"version https://git-lfs": "a pointer of Git LFS, whose picture `git lfs pull` gets",
    b"II\xbc": "JPEG XR",
    b"PK": "an archive",
    b"\x1f\x8b": "gzipped",
}


def what_it_is(start: bytes) -> str:
    """Why the file with these first bytes is no picture that Pillow can read."""
    if not start:
        return "an empty file"
    text = start.lstrip(b"\xef\xbb\xbf \r\n\t")
    found = next((what for begin, what in _STARTS.items() if start.startswith(begin) or text.startswith(begin)), "")
    if start[4:8] == b"ftyp":
        found = "AVIF, for which this Pillow has no reader" if b"avif" in start[8:32] else "HEIC or a film"
    return f"{found}, not a picture that Pillow can read" if found else "not a picture that Pillow can read"


def white_of(peaks: Collection[int]) -> int:
    """What is white in the 16-bit files of a folder, from the largest number in each of them."""
    peak = max(peaks, default=0)
    return next((2**bits - 1 for bits in (8, 10, 12, 14) if 0 < peak < 2**bits), FULL)


def read_pixels(
    file: Any, content: BinaryIO, image_size: int | None, channels: int | None, white: int = FULL
) -> tuple[np.ndarray, int | None]:
    """A picture as uint8 (H, W, 1) or (H, W, 3), and its largest number if 16 bits hold it, else None.

    file: what Pillow's `open` made of content, not yet loaded.
    image_size: pixels a side, to which its middle square is scaled, or None.
    channels: 1 or 3; None gives grey unless the colours differ.
    white: the number that is white in a file of 16 bits.

    ValueError, with how to convert it, for a file that does not say what is white.
    """
    from PIL import Image, ImageOps

    peak = None
    _refuse_unknown(file)
    _mend_layout(file)
    profile = file.info.get("icc_profile")
    if _depth(file) > 8:
        picture, peak = _from_numbers(file, content, white)
    else:
        covered = _covered(file)
        file.load()
        ImageOps.exif_transpose(file, in_place=True)
        picture = _apply_gamma(file, _exponent(file))
        if covered is not None:
            part, picture = picture.convert("RGB").crop(covered), Image.new("RGB", picture.size, "white")
            picture.paste(part, covered)
    if file.format == "TGA" and picture.mode == "RGBA" and not picture.getchannel("A").getbbox():
        content.seek(17)
        if not content.read(1)[0] & 15:
            picture = picture.convert("RGB")
    if picture.mode == "La":
        picture = picture.convert("LA")
    return _finished(picture, profile, image_size, channels, file), peak


def read_tiff(
    tiff: Tiff, content: BinaryIO, image_size: int | None, channels: int | None, white: int = FULL
) -> tuple[np.ndarray, int | None]:
    """The same of a TIFF file that Pillow does not know; tiff: what it says of itself."""
    from PIL import Image, ImageOps

    content.seek(0)
    found = read_numbers(tiff, content, content.read(1) == b"M")
    colours, alpha = found[..., : tiff.colours], None
    peak = int(colours.max()) if tiff.bits == 16 else None
    white = white if tiff.bits == 16 else 2**tiff.bits - 1
    if tiff.alpha:
        last = found[..., tiff.colours]
        opaque = white if last.max() <= white else FULL
        alpha = np.rint(last * (255 / opaque)).astype(np.uint8)
        if tiff.alpha == 1:
            colours = np.minimum(np.rint(colours * np.float32(opaque) / np.maximum(last[..., None], 1)), FULL).astype(
                np.uint16
            )
    levels = np.minimum(np.arange(FULL + 1) / white, 1)
    pixels = np.rint(255 * (1 - levels if tiff.inverted else levels)).astype(np.uint8)[colours]
    picture = Image.fromarray(pixels[..., 0] if tiff.colours == 1 else pixels)
    if alpha is not None:
        picture.putalpha(Image.fromarray(alpha))
    picture.getexif()[_ORIENTATION] = tiff.orientation
    return _finished(ImageOps.exif_transpose(picture), tiff.profile, image_size, channels), peak


def _finished(
    picture: Any, profile: bytes | None, image_size: int | None, channels: int | None, file: Any = None
) -> np.ndarray:
    """A picture of bytes as (H, W, 1) or (H, W, 3): on white, in its size, in sRGB. file: to be closed when it is not needed."""
    if picture.has_transparency_data:
        picture = _on_white(picture if picture.mode == "RGBA" else picture.convert("RGBA"))
    mode = "L" if picture.mode in ("1", "L") else "CMYK" if profile and picture.mode == "CMYK" else "RGB"
    mode = "L" if channels == 1 and not profile else mode
    if picture.mode != mode:
        picture = picture.convert(mode)
    if image_size is not None:
        picture = fit(picture, image_size)
    if profile:
        picture = _to_srgb(picture, profile)
        picture = picture.convert("L" if channels == 1 or picture.mode == "L" else "RGB")
    if file is not None and picture is not file:
        file.close()  # and its copy of the pixels with it
    pixels = np.atleast_3d(np.asarray(picture))
    if channels == 3:
        return np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    grey = pixels[..., :1]
    plain = all((row == first).all() for row, first in zip(pixels, grey, strict=True))
    return grey.copy() if plain else pixels


def _on_white(picture: Any) -> Any:
    """The RGBA picture itself, its transparent parts white."""
    from PIL import Image

    picture.load()
    for top in range(0, picture.height, _ROWS):
        box = (0, top, picture.width, min(top + _ROWS, picture.height))
        part = picture.crop(box)
        picture.paste(Image.alpha_composite(Image.new("RGBA", part.size, "white"), part), box)
    return picture


def _covered(file: Any) -> tuple[int, int, int, int] | None:
    """The part of a GIF that its first frame covers, if that is not all; the rest is transparent, which Pillow shows as the
    first colour unless the file has a transparent one."""
    if file.format != "GIF" or not file.tile or "transparency" in file.info:
        return None
    box = tuple(file.tile[0][1])
    return None if box == (0, 0, *file.size) or len(box) != 4 else box


def _tags(file: Any) -> Any:
    return getattr(file, "tag_v2", {}) if file.format == "TIFF" else {}


def _refuse_unknown(file: Any) -> None:
    tags = _tags(file)
    if file.mode == "F":
        raise ValueError(f"floating-point pixels, which have no fixed white ({CONVERT})")
    if 32 in tags.get(_BITS, ()):
        raise ValueError(f"pixels of 32 bits, which have no fixed white ({CONVERT})")
    if 2 in tags.get(_FORMAT, ()):
        raise ValueError(f"signed pixels, which have no fixed black and white ({CONVERT})")


def _mend_layout(file: Any) -> None:
    """What Pillow takes amiss in a file: planes, whose layout it cuts to one letter; palettes of bytes; the transparent
    grey of 2 and 4 bits."""
    from PIL import ImagePalette, TiffImagePlugin

    tags = _tags(file)
    raw = _raw_mode(file)
    if tags.get(_PLANES) == 2 and file.tile and file.tile[0][0] == "raw":
        bits, swap = tags.get(_BITS, (1,)), ";16B" if tags.prefix == b"MM" else ";16L"
        if len(bits) == 1:
            key = (
                tags.prefix, tags.get(_PHOTOMETRIC, 0), tags.get(_FORMAT, (1,)), tags.get(_FILL, 1), bits,
                tags.get(_EXTRA, ()),
            )  # fmt: skip
            _set_raw_mode(file, TiffImagePlugin.OPEN_INFO[key][1])
        elif 16 in bits and file.mode in ("RGB", "RGBA"):
            file.tile = [_with_raw_mode(tile, tile[3][0] + swap) for tile in file.tile]
        elif 16 in bits:
            raise ValueError(f"planes of 16 bits in {file.mode} ({CONVERT})")
    if 0 < max(tags.get(_PALETTE, (0,))) < 256 and file.palette is not None:
        file.palette = ImagePalette.raw("RGB;L", bytes(tags[_PALETTE]))
    if raw in ("L;2", "L;4") and isinstance(key := file.info.get("transparency"), int):
        file.info["transparency"] = key * {"L;2": 85, "L;4": 17}[raw]


def _depth(file: Any) -> int:
    """Bits of a number: 8 stands for all that Pillow itself scales to bytes as it should."""
    if file.mode.startswith("I"):
        return 12 if 12 in _tags(file).get(_BITS, ()) else 16
    raw = _raw_mode(file)
    deep = raw == "LA;16B" or (raw[-4:] in _SWAPPED and raw[:-4] in ("RGB", "RGBX", "RGBA", "RGBa", "R", "CMYK"))
    return 16 if deep and file.format in ("PNG", "TIFF") else 8


def _raw_mode(file: Any) -> str:
    """Pillow's name of the layout of a file's numbers, "" where it has none."""
    arguments = file.tile[0][3] if file.tile else ""
    raw = arguments[0] if isinstance(arguments, tuple) else arguments
    return raw if isinstance(raw, str) else ""


def _set_raw_mode(file: Any, raw: str) -> None:
    file.tile = [_with_raw_mode(tile, raw) for tile in file.tile]


def _with_raw_mode(tile: Any, raw: str) -> Any:
    codec, box, offset, old = tile
    new = codec, box, offset, (raw, *old[1:]) if isinstance(old, tuple) else raw
    return type(tile)(*new) if hasattr(tile, "_fields") else new  # Pillow before 11 has plain tuples


def _from_numbers(file: Any, content: BinaryIO, white: int) -> tuple[Any, int | None]:
    """A picture of more than 8 bits as one of 8, and its largest number where the folder decides what is white."""
    from PIL import Image

    twelve = _depth(file) == 12
    stated = twelve or file.tile[0][0] not in ("raw", "zip", "libtiff")  # Pillow scales the others to 16 bits
    inverted = _tags(file).get(_PHOTOMETRIC) == 0
    key = file.info.get("transparency") if file.format == "PNG" else None
    exponent = _exponent(file)
    premultiplied = _raw_mode(file).startswith("RGBa")
    if premultiplied:
        _set_raw_mode(file, _raw_mode(file).replace("a", "A"))
    coarse = file.tile[0][0] == "libtiff" and _tags(file).get(_PLANES) == 2 and len(file.getbands()) > 1
    if coarse and white < FULL:
        raise ValueError(f"of its compressed planes of 16 bits, Pillow gives 8 only ({CONVERT})")
    inks = file.mode == "CMYK"
    numbers = _numbers(file, content)
    colours = numbers if inks else numbers[..., : 1 if numbers.shape[2] < 3 else 3]
    peak = None if stated else int(colours.max())
    if stated:
        white = 4095 if twelve else FULL
    alpha = None
    if numbers.shape[2] in (2, 4) and not inks:
        opaque = white if numbers[..., -1].max() <= white else FULL
        alpha = np.rint(numbers[..., -1] * (255 / opaque)).astype(np.uint8)
        if premultiplied:
            share = np.maximum(numbers[..., -1:], 1) / opaque
            colours = np.minimum(np.rint(colours / share), FULL).astype(np.uint16)
    elif key is not None:
        alpha = np.where((colours == key).all(-1), 0, 255).astype(np.uint8)
    levels = np.minimum(np.arange(FULL + 1) / white, 1)
    shades = np.rint(255 * (1 - levels if inverted else levels) ** exponent).astype(np.uint8)
    pixels = shades[colours]
    if inks:
        return Image.frombytes("CMYK", (pixels.shape[1], pixels.shape[0]), pixels.tobytes()), peak
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    if alpha is not None:
        picture.putalpha(Image.fromarray(alpha))
    return picture, peak


def _numbers(file: Any, content: BinaryIO) -> np.ndarray:
    """The numbers (H, W, C) of a picture of more than 8 bits, as its file holds them.

    Pillow keeps only the first byte of a colour's two. Told the other byte order, it keeps the second.
    """
    from PIL import Image, ImageOps

    def pixels(file: Any) -> np.ndarray:
        return np.asarray(ImageOps.exif_transpose(file))

    if file.mode.startswith("I"):
        return pixels(file)[..., None]
    if _raw_mode(file) == "LA;16B":
        _set_raw_mode(file, "RGBA")
        halves = pixels(file).astype(np.uint16)
        return halves[..., ::2] << 8 | halves[..., 1::2]
    content.seek(0)
    with Image.open(io.BytesIO(content.read()), formats=[file.format]) as again:
        again.tile = [_with_raw_mode(tile, _swapped(tile)) for tile in file.tile]
        return pixels(file).astype(np.uint16) << 8 | pixels(again)


def _swapped(tile: Any) -> str:
    raw: str = tile[3][0] if isinstance(tile[3], tuple) else tile[3]
    return raw[:-4] + _SWAPPED[raw[-4:]]


def _exponent(file: Any) -> float:
    """The power of a level in a file that is a level of the screen."""
    gamma = file.info.get("gamma", 0) if file.format == "PNG" else 0
    if gamma <= 0 or "srgb" in file.info or "icc_profile" in file.info or abs(gamma / _SCREEN_GAMMA - 1) < 0.05:
        return 1.0
    return float(_SCREEN_GAMMA / gamma)


def _apply_gamma(picture: Any, exponent: float) -> Any:
    if exponent == 1 or picture.mode == "1":
        return picture
    if picture.has_transparency_data:
        picture = picture.convert("LA" if picture.mode in ("L", "LA") else "RGBA")
    elif picture.mode != "L":
        picture = picture.convert("RGB")
    shades = np.rint(255 * (np.arange(256) / 255) ** exponent).astype(int).tolist()
    same = list(range(256))
    return picture.point([level for band in picture.getbands() for level in (same if band == "A" else shades)])


def _to_srgb(picture: Any, profile: bytes) -> Any:
    """A picture in the colours of a profile, in sRGB; unchanged if the profile is sRGB's or cannot be used."""
    from PIL import ImageCms

    mode, transform = _transform(profile)
    pixels = np.asarray(picture)
    grey = pixels.ndim == 2 or (picture.mode == "RGB" and bool((pixels == pixels[..., :1]).all()))
    if transform is None or (mode == "CMYK") != (picture.mode == "CMYK") or (mode == "L" and not grey):
        return picture
    changed: Any = ImageCms.applyTransform(picture.convert(mode), transform)
    return changed.convert("L") if grey else changed


@lru_cache(16)
def _transform(profile: bytes) -> tuple[str, Any]:
    """The mode of the pictures that a profile is for, and what takes them to sRGB; None where nothing needs to."""
    from PIL import Image, ImageCms

    try:
        own = ImageCms.getOpenProfile(io.BytesIO(profile))
        mode = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}.get(own.profile.xcolor_space.strip(), "")
        if not mode:
            return mode, None
        srgb, intent = ImageCms.createProfile("sRGB"), ImageCms.Intent.RELATIVE_COLORIMETRIC
        transform = ImageCms.buildTransform(own, srgb, mode, "RGB", intent, _BLACK_POINT_COMPENSATION)
        if mode != "CMYK":
            colours = 51 * np.indices((6, 6, 6), np.uint8).reshape(3, 6, 36).transpose(1, 2, 0)
            some = Image.fromarray(np.ascontiguousarray(colours)).convert(mode)
            there: Any = ImageCms.applyTransform(some, transform)
            if np.abs(np.asarray(there, int) - np.asarray(some.convert("RGB"), int)).max() <= 2:
                return mode, None
        return mode, transform
    except (ImageCms.PyCMSError, ImportError, OSError, ValueError):
        return "", None
