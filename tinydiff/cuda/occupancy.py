"""How many warps of a product's kernel a multiprocessor holds at once, by its registers and shared memory: what the plans of
products.py and tensor.py go by.

occupancy.json has it for every variant, read from machine code for sm_80 and sm_90. `python -m tests.cuda.sass` compiles them all
again and compares; `python -m tests.cuda.occupancy` writes the file anew after a kernel has changed.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("occupancy.json")
ARCHITECTURES = (80, 90)
PLANNED = 90  # plans are the same for every GPU, and tuned for this one


@functools.cache
def table() -> dict[str, dict[str, list[int]]]:
    """{kernel: {its defines, as `words` has them: warps, for each of ARCHITECTURES}}."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def words(defines: Mapping[str, Any]) -> str:
    """The defines of a variant as one text."""
    return " ".join(f"{name}={value}" for name, value in sorted(defines.items()))


def least_warps(kernels: tuple[str, ...], **defines: Any) -> int:
    """The fewest warps that a multiprocessor of PLANNED holds of the variants of some kernels that have these defines. A
    define may be a tuple of values. ValueError if there is no such variant."""
    wanted = {name: list(map(str, v if isinstance(v, tuple) else (v,))) for name, v in defines.items()}
    found = []
    for kernel in kernels:
        for variant, warps in table()[kernel].items():
            has = dict(word.split("=") for word in variant.split())
            if all(has[name] in values for name, values in wanted.items()):
                found.append(warps[ARCHITECTURES.index(PLANNED)])
    if not found:
        raise ValueError(f"occupancy.json has no {' or '.join(kernels)} with {words(defines)}")
    return min(found)
