"""tinydiff/cuda/occupancy.json, from the machine code of every variant of the kernels that plans are made for.

    python -m tests.cuda.occupancy        # compiles them all and writes the file; minutes

No GPU is needed. `python -m tests.cuda.sass` makes the same table from what it compiles, and fails where the file differs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from tinydiff.cuda import nvrtc, occupancy, products, tensor
from tinydiff.cuda.nvrtc import Usage

Table = dict[str, dict[str, list[int]]]
KERNELS = (*products.KERNELS, *tensor.KERNELS)
SHARED_MEMORY = {80: 164 << 10, 90: 228 << 10}  # bytes of a multiprocessor, of which CUDA keeps FIXED for each block
FIXED = 1 << 10
MOST_WARPS, MOST_BLOCKS = 64, 32


def dynamic_shared(kernel: str, defines: Mapping[str, Any]) -> tuple[int, int]:
    """Threads of a block, and the bytes of dynamic shared memory that it is launched with."""
    tile = defines["TILE_M"], defines["TILE_N"]
    if kernel in tensor.KERNELS:
        p = tensor.Plan(*tile, 1)
        return p.threads, p.shared
    by_columns = kernel == "conv_weight_gradient" or defines.get("TRANSPOSED_A")
    product = products.Plan(*tile, 1, 4, 4)
    return product.threads, product.shared(by_rows=not by_columns)


def warps_by_registers(registers: int) -> int:
    """Of a multiprocessor: each of its 4 parts has 2^14 registers, which a warp takes 256 at a time."""
    return min(MOST_WARPS, 4 * (2**14 // max(1, -(-32 * registers // 256) * 256)))


def warps(usage: Usage, threads: int, dynamic: int) -> int:
    """That a multiprocessor holds of a kernel, in whole blocks."""
    each = -(-threads // 32)
    by_shared = SHARED_MEMORY[usage.architecture] // (-(-(usage.shared + dynamic) // 128) * 128 + FIXED)
    return each * min(MOST_BLOCKS, by_shared, warps_by_registers(usage.registers) // each)


class Gathered:
    """The table of the usages that it is given, variant by variant."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], dict[int, int]] = {}

    def add(self, defines: Mapping[str, Any], usage: Usage) -> None:
        """Takes notice of a kernel of a variant on one architecture."""
        if usage.kernel in KERNELS:
            row = self.found.setdefault((usage.kernel, occupancy.words(defines)), {})
            row[usage.architecture] = warps(usage, *dynamic_shared(usage.kernel, defines))

    def table(self) -> Table:
        """Without variants of which an architecture is missing."""
        made: Table = {}
        for (kernel, variant), row in sorted(self.found.items()):
            if set(occupancy.ARCHITECTURES) <= set(row):
                made.setdefault(kernel, {})[variant] = [row[a] for a in occupancy.ARCHITECTURES]
        return made

    def differences(self) -> list[str]:
        """Where the file has something else for these variants, or variants of these kernels that are none."""
        mine, kept = self.table(), occupancy.table()
        return [
            f"occupancy.json: {kernel} {variant}: {kept.get(kernel, {}).get(variant)}, compiled {rows.get(variant)} warps"
            for kernel, rows in mine.items()
            for variant in {**rows, **kept.get(kernel, {})}
            if kept.get(kernel, {}).get(variant) != rows.get(variant)
        ]


def written(table: Table) -> str:
    """The text of the file: a line for each variant."""
    kernels = [
        f" {json.dumps(kernel)}: {{\n"
        + ",\n".join(f"  {json.dumps(variant)}: {json.dumps(row)}" for variant, row in rows.items())
        + "\n }"
        for kernel, rows in table.items()
    ]
    return "{\n" + ",\n".join(kernels) + "\n}\n"


def main() -> int:
    if reason := nvrtc.missing():
        print(reason, file=sys.stderr)
        return 2
    gathered, sources = Gathered(), {"matrix.cu", "convolution.cu", *tensor.SOURCES}
    chosen = [v for v in nvrtc.variants() if v[0] in sources]
    for _, defines, usages in nvrtc.compile_variants(occupancy.ARCHITECTURES, chosen):
        if not isinstance(usages, list):
            print(usages, file=sys.stderr)
            return 1
        for usage in usages:
            gathered.add(defines, usage)
    occupancy.FILE.write_text(written(gathered.table()), encoding="utf-8")
    print(f"{len(chosen)} variants, {occupancy.FILE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
