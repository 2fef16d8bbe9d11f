"""Would the checks of products on tensor cores notice a mistake? As in test_defects.py; slow, since each is compiled anew."""

import numpy as np
import pytest

from tests.cuda.conftest import nan_filled
from tinydiff.cuda import host, source, tensor
from tinydiff.cuda.tensor import Plan
from tinydiff.gradcheck import backends

pytestmark = [
    pytest.mark.skipif(host.missing() is not None, reason=str(host.missing())),
    pytest.mark.slow,
]

# which check, in how many parts, what is planted and what replaces it
DEFECTS = {
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
    "written past the last column": ("tf32", 1, "if (n >= N) continue;", ""),
    "bias of the tile's first columns": ("tf32", 1, "load_pair(bias + n)", "load_pair(bias + n - n0)"),
    "scale forgotten": ("bf16", 1, "sum[i][j][2 * h + 1] * scale", "sum[i][j][2 * h + 1]"),
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


@pytest.mark.parametrize("what", DEFECTS)
def test_defects_are_caught(what, monkeypatch):
    check, parts, text, replacement = DEFECTS[what]
    load = source.load

    def planted(name, host=False):
        whole = load(name, host)
        if name != tensor.SOURCE:
            return whole
        assert text in whole, f"{name} has changed, plant the defect elsewhere"
        return whole.replace(text, replacement)

    monkeypatch.setattr(source, "load", planted)
    monkeypatch.setattr(host, "FLAGS", ("-O0", *(flag for flag in host.FLAGS if flag != "-O2")))
    monkeypatch.setattr(tensor, "_counters", {})
    monkeypatch.setattr(tensor, "plan", lambda *sizes: Plan(64, 64, parts))
    monkeypatch.setattr(np, "empty", nan_filled)
    outcome = backends.run_check(backends.BY_SOURCE["tensor_product"][check])
    counted = any(counters.any() for counters in tensor._counters.values())
    assert outcome.failure or counted, "nothing noticed"
    assert "does not compile" not in outcome.failure, outcome.failure
