"""The sources of the kernels: where they are, with their headers inlined, and which parameters each kernel takes."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinydiff.errors import RunFailed
from tinydiff.precision import IN_MEMORY, precision_of


class KernelError(RunFailed):
    """A kernel cannot be compiled or run, or the stand-in for CUDA caught it breaking a rule; one sentence, and the
    compiler's messages where there are some.

    message: that sentence, of any length.
    """


class MemoryFull(KernelError, MemoryError):
    """A `KernelError`: the GPU's memory does not suffice."""

    def __init__(self, message: object = "") -> None:
        super().__init__(message, limit=None)


# What a parameter may be: a value of a C type, or an array of elements of one.
VALUES: dict[str, np.dtype] = {
    "int": np.dtype("int32"),
    "unsigned": np.dtype("uint32"),
    "unsigned long long": np.dtype("uint64"),
    "float": np.dtype("float32"),
}
ELEMENTS: dict[str, np.dtype] = {
    **VALUES,
    "unsigned char": np.dtype("uint8"),
    "unsigned short": np.dtype("uint16"),
    "long long": np.dtype("int64"),
}


# Types that a source names after what its macros say, and the macro for each.
NAMED = {"Element": "PRECISION", "Result": "RESULT"}
_MEANT = {name.upper(): dtype for name, dtype in IN_MEMORY.items()}


LAYERS = 24  # parameters that one EACH(type, name) of kernels/layers.cuh declares


class Parameter(NamedTuple):
    """One parameter of a kernel; `type` is C's, without const and the star."""

    name: str
    type: str
    dtype: np.dtype
    is_array: bool
    is_const: bool

    def __str__(self) -> str:
        return f"{'const ' if self.is_const else ''}{self.type}{'*' if self.is_array else ''} {self.name}"


_INCLUDE = re.compile(r'^[ \t]*#include "([^"]+)"[^\n]*$', re.M)
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
_KERNEL = re.compile(r"\bKERNEL\s*\(\s*(\w+)\s*,((?:[^()]|\([^()]*\))*)\)\s*\(([^)]*)\)\s*\{")
_EACH = re.compile(r"\bEACH\s*\(([^,()]*),\s*(\w+)\s*\)")
_PARAMETER = re.compile(
    r"(const\s+)?(Element|Result|(?:unsigned|long|int|float|char|short)(?:\s+(?:long|int|char|short))*)\s*(\*?)(.*)",
    re.S,
)


@functools.cache
def folder() -> Path:
    """Where the sources are: next to the package in a checkout, else installed with it.

    The order matters: an editable installation of another checkout would provide its own tinydiff.kernels_src.
    """
    beside = Path(__file__).resolve().parents[2] / "kernels"
    if (beside / "tinydiff.cuh").is_file():
        return beside
    from importlib.resources import files

    try:
        return Path(str(files("tinydiff.kernels_src")))
    except ModuleNotFoundError:
        raise KernelError(f"the sources of the kernels are neither in {beside} nor installed") from None


@functools.cache
def load(name: str, host: bool = False) -> str:
    """The text of kernels/`name` (or of any path) with every `#include "..."` replaced by the file, once each; #line keeps
    the compilers' messages true. host.h is only put in for the host."""
    seen: set[Path] = set()

    def inline(path: Path) -> str:
        path = path.resolve()
        if path in seen or (path.name == "host.h" and not host):
            return ""
        seen.add(path)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise KernelError(f"there is no kernel source {path}") from None

        def replaced(match: re.Match[str]) -> str:
            beside, line = path.parent / match[1], text.count("\n", 0, match.start()) + 2
            return f'{inline(beside if beside.exists() else folder() / match[1])}#line {line} "{path.name}"'

        return f'#line 1 "{path.name}"\n' + _INCLUDE.sub(replaced, text) + ("" if text.endswith("\n") else "\n")

    return inline(folder() / name)


@functools.cache
def kernels(text: str, types: tuple[str, ...] = ("FLOAT32", "FLOAT32")) -> dict[str, tuple[Parameter, ...]]:
    """The kernels of a source with their parameters. types: what its Element and Result are, see `types_of`."""
    named = {name: _MEANT[meant] for name, meant in zip(NAMED, types, strict=True)}
    found = {}
    text = _EACH.sub(lambda m: ", ".join(f"{m[1]} {m[2]}{i}" for i in range(LAYERS)), _COMMENT.sub(" ", text))
    for name, _, parameters in _KERNEL.findall(text):
        found[name] = tuple(_parameter(name, p, named) for p in parameters.split(",") if p.strip())
    return found


def types_of(defines: Mapping[str, Any]) -> tuple[str, ...]:
    """What the macros say that a source's Element and Result are, float32 where they say nothing."""
    return tuple(defines.get(macro, "FLOAT32") for macro in NAMED.values())


def precision_of_elements(array: Any) -> dict[str, str]:
    """The macro for a source whose Element is what the array holds, none for float32. The array's dtype is one that
    `precision.precision_of` knows."""
    precision = precision_of(array.dtype)
    assert precision is not None
    return {} if precision == "float32" else {NAMED["Element"]: precision.upper()}


def _parameter(kernel: str, text: str, named: Mapping[str, np.dtype]) -> Parameter:
    match = _PARAMETER.fullmatch(text.strip())
    if match:
        c_type, name = " ".join(match[2].split()), match[4].replace("__restrict__", "").strip()
        c_type = {"unsigned int": "unsigned", "long long int": "long long"}.get(c_type, c_type)
        dtype = ({**ELEMENTS, **named} if match[3] else VALUES).get(c_type)
        if dtype is not None and name.isidentifier():
            return Parameter(name, c_type, dtype, bool(match[3]), bool(match[1]))
    raise KernelError(f"kernel {kernel} has a parameter {' '.join(text.split())!r} of a kind that launch() cannot pass")


@functools.cache
def flags_of(defines: tuple[tuple[str, Any], ...]) -> tuple[str, ...]:
    """`flags` of a mapping's items, which are looked up and not made anew for each launch."""
    return flags(dict(defines))


def flags(defines: Mapping[str, Any]) -> tuple[str, ...]:
    """-DNAME=value for each define, in the order of their names."""
    return tuple(
        f"-D{name}={int(value) if isinstance(value, bool) else value}" for name, value in sorted(defines.items())
    )
