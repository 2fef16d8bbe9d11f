"""`tinydiff sample --folder, --inpaint, --interpolate`: what they draw, what they keep, what they refuse."""

import json
import re

import numpy as np
import pytest
from PIL import Image

import tinydiff as td
from tests.cli.commands import fails
from tests.runs.test_trainer import tiny_unet
from tinydiff.cli import main
from tinydiff.diffusion import Diffusion, Schedule
from tinydiff.random import Generator
from tinydiff.runs import drawing, many


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint of three classes; its weights are random, so what it draws depends on everything."""
    unet = tiny_unet(3)
    for p in unet.parameters():
        p.data += Generator(2, 1).normal(p.shape) * np.float32(0.1)
    path = tmp_path_factory.mktemp("models") / "model"
    td.checkpoint.Pipeline(unet, Diffusion(Schedule.cosine(20), predict="v"), ["cat", "dog", "pig"]).save(path)
    return str(path)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(many, "CHUNK", 4)


def pixels(path):
    with Image.open(path) as file:
        return np.asarray(file)


def folder(model, out, n, *flags):
    return main(["sample", model, "--folder", str(out), "--n", str(n), "--steps", "3", "--sampler", "ddpm", *flags])


def contents(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_a_folder_of_samples_is_the_same_whatever_is_drawn_when(model, tmp_path, small_chunks, capsys):
    assert folder(model, tmp_path / "whole", 10) == 0
    assert folder(model, tmp_path / "parts", 3) == 0
    (tmp_path / "parts/000001.png").unlink()
    (tmp_path / "parts/notes.txt").write_text("mine")
    capsys.readouterr()
    assert folder(model, tmp_path / "parts", 10) == 0
    out, err = capsys.readouterr()
    assert out.strip() == str(tmp_path / "parts") and "2 of 10 pictures are there already" in err
    parts = contents(tmp_path / "parts")
    assert parts.pop("notes.txt") == b"mine"
    assert parts == contents(tmp_path / "whole")
    assert sorted(parts) == [f"{i:06d}.png" for i in range(10)] + ["sampling.json"]
    assert pixels(tmp_path / "whole/000007.png").shape == (8, 8)
    pipeline = td.load(model)  # chunk 1, by hand: classes in turn, step 1 of the stream of samples
    x = td.diffusion.sample(
        pipeline.unet, pipeline.diffusion, (4, 8, 8, 1), Generator(0, 7, 1), "ddpm", 3, labels=np.arange(4, 8) % 3,
        guidance=2.0, progress=False,
    )  # fmt: skip
    np.testing.assert_array_equal(td.images.to_bytes(x)[3, :, :, 0], pixels(tmp_path / "whole/000007.png"))
    assert len({parts[f"{i:06d}.png"] for i in range(10)}) == 10


def test_a_folder_that_holds_anything_else_is_left_alone(model, tmp_path, small_chunks, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/000000.png").write_bytes(b"precious")
    command = ["sample", model, "--n", "2", "--folder"]
    assert "holds something else than samples" in fails(capsys, [*command, str(tmp_path / "mine")])
    assert contents(tmp_path / "mine") == {"000000.png": b"precious"}
    assert "is not a folder" in fails(capsys, [*command, str(tmp_path / "mine/000000.png")])
    out = str(tmp_path / "out")
    assert main([*command, out, "--steps", "2"]) == 0
    before = contents(tmp_path / "out")
    capsys.readouterr()
    assert re.search("steps was 2 and is 3 now", fails(capsys, [*command, out, "--steps", "3"]))
    assert "seed was 0 and is 5 now" in fails(capsys, [*command, out, "--steps", "2", "--seed", "5"])
    record = tmp_path / "out/sampling.json"
    record.write_text(json.dumps(json.loads(before["sampling.json"]) | {"weights": "others"}))
    assert "the model is another" in fails(capsys, [*command, out, "--steps", "2"])
    assert {n: c for n, c in contents(tmp_path / "out").items() if n != record.name} == {
        n: c for n, c in before.items() if n != record.name
    }


@pytest.fixture
def given(tmp_path):
    """A picture of twice the model's size, and a mask that is white on the right."""
    picture = np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)
    mask = np.zeros((16, 16), np.uint8)
    mask[:, 8:] = 255
    Image.fromarray(picture).save(tmp_path / "picture.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return tmp_path


def test_what_is_black_in_the_mask_is_kept(model, given, capsys):
    out = given / "out.png"
    flags = ["--n", "4", "--steps", "4", "--rounds", "2", "--jump", "2", "--label", "dog", "--out", str(out)]
    assert (
        main(["sample", model, "--inpaint", str(given / "picture.png"), "--mask", str(given / "mask.png"), *flags]) == 0
    )
    sheet = pixels(out)  # 2 x 2, each pixel 4 a side, 2 of white between
    found = np.array([[sheet[2 + 34 * i :, 2 + 34 * j :][:32:4, :32:4] for j in (0, 1)] for i in (0, 1)]).reshape(
        4, 8, 8
    )
    wanted = td.images.resize(pixels(given / "picture.png")[None, :, :, None], 8)[0, :, :, 0]
    np.testing.assert_array_equal(found[:, :, :4], np.broadcast_to(wanted[:, :4], (4, 8, 4)))
    assert len({image[:, 4:].tobytes() for image in found}) == 4
    assert not any(np.array_equal(image[:, 4:], wanted[:, 4:]) for image in found)


def test_an_interpolation_has_its_ends(model, given):
    pipeline = td.load(model)
    options = {"labels": "cat", "steps": 10, "guidance": None, "progress": False}
    strip = pipeline.interpolate(3, 5, 5, **options)
    for end, seed in ((0, 3), (4, 5)):
        alone = pipeline.sample(1, "cat", "ddim", 10, seed=seed, progress=False)[0]
        assert abs(strip[end].astype(int) - alone).max() <= 1
    assert len({image.tobytes() for image in strip}) == 5
    assert (
        main(["sample", model, "--interpolate", "3", "5", "--n", "3", "--steps", "2", "--out", str(given / "s.png")])
        == 0
    )
    assert (
        pixels(given / "s.png").shape[0] > pixels(given / "s.png").shape[1] * 0.9
    )  # a strip for each of three classes


def test_pictures_that_are_encoded_come_back(given):
    """By a model that knows the eps of images which are normal around a mean, with deviation 0.5."""
    diffusion, mean = Diffusion(Schedule.linear(50, 1e-3, 0.2), predict="eps"), 0.3

    class Knows:
        image_size, in_channels = 4, 1

        def __call__(self, x, t, labels=None):
            kept, noise = (a[t[0]] for a in (diffusion.schedule.alpha_bar, diffusion.schedule.one_minus_alpha_bar))
            return (x - mean * kept**0.5) * noise**0.5 / (0.25 * kept + noise)

    rng = np.random.default_rng(0)
    a, b = rng.integers(90, 170, (2, 4, 4, 1), np.uint8)
    strip = drawing.between(Knows(), diffusion, a, b, 3, 25, None, None, False)
    assert abs(strip[[0, 2]].astype(int) - np.stack([a, b])).max() <= 2


MISTAKES = {
    "no mask": (["--inpaint", "P"], "--inpaint and --mask belong together"),
    "no picture": (["--mask", "M"], "--inpaint and --mask belong together"),
    "missing picture": (["--inpaint", "nowhere.png", "--mask", "M"], "there is no picture nowhere.png"),
    "missing mask": (["--inpaint", "P", "--mask", "nowhere.png"], "there is no picture nowhere.png"),
    "mask of another size": (["--inpaint", "P", "--mask", "SMALL"], "the size of the picture: height and width are 16x16 and 4x4"),
    "black mask": (["--inpaint", "P", "--mask", "BLACK"], "the mask leaves nothing to draw"),
    "no picture at all": (["--inpaint", "TEXT", "--mask", "M"], "text.png cannot be used"),
    "rounds": (["--inpaint", "P", "--mask", "M", "--rounds", "0"], "--rounds must be at least 1"),
    "rounds alone": (["--rounds", "3"], "--rounds is for --inpaint"),
    "sampler": (["--inpaint", "P", "--mask", "M", "--sampler", "ddim"], "--inpaint and --sampler do not go together"),
    "one end": (["--interpolate", "3"], "expected 2 arguments"),
    "missing end": (["--interpolate", "3", "nowhere.png"], "there is no picture nowhere.png"),
    "a seed too large": (["--interpolate", "3", "9" * 30], "a seed must be below"),
    "too few": (["--interpolate", "3", "4", "--n", "1"], "--n must be at least 2"),
    "two uses": (["--interpolate", "3", "4", "--folder", "x"], "are different uses"),
    "folder without n": (["--folder", "x"], "say how many pictures with --n"),
    "folder and out": (["--folder", "x", "--n", "2", "--out", "a.png"], "--folder and --out do not go together"),
    "animation": (["--interpolate", "3", "4", "--gif", "a.gif"], "--interpolate and --gif do not go together"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake, model, given, capsys, monkeypatch):
    monkeypatch.chdir(given)
    Image.new("L", (4, 4)).save("small.png")
    Image.new("L", (16, 16)).save("black.png")
    (given / "text.png").write_text("no picture")
    names = {"P": "picture.png", "M": "mask.png", "SMALL": "small.png", "BLACK": "black.png", "TEXT": "text.png"}
    flags, sentence = MISTAKES[mistake]
    before = sorted(given.iterdir())
    assert sentence in fails(capsys, ["sample", model, "--steps", "2", *(names.get(flag, flag) for flag in flags)])
    assert sorted(given.iterdir()) == before


@pytest.mark.parametrize(
    ("a", "b", "middle"), [((3.0, 0), (0, 4.0), (1.5 * 2**0.5, 2 * 2**0.5)), ((1.0, 0), (2.0, 0), (1.5, 0))]
)
def test_slerp(a, b, middle):
    found = td.diffusion.slerp(np.array(a), np.array(b), [0, 0.5, 1])
    np.testing.assert_allclose(found, [a, middle, b], atol=1e-12)
