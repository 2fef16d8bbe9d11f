"""The shelves: what cpu/X and cuda/X compute is defined in a file X of definitions, under the same name and signature."""

import importlib
import inspect
from collections import Counter
from pathlib import Path

import pytest

import tinydiff

PACKAGE = Path(tinydiff.__file__).parent
SHELVES = ("cpu", "cuda")

# Files on a shelf that stand for no file of definitions: what the others are built on.
FOUNDATIONS = {
    "cpu": {"blas", "few_channels", "patches", "winograd"},
    "cuda": {
        "clock",
        "compiling",
        "doubling",
        "draws",
        "driver",
        "capture",
        "flat",
        "graphs",
        "host",
        "joint",
        "launch",
        "nvrtc",
        "occupancy",
        "products",
        "resampling",
        "softmax_rows",
        "source",
        "split_k",
        "sums",
        "taps",
        "tensor",
        "tensor_attention",
        "tensor_convolution",
        "updates",
    },
}


def modules(folder):
    """(path of a module below the package, module) of the Python files in a folder and below it."""
    for file in sorted((PACKAGE / folder).rglob("*.py") if folder else PACKAGE.glob("*.py")):
        name = ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
        if file.stem not in ("__init__", "__main__"):
            yield name, importlib.import_module(f"tinydiff.{name}")


def own(module):
    """The public functions that a module defines, decorated or not, by name."""
    return {
        name: f
        for name, f in vars(module).items()
        if inspect.isfunction(f) and f.__module__ == module.__name__ and not name.startswith("_")
    }


def definitions():
    """{file: {name: decorated function}} of everything that is computed by definition unless there is something faster."""
    found = {}
    for folder in ("", "ops", "data", "diffusion", "optim"):
        for name, module in modules(folder):
            decorated = {
                n: f
                for n, f in vars(module).items()
                if getattr(f, "definition", None) and f.__module__ == module.__name__
            }
            if decorated:
                found[name.rpartition(".")[2]] = decorated
    return found


def arguments(function):
    """Names, kinds and defaults, in order; what they are annotated with may differ."""
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


FAST = [
    pytest.param(shelf, name.partition(".")[2], function, id=f"{name}.{function}")
    for shelf in SHELVES
    for name, module in modules(shelf)
    if name.partition(".")[2] in definitions()
    for function in own(module)
    if not function.endswith("_cost")
]


@pytest.mark.parametrize(("shelf", "file", "name"), FAST)
def test_a_fast_version_has_its_definition(shelf, file, name):
    defined = definitions()[file].get(name)
    assert defined, f"{shelf}/{file}.py computes {name}, which no file {file}.py of definitions defines"
    fast = getattr(importlib.import_module(f"tinydiff.{shelf}.{file}"), name)
    assert arguments(fast) == arguments(defined.definition)


def test_every_file_on_a_shelf_stands_for_definitions_or_is_known():
    for shelf in SHELVES:
        files = {name.split(".")[1] for name, _ in modules(shelf)}
        assert files - set(definitions()) == FOUNDATIONS[shelf], shelf


def test_files_of_definitions_have_names_of_their_own():
    """A fast version is found by the name of the file."""
    found = Counter(
        name.rpartition(".")[2]
        for folder in ("", "ops", "data", "diffusion", "optim")
        for name, module in modules(folder)
        if any(getattr(f, "definition", None) and f.__module__ == module.__name__ for f in vars(module).values())
    )
    assert max(found.values()) == 1, found


def test_definitions_know_nothing_of_the_shelves():
    for folder in ("ops", "data", "diffusion", "autograd"):
        for file in (PACKAGE / folder).glob("*.py"):
            text = file.read_text(encoding="utf-8")
            assert "tinydiff.cpu" not in text and "tinydiff.cuda" not in text, file.name
            assert folder in ("autograd", "data") or "tinydiff.machine" not in text, file.name
