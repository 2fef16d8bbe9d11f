"""tinydiff/cuda/source.py: finding sources, putting headers in, reading parameter lists."""

from pathlib import Path

import numpy as np
import pytest

from tinydiff.cuda import source
from tinydiff.cuda.source import KernelError

ROOT = Path(__file__).resolve().parents[2]


def test_headers_are_put_in_once_and_lines_stay_true(tmp_path):
    (tmp_path / "a.cuh").write_text('#include "b.cuh"\nint a;')
    (tmp_path / "b.cuh").write_text("int b;\n")
    (tmp_path / "k.cu").write_text('// first\n#include "a.cuh"  // why\n#include "b.cuh"\n#include <math.h>\nint k;\n')
    assert source.load(str(tmp_path / "k.cu")).splitlines() == [
        '#line 1 "k.cu"', "// first",
        '#line 1 "a.cuh"', '#line 1 "b.cuh"', "int b;", '#line 2 "a.cuh"', "int a;",
        '#line 3 "k.cu"', '#line 4 "k.cu"', "#include <math.h>", "int k;",
    ]  # fmt: skip


def test_the_stand_in_is_only_for_the_host():
    assert "namespace td" not in source.load("tinydiff.cuh")
    assert "namespace td" in source.load("tinydiff.cuh", host=True)
    assert "mma.sync" in source.load("tinydiff.cuh")


def test_missing_files_are_named(tmp_path):
    (tmp_path / "k.cu").write_text('#include "nowhere.cuh"\n')
    with pytest.raises(KernelError, match=r"there is no kernel source .*nowhere\.cuh"):
        source.load(str(tmp_path / "k.cu"))


def test_parameter_lists():
    kernels = source.kernels("""
        // KERNEL(commented, 32)(int a) {
        KERNEL(one, 256)(const float* __restrict__ X, float *Y, int n, unsigned c, float eps) { }
        /* KERNEL(out, 32)(int a) { */
        KERNEL(two, (BM / 4) * (BN / 4))(unsigned long long seed, const unsigned char* mask,  // bytes
                      const long long* labels, unsigned int* words, unsigned short* halves) {
        KERNEL(none, 1)() {
    """)
    assert list(kernels) == ["one", "two", "none"]
    assert [str(p) for p in kernels["one"]] == ["const float* X", "float* Y", "int n", "unsigned c", "float eps"]
    two = kernels["two"]
    assert [p.dtype for p in two] == [np.dtype(t) for t in ("uint64", "uint8", "int64", "uint32", "uint16")]
    assert [p.is_array for p in two] == [False, True, True, True, True]
    assert [p.is_const for p in two] == [False, True, True, False, False]
    assert kernels["none"] == ()


@pytest.mark.parametrize("parameter", ["double x", "float** X", "bool b", "Shape s", "long long n", "float& x"])
def test_parameters_that_cannot_be_passed_are_refused(parameter):
    with pytest.raises(KernelError, match="kernel k has a parameter '"):
        source.kernels(f"KERNEL(k, 32)(int n, {parameter}) {{ }}")


def test_flags_do_not_depend_on_the_order():
    assert source.flags({"B": 2, "A": True}) == source.flags({"A": 1, "B": 2}) == ("-DA=1", "-DB=2")


def test_every_source_has_readable_kernels():
    """What launch() reads from the text: each kernel's parameters, none hidden in a macro or kept for one compiler."""
    for path in sorted(source.folder().glob("*.cu")):
        text = source.load(path.name)
        assert len(source.kernels(text)) == source._COMMENT.sub(" ", text).count("KERNEL(") - 1, path.name
        assert source.kernels(text), path.name
