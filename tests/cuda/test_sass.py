"""tests/cuda/sass.py: how machine code is read and judged. The kernels' own is looked at by `python -m tests.cuda.sass`."""

import pytest

from tests.cuda import sass
from tinydiff.cuda import nvrtc, products, source
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
        ("STG.E MEMBAR.SC.GPU ATOMG.E.ADD LDG.E.CONSTANT", True),
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


def test_the_plan_counts_on_no_more_warps_than_registers_allow():
    for plan in products.PLANS:
        if (plan.vector_a, plan.vector_b) == (4, 4):
            assert products.warps_held(plan.m, plan.n) <= sass.PRODUCT["warps"] <= sass.CONVOLUTION["warps"]


@pytest.mark.skipif(sass.missing() is not None, reason=str(sass.missing()))
def test_a_source_is_compiled_and_read(capsys):
    assert sass.main(["batch.cu"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 binaries are as expected"
