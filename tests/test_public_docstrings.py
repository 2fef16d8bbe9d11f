"""Every public name says what it takes: its docstring names each parameter.

A constructor's parameters are in the docstring of its class. Whether the sentences are right is for a reader; that a
parameter is not forgotten is for this file.
"""

import inspect
import re
import subprocess
import sys
import typing

import pytest

import tinydiff as td

PLACES = (
    td, td.ops, td.nn, td.optim, td.random, td.data, td.diffusion, td.diffusion.gaussian, td.images, td.checkpoint, td.backend,
    td.errors,
)  # fmt: skip


def public(place):
    """(name, value) of what the module lists in `__all__` or defines under a public name."""
    names = set(getattr(place, "__all__", ()))
    names |= {
        n for n, value in vars(place).items() if n[0] != "_" and getattr(value, "__module__", 0) == place.__name__
    }
    return [(name, getattr(place, name)) for name in sorted(names)]


def ours(value):
    return getattr(value, "__module__", "").partition(".")[0] in ("tinydiff", __name__.partition(".")[0])


def members(cls):
    """(name, attribute) of the public methods and properties that a class of ours defines or inherits from another."""
    for name in dir(cls):
        owner = next((c for c in cls.__mro__ if name in vars(c)), None)
        if name[0] != "_" and owner is not None and ours(owner):
            value = getattr(cls, name)
            if inspect.isroutine(value) or isinstance(value, property):
                yield name, value


def parameters(function):
    """The names of what a function takes, `*args` and `**options` included."""
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]


def constructor_parameters(cls):
    """Those of its constructor; none where that is Python's own, as an exception's."""
    owner = next(c for c in cls.__mro__ if "__init__" in vars(c) or "__new__" in vars(c))
    return parameters(cls) if ours(owner) or cls.__base__ is tuple else []


def forgotten(doc, names):
    """The names that do not stand in the docstring as words of their own; "no docstring" where there is none."""
    if not (doc or "").strip():
        return ["no docstring"]
    return [name for name in names if not re.search(rf"(?<!\w){name}(?!\w)", doc)]


def found(value, label):
    """{label: what its docstring forgets} of a public function, or of a class and its members."""
    if not inspect.isclass(value):
        return {label: forgotten(value.__doc__, parameters(value))}
    faults = {label: forgotten(vars(value).get("__doc__"), constructor_parameters(value))}
    for name, member in members(value):
        wanted = [] if isinstance(member, property) else parameters(member)
        faults[f"{label}.{name}"] = forgotten(inspect.getdoc(member), wanted)
    return faults


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_docstrings_name_every_parameter(place):
    callables = [(name, value) for name, value in public(place) if callable(value)]
    assert callables
    faults = {}
    for name, value in callables:
        faults |= found(value, f"{place.__name__}.{name}")
    assert not {label: names for label, names in faults.items() if names}


def test_annotations_can_be_read():
    """By typing.get_type_hints, as tools that make pages and complete code read them."""
    unread = []
    for name, value in [pair for place in PLACES for pair in public(place)]:
        functions = [value]
        if inspect.isclass(value):
            constructor = value.__new__ if value.__base__ is tuple else value.__init__
            functions = [constructor, *(m.fget if isinstance(m, property) else m for _, m in members(value))]
        for function in filter(callable, functions):
            try:
                typing.get_type_hints(function)
            except NameError as error:
                unread.append(f"{name}: {error}")
    assert not unread


def test_pages_are_made_without_a_warning(tmp_path):
    pytest.importorskip("pdoc", reason="needs pdoc, the extra `docs`")
    done = subprocess.run([sys.executable, "-m", "pdoc", "tinydiff", "-o", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    page = (tmp_path / "tinydiff.html").read_text()
    for name in ("UNet", "Trainer", "TrainConfig", "load", "Tensor", "gradcheck"):
        assert f'<section id="{name}">' in page, name
    for name in ("data", "diffusion", "diffusion/gaussian", "nn", "ops", "optim", "runs/pictures", "runs/checkpoint"):
        assert (tmp_path / f"tinydiff/{name}.html").exists(), name


class Forgetful:
    """Takes a left."""

    def __init__(self, left, right):
        self.pair = left, right

    def turn(self, angle, *others, unit="degree"):
        """Turns by an angle_in_degrees."""

    @property
    def length(self):
        return 0


def test_a_forgotten_parameter_is_seen():
    assert found(Forgetful, "f") == {
        "f": ["right"],
        "f.turn": ["angle", "others", "unit"],
        "f.length": ["no docstring"],
    }


def test_nothing_public_is_passed_over():
    """Constructors, inherited methods, dataclasses, tuples and names loaded later are among what is looked at."""
    labels = {}
    for place in PLACES:
        for name, value in public(place):
            if callable(value):
                labels |= found(value, f"{place.__name__}.{name}")
    assert {
        "tinydiff.UNet", "tinydiff.UNet.load_state_dict", "tinydiff.Tensor.sum", "tinydiff.Trainer.run", "tinydiff.gradcheck",
        "tinydiff.optim.Adam.step", "tinydiff.optim.clip_grad_norm", "tinydiff.random.Generator.at", "tinydiff.backend.to_device",
        "tinydiff.diffusion.Diffusion.q_sample", "tinydiff.diffusion.Schedule.linear", "tinydiff.diffusion.Step",
        "tinydiff.diffusion.gaussian.kl", "tinydiff.runs.checkpoint.Pipeline.sample", "tinydiff.runs.pictures.grid",
    } <= set(labels)  # fmt: skip
    assert constructor_parameters(td.diffusion.Step) == ["t", "x", "x0"]
    assert "min_snr" in constructor_parameters(td.diffusion.Diffusion)
    assert "save_every" in constructor_parameters(td.TrainConfig)
