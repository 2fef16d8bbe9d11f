"""Gate one: every kernel compiles for the GPUs that it is meant for, and keeps its registers. Needs no GPU and no driver.

`python -m tinydiff.cuda.nvrtc` compiles everything for all of them.
"""

import pytest

from tests import cupy_stand_in
from tests.cuda import occupancy as made
from tests.cupy_stand_in import describe
from tinydiff import backend
from tinydiff.cuda import driver, nvrtc, occupancy, products, source, tensor
from tinydiff.cuda.source import KernelError

pytestmark = pytest.mark.skipif(nvrtc.missing() is not None, reason=str(nvrtc.missing()))


def test_every_variant_compiles_without_spills():
    """For the architecture that kernels are tuned on, those of 16 bits once; and each source once for the oldest. Those for tensor
    cores are many: test_tensor.py, test_tensor_convolution.py and test_tensor_attention.py compile them."""
    most = [variant for variant in nvrtc.variants() if variant[2] < tensor.OLDEST]
    once = {variant[0]: variant for variant in most}.values()
    chosen = [
        *(v for v in most if "PRECISION" not in v[1]),
        *(v for v in once if "PRECISION" in v[1]),
        tensor.VARIANTS[-1],
    ]
    for name, defines, result in [*nvrtc.compile_variants([90], chosen), *nvrtc.compile_variants([75], once)]:
        assert isinstance(result, list), result
        assert {u.kernel for u in result} == set(source.kernels(source.load(name)))
        assert [u for u in result if u.spills] == [], (name, defines)
        assert all(u.shared <= 48 << 10 for u in result)
        for u in result:
            if u.kernel in products.KERNELS and u.architecture == occupancy.PLANNED:
                held = occupancy.least_warps((u.kernel,), **defines)
                assert made.warps(u, *made.dynamic_shared(u.kernel, defines)) >= held, "plans count on as many"


def test_every_family_lists_what_it_launches():
    listed = {name for name, _, _ in nvrtc.variants()}
    assert listed == {path.name for path in source.folder().glob("*.cu")}


def test_the_options_are_those_that_cupy_compiles_with():
    """As written down from CuPy. Beside them only the architecture is named, and a report of registers asked for."""
    ours = nvrtc._options({"A": 1}, 90)
    theirs = [*driver.OPTIONS, *source.flags({"A": 1}), *cupy_stand_in.api()["compiler"]]
    assert sorted(ours) == sorted([*theirs, "--gpu-architecture=sm_90", "--ptxas-options=-v"])


@pytest.mark.gpu
@pytest.mark.skipif(backend.cupy() is None, reason="needs an NVIDIA GPU and CuPy")
def test_cupys_options_are_those_that_are_written_down():
    given = (*driver.OPTIONS, "-DTD_NOTHING=1")
    assert describe.compiler_options(backend.cupy(), given) == cupy_stand_in.api()["compiler"]


WRAPPERS = """
#include "tinydiff.cuh"
KERNEL(everywhere, 128)(const float* X, float* Y) {
    SHARED(float, tile, [128 * 4]);
    DYNAMIC_SHARED(float, dynamic);
    const int t = threadIdx.x;
    cp_async16(tile + 4 * t, X + 4 * t, t < 100);
    cp_async4(dynamic + t, X + t, t < 100);
    cp_commit();
    cp_wait<0>();
    __syncthreads();
    float v = tile[4 * t] + dynamic[t] + warp_sum(X[t]) + warp_max(X[t]) + shuffle(X[t], 3) + shuffle_down(X[t], 2);
    v += shuffle_xor((int)t, 1) + shuffle_xor((unsigned)t, 2);
    v += low_bf16(t) + high_bf16(t) + low_fp16(t) + high_fp16(t) + load_shared_by_blocks((const float4*)X).x;
    Y[t] = v + exp_(v) + log_(v) + sqrt_(v) + rsqrt_(v) + tanh_(v) + sin_(v) + cos_(v);
    if (v == INFINITY) Y[t] = 0;
}
#if defined(TD_TENSOR_CORES)
KERNEL(tensor_cores, 32)(const unsigned* X, float* Y) {
    SHARED(unsigned short, tile, [32][8]);
    for (int i = 0; i < 4; i++) reinterpret_cast<unsigned*>(tile)[4 * threadIdx.x + i] = X[4 * threadIdx.x + i];
    __syncthreads();
    unsigned a[4], b[2] = {pack_bf16(1.f, 2.f), to_tf32(3.f)};
    ldmatrix_x4(a, tile[threadIdx.x]);
    float d[4] = {0, 0, 0, 0};
    mma_bf16(d, a, b);
    ldmatrix_x4_trans(a, tile[threadIdx.x]);
    b[0] = pack_fp16(1.f, 2.f);
    mma_fp16(d, a, b);
    fence();
    if (X[0] == 0) Y[127] = count(reinterpret_cast<unsigned*>(Y));
    mma_tf32(d, a, b);
    for (int i = 0; i < 4; i++) Y[4 * threadIdx.x + i] = d[i];
}
#endif
"""


@pytest.mark.parametrize("architecture", nvrtc.ARCHITECTURES)
def test_the_wrappers_compile_everywhere(tmp_path, architecture):
    path = tmp_path / "wrappers.cu"
    path.write_text(WRAPPERS)
    defines = {"TD_TENSOR_CORES": 1} if architecture >= 80 else {}
    usages = {u.kernel: u for u in nvrtc.compile_source(str(path), defines, architecture)}
    assert set(usages) == ({"everywhere", "tensor_cores"} if defines else {"everywhere"})
    assert usages["everywhere"].shared == 2048 and usages["everywhere"].registers > 8


def test_spills_are_seen(tmp_path, monkeypatch, capsys):
    path = tmp_path / "spills.cu"
    path.write_text("""
        #include "tinydiff.cuh"
        KERNEL(spills, 1024)(const float* X, float* Y, int n) {
            float v[128];
            UNROLL for (int i = 0; i < 128; i++) v[i] = X[i * n + threadIdx.x];
            __syncthreads();
            UNROLL for (int i = 0; i < 128; i++) Y[i * n + threadIdx.x] = v[127 - i] * v[i] + v[(i * 7) % 128];
        }
    """)
    (usage,) = nvrtc.compile_source(str(path), {}, 75)
    assert usage.spills > 0 and usage.registers == 64
    monkeypatch.setattr(nvrtc, "variants", lambda: iter([(str(path), {}, 75)]))
    assert nvrtc.main(["75"]) == 1
    assert f"spills {usage.spills} bytes on sm_75" in capsys.readouterr().out.splitlines()[-1]


def test_errors_name_source_flags_and_line(tmp_path):
    path = tmp_path / "wrong.cu"
    path.write_text('#include "tinydiff.cuh"\n\nKERNEL(wrong, 32)(float* Y) {\n    Y[0] = NOTHING;\n}\n')
    with pytest.raises(KernelError, match=r"(?s)wrong\.cu with -DA=1 does not compile for sm_90:.*wrong\.cu\(4\)"):
        nvrtc.compile_source(str(path), {"A": 1}, 90)


def test_the_table(monkeypatch, capsys, tmp_path):
    path = tmp_path / "wrappers.cu"
    path.write_text(WRAPPERS)
    monkeypatch.setattr(nvrtc, "variants", lambda: iter([(str(path), {}, 75), (str(path), {"TD_TENSOR_CORES": 1}, 80)]))
    assert nvrtc.main(["75", "sm_80"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = [row[:2] for row in rows if row[0] in ("everywhere", "tensor_cores")]
    assert rows == [["everywhere", "75"], ["everywhere", "80"], ["tensor_cores", "80"], ["everywhere", "80"]]
    monkeypatch.setattr(nvrtc, "variants", lambda: iter([(str(path), {"TD_TENSOR_CORES": 1}, 75)]))
    assert nvrtc.main(["75"]) == 1
    assert "does not compile for sm_75" in capsys.readouterr().out
