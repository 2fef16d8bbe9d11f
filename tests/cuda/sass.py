"""Gate two: the machine code of every kernel. Counts that its speed depends on must not get worse unnoticed.

    python -m tests.cuda.sass [SOURCE ...]        # all sources, for sm_80 and sm_90; some of them; prints a table

NVRTC compiles every variant and `nvdisasm` shows its instructions; no GPU is needed. Counts change with every release of
the compiler, so both have the one version that `VERSION` names, and another one is refused. `EXPECTED` has what must hold:
whoever adds a kernel adds a row. How many warps of a product's kernel a multiprocessor holds must be what
tinydiff/cuda/occupancy.json has, which plans are made by (see occupancy.py).
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from tests.cuda import occupancy
from tests.cuda.occupancy import warps_by_registers
from tinydiff.cuda import nvrtc, source
from tinydiff.machine import threads

VERSION = "13.5.37"  # of the packages nvidia-cuda-nvrtc and nvidia-cuda-nvdisasm
ARCHITECTURES = (80, 90)


class Expected(NamedTuple):
    """What must hold for a kernel: which of the figures of `figures_of` are at least or at most so large. The first row that
    names a kernel's source, name and defines (or fewer of them) counts. None may keep anything in local memory."""

    source: str
    kernel: str
    least: Mapping[str, float]
    most: Mapping[str, float] = {}
    defines: Mapping[str, int | str] = {}


FOURS = {"VECTOR_A": 4, "VECTOR_B": 4}  # arrays that are moved in vectors of four
FOUR, EIGHT = {"VECTOR": 4}, {"VECTOR": 8}
# Of an inner loop: its share of multiplications, and operands that come by asynchronous copies alone.
# Blocks add parts (SPLIT): others see a part before its block is counted, and all but the last leave then.
SPLIT = {"fenced": 1, "last alone": 1}
PRODUCT = SPLIT | {"warps": 16, "loop FFMA": 1024, "loop share": 0.8495, "wide stores": 16, "loop wide copies": 1}
CONVOLUTION = {**PRODUCT, "loop share": 0.78, "loop wide copies": 2}
# On tensor cores: 64 products of fragments for each slice of 64 bytes of K.
TENSOR = SPLIT | {"warps": 8, "loop HMMA": 64, "loop wide copies": 6}
SMALL_TENSOR = TENSOR | {"warps": 20, "loop HMMA": 16, "loop wide copies": 4}  # warps of 32 x 32
WITHOUT_LOADS = {"loop LDG": 0, "loop SHFL": 0}
LARGE = WITHOUT_LOADS | {"loop HMMA": 64, "loop LDSM": 16, "registers": 240}  # warps of 64 x 64

EXPECTED = (
    Expected("matrix.cu", "matrix_product", PRODUCT, WITHOUT_LOADS, FOURS),
    Expected("matrix.cu", "matrix_product", SPLIT | {"warps": 12, "loop share": 0.845}, WITHOUT_LOADS),
    Expected("sums.cu", "column_sums", SPLIT | {"warps": 64}),
    Expected("sums.cu", "joint_column_sums", SPLIT | {"warps": 40}),
    *(Expected("joint.cu", f"joint_{way}", PRODUCT, WITHOUT_LOADS) for way in ("forward", "weight_gradient")),
    Expected("joint.cu", "joint_input_gradient", PRODUCT | {"loop share": 0.84}, WITHOUT_LOADS),  # it looks up its term
    Expected("convolution.cu", "conv_forward", CONVOLUTION, WITHOUT_LOADS, FOURS),
    Expected(
        "convolution.cu", "conv_forward", SPLIT | {"warps": 16, "loop share": 0.78}, WITHOUT_LOADS, {"VECTOR_A": 4}
    ),
    # four times as many copies, each with its address: of one, two or three channels
    Expected(
        "convolution.cu", "conv_forward", SPLIT | {"warps": 16, "loop share": 0.7395}, WITHOUT_LOADS, {"VECTOR_A": 1}
    ),
    Expected("convolution.cu", "conv_weight_gradient", CONVOLUTION, WITHOUT_LOADS, FOURS),
    Expected("convolution.cu", "conv_weight_gradient", SPLIT | {"warps": 12, "loop share": 0.78}, WITHOUT_LOADS),
    Expected("convolution.cu", "conv_turn", {"warps": 64}),
    Expected("doubling.cu", "filters_of_parities", {"warps": 64}),
    Expected("doubling.cu", "sum_taps_turned", {"warps": 48}),
    # three blocks of 8 warps by registers, as many as shared memory has room for
    Expected("normalization.cu", "group_norm_forward", {"warps": 32, "in flight": 4, "wide stores": 2}, {}, FOUR),
    Expected("normalization.cu", "group_norm_backward", {"warps": 24, "in flight": 4, "wide stores": 2}, {}, FOUR),
    Expected("normalization.cu", "group_norm_forward", {"warps": 16, "in flight": 4, "wide stores": 1}, {}, EIGHT),
    Expected("normalization.cu", "group_norm_backward", {"warps": 16, "in flight": 4, "wide stores": 1}, {}, EIGHT),
    Expected("normalization.cu", "group_norm_forward", {"warps": 40}),
    Expected("normalization.cu", "group_norm_backward", {"warps": 32}),
    Expected("normalization.cu", "sum_over_images", {"warps": 64}),
    Expected("normalization.cu", "silu_forward", {"warps": 64, "in flight": 1, "wide stores": 1}),
    *(
        Expected("normalization.cu", "silu_backward", {"warps": 64, "in flight": n, "wide stores": 1}, {}, defines)
        for n, defines in ((1, {"PRECISION": "BF16"}), (1, {"PRECISION": "FP16"}), (2, {}))
    ),
    Expected("attention.cu", "softmax_short", {"warps": 40}),
    Expected("attention.cu", "softmax_short_backward", {"warps": 16}),
    Expected("attention.cu", "softmax_long", {"warps": 64}),
    Expected("attention.cu", "softmax_long_backward", {"warps": 64}),
    # 32 products of fragments of a warp's 32 x 64 for each slice; P and L_P at once backward
    *(
        Expected(
            "tensor_attention.cu",
            f"attention_{kernel}",
            {"warps": warps, "loop HMMA": 32, "loop wide copies": 4},
            WITHOUT_LOADS | {"loop": loop, "loop LDSM": 12, "registers": 240},
            defines,
        )
        for kernel, warps in (("forward", 16), ("queries_gradient", 8), ("keys_gradient", 8))
        for loop, defines in ((220, {"PRECISION": "TF32"}), (105, {}))
    ),
    Expected("noise.cu", "reverse_step", {"warps": 40, "in flight": 3, "wide stores": 2}),
    Expected("noise.cu", "mse_loss", {"warps": 64, "in flight": 2, "wide stores": 1}),
    Expected("noise.cu", "q_sample", {"warps": 64, "in flight": 1, "wide stores": 1}),
    Expected("noise.cu", "random_normal", {"warps": 64, "wide stores": 1}),
    Expected("noise.cu", "random_uniform", {"warps": 64, "wide stores": 1}),
    Expected("noise.cu", "random_words", {"warps": 64}),
    Expected("noise.cu", "sum_blocks", {"warps": 64}),
    Expected("optimizer.cu", "adam", {"warps": 40, "in flight": 5, "wide stores": 4}),
    Expected("optimizer.cu", "squared_norm", {"warps": 64, "in flight": 1}),
    Expected("optimizer.cu", "clip_scale", {"warps": 64}),
    *(
        Expected("resampling.cu", kernel, {"warps": 64, "in flight": n, "wide stores": stores}, {}, defines)
        for kernel, n, stores in (
            ("upsample", 1, 4),
            ("upsample_backward", 4, 1),
            ("concatenate", 1, 1),
            ("split", 1, 1),
            ("pick_rows", 1, 1),
        )
        for defines in (FOUR, EIGHT)
    ),
    *(
        Expected("resampling.cu", k, {"warps": 64})
        for k in ("upsample", "upsample_backward", "concatenate", "split", "pick_rows")
    ),
    Expected("conversion.cu", "to_half", {"warps": 64, "in flight": 2, "wide stores": 1}),
    Expected("conversion.cu", "from_half", {"warps": 64, "in flight": 1, "wide stores": 2}),
    Expected("batch.cu", "gather_batch", {"warps": 64, "wide stores": 1}),
    Expected("batch.cu", "tick", {"warps": 64}),
    Expected(
        "tensor_product.cu",
        "tensor_product",
        SMALL_TENSOR,
        WITHOUT_LOADS | {"loop": 220},
        {"TILE_M": 64, "TILE_N": 64},
    ),
    Expected(
        "tensor_product.cu",
        "tensor_product",
        TENSOR,
        LARGE | {"loop": 350},
        {"PRECISION": "TF32"},
    ),
    Expected("tensor_product.cu", "tensor_product", TENSOR, LARGE | {"loop": 210}),
    *(
        Expected("tensor_joint.cu", f"tensor_joint_{way}", *bounds)
        for way in ("forward", "weight_gradient", "input_gradient")
        for bounds in (
            (SMALL_TENSOR, WITHOUT_LOADS | {"loop": 236}, {"TILE_M": 64, "TILE_N": 64}),
            (TENSOR, LARGE | {"loop": 360}, {"PRECISION": "TF32"}),
            (TENSOR, LARGE | {"loop": 210}),
        )
    ),
    *(
        Expected(f"{kernel}.cu", kernel, *bounds)
        for kernel, *most in (("tensor_convolution", 236, 350, 210), ("tensor_weight_gradient", 345, 480, 300))
        for bounds in (
            (SMALL_TENSOR, WITHOUT_LOADS | {"loop": most[0]}, {"TILE_M": 64, "TILE_N": 64}),
            (TENSOR, LARGE | {"loop": most[1]}, {"PRECISION": "TF32"}),
            (TENSOR, LARGE | {"loop": most[2]}),
        )
    ),
)


class Instruction(NamedTuple):
    """address: in bytes. guard: the predicate under which it runs, or "". name: such as LDG.E.128. operands: as text."""

    address: int
    guard: str
    name: str
    operands: str

    @property
    def kind(self) -> str:
        return self.name.partition(".")[0]

    @property
    def wide(self) -> bool:
        return ".128" in self.name


class Loop(NamedTuple):
    """The instructions from a label to the branch back to it."""

    body: tuple[Instruction, ...]

    def count(self, *kinds: str) -> int:
        return sum(i.kind in kinds for i in self.body)


_START = re.compile(r"^\.text\.(\w+):")
_LABEL = re.compile(r"^(\.L_\w+):")
_INSTRUCTION = re.compile(r"^/\*([0-9a-f]{4,6})\*/\s+(@!?U?P[0-9T]+\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?)\s*;")


def kernels_in(text: str) -> dict[str, tuple[list[Instruction], list[Loop]]]:
    """The instructions and the loops of each kernel in nvdisasm's output."""
    found: dict[str, tuple[list[Instruction], dict[str, int]]] = {}
    waiting: list[str] = []
    instructions, labels = [], {}
    for line in map(str.strip, text.splitlines()):
        if match := _START.match(line):
            instructions, labels = found.setdefault(match[1], ([], {}))
        elif match := _LABEL.match(line):
            waiting.append(match[1])
        elif match := _INSTRUCTION.match(line):
            labels.update(dict.fromkeys(waiting, int(match[1], 16)))
            waiting.clear()
            instructions.append(Instruction(int(match[1], 16), (match[2] or "").strip(), match[3], match[4]))
    return {name: (body, list(_loops(body, where))) for name, (body, where) in found.items()}


def _loops(instructions: Sequence[Instruction], labels: Mapping[str, int]) -> Iterator[Loop]:
    spans = []
    for i in instructions:
        if i.kind == "BRA" and (match := re.search(r"`\((\.L_\w+)\)", i.operands)):
            target = labels.get(match[1], i.address + 1)
            spans += [(target, i.address)] if target < i.address else []
    for start, end in sorted(set(spans)):
        yield Loop(tuple(i for i in instructions if start <= i.address <= end))


def in_flight(instructions: Iterable[Instruction]) -> int:
    """The most 128-bit loads from global memory that have been issued before one of them is waited for, as its register is
    used."""
    pending: list[set[str]] = []
    most = 0
    for i in instructions:
        registers = re.findall(r"\bR(\d+)\b", i.operands)
        if i.kind in ("LDG", "LD") and i.wide:
            address = set(registers[1:])
            if any(address & loaded for loaded in pending):
                pending = []
            pending.append({str(int(registers[0]) + k) for k in range(4)})
            most = max(most, len(pending))
        elif any(set(registers) & loaded for loaded in pending) or i.kind in ("BAR", "EXIT", "RET"):
            pending = []
    return most


def fenced(instructions: Iterable[Instruction]) -> bool:
    """Whether a fence for the whole GPU stands between each atomic addition and the stores before it, and between it and the
    loads of what other blocks have stored: those past the first-level cache, of which there must be one, and any of 16 bytes."""
    stored = counted = passed = False
    for i in instructions:
        if i.kind == "MEMBAR" and "GPU" in i.name:
            stored = counted = False
        elif i.kind == "STG":
            stored = True
        elif i.kind == "ATOMG" and stored:
            return False
        elif i.kind == "ATOMG":
            counted, passed = True, False
        elif i.kind == "LDG" and counted and ("STRONG" in i.name or i.wide):
            return False
        elif i.kind == "LDG":
            passed |= "STRONG" in i.name
    return passed


def last_alone(instructions: Iterable[Instruction]) -> bool:
    """Whether threads can leave the kernel after each atomic addition, before the fence of the block that was the last to count."""
    counted = False
    for i in instructions:
        if i.kind == "ATOMG":
            counted = True
        elif i.kind == "EXIT" and i.guard:
            counted = False
        elif i.kind == "MEMBAR" and counted:
            return False
    return not counted


def figures_of(instructions: Sequence[Instruction], loops: Sequence[Loop], usage: nvrtc.Usage) -> dict[str, float]:
    """What is counted of a kernel. warps: how many of a multiprocessor its registers allow. "loop ...": in the loop that
    multiplies most, if there is one."""
    multiplications = [loop.count("FFMA") + 8 * loop.count("HMMA") for loop in loops]
    hot = max(zip(multiplications, loops, strict=True), key=lambda m: (m[0], -len(m[1].body)), default=(0, Loop(())))[1]
    found: dict[str, float] = {
        "registers": usage.registers,
        "warps": warps_by_registers(usage.registers),
        "local": sum(i.kind in ("LDL", "STL") for i in instructions),
        "instructions": sum(i.kind != "NOP" for i in instructions),
        "wide stores": sum(i.kind == "STG" and i.wide for i in instructions),
        "in flight": in_flight(instructions),
    }
    if any(i.kind == "ATOMG" for i in instructions):
        found |= {"fenced": fenced(instructions), "last alone": last_alone(instructions)}
    if hot.count("FFMA", "HMMA"):
        found |= {
            "loop": len(hot.body),
            "loop share": hot.count("FFMA") / len(hot.body),
            "loop copies": hot.count("LDGSTS"),
            "loop wide copies": sum(i.kind == "LDGSTS" and i.wide for i in hot.body),
        } | {f"loop {kind}": hot.count(kind) for kind in ("FFMA", "HMMA", "LDSM", "SHFL", "LDG")}
    return found


def misses(name: str, defines: Mapping[str, Any], kernel: str, figures: Mapping[str, float]) -> list[str]:
    """What is expected of a kernel and does not hold."""
    for row in EXPECTED:
        if (row.source, row.kernel) == (name, kernel) and row.defines.items() <= defines.items():
            break
    else:
        return [f"there is no row for it in EXPECTED; it has {dict(figures)}"]
    found = [f"{what} is {figures.get(what, 0):.3g}, at least {n} are expected"
             for what, n in row.least.items() if figures.get(what, 0) < n]  # fmt: skip
    return found + [f"{what} is {figures.get(what, 0):.3g}, at most {n} are expected"
                    for what, n in {"local": 0, **row.most}.items() if figures.get(what, 0) > n]  # fmt: skip


def missing() -> str | None:
    """Why no machine code can be seen here, in a sentence, or None if it can."""
    if reason := nvrtc.missing():
        return reason
    if _nvdisasm() is None:
        return f"the package nvidia-cuda-nvdisasm is missing (pip install nvidia-cuda-nvdisasm=={VERSION})"
    for package in ("nvidia-cuda-nvrtc", "nvidia-cuda-nvdisasm"):
        if (version := importlib.metadata.version(package)) != VERSION:
            return f"{package} is {version}; the counts are those of {VERSION}"
    return None


def _nvdisasm() -> Path | None:
    found = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin/nvdisasm"))
    return found[0] if found else None


def disassembled(cubin: bytes) -> str:
    """nvdisasm's output for a binary."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernels.cubin"
        file.write_bytes(cubin)
        return subprocess.run([str(_nvdisasm()), "-c", str(file)], capture_output=True, text=True, check=True).stdout


def figures(name: str, defines: dict[str, Any], architecture: int) -> dict[str, dict[str, float]]:
    """`figures_of` for each kernel of a variant. KernelError where it does not compile."""
    usages, cubin = nvrtc.compile_binary(name, defines, architecture)
    used = {usage.kernel: usage for usage in usages}
    return {kernel: figures_of(*code, used[kernel]) for kernel, code in kernels_in(disassembled(cubin)).items()}


def main(sources: Sequence[str]) -> int:
    if reason := missing():
        print(reason, file=sys.stderr)
        return 2
    chosen = [(*v, a) for v in nvrtc.variants() for a in ARCHITECTURES if a >= v[2] and v[0] in (sources or [v[0]])]
    failures, gathered = [], occupancy.Gathered()
    with ThreadPoolExecutor(threads.available()) as pool:
        for (name, defines, _, architecture), kernels in zip(
            chosen, pool.map(lambda v: figures(v[0], v[1], v[3]), chosen), strict=True
        ):
            title = " ".join((name, *source.flags(defines), f"sm_{architecture}"))
            print(title)
            for kernel, found in kernels.items():
                print(f"{kernel:>24}  " + "  ".join(f"{what} {n:.3g}" for what, n in found.items() if n))
                failures += [f"{title}: {kernel}: {miss}" for miss in misses(name, defines, kernel, found)]
            for usage in nvrtc.compile_source(name, defines, architecture):
                gathered.add(defines, usage)
    failures += gathered.differences()
    print("\n".join(failures) or f"{len(chosen)} binaries are as expected")
    return bool(failures or not chosen)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
