"""The command line, as a user types it: what it makes, what it says, how it ends."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tinydiff as td
from tests.cli.commands import HOMEWORK, fails
from tinydiff.cli import main
from tinydiff.runs.folder import read_log
from tinydiff.runs.lock import Lock

ROOT = Path(__file__).parents[2]
SMALL = [
    "--channels", "8", "--groups", "4", "--mults", "1,2", "--image-size", "8", "--attention", "4", "--timesteps", "20",
    "--batch-size", "4", "--threads", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of pictures in two classes, one of them broken."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(6):
        sub = folder / ("cats" if i % 2 else "dogs")
        sub.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(sub / f"{i}.png")
    (folder / "cats/broken.png").write_bytes(b"\x89PNG not really")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, pictures):
    """A finished run with labels, which the tests below read and do not change."""
    out = tmp_path_factory.mktemp("runs") / "pets"
    status = main(
        [
            "train",
            "--data",
            str(pictures),
            "--labels",
            "--out",
            str(out),
            "--steps",
            "6",
            "--preview-every",
            "3",
            *SMALL,
        ]
    )
    assert status == 0
    return out


def test_a_run_folder_has_everything(run):
    names = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    assert names >= {
        "config.toml", "log.csv", "samples.png", "samples.gif", "samples/step_000003.png", "samples/step_000006.png",
        "checkpoint/model_index.json", "checkpoint/tinydiff.json", "checkpoint/training_state.safetensors",
        "checkpoint/unet/config.json", "checkpoint/unet/diffusion_pytorch_model.safetensors",
        "checkpoint/scheduler/scheduler_config.json",
    }  # fmt: skip
    assert not any(name.endswith((".new", ".tmp", ".old")) for name in names)
    assert [row["step"] for row in read_log(run / "log.csv")] == list("123456")
    with Image.open(run / "samples.gif") as gif:
        assert gif.n_frames > 10
    with Image.open(run / "samples.png") as sheet:
        assert sheet.mode == "RGB" and sheet.width > 4 * sheet.height  # two classes, ten of each, one class a row


def test_info_tells_what_a_run_is(run, capsys):
    assert main(["info", str(run)]) == 0
    text = capsys.readouterr().out
    parameters = sum(p.size for p in td.load(run).unet.parameters())
    for part in (
        f"{parameters:,} parameters",
        "8x8x3",
        "2 classes",
        "cats, dogs",
        "alpha_bar_T",
        "6 saved of 6",
        "T = 20",
    ):
        assert part in text, (part, text)
    assert "\n            channels 8\n" in text  # indented below the network


def test_info_tells_of_a_run_that_is_still_going(run, tmp_path, capsys):
    copy = tmp_path / "going"
    shutil.copytree(run, copy)
    with open(copy / "log.csv", "a") as file:
        file.write("7,0.25,1,0.001,20.0\n8,0.2,1,0.0")  # the last row is being written
    (copy / "config.toml").write_text((copy / "config.toml").read_text().replace("steps = 6\n", "steps = 107\n"))
    assert main(["info", str(copy)]) == 0
    assert "running" not in capsys.readouterr().out
    lock = Lock(copy)
    lock.acquire()
    assert main(["info", str(copy)]) == 0
    text = capsys.readouterr().out
    assert re.search(rf"running:    process {os.getpid()} on .*, at step 7, loss 0.2500, \d+ images/s\n", text)
    assert re.search(r"about \S+ left, samples included", text)
    (copy / "log.csv").unlink()
    assert main(["info", str(copy)]) == 0 and "before its first step" in capsys.readouterr().out
    shutil.rmtree(copy / "checkpoint")
    assert main(["info", str(copy)]) == 0 and "there is no checkpoint yet" in capsys.readouterr().out
    lock.release()


def test_sample_needs_no_flags_and_repeats_itself(run, capsys):
    assert main(["sample", str(run)]) == 0
    path = Path(capsys.readouterr().out.strip())
    first = path.read_bytes()
    assert path.parent == run / "samples"
    assert main(["sample", str(run)]) == 0
    assert path.read_bytes() == first
    assert main(["sample", str(run), "--seed", "1", "--out", str(path.parent / "other.png")]) == 0
    assert (path.parent / "other.png").read_bytes() != first


@pytest.mark.parametrize(
    "flags",
    [
        ["--sampler", "ddpm"],
        ["--sampler", "ddpm", "--steps", "5"],
        ["--steps", "4", "--eta", "1", "--n", "3"],
        ["--label", "cats", "--n", "2", "--guidance", "2.5"],
        ["--label", "1", "--raw", "--n", "2"],
        ["--sampler", "dpm++", "--steps", "6", "--n", "2"],
    ],
)
def test_sampling_flags(run, tmp_path, flags):
    assert main(["sample", str(run), "--out", str(tmp_path / "a.png"), "--gif", str(tmp_path / "a.gif"), *flags]) == 0
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 8


def test_a_class_by_name_is_the_class_by_number(run, tmp_path):
    for name, label in (("a", "dogs"), ("b", "1")):
        assert main(["sample", str(run), "--label", label, "--n", "2", "--out", str(tmp_path / f"{name}.png")]) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_resume_by_command_line(run, tmp_path, pictures, capsys):
    out = tmp_path / "run"
    common = ["train", "--data", str(pictures), "--labels", "--out", str(out), "--preview-every", "3", *SMALL]
    assert main([*common, "--steps", "2"]) == 0
    assert main(["train", "--resume", "--out", str(out), "--steps", "6"]) == 0
    columns = ("step", "loss", "grad_norm", "lr")
    rows = [[tuple(r[c] for c in columns) for r in read_log(o / "log.csv")] for o in (run, out)]
    assert rows[0] == rows[1]
    for name in ("samples.png", "samples/step_000003.png", "samples/step_000006.png"):
        assert (run / name).read_bytes() == (out / name).read_bytes()
    capsys.readouterr()
    sentence = fails(capsys, ["train", "--resume", "--out", str(out), "--steps", "9", "--lr", "0.5"])
    assert "--lr 0.5 differs from the 0.001" in sentence


def test_one_runs_configuration_starts_another(run, tmp_path):
    out = tmp_path / "again"
    assert main(["train", "--config", str(run / "config.toml"), "--out", str(out)]) == 0
    assert (out / "samples.png").read_bytes() == (run / "samples.png").read_bytes()


def test_a_broken_picture_is_named_and_skipped(run, pictures, tmp_path, capsys):
    assert main(["train", "--data", str(pictures), "--out", str(tmp_path / "r"), "--steps", "1", *SMALL]) == 0
    err = capsys.readouterr().err
    assert "broken.png" in err and "6 images" in err


TRAIN_MISTAKES = {
    "no such path": (["--data", "/nowhere/at/all"], "/nowhere/at/all"),
    "size not divisible": (
        ["--image-size", "9", "--mults", "1,2,2"],
        "--image-size 9: for the 3 levels of --mults 1,2,2 .* divisible by 4, so give --image-size 8 or 12$",
    ),
    "size below the least": (["--image-size", "3", "--mults", "1,2,2"], "so give --image-size 4$"),
    "channels and groups": (["--channels", "12", "--groups", "8"], "--channels 12.*--groups 8"),
    "channels without groups": (["--channels", "12"], "--channels 12 is not divisible by 32, 16 or 8"),
    "attention": (["--attention", "5"], "--attention 5.*feature maps of"),
    "nan": (["--lr", "nan"], "--lr must be a finite number"),
    "negative steps": (["--steps", "-5"], "--steps must be at least 1"),
    "no number": (["--steps", "many"], "--steps must be a whole number, not 'many'"),
    "dropout": (["--dropout", "1.5"], "--dropout must be at least 0 and below 1"),
    "label dropout": (["--no-labels", "--label-dropout", "0.1"], "needs labels"),
    "unknown flag": (["--epochs", "3"], "--epochs"),
    "unknown device": (["--device", "tpu"], "auto, cpu, cuda"),
    "no gpu": (["--device", "cuda"], "needs an NVIDIA GPU"),
    "holdout of everything": (["--holdout", "0.99999"], "leaves 0 to train on"),
    "both": (["--resume", "--force"], "one of them"),
    "minutes": (["--minutes", "-3"], "--minutes must be greater than 0, not -3"),
    "rate schedule": (["--lr-schedule", "linear"], "--lr-schedule must be one of constant, cosine, not linear"),
    "noise schedule": (["--schedule", "quadratic"], "--schedule must be one of linear, cosine, sigmoid, not quadratic"),
    "a cosine without an end": (["--lr-schedule", "cosine", "--minutes", "5"], "give --lr-steps$"),
    "an end without a cosine": (["--lr-steps", "5"], "give --lr-schedule cosine as well$"),
    "no config": (["--config", "/nowhere.toml"], "no configuration file /nowhere.toml"),
}


@pytest.mark.parametrize("mistake", TRAIN_MISTAKES)
def test_mistakes_in_training(mistake, tmp_path, capsys, pictures):
    flags, pattern = TRAIN_MISTAKES[mistake]
    out = tmp_path / "run"
    base = [] if mistake in ("channels without groups", "channels and groups") else ["--channels", "8"]
    sentence = fails(capsys, ["train", "--data", str(pictures), "--image-size", "8", "--out", str(out), *base, *flags])
    assert re.search(pattern, sentence), sentence
    assert not out.exists()


def test_an_existing_run_is_kept(run, pictures, capsys):
    before = (run / "log.csv").read_bytes()
    sentence = fails(capsys, ["train", "--data", str(pictures), "--out", str(run), *SMALL])
    assert "--resume" in sentence and "--force" in sentence
    assert (run / "log.csv").read_bytes() == before


def test_pictures_of_two_sizes_need_a_size(tmp_path, capsys):
    for i, size in enumerate(((8, 8), (9, 8))):
        Image.new("L", size).save(tmp_path / f"{i}.png")
    assert "--image-size" in fails(capsys, ["train", "--data", str(tmp_path), "--out", str(tmp_path / "run")])


def test_the_datas_own_size_may_not_be_divisible(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.zeros((4, 9, 9), np.uint8))
    sentence = fails(capsys, ["train", "--data", str(tmp_path / "x.npy"), "--out", str(tmp_path / "run")])
    assert "the images are 9x9: for the 3 levels of --mults 1,2,2" in sentence and "--image-size 8 or 12" in sentence


def test_what_the_time_left_is_for_and_what_comes_after(tmp_path, pictures, capsys):
    assert main(["train", "--data", str(pictures), "--out", str(tmp_path / "r"), "--steps", "2", *SMALL]) == 0
    err = capsys.readouterr().err
    assert "2 steps of 4 images, then samples" in err and "s left, samples included" in err
    assert "6 images 8x8x3 from pictures" in err and "cropped and scaled from 10x12" in err


SAMPLE_MISTAKES = {
    "unknown sampler": (["--sampler", "euler"], "ddpm, ddim, dpm"),
    "zero steps": (["--steps", "0"], "steps"),
    "negative steps": (["--steps", "-3"], "steps"),
    "more steps than T": (["--steps", "21"], "20"),
    "eta": (["--eta", "2"], "eta"),
    "eta nan": (["--eta", "nan"], "eta"),
    "label": (["--label", "horses"], "--label horses: the model knows no such class; its classes are cats, dogs"),
    "label number": (["--label", "2"], "cats, dogs"),
    "guidance": (["--guidance", "nan"], "guidance"),
    "n": (["--n", "0"], "--n must be at least 1"),
    "more than fit": (["--n", "10" + 12 * "0"], "10,000,000,000,000 pictures on one sheet need about .* of memory"),
    "seed": (["--seed", "-1"], "--seed"),
    "not a number": (["--n", "x"], "'x' is not a whole number"),
    "no folder for the picture": (["--out", "/nowhere/a.png"], "/nowhere"),
    "no picture": (["--out", "a.txt"], "a.txt"),
}


@pytest.mark.parametrize("mistake", SAMPLE_MISTAKES)
def test_mistakes_in_sampling(mistake, run, capsys):
    flags, pattern = SAMPLE_MISTAKES[mistake]
    assert re.search(pattern, fails(capsys, ["sample", str(run), *flags]))


def test_a_label_for_a_model_without_labels(tmp_path, pictures, capsys):
    out = tmp_path / "run"
    assert main(["train", "--data", str(pictures), "--out", str(out), "--steps", "1", *SMALL]) == 0
    capsys.readouterr()
    assert "trained without" in fails(capsys, ["sample", str(out), "--label", "0"])
    assert main(["sample", str(out)]) == 0


@pytest.mark.parametrize("command", ["sample", "info"])
def test_no_checkpoint(command, tmp_path, capsys):
    assert str(tmp_path / "nothing") in fails(capsys, [command, str(tmp_path / "nothing")])
    assert str(tmp_path) in fails(capsys, [command, str(tmp_path)])


def test_python_m_tinydiff_from_a_bare_checkout(tmp_path):
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-m", "tinydiff", "--version"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0 and td.__version__ in done.stdout
    done = subprocess.run([sys.executable, "-m", "tinydiff"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 2 and "COMMAND" in done.stderr and "Traceback" not in done.stderr


def test_help_shows_every_default():
    done = subprocess.run([sys.executable, "-m", "tinydiff", "train", "--help"], capture_output=True, text=True,
                          cwd=Path(__file__).parents[2])  # fmt: skip
    for default in ("[v]", "[0.001]", "[1,2,2]", "[linear]", "[1000]", "[0.999]", "[glyphs]"):
        assert default in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full, a device that is always full")
@pytest.mark.parametrize("buffered", [True, False], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    "words",
    [
        ["info", "RUN"],
        ["sample", "RUN", "--n", "1", "--steps", "1", "--device", "cpu"],
        ["gradcheck", "HOMEWORK"],
    ],
)
def test_output_to_a_full_device(words, buffered, run, tmp_path):
    (tmp_path / "homework.py").write_text(HOMEWORK.format(mistake=""))
    names = {"RUN": str(run), "HOMEWORK": f"{tmp_path}/homework.py:forward,backward"}
    command = [sys.executable, *["-u"] * (not buffered), "-m", "tinydiff", *(names.get(word, word) for word in words)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment())
    assert (done.returncode, done.stderr) == (1, "tinydiff: the output cannot be written: No space left on device\n")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGPIPE and no status 141")
@pytest.mark.parametrize("buffered", [True, False], ids=["buffered", "unbuffered"])
def test_nobody_reads_the_output(buffered, run):
    command = [sys.executable, *["-u"] * (not buffered), "-m", "tinydiff", "info", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=environment())
    process.stdout.close()
    error = process.stderr.read()
    assert (process.wait(), error) == (141, b"")


def test_closed_output_is_no_failure(run):
    done = subprocess.run(
        f"{sys.executable} -m tinydiff info {run} >&-", shell=True, capture_output=True, cwd=ROOT, env=environment()
    )
    assert (done.returncode, done.stderr) == (0, b"")


def environment():
    """Without what decides about buffers."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def test_importing_is_quick():
    """Under 0.3 s, of which NumPy takes most; what is slow to import must not come with it."""
    slow = ("PIL", "matplotlib", "tqdm", "safetensors", "scipy", "torch")
    code = f"import sys, tinydiff; print([m for m in {slow} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_training_starts_from_a_checkpoint(run, pictures, tmp_path, capsys):
    out = tmp_path / "tuned"
    flags = [
        "--data",
        str(pictures),
        "--labels",
        "--out",
        str(out),
        "--init",
        str(run / "checkpoint"),
        "--threads",
        "1",
    ]
    assert main(["train", *flags, "--steps", "2", "--lr", "1e-9"]) == 0
    before, after = td.load(run).unet.state_dict(), td.load(out).unet.state_dict()
    assert all(np.allclose(before[name], after[name], atol=1e-6) for name in before)
    assert td.load(out).diffusion.schedule.T == 20
    assert main(["train", "--resume", "--out", str(out), "--steps", "3"]) == 0
    capsys.readouterr()
    sentence = fails(capsys, ["train", *flags, "--force", "--channels", "16"])
    assert "--channels and --init do not go together" in sentence
    assert "nothing/here" in fails(capsys, ["train", "--out", str(tmp_path / "r"), "--init", "nothing/here"])
    assert "needs labels" in fails(
        capsys, ["train", "--data", str(pictures), "--out", str(tmp_path / "r"), "--init", str(run)]
    )


def test_samples_do_not_overwrite_those_of_other_settings(tmp_path, monkeypatch):
    import argparse

    from tinydiff.cli.sample import _default_output

    (tmp_path / "config.toml").touch()
    plain = {
        "sampler": "ddim",
        "steps": 5,
        "eta": 0.0,
        "label": None,
        "guidance": None,
        "n": None,
        "raw": False,
        "seed": 0,
        "precision": "float32",
    }
    changes = [{}, {"n": 4}, {"guidance": -3.0}, {"label": "3"}, {"label": "3", "guidance": 3.0}, {"steps": 6}, {"eta": 0.5},
               {"raw": True}, {"precision": "tf32"}, {"seed": 1}, {"sampler": "ddpm"}]  # fmt: skip
    files = {_default_output(tmp_path, argparse.Namespace(**plain | change)) for change in changes}
    assert len(files) == len(changes)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint").mkdir()
    for name in ("samples.png", "samples_2.png"):
        assert str(_default_output(Path("checkpoint"), argparse.Namespace(**plain))) == name
        Path(name).touch()
