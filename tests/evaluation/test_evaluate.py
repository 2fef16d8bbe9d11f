"""A whole evaluation: its files, what it says, and how it refuses what does not fit."""

import csv
import dataclasses
import os

import numpy as np
import pytest
from PIL import Image

from tinydiff.errors import InputError, RunFailed
from tinydiff.evaluation.evaluate import Settings, evaluate
from tinydiff.evaluation.subject import load_subject

SMALL = Settings(images=6, terms=5, samples=8, steps=3, each=3, step_counts=(2, 4), threads=1, device="cpu")


@pytest.fixture(scope="module")
def evaluated(run):
    """(run, text): all parts of a run, which the tests below only read."""
    text = []
    folder = evaluate(run, dataclasses.replace(SMALL, png_folder=str(run.parent / "png")), text.append)
    assert folder == run / "evaluation"
    return run, "\n".join(text)


def test_results_of_a_run(evaluated):
    run, text = evaluated
    names = {file.name for file in (run / "evaluation").iterdir()}
    assert names >= {
        "report.txt", "bits_per_dim.csv", "features.safetensors", "neighbours.csv", "neighbours.png", "samplers.csv",
        "samplers.png",
    }  # fmt: skip
    assert not any(name.endswith((".new", ".tmp")) for name in names)
    for part in (
        "averaged (EMA) weights of step 2", "clipped to [-1, 1]", "6 of 10 held-out images", "total", "never with FID",
        "10 held-out images", "30 training images", "means memorisation", "8 samples by ddim in 3 steps",
    ):  # fmt: skip
        assert part in text, (part, text)
    assert "TRAINING" not in text and "to fit the network" not in text
    assert (run / "evaluation/report.txt").read_text().strip() in text
    files = sorted(file.name for file in (run.parent / "png").iterdir())
    assert files == [f"{i:06d}.png" for i in range(8)]
    with Image.open(run.parent / "png/000003.png") as picture:
        assert picture.size == (8, 8) and picture.mode == "L"
        first = np.asarray(picture)
    drawn = load_subject(run).draw(8, "ddim", 3, 0)
    np.testing.assert_array_equal(drawn[3, :, :, 0], first)


def test_bits_plot_is_drawn_where_matplotlib_is(evaluated):
    pytest.importorskip("matplotlib")
    with Image.open(evaluated[0] / "evaluation/bits_per_dim.png") as picture:
        assert picture.size == (800, 450)


def test_samplers_are_compared_with_variances_and_steps(evaluated):
    with open(evaluated[0] / "evaluation/samplers.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    rows = [(r["sampler"], r["variance"], int(r["steps"])) for r in lines]
    ways = [("ddpm", "beta"), ("ddpm", "posterior"), ("ddim", ""), ("dpm++", "")]
    assert rows == [(*way, steps) for way in ways for steps in (2, 4)]
    distances = [r["frechet_distance"] for r in lines]
    assert len(set(distances[:4])) == 4 and distances[4] == distances[6]  # dpm++ of two steps is ddim


def test_a_model_that_repeats_its_training_images_is_found_out(run, monkeypatch, tmp_path):
    training = load_subject(run).training.images
    monkeypatch.setattr("tinydiff.evaluation.subject.Subject.draw", lambda self, n, *_: training[3 : 3 + n])
    text = []
    settings = dataclasses.replace(SMALL, only=("frechet", "neighbours"), out=str(tmp_path / "out"))
    folder = evaluate(run, settings, text.append)
    assert "100.0% of the samples are nearer" in "\n".join(text)
    with open(folder / "neighbours.csv", newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["neighbour"] == "1"]
    assert [int(r["training_image"]) for r in rows] == list(range(3, 11))
    assert {float(r["distance"]) for r in rows} == {0.0}
    with Image.open(folder / "neighbours.png") as picture:
        sheet = np.asarray(picture)  # a row is the sample, a white gap, its neighbours
    scale = (sheet.shape[1] - 2) // 6 - 2
    left = 2 + 2 * (scale + 2)
    np.testing.assert_array_equal(sheet[2 : 2 + scale, 2 : 2 + scale], sheet[2 : 2 + scale, left : left + scale])


def test_a_learned_variance_is_compared_with_the_fixed_ones(tmp_path, make_run):
    run = make_run(tmp_path / "run", "learned", labelled=False)
    evaluate(run, dataclasses.replace(SMALL, only=("samplers",), step_counts=(3, 99)), lambda _: None)
    with open(run / "evaluation/samplers.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["variance"] for r in rows if r["steps"] == "3"] == ["beta", "posterior", "learned", "", ""]
    assert {r["steps"] for r in rows} == {"3", "20"}  # no more than T


def test_samples_have_labels_as_often_as_the_training_images(run):
    subject = load_subject(run)
    labels = subject._labels(3000, 0)
    np.testing.assert_allclose(
        np.bincount(labels) / 3000, np.bincount(subject.training.labels) / len(subject.training), atol=0.04
    )


def test_raw_weights_and_clipping_are_said_and_matter(run):
    totals = {}
    for raw in (False, True):
        for clip in (False, True):
            text = []
            settings = dataclasses.replace(SMALL, only=("bits",), raw=raw, clip=clip)
            evaluate(run, dataclasses.replace(settings, out=str(run.parent / "other"), force=True), text.append)
            said = "\n".join(text)
            assert ("raw weights" in said) == raw and ("not clipped" in said) == (not clip)
            totals[raw, clip] = next(line for line in said.splitlines() if line.startswith("total"))
    assert len(set(totals.values())) == 4, totals


def test_a_run_without_held_out_images_is_told_so(tmp_path, pictures, make_run):
    run = make_run(tmp_path / "run", holdout=0.0)
    with pytest.raises(InputError, match=r'holdout=0.*data="PATH".*training_images=True'):
        evaluate(run, SMALL)
    assert not (run / "evaluation").exists()
    text = []
    settings = dataclasses.replace(SMALL, only=("bits", "frechet", "neighbours"))
    evaluate(run, dataclasses.replace(settings, training_images=True), text.append)
    said = "\n".join(text)
    assert "TRAINING images" in said and "flatters the model" in said and "nothing to compare" in said
    text.clear()
    np.savez(tmp_path / "other.npz", images=pictures(7, 8, size=10))  # they are scaled to the network's size
    evaluate(run, dataclasses.replace(settings, data=str(tmp_path / "other.npz")), text.append)
    assert "6 of 7 images of other.npz" in "\n".join(text)
    assert "were scaled from 10x10 to fit the network: the figures are not those of the original images" in text[1]


def test_a_checkpoint_alone_has_its_bits_measured(run, tmp_path, monkeypatch, pictures):
    monkeypatch.chdir(tmp_path)
    np.savez("x.npz", images=pictures(4))
    with pytest.raises(InputError, match=r"config\.toml.*data=\"PATH\" only=\('bits',\)"):
        evaluate(run / "checkpoint", dataclasses.replace(SMALL, data="x.npz"))
    text = []
    settings = dataclasses.replace(SMALL, data="x.npz", only=("bits",))
    assert str(evaluate(run / "checkpoint", settings, text.append)) == "evaluation"
    assert "4 images of x.npz" in "\n".join(text)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"only": ("bits", "fid")}, "^only takes bits, frechet, neighbours, samplers, not 'fid'"),
        ({"images": 1}, "^images must be at least 2, not 1"),
        ({"terms": 2}, "^terms must be at least 3, not 2"),
        ({"samples": 0}, "^samples must be at least 2, not 0"),
        ({"step_counts": (3, 0)}, "^step_counts must be whole numbers of at least 1"),
        ({"seed": -1}, "^seed must be at least 0"),
        ({"sampler": "euler"}, "^sampler must be one of ddpm, ddim, dpm\\+\\+, not 'euler'"),
    ],
)
def test_settings_that_make_no_sense(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        dataclasses.replace(SMALL, **changes)


def test_input_that_does_not_fit(run, tmp_path, pictures):
    np.savez(tmp_path / "x.npz", images=pictures(4))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    for name in ("report.txt", "link/neighbours.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        os.symlink(tmp_path / "nowhere", tmp_path / name)
    for changes, sentence in (
        ({"out": str(tmp_path)}, "report.txt is there already; give another out, or force=True"),
        ({"out": str(tmp_path / "link")}, "neighbours.png is there already"),
        ({"data": str(tmp_path / "x.npz"), "training_images": True}, "give one"),
        ({"data": str(tmp_path / "nothing")}, "there is no .*nothing"),
        ({"png_folder": str(tmp_path / "full")}, "holds files already"),
        ({"out": str(tmp_path / "x.npz/inside")}, "cannot be written"),
        ({"samples": 10**15}, "1,000,000,000,000,000 samples need about .* of memory"),
    ):
        with pytest.raises(InputError, match=sentence):
            evaluate(run, dataclasses.replace(SMALL, **changes))
    with pytest.raises(InputError, match="no such file"):
        evaluate(tmp_path / "nowhere", SMALL)


def test_a_model_of_nan_is_told_in_a_sentence(run, monkeypatch):
    def broken(*arguments):
        subject = load_subject(*arguments)
        next(iter(subject.unet.parameters())).data[...] = np.nan
        return subject

    monkeypatch.setattr("tinydiff.evaluation.evaluate.load_subject", broken)
    for part, sentence in (
        ("bits", "the bound is nan: the model"),
        ("samplers", "the model draws no pictures but NaN"),
    ):
        with pytest.raises(RunFailed, match=sentence):
            evaluate(run, dataclasses.replace(SMALL, only=(part,)), lambda _: None)
