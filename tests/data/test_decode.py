"""The brightness of pictures, from files written by hand: depth, interpretation, transparency, gamma, profiles."""

import struct
import zlib

import numpy as np
import PIL
import pytest
from PIL import Image, ImageCms

from tinydiff.data import load
from tinydiff.data.decode import white_of
from tinydiff.errors import InputError

FULL = 65535
OLD = (
    int(PIL.__version__.split(".")[0]) < 13
)  # older ones may skip uncompressed YCbCr, and grey with premultiplied alpha


def words(*values, order=">"):
    return np.array(values, f"{order}u2").tobytes()


def png(depth, kind, rows, width, **chunks):
    """A PNG file from the bytes of its rows and of further chunks."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, len(rows), depth, kind, 0, 0, 0)
    more = b"".join(chunk(name.encode(), body) for name, body in chunks.items())
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def tiff(bits, photometric, data, width=2, height=2, order="<", tags=None, planes=1):
    """An uncompressed TIFF file with its tags and the bytes of its samples; `planes` of equal length after each other."""
    length = len(data) // planes
    entries = {
        256: [width], 257: [height], 258: [bits] * planes if planes > 1 else bits, 259: [1], 262: [photometric],
        273: [0] * planes, 277: [planes if planes > 1 else len(bits)], 278: [height], 279: [length] * planes,
    }  # fmt: skip
    if planes > 1:
        entries[258] = list(bits)
    entries |= tags or {}
    start = 8 + 2 + 12 * len(entries) + 4
    extra_bytes = sum(4 * len(v) for v in entries.values() if len(v) > 1)
    entries[273] = [start + extra_bytes + i * length for i in range(planes)]
    directory, extra = b"", b""
    for tag in sorted(entries):
        letter = "I" if tag in (256, 257, 273, 279) else "H"
        body = struct.pack(f"{order}{len(entries[tag])}{letter}", *entries[tag])
        if len(body) > 4:
            place = start + len(extra)
            extra += body
            body = struct.pack(f"{order}I", place)
        kind = {"I": 4, "H": 3}[letter]
        directory += struct.pack(f"{order}HHI", tag, kind, len(entries[tag])) + body.ljust(4, b"\0")
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IH", 8, len(entries))
    return (head + directory + bytes(4) + extra).ljust(start + extra_bytes, b"\0") + data


def read(tmp_path, content, **options):
    """The values of the only picture in a folder."""
    (tmp_path / ("x.png" if content[1:4] == b"PNG" else "x.tif")).write_bytes(content)
    return load(tmp_path, **{"report": lambda line: None} | options).images[0]


def grey(tmp_path, content):
    image = read(tmp_path, content)
    assert image.shape[2] == 1
    return image.ravel().tolist()


# Depth


@pytest.mark.parametrize(
    "depth, data, expected",
    [
        (1, [b"\x40", b"\x80"], [0, 255, 255, 0]),
        (2, [b"\x10", b"\xb0"], [0, 85, 170, 255]),
        (4, [b"\x01", b"\x7f"], [0, 17, 119, 255]),
        (8, [b"\x00\x01", b"\x7f\xff"], [0, 1, 127, 255]),
        (16, [words(0, 257), words(32767, FULL)], [0, 1, 127, 255]),
    ],
)
def test_every_depth_of_png_reaches_from_black_to_white(tmp_path, depth, data, expected):
    assert grey(tmp_path, png(depth, 0, data, 2)) == expected


@pytest.mark.parametrize("tags", [{}, {284: [2]}])
def test_numbers_of_twelve_bits(tmp_path, tags):
    data = bytes([0xFF, 0xF8, 0x00, 0x00, 0x00, 0x10])  # 4095 2048, 0 16
    assert grey(tmp_path, tiff([12], 1, data, tags=tags)) == [255, 128, 0, 1]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", ["side by side", "planes", "transparent"])
def test_colours_of_sixteen_bits_in_tiff(tmp_path, order, kind):
    x = np.array([[0, 128, 257], [FULL, 129, 300], [500, 40000, 1], [2, 3, 65407]], f"{order}u2")
    if kind == "planes":
        content = tiff([16] * 3, 2, x.T.tobytes(), order=order, tags={284: [2]}, planes=3)
    elif kind == "transparent":
        x = np.hstack([x, np.full((4, 1), FULL)]).astype(x.dtype)
        content = tiff([16] * 4, 2, x.tobytes(), order=order, tags={338: [2]})
    else:
        content = tiff([16] * 3, 2, x.tobytes(), order=order)
    np.testing.assert_array_equal(read(tmp_path, content).reshape(4, 3), np.rint(x[:, :3] / 257))


@pytest.mark.parametrize("bits, words_of, why", [
    ([32], "<u4", "32 bits"), ([16], "<i2", "signed"), ([8], "i1", "signed"), ([32], "<f4", "floating-point"),
])  # fmt: skip
def test_what_does_not_say_its_white_is_refused_with_what_to_do(tmp_path, bits, words_of, why):
    form = {"u": 1, "i": 2, "f": 3}[words_of.strip("<")[0]]
    with pytest.raises(InputError, match=rf"{why}.*save it as PNG"):
        read(tmp_path, tiff(bits, 1, np.array([0, 1, 2, 100], words_of).tobytes(), tags={339: [form]}))


@pytest.mark.parametrize(
    "content, what",
    [
        (b"\xef\xbb\xbf\n<!DOCTYPE html>", "a page or SVG"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\0\0\0\x18ftypheic", "HEIC or a film"),
        (b"\0\0\0\x0cJXL \r\n", "JPEG XL"),
        (b"8BPS", "Photoshop"),
        (b"%PDF-1.4", "a PDF"),
    ],
)
def test_what_is_called_a_picture_and_is_none_is_named(tmp_path, content, what):
    with pytest.raises(InputError, match=f"{what}.*, not a picture that Pillow can read"):
        read(tmp_path, content)
    with pytest.raises(InputError, match=r"tif: an empty file$"):
        read(tmp_path, b"")


# Numbers of fewer bits in files of sixteen


def test_the_folder_decides_how_many_bits_are_used():
    peaks = [0, 200, 255, 256, 1023, 4000, 4095, 16383, 16384, FULL]
    assert [white_of([p]) for p in peaks] == [FULL, 255, 255, 1023, 1023, 4095, 4095, 16383, FULL, FULL]
    assert white_of([12, 4000, 300]) == 4095 and white_of([]) == FULL


def test_twelve_bits_in_sixteen_are_brightened_alike_in_the_whole_folder(tmp_path):
    for name, values in (("a", (0, 4095, 1000, 10)), ("b", (0, 100, 200, 300))):
        (tmp_path / f"{name}.png").write_bytes(png(16, 0, [words(*values[:2]), words(*values[2:])], 2))
    Image.fromarray(np.full((2, 2), 9, np.uint8)).save(tmp_path / "c.png")
    data = load(tmp_path)
    assert data.images.reshape(3, 4).tolist() == [[0, 255, 62, 1], [0, 6, 12, 19], [9] * 4]
    assert data.notes == ["2 of them taken as 12 bits: 4095 is white, as no 16-bit number is above 4095"]
    (tmp_path / "d.png").write_bytes(png(16, 0, [words(0, 1), words(2, FULL)], 2))
    data = load(tmp_path)
    assert data.images.reshape(4, 4)[0].tolist() == [0, 16, 4, 0] and data.fitted == ""


@pytest.mark.parametrize("kind", ["png", "png with alpha", "grey png with alpha", "tiff", "white is zero"])
def test_twelve_bits_in_sixteen_in_all_layouts(tmp_path, kind):
    x = np.array([[0, 1000, 4095], [16, 20, 24], [5, 5, 5], [4000, 3000, 2000]])
    opaque = np.hstack([x, np.full((4, 1), FULL)])
    if "grey" in kind:
        x[:, 1:] = x[:, :1] = x[:, 2:]
        content = png(16, 4, [words(*opaque[:2, 2:].ravel()), words(*opaque[2:, 2:].ravel())], 2)
    elif "alpha" in kind:
        content = png(16, 6, [words(*opaque[:2].ravel()), words(*opaque[2:].ravel())], 2)
    elif kind == "png":
        content = png(16, 2, [words(*x[:2].ravel()), words(*x[2:].ravel())], 2)
    elif kind == "tiff":
        content = tiff([16] * 3, 2, words(*x.ravel(), order="<"))
    else:
        content = tiff([16], 0, words(*(4095 - x[:, 2]), order="<"))
        x[:, :2] = x[:, 2:]
    np.testing.assert_array_equal(read(tmp_path, content, channels=3).reshape(4, 3), np.rint(x * 255 / 4095))


def test_faint_colours_of_twelve_bits_stay_colours(tmp_path):
    content = png(16, 2, [words(100, 50, 0, 100, 50, 0), words(1, 1, 1, 3000, 3000, 3000)], 2)
    assert read(tmp_path, content).tolist() == [[[6, 3, 0]] * 2, [[0] * 3, [187] * 3]]


@pytest.mark.parametrize("opaque", [4095, FULL])
def test_premultiplied_colours_of_twelve_bits(tmp_path, opaque):
    x = [2000, 1000, 0, opaque // 2, 4095, 0, 0, opaque, 0, 0, 0, 0, 100, 100, 100, opaque]
    got = read(tmp_path, tiff([16] * 4, 2, words(*x, order="<"), tags={338: [1]})).reshape(4, 3).astype(int)
    assert np.abs(got - [[252, 190, 128], [255, 0, 0], [255, 255, 255], [6, 6, 6]]).max() <= 1


def test_inks_of_twelve_bits(tmp_path):
    content = tiff([16] * 4, 5, words(*[0, 4095, 4095, 0] * 3, *[0, 0, 0, 1000], order="<"))
    assert read(tmp_path, content).reshape(4, 3).tolist() == [[255, 0, 0]] * 3 + [[193] * 3]


@pytest.mark.parametrize("most", [4095, FULL])
def test_compressed_planes_are_read_to_eight_bits_or_refused(tmp_path, most):
    planes = [zlib.compress(words(0, most, most // 2, 0, order="<")).ljust(32, b"\0")] * 3
    content = tiff([16] * 3, 2, b"".join(planes), tags={259: [8], 284: [2]}, planes=3)
    if most == FULL:
        assert grey(tmp_path, content) == [0, 255, 127, 0]
    else:
        with pytest.raises(InputError, match=r"cannot be read as 12 bits.*save it as PNG"):
            read(tmp_path, content)


def test_alpha_of_twelve_bits(tmp_path):
    content = png(16, 4, [words(2048, 4095, 0, 4095), words(0, 0, 4095, 4095)], 2)
    assert grey(tmp_path, content) == [128, 0, 255, 255]


def test_the_stated_maximum_of_a_pgm_is_white(tmp_path):
    (tmp_path / "x.pgm").write_bytes(b"P5 2 2 4095\n" + words(0, 4095, 100, 2048))
    data = load(tmp_path)
    assert data.images.ravel().tolist() == [0, 255, 6, 128] and data.fitted == ""


# Interpretation


@pytest.mark.parametrize("tags", [{}, {284: [2]}])
@pytest.mark.parametrize("bits, data", [
    (1, b"\x40\x80"), (2, b"\x30\xc0"), (4, b"\x0f\xf0"), (8, b"\x00\xff\xff\x00"), (16, words(0, FULL, FULL, 0)),
])  # fmt: skip
def test_white_is_zero_and_black_is_zero(tmp_path, bits, data, tags):
    assert grey(tmp_path, tiff([bits], 0, data, tags=tags)) == [255, 0, 0, 255]
    assert grey(tmp_path, tiff([bits], 1, data, tags=tags)) == [0, 255, 255, 0]


@pytest.mark.parametrize("most", [255, FULL])
def test_palettes_of_bytes_and_of_words(tmp_path, most):
    colours = [most, 0] + [0] * 254 + [0, most] + [0] * 254 + [0] * 256
    got = read(tmp_path, tiff([8], 3, bytes([0, 1, 1, 2]), tags={320: colours})).reshape(4, 3)
    assert got.tolist() == [[255, 0, 0], [0, 255, 0], [0, 255, 0], [0, 0, 0]]


@pytest.mark.parametrize("photometric, bits, sample, expected", [
    (5, 8, (0, 255, 255, 0), (255, 0, 0)), (5, 16, (0, FULL, FULL, 0), (255, 0, 0)),
    (6, 8, (76, 85, 255), (254, 0, 0)), (8, 8, (255, 0, 0), (255, 255, 255)), (8, 8, (128, 0, 0), (119, 119, 119)),
])  # fmt: skip
def test_inks_chroma_and_lab(tmp_path, photometric, bits, sample, expected):
    if OLD and photometric == 6:
        pytest.skip("needs a newer Pillow")
    data = np.array(sample * 4, "u1" if bits == 8 else "<u2").tobytes()
    tags = {530: [1, 1]} if photometric == 6 else {}
    got = read(tmp_path, tiff([bits] * len(sample), photometric, data, tags=tags), channels=3)
    assert np.abs(got.astype(int) - expected).max() <= 2


# Transparency


@pytest.mark.parametrize("depth, data, key, expected", [
    (1, [b"\x40", b"\x80"], 0, [255, 255, 255, 255]), (1, [b"\x40", b"\x80"], 1, [0, 255, 255, 0]),
    (2, [b"\x10", b"\xb0"], 1, [0, 255, 170, 255]), (4, [b"\x01", b"\x7f"], 7, [0, 17, 255, 255]),
    (8, [b"\x00\x01", b"\x07\xff"], 7, [0, 1, 255, 255]),
    (16, [words(0x1234, 0x1235), words(0, FULL)], 0x1234, [255, 18, 0, 255]),
])  # fmt: skip
def test_the_transparent_grey_of_png_becomes_white(tmp_path, depth, data, key, expected):
    assert grey(tmp_path, png(depth, 0, data, 2, tRNS=words(key))) == expected


@pytest.mark.parametrize("depth", [8, 16])
def test_the_transparent_colour_of_png_becomes_white(tmp_path, depth):
    code = (lambda *values: bytes(values)) if depth == 8 else (lambda *values: words(*(v << 8 for v in values)))
    near = code(1, 2, 4) if depth == 8 else words(256, 512, 769)
    content = png(
        depth, 2, [code(1, 2, 3) + near, code(200, 9, 9) * 2], 2, tRNS=words(*(v << (depth - 8) for v in (1, 2, 3)))
    )
    got = read(tmp_path, content).reshape(4, 3).tolist()
    assert (
        got[0] == [255] * 3
        and got[1] == ([1, 2, 4] if depth == 8 else [1, 2, 3])
        and got[2] == [200 if depth == 8 else 199, 9, 9]
    )


@pytest.mark.parametrize("bits, photometric", [(8, 1), (8, 2), (16, 2)])
@pytest.mark.parametrize("premultiplied", [True, False])
def test_alpha_of_tiff(tmp_path, bits, photometric, premultiplied):
    if OLD and premultiplied and photometric == 1:
        pytest.skip("needs a newer Pillow")
    scale = 257 if bits == 16 else 1
    colour = [100] if photometric == 1 else [100, 100, 100]
    samples = [*colour, 128, *[0 for _ in colour], 0, *colour, 255, *[0 for _ in colour], 255]
    data = np.array(samples) * scale
    content = tiff([bits] * (len(colour) + 1), photometric, data.astype(f"<u{bits // 8}").tobytes(),
                   tags={338: [1 if premultiplied else 2]})  # fmt: skip
    half = 100 + 127 if premultiplied else 100 * 128 / 255 + 127
    assert np.abs(np.array(grey(tmp_path, content)) - [half, 255, 100, 0]).max() <= 1


@pytest.mark.parametrize("bits_of_alpha, expected", [(0, [30, 20, 10]), (8, [255, 255, 255])])
def test_a_fourth_byte_of_tga_that_is_no_alpha(tmp_path, bits_of_alpha, expected):
    header = struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 2, 2, 32, 0x20 | bits_of_alpha)
    (tmp_path / "x.tga").write_bytes(header + bytes([10, 20, 30, 0] * 4))
    assert load(tmp_path, channels=3).images[0, 0, 0].tolist() == expected


# Gamma and profiles


@pytest.mark.parametrize("depth", [8, 16])
def test_linear_light_is_brightened_as_on_a_screen(tmp_path, depth):
    rows = [b"\x00\x40", b"\x80\xff"] if depth == 8 else [words(0, 64 * 257), words(128 * 257, FULL)]
    linear, usual = struct.pack(">I", 100000), struct.pack(">I", 45455)
    assert grey(tmp_path, png(depth, 0, rows, 2, gAMA=linear)) == [0, 136, 186, 255]
    assert grey(tmp_path, png(depth, 0, rows, 2, gAMA=usual)) == [0, 64, 128, 255]
    assert grey(tmp_path, png(depth, 0, rows, 2, sRGB=b"\0", gAMA=linear)) == [0, 64, 128, 255]


def test_what_the_first_frame_of_a_gif_leaves_out_is_white(tmp_path):
    colours = bytes([0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 0, 255])
    frame = b"\x2c" + struct.pack("<HHHHB", 1, 1, 1, 1, 0) + b"\x02\x02\x54\x01\x00"  # one pixel of colour 2
    (tmp_path / "x.gif").write_bytes(b"GIF89a" + struct.pack("<HHBBB", 2, 2, 0xF1, 0, 0) + colours + frame + b"\x3b")
    assert load(tmp_path).images[0].reshape(4, 3).tolist() == [[255] * 3] * 3 + [[255, 0, 0]]


def test_sbit_changes_nothing(tmp_path):
    assert grey(tmp_path, png(8, 0, [b"\x00\x40", b"\x80\xff"], 2, sBIT=b"\4")) == [0, 64, 128, 255]


def test_the_gamma_of_alpha_and_of_palettes(tmp_path):
    linear = struct.pack(">I", 100000)
    assert grey(tmp_path, png(8, 4, [b"\x40\xff\x00\x00", b"\x00\x80\xff\xff"], 2, gAMA=linear)) == [136, 255, 127, 255]
    content = png(8, 3, [b"\0\1", b"\1\0"], 2, PLTE=bytes([64, 0, 128, 255, 255, 0]), gAMA=linear)
    assert read(tmp_path, content)[0].tolist() == [[136, 0, 186], [255, 255, 0]]


def test_a_colour_profile_is_followed(tmp_path):
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    x = np.arange(12, dtype=np.uint8).reshape(2, 2, 3) * 20
    for profile in (srgb, lab.tobytes(), b"broken"):  # sRGB already, of another kind of colour, no profile
        Image.fromarray(x).save(tmp_path / "x.png", icc_profile=profile)
        np.testing.assert_array_equal(load(tmp_path).images[0], x)
    swapped = bytearray(srgb)  # red and blue change places
    count = struct.unpack(">I", swapped[128:132])[0]
    places = {bytes(swapped[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, blue = places[b"rXYZ"], places[b"bXYZ"]
    swapped[red : red + 4], swapped[blue : blue + 4] = b"bXYZ", b"rXYZ"
    profile = bytes(swapped)
    Image.fromarray(x).save(tmp_path / "x.png", icc_profile=profile)
    assert np.abs(load(tmp_path).images[0].astype(int) - x[..., ::-1]).max() <= 2
    Image.fromarray(x[..., 0]).convert("RGB").save(tmp_path / "x.png", icc_profile=profile)
    got = load(tmp_path).images[0]
    assert got.shape == (2, 2, 1) and np.abs(got[..., 0].astype(int) - x[..., 0]).max() <= 1


def test_a_profile_of_linear_light_is_followed_whatever_its_name(tmp_path):
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    at = profile.index(b"para") + 12
    profile[at : at + 20] = struct.pack(">5i", 65536, 65536, 0, 65536, 0)  # y = x
    Image.fromarray(np.array([[0, 64], [128, 255]], np.uint8)).convert("RGB").save(
        tmp_path / "x.png", icc_profile=bytes(profile)
    )
    assert np.abs(load(tmp_path).images.ravel().astype(int) - [0, 137, 188, 255]).max() <= 1
