"""Would the checks of tensor cores' kernels notice a mistake? As in test_defects.py; slow, since each is compiled anew."""

import numpy as np
import pytest

from tests.cuda.conftest import nan_filled
from tinydiff.cuda import host, source, tensor
from tinydiff.cuda.tensor import Plan
from tinydiff.gradcheck import backends

# which check, in how many parts, what is planted and what replaces it
PRODUCT = {
    "exchange of rows along k": ("tf32", 1, "(chunk ^ (row / 2 & 3)) * 16", "(chunk ^ (row & 3 & row / 2)) * 8 * 2 + row / 8 % 2"),
    "exchange when written only": ("tf32", 1, "at[i] = S::place(lane % 4, (first", "at[i] = S::place(0, (first"),
    "halves and blocks mixed up": ("tf32", 1, "return OF_A ? i % 2 : i / 2", "return OF_A ? i / 2 : i % 2"),
    "rows of k in the wrong half": ("fp16, A transposed", 1, "S::place(8 * half + lane % 8", "S::place(8 * block + lane % 8"),
    "not rounded": ("tf32", 1, "r[j] = to_tf32(__uint_as_float(r[j]))", "r[j] = r[j]"),
    "remainder of k, rows along k": ("tf32", 1, "k < length && i * S::DOWN < limit", "i * S::DOWN < limit"),
    "remainder of k, rows across": ("tf32", 1, ": k + i * S::DOWN < limit", ": k < limit"),
    "remainder of m": ("tf32", 1, "k < length && i * S::DOWN < limit", "k < length"),
    "remainder of n": ("bf16", 1, "limit = first + chunk < extent ? length : 0", "limit = length"),
    "last slice": ("bf16", 1, "(length + TILE_K - 1) / TILE_K", "length / TILE_K"),
    "stage waited for too late": ("tf32", 1, "cp_wait<STAGES - 2>()", "cp_wait<STAGES - 1>()"),
    "stage filled too early": ("bf16", 1, "        __syncthreads();        // everybody's have", "        //"),
    "stage of another slice": ("bf16", 1, "next = STAGES - 1;", "next = STAGES - 2;"),
    "second step of a slice": ("tf32", 1, "slice + at[step]", "slice + at[0]"),
    "written past the last row": ("tf32", 1, "if (m >= M) continue;", ""),
    "written past the last column": ("tf32", 1, "if (n < N) pair(j, n);", "pair(j, n);"),
    "bias of the tile's first columns": ("tf32", 1, "load_pair(bias + n)", "load_pair(bias + n - n0)"),
    "scale forgotten": ("bf16", 1, "y[j].y * scale", "y[j].y"),
    "order of parts": ("tf32", 10, "group * GROUP + i) * apart;", "group * GROUP + i);"),
    "one part twice": ("tf32", 3, "i < members; i++) {", "i < members - 1; i++) {"),
    "own part not replaced": ("tf32", 3, "[i / 4 % FRAGMENTS_N][i % 4] = 0.f;", "[i / 4 % FRAGMENTS_N][i % 4] += 0.f;"),
    "no fence before the count": ("tf32", 3, "        fence();\n        __syncthreads();", "        __syncthreads();"),
    "no barrier before the count": ("tf32", 3, "        fence();\n        __syncthreads();", "        fence();"),
    "no barrier after the count": ("tf32", 10, "= count(counter);\n        __syncthreads();", "= count(counter);"),
    "counter not reset": ("tf32", 3, "if (threadIdx.x == 0) *counter = 0;", ""),
    "counters of two groups in one": ("tf32", 10, "count_of > GROUP ? 1 + group : 0", "0"),
    "parts of all tiles in one place": ("tf32", 3, "parts += tile * gridDim.z * (TILE_M * TILE_N);", ""),
    "counters of all tiles in one place": ("tf32", 3, "arrived += tile * (1 + GROUP);", ""),
}  # fmt: skip


CONVOLUTION = {
    "columns masked by the dilation of rows": ("tf32", 1, "(column, w.dilation_w,", "(column, w.dilation_h,"),
    "rows masked for as many taps as columns": ("tf32", 1, "w.dilation_h, w.R,", "w.dilation_h, w.S,"),
    "columns by the stride of rows": ("tf32", 1, "at.q * w.stride_w", "at.q * w.stride_h"),
    "next row of taps after R": ("tf32", 1, "if (++s == S)", "if (++s == R)"),
    "parts begin at channel 0": ("tf32", 5, "c = first * TILE_K - tap * C", "c = 0"),
    "embedding of the tile's first image": ("tf32", 1, "(place.image)", "(places[0].image)"),
    "one half of a residual's pair for both": ("bf16", 1, "low_bf16(pair), high", "high_bf16(pair), high"),
    "images as if the stride divided them": ("tf32, backward", 1, "(at.n * out_height + row)", "(at.n * Ho * step_h + row)"),
    "one row of W too many": ("tf32, backward", 1, "row, i * S::DOWN < limit)", "row, i * S::DOWN <= limit)"),
    "upper rows of W not exchanged": (
        "tf32, backward", 1, "S::place(S::row(), S::chunk())", "S::place(S::row() % 4, S::chunk()) + S::row() / 4 * 4 * S::ROW",
    ),
}  # fmt: skip
WEIGHT_GRADIENT = {
    "entries past the last tap": ("tf32", 1, "NOWHERE | outside_of", "outside_of"),
    "one tap for all of a tile": ("tf32", 1, "tap = entry / C", "tap = m0 / C"),
    "rows carried before columns": (
        "tf32", 1, "if (next.q >= Wo) next.q -= Wo, next.p++;\n        if (next.p >= Ho) next.p -= Ho, next.n++;",
        "if (next.p >= Ho) next.p -= Ho, next.n++;\n        if (next.q >= Wo) next.q -= Wo, next.p++;",
    ),
    "ring too short": ("tf32", 1, "PLACES = 2 * STAGES;", "PLACES = 2 * STAGES - 3;"),
    "first patches without barrier": ("tf32", 1, "find(i);\n    __syncthreads();", "find(i);"),
    "exchange of TF32 for 16 bits": (
        "bf16", 1, "A::place(A::row(), A::chunk())", "A::place(A::row() % 4, A::chunk()) + A::row() / 4 * 4 * A::ROW",
    ),
    "groups' sums where parts still lie": ("tf32", 10, "(index) * apart * (TILE", "(index) * (TILE"),
}  # fmt: skip
DEFECTS = [
    pytest.param(family, *defect, id=f"{family}: {what}")
    for family, defects in (
        ("tensor_product", PRODUCT),
        ("tensor_convolution", CONVOLUTION),
        ("tensor_weight_gradient", WEIGHT_GRADIENT),
    )
    for what, defect in defects.items()
]


@pytest.mark.parametrize("family, check, parts, text, replacement", DEFECTS)
def test_what_is_replaced_is_there_once(family, check, parts, text, replacement):
    assert check in backends.BY_SOURCE[family]
    assert source.load(f"{family}.cu", host=True).count(text) == 1, "the source has changed, plant the defect elsewhere"


@pytest.mark.slow
@pytest.mark.skipif(host.missing() is not None, reason=str(host.missing()))
@pytest.mark.parametrize("family, check, parts, text, replacement", DEFECTS)
def test_defects_are_caught(family, check, parts, text, replacement, monkeypatch):
    load = source.load

    def planted(name, host=False):
        whole = load(name, host)
        return whole.replace(text, replacement) if name == f"{family}.cu" else whole

    monkeypatch.setattr(source, "load", planted)
    monkeypatch.setattr(host, "FLAGS", ("-O0", *(flag for flag in host.FLAGS if flag != "-O2")))
    monkeypatch.setattr(tensor, "_counters", {})
    monkeypatch.setattr(tensor, "plan", lambda *sizes: Plan(64, 64, parts))
    monkeypatch.setattr(np, "empty", nan_filled)
    outcome = backends.run_check(backends.BY_SOURCE[family][check])
    counted = any(counters.any() for counters in tensor._counters.values())
    assert outcome.failure or counted, "nothing noticed"
    assert "does not compile" not in outcome.failure, outcome.failure
