"""Would the checks of products and convolutions on tensor cores notice a mistake? As in test_defects.py; slow, since each is
compiled anew. That all blocks write their tile, and not only the last, shows in the machine code alone (sass.py)."""

import numpy as np
import pytest

from tests.cuda.conftest import nan_filled
from tinydiff.cuda import host, source, split_k, tensor
from tinydiff.cuda.tensor import Plan
from tinydiff.gradcheck import backends

pytestmark = [
    pytest.mark.skipif(host.missing() is not None, reason=str(host.missing())),
    pytest.mark.slow,
]

# of products: which check, in how many parts, what is planted and what replaces it
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
    "stage waited for too late": ("tf32", 1, "cp_wait<DEPTH - 2>()", "cp_wait<DEPTH - 1>()"),
    "stage filled too early": ("bf16", 1, "        __syncthreads();        // everybody's have", "        //"),
    "stage of another slice": ("bf16", 1, "next = DEPTH - 1;", "next = DEPTH - 2;"),
    "second step of a slice": ("tf32", 1, "slice + at[step]", "slice + at[0]"),
    "written past the last row": ("tf32", 1, "if (m >= M) continue;", ""),
    "written past the last column": ("tf32", 1, "if (n < N) pair(j, n);", "pair(j, n);"),
    "bias of the tile's first columns": ("tf32", 1, "load_pair(bias + n)", "load_pair(bias + n - n0)"),
    "scale forgotten": ("bf16", 1, "y[j].y * scale", "y[j].y"),
    "order of parts": ("tf32", 10, "group * GROUP + i) * apart;", "group * GROUP + i);"),
    "one part twice": ("tf32", 3, "i < members; i++) {", "i < members - 1; i++) {"),
    "own part not replaced": ("tf32", 3, "sum[i] = 0.f;", "sum[i] += 0.f;"),
    "no fence before the count": ("tf32", 3, "    fence();\n    __syncthreads();", "    __syncthreads();"),
    "no barrier before the count": ("tf32", 3, "    fence();\n    __syncthreads();", "    fence();"),
    "no barrier after the count": ("tf32", 10, "= count(counter);\n    __syncthreads();", "= count(counter);"),
    "counter not reset": ("tf32", 3, "if (first) *counter = 0;", ""),
    "counters of two groups in one": ("tf32", 10, "last_to_arrive(arrived + group, members)", "last_to_arrive(arrived, members)"),
    "parts of all tiles in one place": ("tf32", 3, "parts += tile * left * SLOT;", ""),
    "counters of all tiles in one place": ("tf32", 3, "arrived += tile * counters;", ""),
}  # fmt: skip

# of products in tiles of which a thread has 128 sums, in ten parts: what is planted and what replaces it
OF_LARGE_TILES = {
    "the first 64 sums alone": ("for (int first = 0; first < FLOATS;", "for (int first = 0; first < AT_ONCE;"),
    "the first 64 sums again": ("for (int j = first; j < first + AT_ONCE; j++)", "for (int j = 0; j < AT_ONCE; j++)"),
}

# of convolutions: which source and check, in how many parts, what is planted and what replaces it
FORWARD = "tensor_convolution", "tf32"
BACKWARD = "tensor_convolution", "tf32, backward"
DOUBLED = "tensor_convolution", "tf32, doubled pixels"
WEIGHT = "tensor_weight_gradient", "tf32"
WEIGHT_16 = "tensor_weight_gradient", "fp16"
OF_CONVOLUTIONS = {
    "taps' bits: the last one missing": (*FORWARD, 1, "i < count; i++, first", "i < count - 1; i++, first"),
    "taps' bits: dilation of rows": (*FORWARD, 1, "outside_of(row, w.dilation_h", "outside_of(row, 1"),
    "taps' bits: columns for rows": (*BACKWARD, 1, "1u << r | 1u << (16 + s)", "1u << s | 1u << (16 + r)"),
    "taps' bits: past the image": (*WEIGHT, 1, ">= static_cast<unsigned>(length)", "> static_cast<unsigned>(length)"),
    "taps' bits: not looked at": (*WEIGHT, 1, "!(patch.outside & bits)", "patch.outside != ~0u"),
    "pixels past the last": (*WEIGHT, 1, "if (at.n >= images) return {0, ~0u};", ""),
    "rows past the last": (*FORWARD, 1, "if (at.n >= images) return {0, ~0u};", ""),
    "entries past the last tap": (*WEIGHT, 1, "entry < rows ? bits_of_tap(r, s) : NOWHERE", "bits_of_tap(r, s)"),
    "stride forgotten": (*FORWARD, 1, "at.p * w.stride_h - w.top", "at.p - w.top"),
    "padding of columns": (*WEIGHT, 1, "at.q * w.stride_w - w.left", "at.q * w.stride_w - w.top"),
    "rows of P not exchanged": (*FORWARD, 1, "A::place(A::row(), A::chunk())", "A::row() * A::ROW + A::chunk() * 16"),
    "rows of P^T not exchanged": (*WEIGHT, 1, "A::place(A::row(), A::chunk())", "A::row() * A::ROW + A::chunk() * 16"),
    "rows of W^T not exchanged": (*BACKWARD, 1, "to = S::place(S::row(), S::chunk());\n        keep(to);\n    }\n    // entry",
                                  "to = S::row() * 64 + S::chunk() * 16;\n    }\n    // entry"),
    "rows of taps not counted": (*FORWARD, 1, "if (++s == S) s = 0, r++;", "if (++s == S) s = 0;"),
    "taps counted a slice late": (*BACKWARD, 1, "if (c == C) {", "if (c > C) {"),
    "part begins at its tap": (*FORWARD, 3, "c = first * TILE_K - tap * C", "c = 0"),
    "part begins in the first row of taps": (*BACKWARD, 3, "r = tap / max(S, 1)", "r = 0"),
    "taps forwards": (*BACKWARD, 1, "first_tap - r * down - s * across", "r * down + s * across"),
    "rows and columns of taps": (*BACKWARD, 1, "first_tap - r * down - s * across", "first_tap - r * across - s * down"),
    "W^T past the last row": (*BACKWARD, 1, "row, i * S::DOWN < limit", "row, true"),
    "W past the last column": (*FORWARD, 1, "limit = first + chunk < extent ? length : 0", "limit = length"),
    "class of pixels": (*BACKWARD, 1, "at.p * step_h + start_h", "at.p * step_h"),
    "places of the tile before": (*BACKWARD, 1, "pixel_of(m0 + i, window)", "pixel_of(i, window)"),
    "image of the embedding": (*FORWARD, 1, "E + static_cast<long long>(place.image) * N", "E"),
    "bias of the tile's first columns": (*FORWARD, 1, "load_pair(b + n)", "load_pair(b + n - n0)"),
    "residual of another row": (*FORWARD, 1, "residual + row", "residual + row - N * (m == M - 1)"),
    "written past the last row": (*WEIGHT, 1, "if (m >= M) continue;", ""),
    "written past the last column": (*FORWARD, 1, "if (n < N) pair(j, n);", "pair(j, n);"),
    "ring too short": (*WEIGHT, 1, "PLACES = 2 * STAGES", "PLACES = STAGES"),
    "ring read at the wrong slice": (*WEIGHT, 1, "ring[(slice - first) % PLACES]", "ring[(slice - first + 1) % PLACES]"),
    "ring begins with the first part": (*WEIGHT, 2, "pixel_of(first * TILE_K + threadIdx.x", "pixel_of(threadIdx.x"),
    "no barrier before the ring is read": (*WEIGHT, 1, "find(i);\n    __syncthreads();", "find(i);"),
    "columns carried": (*WEIGHT, 1, "if (next.q >= Wo) next.q -= Wo, next.p++;", "if (next.q >= Wo) next.q -= Wo;"),
    "rows carried": (*WEIGHT_16, 1, "if (next.p >= Ho) next.p -= Ho, next.n++;", ""),
    "one pixel for all copies": (*WEIGHT, 1, "[A::row() + i * A::DOWN];", "[A::row()];"),
    "pixels of L_Y past the last": (*WEIGHT, 1, "l_y(L_Y, n0, K, pixels, first)", "l_y(L_Y, n0, K, pixels + TILE_K, first)"),
    "filter of another pixel": (*DOUBLED, 1, "W += static_cast<long long>(blockIdx.y) * length * N;", ""),
    "four filters in one place": (*DOUBLED, 1, "start_h += below, start_w += right", "start_h += right, start_w += below"),
    "parts of all filters in one place": (*DOUBLED, 2, "static_cast<long long>(block.y) * gridDim.x + block.x", "block.x"),
    "stage waited for too late": (*FORWARD, 1, "cp_wait<DEPTH - 2>()", "cp_wait<DEPTH - 1>()"),
    "stage filled too early": (*WEIGHT, 1, "        __syncthreads();        // everybody's have", "        //"),
    "order of parts": (*WEIGHT, 10, "group * GROUP + i) * apart;", "group * GROUP + i);"),
    "no fence before the count": (*WEIGHT, 3, "    fence();\n    __syncthreads();", "    __syncthreads();"),
    # by somebody who had not seen the checks
    "columns masked by the dilation of rows": (
        "tensor_convolution", "tf32", 1,
        "(column, w.dilation_w,",
        "(column, w.dilation_h,",
    ),
    "rows masked for as many taps as columns": ("tensor_convolution", "tf32", 1, "w.dilation_h, w.R,", "w.dilation_h, w.S,"),
    "columns by the stride of rows": ("tensor_convolution", "tf32", 1, "at.q * w.stride_w", "at.q * w.stride_h"),
    "next row of taps after R": ("tensor_convolution", "tf32", 1, "if (++s == S)", "if (++s == R)"),
    "embedding of the tile's first image": ("tensor_convolution", "tf32", 1, "(place.image)", "(places[0].image)"),
    "one half of a residual's pair for both": (
        "tensor_convolution", "bf16", 1,
        "low_bf16(pair), high",
        "high_bf16(pair), high",
    ),
    "images as if the stride divided them": (
        "tensor_convolution", "tf32, backward", 1,
        "(at.n * out_height + row)",
        "(at.n * Ho * step_h + row)",
    ),
    "one row of W too many": (
        "tensor_convolution", "tf32, backward", 1,
        "row, i * S::DOWN < limit)",
        "row, i * S::DOWN <= limit)",
    ),
    "upper rows of W not exchanged": (
        "tensor_convolution", "tf32, backward", 1,
        "S::place(S::row(), S::chunk())",
        "S::place(S::row() % 4, S::chunk()) + S::row() / 4 * 4 * S::ROW",
    ),
    "entries past the last tap, again": ("tensor_weight_gradient", "tf32", 1, "NOWHERE | outside_of", "outside_of"),
    "one tap for all of a tile": ("tensor_weight_gradient", "tf32", 1, "tap = entry / C", "tap = m0 / C"),
    "rows carried before columns": (
        "tensor_weight_gradient", "tf32", 1,
        "if (next.q >= Wo) next.q -= Wo, next.p++;\n        if (next.p >= Ho) next.p -= Ho, next.n++;",
        "if (next.p >= Ho) next.p -= Ho, next.n++;\n        if (next.q >= Wo) next.q -= Wo, next.p++;",
    ),
    "ring too short, again": ("tensor_weight_gradient", "tf32", 1, "PLACES = 2 * STAGES;", "PLACES = 2 * STAGES - 3;"),
    "exchange of TF32 for 16 bits": (
        "tensor_weight_gradient", "bf16", 1,
        "A::place(A::row(), A::chunk())",
        "A::place(A::row() % 4, A::chunk()) + A::row() / 4 * 4 * A::ROW",
    ),
    "rounded before the residual is added": (
        "tensor_convolution", "bf16", 1,
        "if (residual) each_pair(n0, N, [&](int j, int n) {",
        "if (residual) each_pair(n0, N, [&](int j, int n) { alignas(4) Result z[2]; store_pair(z, y[j]); y[j] = load_pair(z);",
    ),
    "groups' sums where parts still lie": ("tensor_weight_gradient", "tf32", 10, "(index) * apart * SLOT", "(index) * SLOT"),
}  # fmt: skip


@pytest.mark.parametrize("what", DEFECTS)
def test_defects_of_products_are_caught(what, monkeypatch):
    is_caught(monkeypatch, "tensor_product", *DEFECTS[what])


@pytest.mark.parametrize("what", OF_LARGE_TILES)
def test_defects_of_large_tiles_are_caught(what, monkeypatch):
    is_caught(monkeypatch, "tensor_product", "tf32", 10, *OF_LARGE_TILES[what], tile=(128, 128))


@pytest.mark.parametrize("what", OF_CONVOLUTIONS)
def test_defects_of_convolutions_are_caught(what, monkeypatch):
    is_caught(monkeypatch, *OF_CONVOLUTIONS[what])


def is_caught(monkeypatch, family, check, parts, text, replacement, tile=(64, 64)):
    load = source.load

    def planted(name, host=False):
        whole = load(name, host)
        if name != f"{family}.cu":
            return whole
        assert text in whole, f"{name} has changed, plant the defect elsewhere"
        return whole.replace(text, replacement)

    monkeypatch.setattr(source, "load", planted)
    monkeypatch.setattr(host, "FLAGS", ("-O0", *(flag for flag in host.FLAGS if flag != "-O2")))
    monkeypatch.setattr(split_k, "_counters", {})
    monkeypatch.setattr(tensor, "plan", lambda *sizes: Plan(*tile, parts))
    monkeypatch.setattr(np, "empty", nan_filled)
    outcome = backends.run_check(backends.BY_SOURCE[family][check])
    counted = any(counters.any() for counters in split_k._counters.values())
    assert outcome.failure or counted, "nothing noticed"
    assert "does not compile" not in outcome.failure, outcome.failure
