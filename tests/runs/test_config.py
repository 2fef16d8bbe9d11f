"""Settings: bounds, TOML there and back, sentences for what is wrong."""

import dataclasses
import math

import pytest

from tinydiff.errors import InputError
from tinydiff.runs.config import RunConfig, TrainConfig, load, parse_value


def test_toml_round_trip(tmp_path):
    config = RunConfig(
        out='a "quoted" \\ path\twith ünïcode',
        lr=3e-4,
        mults=(1, 2, 4),
        attention=(),
        labels=False,
        seed=2**63 + 5,
        flip=True,
    )
    config.save(tmp_path / "c.toml")
    assert RunConfig(**load(tmp_path / "c.toml")) == config


def test_defaults_survive_and_none_is_left_out(tmp_path):
    RunConfig().save(tmp_path / "c.toml")
    text = (tmp_path / "c.toml").read_text()
    assert RunConfig(**load(tmp_path / "c.toml")) == RunConfig()
    assert "attention" not in text and "[training]" in text and "[network]" in text


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 0.0, "1e-3", True, None])
def test_learning_rate_must_be_a_finite_positive_number(value):
    with pytest.raises(InputError, match=r"^lr must be"):
        RunConfig(lr=value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("out", 3),
        ("steps", 0),
        ("steps", 1.5),
        ("batch_size", -3),
        ("accumulate", 0),
        ("warmup", -1),
        ("clip", -0.1),
        ("clip", math.nan),
        ("ema", 1.0),
        ("ema", -0.1),
        ("label_dropout", 1.0),
        ("seed", -1),
        ("seed", 2**64),
        ("device", "gpu"),
        ("threads", 0),
        ("precision", "int3"),
        ("precision", "fp8"),
        ("save_every", 0),
        ("preview_every", -1),
        ("image_size", 0),
        ("holdout", 1.0),
        ("holdout", math.nan),
        ("channels", 0),
        ("mults", ()),
        ("mults", (1, 0)),
        ("mults", (1, 2.0)),
        ("mults", "1,2"),
        ("blocks", 0),
        ("groups", 0),
        ("dropout", 1.0),
        ("schedule", "quadratic"),
        ("timesteps", 0),
        ("predict", "noise"),
        ("variance", "none"),
        ("labels", 1),
        ("flip", "yes"),
        ("data", 3),
    ],
)
def test_values_out_of_range_are_named(name, value):
    with pytest.raises(InputError, match=f"^{name} must be") as caught:
        RunConfig(**{name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"), [("lr", -1.0), ("lr", "1e-3"), ("batch_size", 0), ("save_every", 1.5), ("device", "gpu")]
)
def test_from_python_settings_are_called_as_there(name, value):
    with pytest.raises(InputError, match=f"^{name} must be "):
        TrainConfig(**{name: value})


def test_the_format_is_saved_and_need_not_be_given(tmp_path):
    """Files written by hand, and those of tinydiff 0.1.0, have none."""
    path = tmp_path / "c.toml"
    RunConfig(steps=7).save(path)
    text = path.read_text()
    assert text.startswith("format = 1\n")
    path.write_text(text.removeprefix("format = 1\n"))
    assert RunConfig(**load(path)) == RunConfig(steps=7)


def test_lists_from_toml_become_tuples():
    assert RunConfig(mults=[1, 2]).mults == (1, 2)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("mults", "1,2,2", (1, 2, 2)),
        ("attention", "none", ()),
        ("attention", "16,8", (16, 8)),
        ("lr", "3e-4", 3e-4),
        ("steps", "10", 10),
        ("image_size", "28", 28),
        ("out", "runs/x", "runs/x"),
        ("label_dropout", "0.2", 0.2),
    ],
)
def test_parsing_of_flags(name, text, value):
    assert parse_value(name, text) == value


@pytest.mark.parametrize(
    ("name", "text"), [("steps", "many"), ("steps", "1e3"), ("lr", "fast"), ("mults", "1;2"), ("attention", "x")]
)
def test_flags_that_cannot_be_read(name, text):
    with pytest.raises(InputError, match=f"--{name} must be .*{text!r}"):
        parse_value(name, text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("steps = 3", "stands outside of a section"),
        ("[training]\nstep = 3", "no setting 'step' in section"),
        ("[network]\nsteps = 3", "no setting 'steps' in section"),
        ("[training\n", "cannot read the configuration"),
        ("[training]\nsteps = " + "9" * 5000, "cannot read the configuration"),
        ("format = 2", r"c\.toml was saved by a later version of tinydiff, .*: update tinydiff$"),
        ("format = 2\n[training]\nmomentum = 3", r"c\.toml was saved by a later version of tinydiff"),
        ("format = 0", r"c\.toml: format must be a whole number of at least 1, not 0$"),
        ("format = true", r"format must be a whole number of at least 1, not True$"),
        ("format = '1'", r"format must be a whole number of at least 1, not '1'$"),
        ("[format]\nsteps = 3", r"format must be a whole number of at least 1, not \{'steps': 3\}$"),
        ("[training]\nlr = -3", r"c\.toml: lr must be greater than 0, not -3$"),
        ("[network]\nmults = 2", r"c\.toml: mults must be whole numbers such as 1,2,2, not 2$"),
    ],
)
def test_configuration_files_with_mistakes(tmp_path, text, sentence):
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(InputError, match=sentence):
        load(tmp_path / "c.toml")


def test_a_missing_configuration_file(tmp_path):
    with pytest.raises(InputError, match="there is no configuration file"):
        load(tmp_path / "nothing.toml")


def test_every_setting_has_a_section_and_a_help_text():
    for field in dataclasses.fields(RunConfig):
        assert field.metadata["section"] in ("training", "data", "network", "diffusion") and field.metadata["help"]
    assert {f.name for f in dataclasses.fields(TrainConfig)} < {f.name for f in dataclasses.fields(RunConfig)}


def test_a_path_is_taken_as_its_text(tmp_path):
    assert TrainConfig(out=tmp_path / "run").out == str(tmp_path / "run")
