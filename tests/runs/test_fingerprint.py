"""A run knows its data again, and what has changed in them is said."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

import tinydiff as td
from tinydiff.errors import InputError
from tinydiff.runs import checkpoint, config, fingerprint, resuming
from tinydiff.runs.config import TrainConfig

IMAGES = np.arange(6 * 16, dtype=np.uint8).reshape(6, 4, 4, 1)
DATA = td.data.Dataset(IMAGES, np.array([0, 0, 0, 1, 1, 1]), ["apple", "pear"])
BEFORE = fingerprint.of(DATA, True)


def compared(data, accept, labelled=True):
    return fingerprint.check(BEFORE, fingerprint.of(data, labelled), accept, "run")


def test_the_same_data_from_elsewhere():
    assert compared(replace(DATA, images=IMAGES.copy(), source="elsewhere", name="other"), False) is None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"images": IMAGES[::-1], "class_names": ["pear", "zebra"]}, "without 'apple' and with the new 'zebra'"),
        ({"class_names": ["pear", "apple"], "images": IMAGES[::-1]}, "class 0 is 'pear' and was 'apple'"),
        ({"class_names": ["apple", "pear", "x"]}, "with the new 'x'"),
        ({"class_names": None, "num_classes": 3}, "3 classes and were 2"),
        ({"images": IMAGES.reshape(6, 2, 8, 1)}, "2x8x1 and were 4x4x1"),
        ({"labels": None}, "no labels and had some"),
    ],
)
def test_what_would_be_wrong_is_refused_in_any_case(change, sentence):
    data = td.data.Dataset(**{"images": IMAGES, "labels": DATA.labels, "class_names": DATA.class_names} | change)
    for accept in (False, True):
        with pytest.raises(InputError, match=sentence):
            compared(data, accept)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"images": IMAGES + 1}, "other pixels"),
        ({"images": IMAGES[:5], "labels": DATA.labels[:5]}, "5 images instead of 6"),
        ({"labels": DATA.labels[::-1]}, "other labels"),
        ({"class_names": ["abble", "pear"]}, "apple is called abble"),
    ],
)
def test_what_is_merely_different_can_be_accepted(change, sentence):
    with pytest.raises(InputError, match=f"{sentence}.*data_changed=True goes on"):
        compared(replace(DATA, **change), False)
    assert sentence in compared(replace(DATA, **change), True)


def test_what_is_held_out_counts():
    halves = replace(DATA.hold_out(0.5, td.random.Generator(1)), images=IMAGES[:3])
    with pytest.raises(InputError, match="3 held out instead of 0"):
        compared(halves, False)


def test_labels_that_are_not_used_do_not_count():
    assert fingerprint.of(DATA, False) == fingerprint.of(replace(DATA, labels=None), False)


def test_as_text_and_back():
    odd = replace(BEFORE, class_names=("a\udcff", "\u05d0\n"))
    assert odd.text().isascii() and fingerprint.read(odd.text(), "x") == odd
    for text in ("", "{}", "[]", "[" * 9000, odd.text().replace('"count": 6', '"count": "6"')):
        with pytest.raises(InputError, match="x: the fingerprint of the data is damaged"):
            fingerprint.read(text, "x")


def make_trainer(data, steps, folder):
    unet = td.UNet(
        4, 1, channels=4, channel_mults=(1,), blocks_per_level=1, attention_resolutions=(), groups=2, num_classes=2
    )
    diffusion = td.diffusion.Diffusion(td.diffusion.Schedule.linear(4, 1e-3, 0.9))
    settings = TrainConfig(out=str(folder), steps=steps, batch_size=2, preview_every=0, threads=1)
    return td.Trainer(unet, diffusion, data, settings)


def test_classes_in_another_order_are_refused_also_without_a_fingerprint(tmp_path, monkeypatch):
    """As runs of earlier versions are."""
    make_trainer(DATA, 1, tmp_path / "run").run()
    monkeypatch.setattr(fingerprint, "NAME", "no such entry")
    swapped = replace(DATA, class_names=["pear", "apple"])
    with pytest.raises(
        InputError, match="learned the classes apple, pear in this order, and those of the data are now pear"
    ):
        make_trainer(swapped, 2, tmp_path / "run").run(resume=True)
    assert make_trainer(DATA, 2, tmp_path / "run").run(resume=True) == 2


def test_an_archive_and_its_folder_are_the_same_data(tmp_path):
    for i, name in enumerate(("apple", "pear")):
        (tmp_path / "x" / name).mkdir(parents=True)
        td.images.save_png(tmp_path / "x" / name / "1.png", IMAGES[i])
    path = shutil.make_archive(str(tmp_path / "x"), "zip", tmp_path / "x")
    data = [td.data.load(place, labels=True) for place in (tmp_path / "x", path)]
    assert fingerprint.of(data[0], True) == fingerprint.of(data[1], True) and len(data[0]) == 2


def test_data_that_are_gone_are_looked_for_in_a_new_place(tmp_path):
    settings = config.RunConfig(data=str(tmp_path / "old"))
    with pytest.raises(
        InputError, match=r"data of the run in .*run are gone from .*old; if they have moved, give data="
    ):
        resuming.require_data(settings, tmp_path / "run")
    (tmp_path / "old").mkdir()
    resuming.require_data(settings, tmp_path / "run")
    resuming.require_data(config.RunConfig(), tmp_path / "run")


def test_a_trainer_asks_and_records(tmp_path):
    def trainer(data, steps):
        return make_trainer(data, steps, tmp_path / "run")

    trainer(DATA, 1).run()
    other = replace(DATA, images=IMAGES + 1)
    with pytest.raises(InputError, match="other pixels"):
        trainer(other, 2).run(resume=True)
    assert trainer(other, 2).run(resume=True, data_changed=True) == 2
    _, metadata = checkpoint.load_training_state(tmp_path / "run", arrays=False)
    assert "from step 2 on: as many images" in metadata[fingerprint.CHANGES]
    assert trainer(other, 3).run(resume=True) == 3  # they are its data now


def test_a_configuration_from_any_editor(tmp_path):
    file = tmp_path / "config.toml"
    text = TrainConfig(out="a\x7f\x1b\n\u2028b").text()
    file.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert config.load(file)["out"] == "a\x7f\x1b\n\u2028b"
    file.write_text(text, encoding="utf-16")
    with pytest.raises(InputError, match=r"it is UTF-16; save it as UTF-8$"):
        config.load(file)
