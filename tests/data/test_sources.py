"""Pictures in archives: read as from a folder, bounded, and nothing is unpacked to the disk."""

import gzip
import io
import os
import shutil
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinydiff.data import load, sources
from tinydiff.errors import InputError

NAMES = ("b/2.png", "a/10.png", "a/x/1.png", "c.d/3.png")


def png(value):
    content = io.BytesIO()
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(content, "png")
    return content.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for i, name in enumerate(NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(i))
    for name in ("__MACOSX/a/x.png", ".git/x.png", "run/samples.png", "run/config.toml", "run/checkpoint/x", "x.heic"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(99))
    return folder


def tar(path, *members, mode="w"):
    """members: (name, content or a TarInfo's changes)."""
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                for key, value in content.items():
                    setattr(info, key, value)
                archive.addfile(info)
    return path


@pytest.mark.parametrize("form", ["zip", "tar", "gztar", "bztar", "xztar"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_an_archive_is_read_as_its_folder(folder, tmp_path, form, wrapped):
    base = {"root_dir": folder.parent, "base_dir": folder.name} if wrapped else {"root_dir": folder}
    path = shutil.make_archive(str(tmp_path / "all"), form, **base)
    expected, data = load(folder, labels=True), load(path, labels=True)
    np.testing.assert_array_equal(data.images, expected.images)
    np.testing.assert_array_equal(data.labels, expected.labels)
    assert data.class_names == expected.class_names == ["a", "b", "c.d"] and data.source == path
    assert data.notes[0].startswith("ignored: 1 .heic file") and len(data.notes) == 1 + wrapped
    assert os.listdir(tmp_path) == [os.path.basename(path)]
    os.rename(path, tmp_path / "no ending")
    np.testing.assert_array_equal(load(tmp_path / "no ending").images, expected.images) if form[:2] not in (
        "bz",
        "xz",
    ) else None


def test_what_is_no_picture_of_the_archive_is_left_out(tmp_path):
    members = [
        ("../out.png", png(1)),
        ("/root.png", png(2)),
        ("link.png", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
        ("hard.png", {"type": tarfile.LNKTYPE, "linkname": "./root.png"}),
        ("lost.png", {"type": tarfile.LNKTYPE, "linkname": "none.png"}),
        ("pipe.png", {"type": tarfile.FIFOTYPE}),
        ("twice.png", png(3)),
        ("twice.png", png(4)),
    ]
    for mode in ("w", "w:gz"):
        data = load(tar(tmp_path / "x.tar", *members, mode=mode), report=lambda line: None)
        assert data.images[:, 0, 0, 0].tolist() == [2, 2, 4]
        assert [name for name, _ in data.skipped] == ["../out.png", "lost.png"]


def test_names_in_a_zip(tmp_path):
    """UTF-8 that is not said to be, as macOS writes it, backslashes, a link, an encrypted file."""
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name, attributes in (
            ("\u00e4/1.png", 0),
            ("b\\2.png", 0),
            ("link.png", 0o120777 << 16),
            ("z/secret.png", 0),
        ):
            info = zipfile.ZipInfo(name)
            info.external_attr, info.create_system = attributes, 0
            archive.writestr(info, png(5))
    content = bytearray((tmp_path / "x.zip").read_bytes())
    at = content.rindex(b"PK\x01\x02")
    content[at + 8] |= 1
    for found in range(at + 1):
        if content[found : found + 4] in (b"PK\x03\x04", b"PK\x01\x02"):
            content[found + (7 if content[found + 2] == 3 else 9)] &= ~8
    (tmp_path / "x.zip").write_bytes(content)
    data = load(tmp_path / "x.zip", labels=True, report=lambda line: None)
    assert data.class_names == ["b", "\u00e4"] and len(data) == 2
    assert data.skipped == [("z/secret.png", "encrypted")]


def test_damaged_and_other_archives(folder, tmp_path):
    for form, ending in (("zip", "zip"), ("tar", "tar"), ("gztar", "tar.gz"), ("xztar", "tar.xz")):
        whole = Path(shutil.make_archive(str(tmp_path / "all"), form, folder)).read_bytes()
        for size in (0, 3, 600, len(whole) * 2 // 3):
            (tmp_path / f"cut.{ending}").write_bytes(whole[:size])
            with pytest.raises(InputError, match=r"is damaged, cut off or no archive: .*FOLDER$"):
                load(tmp_path / f"cut.{ending}")
    content = bytearray(Path(shutil.make_archive(str(tmp_path / "all"), "zip", folder)).read_bytes())
    content[content.index(b"PK\x01\x02") + 6] = 255  # the version of the format
    (tmp_path / "cut.zip").write_bytes(content)
    with pytest.raises(InputError, match=r"zip file version 25\.5; unpack it"):
        load(tmp_path / "cut.zip")
    for size in (512, 1024 + 100):  # where tarfile itself sees an end
        (tmp_path / "cut.tar").write_bytes(
            tar(tmp_path / "y.tar", ("x.png", png(1)), ("y.png", png(2))).read_bytes()[:size]
        )
        with pytest.raises(InputError, match=r"does not end as a tar file does|unexpected end"):
            load(tmp_path / "cut.tar")


def test_archives_without_pictures_are_refused_with_the_command_that_unpacks_them(tmp_path):
    tar(tmp_path / "my data.tar.gz", ("a.txt", b"x"), ("b.heic", b"x"), mode="w:gz")
    with pytest.raises(
        InputError, match=r"without pictures \(ignored: 1 \.heic.*python -m tarfile -e '.*my data\.tar\.gz' FOLDER$"
    ):
        load(tmp_path / "my data.tar.gz")
    (tmp_path / "x.7z").write_bytes(b"x")
    with pytest.raises(
        InputError, match=r"x\.7z is an archive of a kind that is not read; unpack it and give the folder$"
    ):
        load(tmp_path / "x.7z")


def test_what_an_archive_may_hold_is_bounded(tmp_path, monkeypatch):
    path = tar(tmp_path / "x.tar.gz", ("x.png", png(1)), ("y.png", png(2)), mode="w:gz")
    zipped = tmp_path / "x.zip"
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("x.png", png(1) + bytes(2000))
        archive.writestr("y.png", png(2))
    monkeypatch.setattr(sources, "_LARGEST", 1000)
    assert load(zipped, report=lambda line: None).skipped == [
        ("x.png", "more than the 1,000 bytes that are read of a file in an archive")
    ]
    monkeypatch.setattr(sources, "_MOST_HEADER", 3000)
    tar(tmp_path / "long.tar", ("x" * 5000 + ".png", png(1)))
    with pytest.raises(InputError, match="a header says that it has 5,"):
        load(tmp_path / "long.tar")
    monkeypatch.setattr(sources, "_MOST_MEMBERS", 1)
    with pytest.raises(InputError, match="holds more than 1 files; unpack it"):
        load(path)
    monkeypatch.setattr("tinydiff.machine.limits.memory", lambda: (500, 500))
    monkeypatch.setattr(sources, "_MOST_MEMBERS", 9)
    with pytest.raises(InputError, match="more than fits into a quarter of the memory; unpack it"):
        load(path)


@pytest.mark.parametrize("packed", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_DEFLATED])
def test_little_of_a_member_is_unpacked_at_once(tmp_path, packed):
    """zipfile unpacks as many packed bytes as it was asked for, whatever comes of them, and by bzip2 much comes of few."""
    with zipfile.ZipFile(tmp_path / "x.zip", "w", packed) as archive:
        archive.writestr("x.png", png(1))
        archive.writestr("large.png", bytes(80 << 20 if packed == zipfile.ZIP_BZIP2 else 9000))
    with zipfile.ZipFile(tmp_path / "x.npz", "w", packed) as archive, archive.open("images.npy", "w") as file:
        np.save(file, np.zeros((9, 40, 40), np.uint8))
    tracemalloc.start()
    with (
        zipfile.ZipFile(tmp_path / "x.zip") as archive,
        sources.open_member(archive, archive.getinfo("large.png")) as member,
    ):
        assert member.read(sources.UNPACKED_AT_ONCE) == bytes(sources.UNPACKED_AT_ONCE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "_LARGEST", 8000)
        assert len(load(tmp_path / "x.zip", report=lambda line: None)) == 1 and len(load(tmp_path / "x.npz")) == 9


def test_names_that_no_file_could_have(tmp_path):
    names = ("a/" * 101 + "x.png", "x" * 5000 + ".png", "a/" * 30 + "x.png")
    tar(tmp_path / "x.tar.gz", *[(name, png(1)) for name in names], mode="w:gz")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in names:
            archive.writestr(name, png(1))
    for file in ("x.zip", "x.tar.gz"):
        data = load(tmp_path / file, report=lambda line: None)
        assert len(data) == 1 and "more than 4096 characters or 100 folders" in data.skipped[0][1]


def test_a_tar_file_that_unpacks_to_much_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_MOST_UNPACKED", (1 << 20, 2))
    for size, file in ((1 << 40, "claims.tar.gz"), (2 << 20, "has.tar.gz")):
        info = tarfile.TarInfo("x.txt")
        info.size = size
        content = info.tobuf(tarfile.GNU_FORMAT) + bytes(min(size, 2 << 20)) + bytes(1024)
        (tmp_path / file).write_bytes(gzip.compress(content))
        with pytest.raises(InputError, match="more than the 1,048,576 bytes that are unpacked"):
            load(tmp_path / file)


def test_a_tar_file_of_remarks(tmp_path):
    """Each member gets a copy of what is said of all."""
    remarks = {f"k{i}": "v" for i in range(101)}
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT, pax_headers=remarks) as archive:
        archive.addfile(tarfile.TarInfo("x.png"))
    with pytest.raises(InputError, match="more than 100 things"):
        load(tmp_path / "x.tar")


@pytest.mark.parametrize(
    ("name", "start"),
    [("x.webp", b"RIFF\xff\xff\xff\x7fWEBPVP8L"), ("x.png", png(1)[:33] + b"\x7f\xff\xff\x00tEXt")],
    ids=["webp", "png"],
)
def test_of_a_file_full_of_holes_little_is_read(tmp_path, monkeypatch, name, start):
    monkeypatch.setattr(sources.Metered, "left", 4 << 20)
    with open(tmp_path / name, "wb") as file:
        file.write(start)
        file.truncate(1 << 31)
    with pytest.raises(InputError, match="more bytes than such a picture may need"):
        load(tmp_path, report=lambda line: None)
