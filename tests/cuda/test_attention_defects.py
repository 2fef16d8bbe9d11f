"""Would the checks of attention on tensor cores notice a mistake? As in test_tensor_defects.py; slow, since each is compiled
anew."""

import pytest

from tests.cuda.test_tensor_defects import is_caught
from tinydiff.cuda import host

pytestmark = [
    pytest.mark.skipif(host.missing() is not None, reason=str(host.missing())),
    pytest.mark.slow,
]

FEW, MANY, HALF = "tf32, 64 keys", "tf32, 256 keys", "bf16, 64 keys"

# which check, what is planted and what replaces it
DEFECTS = {
    "keys past the last attended to": (FEW, "s = n < keys ? s * scale : -INFINITY;", "s *= scale;"),
    "keys past the last not masked backward": (
        FEW,
        "p = n < keys ? exp_(p * scale - sum[i][h]) : 0.f;",
        "p = exp_(p * scale - sum[i][h]);",
    ),
    "queries past the last not masked": (
        FEW,
        "p = n < queries ? exp_(p * scale - z[n]) : 0.f;",
        "p = exp_(p * scale - z[n]);",
    ),
    "one key too many masked": (MANY, "s = n < keys ? s * scale", "s = n < keys - 1 ? s * scale"),
    "queries masked by the number of keys": (
        MANY,
        "p = n < queries ? exp_(p * scale - z[n])",
        "p = n < keys ? exp_(p * scale - z[n])",
    ),
    "scale of S": (FEW, "s = n < keys ? s * scale", "s = n < keys ? s"),
    "scale of S backward": (FEW, "exp_(p * scale - sum[i][h])", "exp_(p - sum[i][h])"),
    "scale of L_Q": (FEW, "at.m0, queries, D, scale);", "at.m0, queries, D, 1.f);"),
    "scale of L_K": (FEW, "at.m0, keys, D, scale);", "at.m0, keys, D, 1.f);"),
    "scale of L_V": (FEW, "at.m0, keys, E, 1.f);", "at.m0, keys, E, scale);"),
    "scale forgotten when written": (HALF, "y[j].y * scale", "y[j].y"),
    "z without the largest": (FEW, "z_of(top[i][h], total[i][h])", "z_of(0.f, total[i][h])"),
    "P not divided by its sum": (FEW, "p *= total[i][h];", "p *= 1.f;"),
    "largest of a warp's part": (
        MANY,
        "for (int w = 1; w < WARPS_ACROSS; w++) v[i][h]",
        "for (int w = 1; w < 1; w++) v[i][h]",
    ),
    "one warp's part left out": (
        MANY,
        "for (int w = 1; w < WARPS_ACROSS; w++) v[i][h]",
        "for (int w = 1; w < WARPS_ACROSS - 1; w++) v[i][h]",
    ),
    "parts of a row by two lanes": (FEW, "v[i][h] = combine(v[i][h], shuffle_xor(v[i][h], 2));", ""),
    "parts of a row without a barrier": (
        MANY,
        "of_warps[warp][m] = v[i][h];\n    });\n    __syncthreads();",
        "of_warps[warp][m] = v[i][h];\n    });",
    ),
    "largest and sum in one place": (MANY, "across_row(total, of_warps[1]", "across_row(total, of_warps[0]"),
    "delta forgotten": (FEW, "P[i][j][e] * (L_S[i][j][e] - sum[i][e / 2])", "P[i][j][e] * L_S[i][j][e]"),
    "delta of the other row": (FEW, "(L_S[i][j][e] - sum[i][e / 2])", "(L_S[i][j][e] - sum[i][e % 2])"),
    "delta forgotten for keys": (FEW, "l = p * (l - of_query);", "l = p * l;"),
    "delta of the neighbour for keys": (FEW, "n < queries ? d[n] : 0.f", "n < queries ? d[n ^ 1] : 0.f"),
    "delta of the block's first rows": (MANY, "d = at.of(d, queries, 1) + at.m0;", "d = at.of(d, queries, 1);"),
    "z of the block's first rows": (MANY, "z = at.of(z, queries, 1) + at.m0, d", "z = at.of(z, queries, 1), d"),
    "z of the first matrix": (FEW, "z = at.of(z, queries, 1), d = at.of(d, queries, 1);", "d = at.of(d, queries, 1);"),
    "z written past the last row": (
        FEW,
        "at.m0 + m < queries && warp_column() == 0 && threadIdx.x % 4 == 0) z",
        "warp_column() == 0 && threadIdx.x % 4 == 0) z",
    ),
    "d written past the last row": (
        FEW,
        "at.m0 + m < queries && warp_column() == 0 && threadIdx.x % 4 == 0) d",
        "warp_column() == 0 && threadIdx.x % 4 == 0) d",
    ),
    "P held without the exchange": (FEW, "Block::place(m, n % TILE_K / CHUNK)", "m * 64 + n % TILE_K / CHUNK * 16"),
    "P held in another slice": (MANY, "return n / TILE_K * Block::BYTES", "return n / TILE_K % 4 * Block::BYTES"),
    "a pair held in the wrong order": (HALF, "pack_bf16(pair.x, pair.y)", "pack_bf16(pair.y, pair.x)"),
    "held P of one slice for all": (FEW, "held + k * Block::BYTES, stage, sum", "held, stage, sum"),
    "held over the ring": (FEW, "*ring = shared + HELD_BYTES;", "*ring = shared + HELD_BYTES - 1024;"),
    "slices overwritten too early": (FEW, "        sum);\n    __syncthreads();", "        sum);"),
    "held overwritten too early": (
        FEW,
        "        __syncthreads();  // before the slices' place is used again\n    }\n}",
        "    }\n}",
    ),
    "columns of one tile only": (
        FEW,
        "for (int n0 = 0; n0 < N; n0 += TILE_N)",
        "for (int n0 = 0; n0 < 1; n0 += TILE_N)",
    ),
    "written past the last row": (MANY, "write_tile(sum, m0, M,", "write_tile(sum, m0, M + 1,"),
    "written past the last column": (FEW, "each_pair(n0, N, [&]", "each_pair(n0, N + 2, [&]"),
    "rows of another block": (
        MANY,
        "matrix = blockIdx.x / tiles, m0 = (blockIdx.x - matrix * tiles) * TILE_M;",
        "matrix = blockIdx.x / tiles, m0 = 0;",
    ),
    "matrices of another tile": (MANY, "matrix = blockIdx.x / tiles,", "matrix = blockIdx.x % tiles,"),
    "Q of the first matrix": (FEW, "from(stack + matrix * apart)", "from(stack)"),
    "rows past the last, of A": (MANY, "Matrix<Block> a(A.from, m0, M,", "Matrix<Block> a(A.from, m0, M + 1,"),
    "rows past the last, of B": (MANY, "Matrix<Others> b(B.from, 0, N,", "Matrix<Others> b(B.from, 0, N + 1,"),
    "keys past the last, of V": (MANY, "b(B.from, n0, N, length, 0", "b(B.from, n0, N, length + 1, 0"),
    "remainder of the channels": (
        FEW,
        "multiply<Block, Others>(\n        shared, 0, (length + TILE_K - 1) / TILE_K,",
        "multiply<Block, Others>(\n        shared, 0, length / TILE_K,",
    ),
    "remainder of the keys": (FEW, "ring, 0, (length + TILE_K - 1) / TILE_K,", "ring, 0, length / TILE_K,"),
    "sums not begun anew": (
        FEW,
        "[i / 4 % FRAGMENTS_N][i % 4] = 0.f;\n    multiply",
        "[i / 4 % FRAGMENTS_N][i % 4] += 0.f;\n    multiply",
    ),
    "K and V exchanged": (
        FEW,
        "rows_by_rows(shared, l_y, v, at.m0, queries, keys, E, L_S)",
        "rows_by_rows(shared, l_y, k, at.m0, queries, keys, D, L_S)",
    ),
    "P and L_S exchanged": (FEW, "product_of(P, shared, l_y", "product_of(L_S, shared, l_y"),
    "not rounded": (MANY, "r[j] = to_tf32(__uint_as_float(r[j]))", "r[j] = r[j]"),
    # Q, K and V are parts of larger arrays
    "rows of a view": (MANY, "down = S::DOWN * apart, onward = TILE_K;", "down = S::DOWN * length, onward = TILE_K;"),
    "slices of a view": (MANY, "onward = TILE_K * apart;", "onward = TILE_K * extent;"),
    "second tile of a view": (
        MANY,
        "matrix + (first + row) * apart + k;",
        "matrix + first * length + row * apart + k;",
    ),
    "stage waited for too late": (MANY, "cp_wait<DEPTH - 2>()", "cp_wait<DEPTH - 1>()"),
    "stage of another slice": (MANY, "next = DEPTH - 1;", "next = DEPTH - 2;"),
}


@pytest.mark.parametrize("what", DEFECTS)
def test_defects_are_caught(what, monkeypatch):
    check, text, replacement = DEFECTS[what]
    is_caught(monkeypatch, "tensor_attention", check, 1, text, replacement)
