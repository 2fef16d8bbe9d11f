"""Small files and folders that ask for much: memory, time, other programs, the terminal."""

import gzip
import os
import struct
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.data.test_decode import png
from tinydiff.data import folder as folders
from tinydiff.data import load
from tinydiff.errors import InputError


def peak_of(work):
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as told:
            work()
        return tracemalloc.get_traced_memory()[1], str(told.value)
    finally:
        tracemalloc.stop()


def test_postscript_starts_no_program(tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *a, **k: pytest.fail("Ghostscript"))
    (tmp_path / "cat.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    )
    (tmp_path / "dog.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n")
    with pytest.raises(InputError, match=r"its only picture cannot be read; cat\.png: PostScript, not a picture"):
        load(tmp_path, report=lambda line: None)


def test_names_are_shown_and_not_obeyed(tmp_path):
    (tmp_path / "a\x1b[31m\u202e.png").write_bytes(b"no picture")
    said = []
    with pytest.raises(InputError) as told:
        load(tmp_path, report=said.append)
    assert "\\x1b[31m\\u202e.png" in str(told.value) and said[0].isprintable()


@pytest.mark.parametrize("shape", [(1, 8, 8), (2**31, 2**31, 1)])
def test_gzip_is_unpacked_as_far_as_the_header_goes(tmp_path, shape):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(struct.pack(">BBBB3I", 0, 0, 8, 3, *shape) + bytes(64 << 20), 1))
    peak, message = peak_of(lambda: load(path))
    assert peak < (16 << 20 if shape[0] == 1 else 200 << 20), peak
    assert ("at least" in message) == (shape[0] == 1) and len(message) < 300


def test_of_an_archive_only_what_is_needed_is_unpacked(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", images=np.zeros((2, 8, 8), np.uint8), other=np.zeros(64 << 20, np.uint8))
    tracemalloc.start()
    assert len(load(tmp_path / "x.npz")) == 2
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def test_a_header_alone_takes_no_memory(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 8, 8), np.uint8))
    content = (tmp_path / "x.npy").read_bytes()
    for shape in (b"(9999999, 8, 8), }", b"(2, 8, 99999999), }", b"(-1, 8, 8), }", b"(2, 8, 8), } " + b"(" * 50):
        (tmp_path / "x.npy").write_bytes(content.replace(b"(2, 8, 8), }" + b" " * (len(shape) - 12), shape))
        peak, message = peak_of(lambda: load(tmp_path / "x.npy"))
        assert (peak < 16 << 20 and "cannot be read" in message) or "memory" in message


def test_threads_that_decode_share_the_budget(tmp_path, monkeypatch):
    """By what they say they take; pictures that wait to be stored count as well."""
    monkeypatch.setattr(folders, "_BUDGET", 30 * 30 * 13)
    rooms, least, now, most = [], [], 0, 0

    class Counted(folders._Room):
        def __init__(self, count):
            super().__init__(count)
            rooms.append(self)

        def take(self, turn, count):
            super().take(turn, count)
            least.append(self.left)

    def decoded(*arguments):
        nonlocal now, most
        now += 1
        most = max(most, now)
        time.sleep(0.001)
        now -= 1
        return pixels(*arguments)

    pixels = folders.read_pixels
    monkeypatch.setattr(folders, "_Room", Counted)
    monkeypatch.setattr(folders, "read_pixels", decoded)
    for i in range(24):
        Image.new("L", (30, 30), i).save(tmp_path / f"{i:02}.png")
    (tmp_path / "05.png").write_bytes(b"no picture")
    data = load(tmp_path, report=lambda line: None)
    assert data.images[:, 0, 0, 0].tolist() == [*range(5), *range(6, 24)]
    assert most == 1 and min(least) == 0 and rooms[0].left == folders._BUDGET
    data = load(tmp_path, image_size=8, report=lambda line: None)
    assert len(data) == 23 and rooms[1].left == folders._BUDGET


def test_who_waits_for_room_does_not_wait_when_reading_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "_BUDGET", 30 * 30 * 13)
    for i in range(24):
        Image.new("L", (30 - i, 30 - i)).save(tmp_path / f"{i:02}.png")
    with pytest.raises(InputError, match="several sizes"):
        load(tmp_path)


@pytest.mark.slow
def test_what_decoding_takes_of_memory(tmp_path):
    """At most what is counted for it, for each kind of pixels."""
    side = 1200
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile.replace("sRGB".encode("utf-16-be"), "xRGB".encode("utf-16-be"))  # else it changes nothing
    script = (
        "import sys; from pathlib import Path; from PIL import Image; import tinydiff.data.folder as f;"
        "import tinydiff.machine.limits as l; Image.init(); before = l.peak_resident(); counts = [];"
        "[f._decode(f.Folder(Path(p).parent), Path(p).name, None, None, f.FULL, counts.append) for p in sys.argv[1:]];"
        "print(l.peak_resident() - before, max(counts))"
    )
    kinds = ((("la.png", "cmyk.jpg", "rgba.png"), 13, None), (("rgba.png",), 21, profile), (("deep.png",), 43, None))
    for names, each, icc in kinds:
        for name in names:
            if name == "deep.png":
                (tmp_path / name).write_bytes(png(16, 6, [np.full(4 * side, 50_000, ">u2").tobytes()] * side, side))
            else:
                Image.new(name[:-4].upper(), (side, side)).save(tmp_path / name, icc_profile=icc)
        command = [sys.executable, "-c", script, *(str(tmp_path / name) for name in names)]
        peak, counted = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
        assert counted == side * side * each and peak < counted + (4 << 20), (names, peak, counted)


def test_a_picture_of_too_many_pixels_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "_BUDGET", 1300)
    for name, side in (("a", 8), ("b", 11)):
        Image.new("L", (side, side)).save(tmp_path / f"{name}.png")
    data = load(tmp_path, report=lambda line: None)
    assert data.skipped == [("b.png", "121 pixels, more than the 100 that are read of PNG")]


def test_pictures_that_do_not_fit_into_memory_are_refused(tmp_path, monkeypatch):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    monkeypatch.setattr("tinydiff.machine.limits.memory", lambda: (100, 100))
    with pytest.raises(InputError, match=r"its pictures, 1 of 8x8, take 64 bytes, more than fit .* image_size"):
        load(tmp_path)


def test_folders_that_link_to_each_other(tmp_path):
    names = "abcdefgh"
    for name in names:
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / name / "x.png")
    for name in names:
        for other in names:
            os.symlink(tmp_path / other, tmp_path / name / other)
    begun = time.monotonic()
    data = load(tmp_path, report=lambda line: None)
    assert time.monotonic() - begun < 5 and 8 <= len(data) <= 8 * 16
    assert any("links lead there" in reason for _, reason in data.skipped)


@pytest.mark.slow
def test_folders_of_a_thousand_levels(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "x.png")
    here = os.getcwd()
    levels = 0
    try:
        os.chdir(tmp_path)
        for _ in range(1200):
            os.mkdir("d")
            os.chdir("d")
            levels += 1
        data = load(tmp_path, report=lambda line: None)
    finally:  # step by step: no other way down or up is that long
        for _ in range(levels):
            os.chdir("..")
            os.rmdir("d")
        os.chdir(here)
    assert len(data) == 1 and "folders deep" in data.skipped[0][1]


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.bin", "x-images-idx3-ubyte", "x"])
def test_pipes_are_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match="is not data that can be trained on"):
        load(tmp_path / name)
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    assert [path for path, _ in load(tmp_path, report=lambda line: None).skipped] == ["b.png"]
