"""Arguments and surroundings that no user means: one sentence, and never a traceback."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tinydiff.cli import main
from tinydiff.cli.sample import _label
from tinydiff.errors import InputError
from tinydiff.evaluation.evaluate import Settings, _Evaluation
from tinydiff.machine.terminal import quoted

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--blocks", "1000000000"], "--blocks must be at least 1 and at most 64"),
        (["--batch-size", "1000000000"], "--batch-size must be at least 1 and at most 65536"),
        (["--accumulate", "1000000000"], "--accumulate must be"),
        (["--threads", "1000"], "--threads must be at least 1 and at most 256"),
        (["--timesteps", "100000000"], "--timesteps must be at least 1 and at most 100000"),
        (["--channels", "100000"], "--channels must be"),
        (["--mults", "1,2,100000"], "--mults must be"),
        (["--mults", ",".join(["1"] * 50)], "at most 12 levels"),
        (["--channels", "16384", "--mults", "1", "--blocks", "64"], "64 blocks of 16384 channels needs more than"),
        (["--channels", "16384"], "a level has at most 16384"),
        (["--image-size", "100000000"], "--image-size must be"),
        (["--batch-size", "65536", "--image-size", "64"], "a step of 65,536 images of 64x64 needs more than"),
        (["--steps", "9" * 400], "--steps must be"),
        (["--lr", "1" + "0" * 400], "--lr must be a finite number"),
        (["--data", "x\0y"], "must not hold a zero byte"),
        (["--data", "x\udcff"], r"must be text in UTF-8, and it holds other bytes: x\xff"),
        (["--data", "x" * 300], "File name too long"),
        (["--data", "x/" * 3000], "must be a text of at most 4096 characters"),
        (["--out", "x" * 300], "File name too long"),
        (["--config", "x" * 300], "x"),
        (["--init", "x" * 300], "File name too long"),
    ],
    ids=lambda value: "".join(value)[:24].encode(errors="replace").decode() if isinstance(value, list) else "",
)
def test_training(flags, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *flags]) == 2
    out, err = capsys.readouterr()
    assert sentence in err and len(err) < 330 and err.count("\n") == 1 and out == ""
    assert list(tmp_path.iterdir()) == []


def command(*words, **options):
    line = [sys.executable, "-m", "tinydiff", *words]
    options = {"cwd": ROOT, "capture_output": True} | options
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | options.pop("env", {})
    return subprocess.run(line, env=environment, **options)


def test_a_folder_named_like_a_package(tmp_path):
    (tmp_path / "cupy").mkdir()
    (tmp_path / "kernels").mkdir()
    done = command("train", "--data", "nowhere", cwd=tmp_path)
    assert done.returncode == 2 and b"there is no nowhere" in done.stderr
    code = "from tinydiff import backend; print(backend.cupy(), backend.resolve_device('auto'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True
    )
    assert done.stdout.split() == [b"None", b"cpu"], done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_output_that_lacks_characters(encoding):
    done = command("info", "\u2603\u00e9\x1b[31m\udcff", env={"PYTHONIOENCODING": encoding})
    assert done.returncode == 2 and b"Traceback" not in done.stderr and rb"\x1b[31m\xff" in done.stderr


def test_a_working_folder_that_is_gone(tmp_path):
    script = f"mkdir gone && cd gone && rmdir ../gone && {sys.executable} -m tinydiff train --steps 1 --image-size 8"
    done = subprocess.run(
        script, shell=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True
    )
    assert done.returncode == 2 and re.fullmatch(rb"(data|network|training)?.*tinydiff: .*\n", done.stderr, re.S)
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(("words", "status"), [(["--version"], 0), (["info", "nowhere"], 2), (["gradcheck", "x"], 2)])
def test_without_streams_as_under_pythonw(words, status, monkeypatch):
    for stream in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, stream, None)
    assert main(words) == status


def test_streams_that_are_closed(tmp_path):
    for closed in (">&-", "2>&-", ">&- 2>&- <&-"):
        script = f"{sys.executable} -m tinydiff train --data nowhere {closed}"
        done = subprocess.run(script, shell=True, cwd=ROOT, capture_output=True)
        assert done.returncode == 2 and b"Traceback" not in done.stderr + done.stdout


def test_paths_in_commands_to_copy():
    assert [quoted(name) for name in ("runs/a", "-x", "two words")] == ["runs/a", "./-x", "'two words'"]


def test_a_class_of_thousands_of_digits():
    unet = SimpleNamespace(num_classes=3, null_label=None)
    with pytest.raises(InputError, match=r"only the numbers 0\.\.2"):
        _label("9" * 5000, unet, None)
    assert _label("2", unet, None) == 2


@pytest.mark.parametrize("command", ["gradcheck", "trace"])
def test_a_file_that_ends_the_program(command, tmp_path, capsys):
    """Its status 0 would say that the gradient is right."""
    (tmp_path / "ends.py").write_text("import sys\nsys.exit(0)\n")
    assert main([command, f"{tmp_path}/ends.py:f"]) == 2
    assert "ended with SystemExit: 0" in capsys.readouterr().err


def test_a_run_whose_first_steps_leave_nothing_to_draw(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = "--steps 1 --channels 8 --mults 1 --groups 4 --image-size 8 --attention none --timesteps 4 --batch-size 2"
    assert main(["doctor", *small.split(), "--warmup", "0", "--lr", "1e30"]) == 2
    assert "the run would fail" in capsys.readouterr().err


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), InputError("x"), KeyError("x")])
def test_an_evaluation_that_nobody_hears(tmp_path, error):
    def report(text):
        raise error

    evaluation = _Evaluation(tmp_path, None, Settings(), tmp_path, report)
    evaluation._run = lambda: evaluation.say("x")
    with pytest.raises(type(error)) as caught:
        evaluation.run()
    assert caught.value is error


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("train --steps 1_000", "--steps must be a whole number"),
        ("train --lr \u0661", "--lr must be a number"),
        ("train --mults 1,1_0", "--mults must be whole numbers"),
        ("train --steps=--", "--steps must not be --"),
        ("sample run --label=--", "--label must not be --"),
        ("sample run --n \uff11", "is not a whole number"),
        ("sample run --eta 0_1", "is not a number"),
        ("bench --json 1\0", "--json must not hold a zero byte"),
        ("info run\0", "the path must not hold a zero byte"),
        ("puzzle 0001", "there is no puzzle '0001'"),
        ("puzzle \u0661", "there is no puzzle"),
        ("info /", "/ cannot be read: it has no checkpoint"),
        ("train --resume --out /", "there is no run to resume in /"),
        ("gradcheck {file}:f --shape 9223372036854775808", "a shape may have 10,000,000 numbers"),
        ("gradcheck {file}:f --shape " + "1x" * 40, "a shape may have 10,000,000 numbers"),
        ("gradcheck {file}:f --shape 1_0", "a shape must be like 4,3"),
    ],
)
def test_numbers_and_names_that_nobody_means(words, sentence, tmp_path, capsys):
    (tmp_path / "homework.py").write_text("def f(x):\n    return x\n")
    assert main([word.format(file=tmp_path / "homework.py") for word in words.split(" ")]) == 2
    out, err = capsys.readouterr()
    assert sentence in err and err.count("\n") == 1 and len(err) < 330 and out == ""
