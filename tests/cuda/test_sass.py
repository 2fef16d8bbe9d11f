"""tests/cuda/sass.py: how machine code is read and judged. The kernels' own is looked at by `python -m tests.cuda.sass`."""

import pytest

from tests.cuda import sass
from tinydiff.cuda import nvrtc, source, tensor
from tinydiff.cuda.nvrtc import Usage

CODE = """
.text.scale:
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;
        /*0010*/               @P0 EXIT ;
.L_x_1:
        /*0020*/                   LDG.E.128 R4, [R2.64] ;
        /*0030*/                   LDG.E.128 R8, [R2.64+0x10] ;
        /*0040*/               @P1 LDG.E.128 R12, [R2.64+0x20] ;
        /*0050*/                   FFMA R4, R4, R5, R6 ;
        /*0060*/                   LDG.E.128 R8, [R4.64] ;
.L_x_2:
        /*0070*/                   FFMA R8, R8, R8, R8 ;
        /*0080*/                   LDG.E R9, [R2.64] ;
        /*0090*/               @P2 BRA `(.L_x_2) ;
        /*00a0*/                   STG.E.128 [R2.64], R8 ;
        /*00b0*/              @!P3 BRA `(.L_x_1) ;
        /*00c0*/                   BRA `(.L_x_3) ;
.L_x_3:
        /*00d0*/                   STL [R1], R8 ;
        /*00e0*/                   NOP ;
.text.other:
        /*0000*/                   EXIT ;
"""


def test_instructions_loops_and_loads_in_flight_are_found():
    kernels = sass.kernels_in(CODE)
    assert list(kernels) == ["scale", "other"] and len(kernels["scale"][0]) == 15 and not kernels["other"][1]
    instructions, loops = kernels["scale"]
    assert instructions[4] == (0x40, "@P1", "LDG.E.128", "R12, [R2.64+0x20]")
    assert [len(loop.body) for loop in loops] == [10, 3]
    found = sass.figures_of(instructions, loops, Usage("scale", 90, 33, 0, 0, 0))
    assert found | {
        "registers": 33, "warps": 48, "local": 1, "instructions": 14, "wide stores": 1, "in flight": 3, "loop": 10,
        "loop share": 0.2, "loop FFMA": 2, "loop LDG": 5,
    } == found  # fmt: skip


def test_what_does_not_hold_is_named(monkeypatch):
    row = sass.Expected("a.cu", "scale", {"in flight": 4, "warps": 48}, {"loop LDG": 0}, {"VECTOR": 4})
    monkeypatch.setattr(sass, "EXPECTED", (row,))
    found = {"in flight": 3, "warps": 48, "loop LDG": 5, "local": 0}
    assert sass.misses("a.cu", {"VECTOR": 4}, "scale", found) == [
        "in flight is 3, at least 4 are expected",
        "loop LDG is 5, at most 0 are expected",
    ]
    assert sass.misses("a.cu", {"VECTOR": 4}, "scale", {"in flight": 4, "warps": 64, "local": 2}) == [
        "local is 2, at most 0 are expected"
    ]
    assert "no row" in sass.misses("a.cu", {"VECTOR": 1}, "scale", found)[0]


@pytest.mark.parametrize(
    ("names", "holds"),
    [
        ("STG.E MEMBAR.SC.GPU ATOMG.E.ADD MEMBAR.SC.GPU LDG.E.128.STRONG.GPU", True),
        ("STG.E ATOMG.E.ADD MEMBAR.SC.GPU LDG.E.STRONG.GPU", False),
        ("STG.E MEMBAR.SC.GPU STG.E ATOMG.E.ADD", False),
        ("STG.E MEMBAR.SC.CTA ATOMG.E.ADD", False),  # a fence for the block alone
        ("STG.E MEMBAR.SC.GPU ATOMG.E.ADD LDG.E.STRONG.GPU", False),
        ("STG.E MEMBAR.SC.GPU ATOMG.E.ADD LDG.E.128", False),
        ("STG.E MEMBAR.SC.GPU ATOMG.E.ADD LDG.E.CONSTANT MEMBAR.SC.GPU LDG.E.STRONG.GPU", True),
        ("STG.E MEMBAR.SC.GPU ATOMG.E.ADD MEMBAR.SC.GPU LDG.E", False),  # may come from the first-level cache
    ],
)
def test_fences_around_what_blocks_hand_on(names, holds):
    assert sass.fenced([sass.Instruction(i, "", name, "") for i, name in enumerate(names.split())]) == holds


@pytest.mark.parametrize(
    ("names", "holds"),
    [
        ("ATOMG @P1:EXIT MEMBAR", True),
        ("ATOMG MEMBAR EXIT", False),
        ("ATOMG EXIT", False),
        ("ATOMG BRA @!P0:EXIT", True),
    ],
)
def test_all_blocks_but_the_last_leave_after_the_count(names, holds):
    guarded = [name.rpartition(":")[::2] for name in names.split()]
    assert sass.last_alone([sass.Instruction(i, *each, "") for i, each in enumerate(guarded)]) == holds


def test_every_kernel_has_a_row():
    for name, defines, _ in nvrtc.variants():
        for kernel in source.kernels(source.load(name)):
            assert not any("no row" in miss for miss in sass.misses(name, defines, kernel, {})), (name, defines, kernel)


MOST = {"tensor_product": (210, 350), "tensor_convolution": (210, 350), "tensor_weight_gradient": (300, 480)}


def test_what_large_tiles_on_tensor_cores_may_take():
    """For a slice of 64 bytes: instructions (of 16 bits, of TF32), reads of shared memory, registers; nothing in local memory."""
    large = [(n, d) for n, d, _ in nvrtc.variants() if n in tensor.SOURCES and d["TILE_M"] * d["TILE_N"] >= 128 * 128]
    assert len(large) == 3 * 24
    for name, defines in large:
        kernel = name.removesuffix(".cu")
        most = {
            "loop": MOST[kernel][defines["PRECISION"] == "TF32"],
            "loop LDSM": 16,
            "loop HMMA": 64,
            "registers": 240,
        }
        most |= {"loop SHFL": 0, "loop LDG": 0, "local": 0}
        found = most | {"warps": 8, "loop wide copies": 6, "wide stores": 8, "fenced": 1, "last alone": 1}
        assert sass.misses(name, defines, kernel, found) == []
        for what in most:
            assert len(sass.misses(name, defines, kernel, found | {what: most[what] + 1})) == 1, (name, defines, what)
        assert len(sass.misses(name, defines, kernel, found | {"loop HMMA": 63})) == 1


def test_how_much_of_float32_loops_multiplies():
    """0.85 of products and 0.78 of convolutions. Where floats are copied one by one, 0.845, and 0.74 of a convolution's pixels."""
    for name, defines, _ in nvrtc.variants():
        by_ones = [operand for operand in "AB" if defines.get(f"VECTOR_{operand}") == 1]
        shares = {
            "matrix_product": 0.845 if by_ones else 0.8495,
            "conv_forward": 0.7395 if "A" in by_ones else 0.78,
            "conv_weight_gradient": 0.78,
        }
        for kernel in shares.keys() & source.kernels(source.load(name)):
            most = {"warps": 64, "loop FFMA": 1024, "wide stores": 64, "loop wide copies": 9, **sass.SPLIT}
            found = most | {"loop share": shares[kernel]}
            assert sass.misses(name, defines, kernel, found) == []
            assert len(sass.misses(name, defines, kernel, found | {"loop share": shares[kernel] - 0.001})) == 1


@pytest.mark.skipif(sass.missing() is not None, reason=str(sass.missing()))
def test_a_source_is_compiled_and_read(capsys):
    assert sass.main(["batch.cu"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 binaries are as expected"


WRAPPERS = """
#include "tinydiff.cuh"
KERNEL(packs, 32)(const float* X, unsigned* Y) {
    const float low = X[0], high = X[1];
    Y[0] = pack_bf16(low, high);
    Y[1] = pack_fp16(low, high);
    Y[2] = to_tf32(low);
}
KERNEL(halves, 32)(const unsigned* pair, float* Y) {
    Y[0] = low_fp16(pair[0]);
    Y[1] = high_fp16(pair[0]);
}
KERNEL(matrices, 32)(unsigned* Y) {
    SHARED(unsigned, tile, [128]);
    unsigned r[4], t[4];
    for (int i = 0; i < 4; i++) tile[4 * threadIdx.x + i] = Y[4 * threadIdx.x + i];
    __syncthreads();
    ldmatrix_x4(r, tile + 4 * threadIdx.x);
    ldmatrix_x4_trans(t, tile + 4 * threadIdx.x);
    for (int i = 0; i < 4; i++) Y[4 * threadIdx.x + i] = r[i] + t[i];
}
KERNEL(products, 32)(const float* X, float* Y) {
    float d[4] = {X[0], X[1], X[2], X[3]};
    const unsigned a[4] = {__float_as_uint(X[4])}, b[2] = {};
    mma_bf16(d, a, b);
    mma_fp16(d, a, b);
    mma_tf32(d, a, b);
    Y[0] = d[0] + d[1] + d[2] + d[3];
}
"""


@pytest.mark.skipif(sass.missing() is not None, reason=str(sass.missing()))
def test_inline_assembly_is_what_the_stand_in_takes_it_for(tmp_path):
    """Which the tests on the host cannot see: the halves of a pair, how numbers are rounded, what operands are."""
    path = tmp_path / "wrappers.cu"
    path.write_text(WRAPPERS)
    kernels = sass.kernels_in(sass.disassembled(nvrtc.compile_text(path.name, source.load(str(path)), {}, 90)[1]))
    packs, halves, matrices, products = (kernels[name][0] for name in ("packs", "halves", "matrices", "products"))
    assert [i.name for i in products if i.kind == "HMMA"] == [
        "HMMA.16816.F32.BF16",
        "HMMA.16816.F32",
        "HMMA.1688.F32.TF32",
    ]
    low, high = (i.operands.partition(",")[0] for i in packs if i.kind == "LDG")
    to_pairs = {i.name: i.operands.replace(".reuse", "").split(", ")[1:] for i in packs if i.kind == "F2FP"}
    assert to_pairs == {"F2FP.BF16.F32.PACK_AB": [high, low], "F2FP.F16.F32.PACK_AB": [high, low]}
    to_tf32 = " ".join(i.operands for i in packs if i.kind in ("IMAD", "IADD3", "LOP3"))
    assert "0x1000" in to_tf32 and "0xffffe000" in to_tf32, "half of the last place is added, the rest cut off"
    assert [i.name for i in matrices if i.kind == "LDSM"] == ["LDSM.16.M88.4", "LDSM.16.MT88.4"]
    assert ["+0x2" in i.operands for i in halves if i.name == "LDG.E.U16"] == [False, True]
