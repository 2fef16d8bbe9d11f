"""TIFF files of kinds that Pillow does not know."""

import zlib

import numpy as np
import pytest

from tests.data.test_decode import grey, read, tiff
from tinydiff.errors import InputError


def packed(rows, bits):
    """Rows of numbers as bits, the highest first, each row from a byte of its own on."""
    out = b""
    for row in rows:
        line = "".join(f"{number:0{bits}b}" for number in row)
        out += int(line.ljust(-(-len(line) // 8) * 8, "0"), 2).to_bytes(-(-len(line) // 8), "big")
    return out


@pytest.mark.parametrize("bits", [3, 6, 7, 10, 12, 13, 14])
def test_every_depth_reaches_from_black_to_white(tmp_path, bits):
    m = 2**bits - 1
    rows = [[0, m // 2], [m, m // 4]]
    expected = [round(255 * v / m) for row in rows for v in row]
    assert grey(tmp_path, tiff([bits], 1, packed(rows, bits))) == expected
    assert grey(tmp_path, tiff([bits], 0, packed(rows, bits), order=">")) == [255 - v for v in expected]


@pytest.mark.parametrize("bits", [1, 2, 4, 10, 12])
@pytest.mark.parametrize("planar", [False, True])
def test_colours(tmp_path, bits, planar):
    m = 2**bits - 1
    x = np.random.default_rng(0).integers(0, m + 1, (2, 2, 3))
    rows = x.transpose(2, 0, 1).reshape(6, 2) if planar else x.reshape(2, 6)
    content = tiff(
        [bits] * 3, 2, packed(rows.tolist(), bits), planes=3 if planar else 1, tags={284: [2]} if planar else {}
    )
    image = read(tmp_path, content, channels=3)
    np.testing.assert_array_equal(image, np.rint(255 * x / m))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("alpha", [0, 1, 2])
def test_sixteen_bits_of_grey_with_another_number(tmp_path, order, alpha):
    full = 65535
    x = np.array([[0, full], [full // 2, full // 2], [40000, full], [0, 0]], f"{order}u2")
    shown = {0: [0, 127, 156, 0], 1: [0, 255, 156, 255], 2: [0, 191, 156, 255]}[alpha]
    assert grey(tmp_path, tiff([16] * 2, 1, x.tobytes(), order=order, tags={338: [alpha]})) == shown


def test_of_twelve_bits_in_sixteen_the_folder_decides(tmp_path):
    x = np.array([[0, 4095], [4095, 4095], [2048, 4095], [9, 0]], "<u2")
    assert grey(tmp_path, tiff([16] * 2, 1, x.tobytes(), tags={338: [2]})) == [0, 255, 128, 255]


def test_strips_deflate_and_rotation(tmp_path):
    rows = np.arange(16).reshape(4, 4) * 68
    expected = np.rint(rows / 1023 * 255).astype(int)
    data = packed(rows.tolist(), 10)
    strips = {277: [1], 258: [10], 278: [2]}
    assert grey(tmp_path, tiff([10] * 2, 1, data, 4, 4, planes=2, tags=strips)) == expected.ravel().tolist()
    assert grey(tmp_path, tiff([10], 1, zlib.compress(data), 4, 4, tags={259: [8]})) == expected.ravel().tolist()
    assert grey(tmp_path, tiff([10], 1, data, 4, 4, tags={274: [6]})) == np.rot90(expected, -1).ravel().tolist()


@pytest.mark.parametrize(
    "content, said",
    [
        (tiff([24], 1, bytes(12)), "24 bits in grey "),
        (tiff([64], 1, bytes(32), tags={339: [3]}), "floating-point 64 bits in grey"),
        (tiff([12] * 4, 5, bytes(24)), "12 bits in CMYK"),
        (tiff([16], 32803, bytes(8)), "16 bits in a camera's raw colours"),
        (tiff([8], 1, bytes(4), tags={259: [34887]}), "compressed by LERC"),
        (tiff([10], 1, bytes(6), tags={259: [5]}), "10 bits in grey, compressed by LZW"),
        (tiff([5, 6, 5], 2, bytes(8)), "5/6 bits in RGB"),
        (tiff([8] * 5, 1, bytes(20)), "5 numbers to a pixel"),
    ],
)
def test_what_is_not_read_is_named_with_what_to_do(tmp_path, content, said):
    with pytest.raises(InputError, match=rf"a TIFF of a kind that is not read: .*{said}.*\(save it as PNG"):
        read(tmp_path, content)


def test_damaged_files(tmp_path):
    whole = tiff([10], 1, bytes(6))
    for size, said in ((20, "damaged or was cut off"), (len(whole) - 1, "was cut off")):
        with pytest.raises(InputError, match=said):
            read(tmp_path, whole[:size])
    with pytest.raises(InputError, match="was cut off"):
        read(tmp_path, tiff([10], 1, bytes(6), tags={259: [8]}))
