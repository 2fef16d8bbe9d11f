"""Weights and labels in the forms that people have them in."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tinydiff as td
from tinydiff.errors import InputError
from tinydiff.runs import tensorfile


def pipeline(names=("cat", "car", "dog")):
    unet = td.UNet(
        4, 1, channels=4, channel_mults=(1,), blocks_per_level=1, attention_resolutions=(), groups=2, num_classes=3
    )
    diffusion = td.diffusion.Diffusion(td.diffusion.Schedule.linear(4, 0.5, 0.9))
    return td.checkpoint.Pipeline(unet, diffusion, names)


def bits(path, kind, size):
    header = json.dumps({"w": {"dtype": kind, "shape": [2], "data_offsets": [0, 2 * size]}}).encode()
    values = np.array([1.5, -2.0], np.float32).view(np.uint32) >> 16
    path.write_bytes(len(header).to_bytes(8, "little") + header + values.astype("<u2").tobytes()[: 2 * size])


def test_bfloat16_is_read_by_its_bits(tmp_path):
    bits(tmp_path / "a", "BF16", 2)
    np.testing.assert_array_equal(tensorfile.read(tmp_path / "a")["w"], np.array([1.5, -2], np.float32))
    bits(tmp_path / "b", "F8_E4M3", 1)
    with pytest.raises(InputError, match="save them as float32"):
        tensorfile.read(tmp_path / "b")


def test_labels_by_name():
    model = pipeline()
    drawn = model.sample(2, labels=[2, 0], progress=False)
    np.testing.assert_array_equal(model.sample(2, labels=["dog", "cat"], progress=False), drawn)
    np.testing.assert_array_equal(model.sample(2, labels=np.array(["dog", "cat"]), progress=False), drawn)
    model.sample(1, labels="car", progress=False)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"labels": "cats"}, "labels='cats': .* near to it: cat"),
        ({"labels": "zzz"}, "its classes are cat, car, dog"),
        ({"labels": ["cat", "zzz"], "n": 2}, "labels='zzz'"),
        ({"labels": "CAR"}, "near to it: car"),
        ({"labels": ["cat"], "n": 2}, "one integer or 2 of them, one per image, not int64"),
        ({"labels": ["cat", [1]], "n": 2}, "one integer or 2 of them, one per image$"),
        ({"labels": 7}, "labels must be in 0..2 for this model, not 7$"),
        ({"sampler": "ddim", "eta": "x"}, "eta must be between 0 and 1, not x"),
        ({"steps": 5}, "steps must be in 1..4"),
        ({"guidance": 2, "labels": 0}, "guidance needs a model with a null label"),
        ({"n": 0}, "n must be a whole number of at least 1"),
        ({"n": 2.5}, "not 2.5"),
        ({"seed": -1}, "seed must be"),
        ({"seed": None}, "not None"),
    ],
)
def test_impossible_arguments(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        pipeline().sample(**arguments)


def test_samples_without_a_stderr_for_the_bar(monkeypatch):
    model = pipeline()
    expected = model.sample(labels=0, progress=False)
    for stream in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(f"sys.{stream}", None)
    np.testing.assert_array_equal(model.sample(labels=0), expected)
    model.diffusion.vlb(lambda x, t: x * 0, np.zeros((1, 4, 4, 1)), td.random.Generator(0), progress=True)


def test_a_model_without_labels_has_no_names():
    unet = td.UNet(4, 1, channels=4, channel_mults=(1,), blocks_per_level=1, attention_resolutions=(), groups=2)
    model = td.checkpoint.Pipeline(unet, pipeline().diffusion)
    for labels in ("cat", ["cat"], 0):
        with pytest.raises(InputError, match="trained without labels, so it takes none"):
            model.sample(labels=labels)


def test_pipelines_and_files_that_are_no_checkpoint(tmp_path):
    model = pipeline()
    model.save(tmp_path / "a")
    index = tmp_path / "a/model_index.json"
    parts = json.loads(index.read_text())
    for change, said in (
        (
            {"_class_name": "StableDiffusionPipeline", "vae": ["diffusers", "AutoencoderKL"]},
            "a StableDiffusionPipeline has vae,",
        ),
        ({"scheduler": ["diffusers", "ScoreSdeVeScheduler"]}, "has ScoreSdeVeScheduler, which is not supported"),
        ({"unet": ["diffusers", "UNet2DConditionModel"]}, "has UNet2DConditionModel, which is not supported"),
        ({"scheduler": ["diffusers", "PNDMScheduler"], "_class_name": "PNDMPipeline", "feature": [None, None]}, None),
        ({"unet": [], "scheduler": []}, None),  # the files themselves say what they are
    ):
        index.write_text(json.dumps(parts | change))
        if said is None:
            td.load(tmp_path / "a")
            continue
        with pytest.raises(InputError, match=said):
            td.load(tmp_path / "a")
    weights = tmp_path / "a/unet/diffusion_pytorch_model.safetensors"
    for name in ("x.ckpt", "x.weird", "x.txt", "y/x.pt", "z/x.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\x80" * (name != "x.txt"))
    for place, said in (
        ("a/unet", "no scheduler_config.json, .*: give .*a, which has one"),
        ("a/unet/config.json", "it is a file; give the folder"),
        (weights.relative_to(tmp_path), "is the weights alone; give the folder"),
        ("x.ckpt", "x.ckpt is a pickle, .* give a folder"),
        ("x.weird", "x.weird is a pickle"),
        ("x.txt", "x.txt cannot be read: it is a file"),
        ("y", "only x.pt and no config.json"),
        ("z", "only x.safetensors and no config.json"),
    ):
        with pytest.raises(InputError, match=said):
            td.load(tmp_path / place)
    for name in ("model.safetensors", "diffusion_pytorch_model.fp16.bin", "diffusion_pytorch_model.bin"):
        weights = weights.rename(weights.with_name(name))
        said = (
            "is a pickle, .* python -c"
            if name.endswith("bin")
            else "no diffusion_pytorch_model.safetensors, .* but model"
        )
        with pytest.raises(InputError, match=said):
            td.load(tmp_path / "a")


def test_folders_of_diffusers(tmp_path):
    model = pipeline()
    model.save(tmp_path / "a")
    weights = tmp_path / "a/unet/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert td.load(tmp_path / "a").class_names == model.class_names
    (tmp_path / "a/scheduler/scheduler_config.json").unlink()
    with pytest.raises(InputError, match="has a network and no scheduler_config"):
        td.load(tmp_path / "a")
    with pytest.raises(InputError, match="nothing is downloaded"):
        td.load("google/ddpm-cifar10-32")


def test_weights_in_several_files(tmp_path):
    """With one of them missing, another's, or an older one, nothing is read."""
    pipeline().save(tmp_path / "a")
    weights = tmp_path / "a/unet/diffusion_pytorch_model.safetensors"
    arrays = load_file(weights)
    names = sorted(arrays)
    one, two = (weights.with_name(f"diffusion_pytorch_model-0000{i}-of-00002.safetensors") for i in (1, 2))
    parts = {one: names[:5], two: names[5:]}
    for file, of_file in parts.items():
        save_file({name: arrays[name] for name in of_file}, file)
    weights.unlink()
    index = weights.with_name("diffusion_pytorch_model.safetensors.index.json")
    index.write_text(json.dumps({"weight_map": {name: file.name for file in parts for name in parts[file]}}))
    td.load(tmp_path / "a")
    whole = one.read_bytes(), two.read_bytes()
    save_file({name: arrays[name] for name in names[:7]}, one)
    with pytest.raises(InputError, match=f"of-00002.safetensors holds {names[5]}, which is another file's"):
        td.load(tmp_path / "a")
    one.write_bytes(whole[1]), two.write_bytes(whole[0])
    with pytest.raises(InputError, match=f"00001-of-00002.safetensors lacks {names[0]}"):
        td.load(tmp_path / "a")
    one.unlink()
    with pytest.raises(InputError, match=r"00001-of-00002.safetensors.* cannot be read: No such file"):
        td.load(tmp_path / "a")
