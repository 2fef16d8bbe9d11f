"""Checkpoints as diffusers may have written them, older and flat ones too, and folders that are no checkpoint."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tinydiff as td
from tests.checkpoints import WEIGHTS, diffusion, make, same, save
from tinydiff.diffusion import Diffusion
from tinydiff.errors import InputError
from tinydiff.evaluation.evaluate import _make_folder
from tinydiff.runs import checkpoint, pictures
from tinydiff.runs.atomic import write_file, write_folder
from tinydiff.runs.folder import RunFolder


def flat(run):
    """The checkpoint as old folders on the hub have it: everything at the root."""
    folder = run / "flat"
    folder.mkdir()
    for name in ("unet/config.json", WEIGHTS, "scheduler/scheduler_config.json"):
        shutil.copy(run / "checkpoint" / name, folder)
    return folder


def test_flat_folders(tmp_path):
    unet = make(num_classes=None, null_label=None)
    checkpoint.save(tmp_path, unet, diffusion())
    pipeline = td.load(flat(tmp_path))
    assert same(pipeline.unet, unet) and pipeline.class_names is None
    with pytest.raises(InputError, match="flat was saved without what training needs to go on"):
        checkpoint.load_training_state(tmp_path / "flat")


def test_old_names_of_attention(tmp_path):
    unet = save(tmp_path)
    file = tmp_path / "checkpoint" / WEIGHTS
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, array in load_file(file).items():
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.")
        state[name] = array
    assert "mid_block.attentions.0.proj_attn.bias" in state and not any(".to_" in name for name in state)
    save_file(state, file)
    assert same(td.load(tmp_path).unet, unet)


def test_weights_in_several_files(tmp_path):
    unet = save(tmp_path)
    folder, name = tmp_path / "checkpoint/unet", Path(WEIGHTS).name
    state = load_file(folder / name)
    (folder / name).unlink()
    names, parts = sorted(state), {}
    for i in range(3):
        parts |= dict.fromkeys(names[i::3], f"part-{i}.safetensors")
        save_file({n: state[n] for n in names[i::3]}, folder / f"part-{i}.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": parts}
    (folder / f"{name}.index.json").write_text(json.dumps(index))
    assert same(td.load(tmp_path).unet, unet)
    (folder / "part-1.safetensors").unlink()
    with pytest.raises(InputError, match=r"unet/part-1.safetensors cannot be read: No such file"):
        td.load(tmp_path)
    (folder / f"{name}.index.json").write_text("{}")
    with pytest.raises(InputError, match=r"index.json has no weight_map"):
        td.load(tmp_path)


def test_a_pickle_is_not_opened_and_the_way_out_is_told(tmp_path):
    save(tmp_path)
    file = tmp_path / "checkpoint" / WEIGHTS
    file.unlink()
    pickled = file.with_suffix(".bin")
    pickled.write_bytes(b"this would be run")
    with pytest.raises(InputError) as told:
        td.load(tmp_path)
    message = str(told.value)
    assert message.startswith(f"{pickled} is a pickle, which tinydiff does not open") and "\n" not in message
    command = message.partition("python -c ")[2].strip('"')
    compile(command, "command", "exec")
    assert f"torch.load('{pickled}', weights_only=True), '{file}'" in command


def edit(file, **changes):
    config = json.loads(file.read_text())
    for key, value in changes.items():
        if value is ...:
            del config[key]
        else:
            config[key] = value
    file.write_text(json.dumps(config))


def rewrite(name, change):
    def damage(folder):
        state = load_file(folder / name)
        change(state)
        save_file(state, folder / name)

    return damage


def cut(name, kept):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:kept])


UNET, SCHEDULER = "unet/config.json", "scheduler/scheduler_config.json"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut(WEIGHTS, 100), "{folder}/unet/.*safetensors is damaged or was cut off: "),
        (cut(WEIGHTS, -1), "{folder}/unet/.*safetensors is damaged or was cut off: "),
        (cut(WEIGHTS, 0), "{folder}/unet/.*safetensors is damaged or was cut off: "),
        (lambda f: (f / WEIGHTS).unlink(), "{folder}/unet/.*safetensors cannot be read: No such file or directory"),
        (rewrite(WEIGHTS, lambda s: s.pop("conv_in.bias")), "{folder}/unet: .* 1 are missing, conv_in.bias$"),
        (rewrite(WEIGHTS, lambda s: s.update(x=np.zeros(1))), "{folder}/unet: the weights .* 1 are not part of it, x$"),
        (
            rewrite(WEIGHTS, lambda s: s.update({"conv_in.weight": np.zeros((8, 3, 3, 3))})),
            r"{folder}/unet: weight conv_in.weight has shape \(8, 3, 3, 3\), but this UNet needs \(8, 1, 3, 3\)",
        ),
        (cut(UNET, 50), "{folder}/unet/config.json is not a JSON file, or was cut off: "),
        (lambda f: (f / UNET).write_bytes(b"\xff\xfe"), "{folder}/unet/config.json is not a JSON file"),
        (lambda f: (f / UNET).write_text("[]"), "{folder}/unet/config.json must hold a JSON object"),
        (lambda f: (f / UNET).unlink(), "{folder}/unet/config.json cannot be read: No such file"),
        (lambda f: edit(f / UNET, norm_eps=-1), "{folder}/unet/config.json: norm_eps must be"),
        (
            lambda f: (f / SCHEDULER).unlink(),
            "{folder} has a network and no scheduler_config.json, which says how it was",
        ),
        (cut(SCHEDULER, 50), "{folder}/scheduler/scheduler_config.json is not a JSON file"),
        (lambda f: edit(f / SCHEDULER, beta_start=3), "{folder}/scheduler/scheduler_config.json: beta_start must be"),
        (lambda f: edit(f / "tinydiff.json", null_label=9), "null_label=9 must be one of the network's labels, 0..3"),
        (lambda f: edit(f / "tinydiff.json", class_names="abc"), "tinydiff.json: class_names must be a list of names"),
        (lambda f: (f / "tinydiff.json").write_text("x"), "{folder}/tinydiff.json is not a JSON file"),
        (
            lambda f: edit(f / "model_index.json", vqvae=["diffusers", "VQModel"]),
            "{folder}/model_index.json: a DDPMPipeline has vqvae, which is not supported; supported: a UNet2DModel and a",
        ),
    ],
)
def test_damage_is_told_in_one_sentence_with_the_file(tmp_path, damage, message):
    save(tmp_path)
    folder = tmp_path / "checkpoint"
    damage(folder)
    with pytest.raises(InputError, match=message.format(folder=folder)) as told:
        td.load(tmp_path)
    assert "\n" not in str(told.value)


LATER = (
    "tinydiff.json was saved by a later version of tinydiff, in a format that this one does not know: update tinydiff"
)
NO_FORMAT = "tinydiff.json: format must be a whole number of at least 1, not "


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (2, LATER), (10**400, LATER), (0, NO_FORMAT + "0"), (-1, NO_FORMAT + "-1"), (True, NO_FORMAT + "True"),
        (1.0, NO_FORMAT + "1.0"), (float("inf"), NO_FORMAT + "inf"), ("1", NO_FORMAT + "'1'"), (None, NO_FORMAT + "None"),
        ([1], NO_FORMAT + r"\[1\]"), ("x" * 10_000, NO_FORMAT + r"'x+\.\.\.x+'"),
    ],
    ids=lambda value: str(value)[:9],
)  # fmt: skip
def test_a_format_that_is_not_known_is_refused_by_every_reader(tmp_path, value, message):
    save(tmp_path)
    edit(tmp_path / "checkpoint/tinydiff.json", format=value)
    for reader in (
        td.load,
        checkpoint.load_training_state,
        checkpoint.read_step,
        lambda p: checkpoint.load(p, raw=True),
    ):
        with pytest.raises(InputError, match=f"{tmp_path}/checkpoint/{message}$") as told:
            reader(tmp_path)
        assert "\n" not in str(told.value) and len(str(told.value)) < 300


def test_a_number_that_is_too_long_to_read(tmp_path):
    save(tmp_path)
    (tmp_path / "checkpoint/tinydiff.json").write_text('{"format": ' + "9" * 5000 + "}")
    with pytest.raises(InputError, match=r"checkpoint/tinydiff\.json is not a JSON file"):
        td.load(tmp_path)


def test_the_format_is_saved_and_its_absence_is_the_first(tmp_path):
    unet = save(tmp_path)
    file = tmp_path / "checkpoint/tinydiff.json"
    assert json.loads(file.read_text())["format"] == 1
    edit(file, format=...)
    assert same(td.load(tmp_path).unet, unet) and checkpoint.read_step(tmp_path) == 7
    file.unlink()  # as diffusers saves a folder
    assert checkpoint.read_step(tmp_path) == 7


def test_a_damaged_training_state(tmp_path):
    save(tmp_path)
    cut("training_state.safetensors", -1)(tmp_path / "checkpoint")
    for reader in (checkpoint.load_training_state, checkpoint.read_step, lambda path: checkpoint.load(path, raw=True)):
        with pytest.raises(InputError, match=r"checkpoint/training_state.safetensors is damaged or was cut off"):
            reader(tmp_path)
    td.load(tmp_path)  # which does not need it


def test_the_present_folder(tmp_path, monkeypatch):
    unet = save(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert same(td.load(".").unet, unet)
    monkeypatch.chdir(tmp_path / "checkpoint")
    assert same(td.load(".").unet, unet)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(InputError, match=r"^. cannot be read: it has no checkpoint"):
        td.load(".")


def test_where_there_is_nothing(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}/none cannot be read: no such file or folder"):
        td.load(tmp_path / "none")
    with pytest.raises(InputError, match=f"{tmp_path} cannot be read: it has no checkpoint"):
        td.load(tmp_path)
    assert checkpoint.find(tmp_path) is None
    (tmp_path / "checkpoint.new/unet").mkdir(parents=True)  # begun, but not complete
    (tmp_path / "checkpoint.new/unet/config.json").write_text("{}")
    assert checkpoint.find(tmp_path) is None


def test_a_respaced_diffusion_is_not_saved(tmp_path):
    respaced = Diffusion(diffusion().schedule.respaced(5))
    with pytest.raises(ValueError, match="a respaced schedule is for sampling only"):
        checkpoint.save(tmp_path, make(), respaced)
    assert os.listdir(tmp_path) == []


def test_nothing_is_written_into_a_checkpoint(tmp_path):
    """The next save would remove it."""
    (tmp_path / "model_index.json").touch()
    place = tmp_path / "below" / "it"
    for work in (
        lambda: write_file(tmp_path / "x.json", b""),
        lambda: write_folder(place, {"model_index.json": b"{}"}),
        RunFolder(place).acquire,
        RunFolder(place).check_free,
        lambda: pictures.check_place(tmp_path / "x.png", ".png"),
        lambda: _make_folder(tmp_path),
    ):
        with pytest.raises(InputError, match="which the next save replaces"):
            work()
    assert [path.name for path in tmp_path.iterdir()] == ["model_index.json"]
