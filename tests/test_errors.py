"""Sentences name a parameter as the caller knows it: Python's callers by its name, the command line's by its flag."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tinydiff as td
from tinydiff.cli.entry import main
from tinydiff.errors import InputError, a_type, named, spelling
from tinydiff.evaluation.evaluate import Settings
from tinydiff.runs.building import resolve
from tinydiff.runs.config import RunConfig
from tinydiff.runs.folder import RunFolder

PACKAGE = Path(td.__file__).parent
OPTIONS = {"cuda/driver.py", "cuda/host.py", "cuda/nvrtc.py"}  # of compilers


def test_named():
    assert named("image_size") == "image_size"
    assert [named("device", "cpu"), named("mults", (1, 2)), named("labels", True), named("lr", 1e-3)] == [
        'device="cpu"',
        "mults=(1, 2)",
        "labels=True",
        "lr=0.001",
    ]
    with pytest.raises(ZeroDivisionError), spelling(lambda name, *value: name.upper()):
        assert named("image_size", 8) == "IMAGE_SIZE"
        raise ZeroDivisionError
    assert named("image_size", 8) == "image_size=8"


def test_a_type():
    things = (1, 1.0, None, np.ones(2), np.uint8(1), td.Tensor(1.0), object(), "")
    assert [a_type(x) for x in things] == [
        "an int", "a float", "None", "an ndarray", "a uint8", "a Tensor", "an object", "a str",
    ]  # fmt: skip


def test_the_command_line_spells_names_as_flags():
    from tinydiff.cli.entry import _flag

    assert [_flag("image_size"), _flag("image_size", 8), _flag("mults", (1, 2)), _flag("device", "cpu")] == [
        "--image-size",
        "--image-size 8",
        "--mults 1,2",
        "--device cpu",
    ]
    assert [_flag("labels", True), _flag("labels", False), _flag("terms", None)] == [
        "--labels",
        "--no-labels",
        "--all-terms",
    ]


def test_pictures_that_are_not_square(tmp_path, capsys):
    Image.fromarray(np.zeros((6, 9), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"not square, so give image_size to crop and scale to$"):
        td.data.load(tmp_path)
    assert main(["train", "--data", str(tmp_path), "--out", str(tmp_path / "run")]) == 2
    assert "not square, so give --image-size to crop and scale to\n" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"so give image_size to"):  # the command leaves nothing behind
        td.data.load(tmp_path)


@pytest.mark.skipif(td.backend.cupy() is not None, reason="for machines without a GPU")
def test_a_device_that_is_not_there(tmp_path, capsys):
    with pytest.raises(InputError, match=r'device="cpu"$'):
        td.Tensor([1.0]).to("cuda")
    assert main(["train", "--device", "cuda", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.endswith("use --device cpu\n")


def test_settings(tmp_path, capsys):
    wide = RunConfig(image_size=9, mults=(1, 2, 2), channels=8)
    data = td.data.draw_glyphs(2, image_size=9)
    with pytest.raises(
        InputError, match=r"^image_size=9: .* levels of mults=\(1, 2, 2\) .* so give image_size 8 or 12$"
    ):
        resolve(wide, data)
    with pytest.raises(InputError, match=r"^channels=12 .* give groups$"):
        resolve(RunConfig(image_size=8, mults=(1,), channels=12), td.data.draw_glyphs(2, image_size=8))
    with pytest.raises(InputError, match=r"^save_every must be at least 1, not 0$"):
        td.TrainConfig(save_every=0)
    words = ["train", "--save-every", "0", "--out", str(tmp_path / "run")]
    assert main(words) == 2 and capsys.readouterr().err == "tinydiff: --save-every must be at least 1, not 0\n"


def test_bounds(tmp_path, capsys):
    with pytest.raises(InputError, match=r"^channels times mults gives 32000 channels"):
        resolve(RunConfig(image_size=8, mults=(2,), channels=16_000), td.data.draw_glyphs(2, image_size=8))
    with pytest.raises(InputError, match=r"^threads must be at most 256, not 1000$"):
        Settings(threads=1000)
    assert main(["evaluate", str(tmp_path), "--threads", "1000"]) == 2
    assert capsys.readouterr().err == "tinydiff: --threads must be at most 256, not 1000\n"


def test_a_run_without_its_checkpoint(tmp_path, capsys):
    (tmp_path / "config.toml").write_text("format = 1\n")
    with pytest.raises(InputError, match=r"or begin again with force=True$"):
        RunFolder(tmp_path).check_resumable()
    assert main(["train", "--resume", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith("or begin again with --force\n")


def flags_in(file):
    """Flags in the strings of a file, docstrings left out."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    scopes = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docs = {id(s.body[0].value) for s in ast.walk(tree) if isinstance(s, scopes) and isinstance(s.body[0], ast.Expr)}
    strings = (
        n.value
        for n in ast.walk(tree)
        if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in docs
    )
    return [flag for text in strings for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)]


def test_only_the_command_line_speaks_of_flags(tmp_path):
    (tmp_path / "x.py").write_text(
        '"""--a-docstring"""\ndef f():\n    """--another"""\n    return f"give --image-size {f}"\n'
    )
    assert flags_in(tmp_path / "x.py") == ["--image-size"]
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        name = file.relative_to(PACKAGE).as_posix()
        if not name.startswith("cli/") and name not in OPTIONS and (flags := flags_in(file)):
            found[name] = flags
    assert not found
