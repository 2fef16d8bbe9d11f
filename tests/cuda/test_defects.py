"""Would the checks of the kernels notice a mistake? Defects are planted in the sources, one at a time, and each must be caught:
by numbers that differ from the definition, or by the host's stand-in for CUDA."""

import numpy as np
import pytest

from tinydiff.cuda import host, source, split_k
from tinydiff.cuda.source import KernelError
from tinydiff.dispatch import on_host
from tinydiff.gradcheck import backends

pytestmark = pytest.mark.skipif(host.missing() is not None, reason=str(host.missing()))

# source and checks; what is planted: text of the source (with its headers), and what replaces it
DEFECTS = {
    ("matrix", "product, matmul"): {
        "ring without its barrier": ("        __syncthreads();        // everybody's have", "        //"),
        "wait for one slice too few": ("cp_wait<STAGES - 2>()", "cp_wait<STAGES - 1>()"),
        "wrong slot filled": ("next = STAGES - 1;", "next = STAGES - 2;"),
        "wrong slot read": ("now = now + 1 == STAGES ? 0", "now = now + 1 == STAGES ? 1"),
        "last slice forgotten": ("slices = (length + TILE_K - 1) / TILE_K", "slices = length / TILE_K"),
        "copy past the last column": ("end = column + j < columns ? rows - row : 0", "end = rows - row"),
        "copy past the last row": ("copy<FLOATS>(shared, from, i < end)", "copy<FLOATS>(shared, from, true)"),
        "write past the last column": ("if (column < columns) each(j, column)", "each(j, column)"),
        "write past the last row": ("if (row < rows) write(row, sum[i])", "write(row, sum[i])"),
        "two threads on one row": ("r = lane / 2 % 8;\n    return warp", "r = lane / 4 % 8;\n    return warp"),
        "parts that overlap": ("(slices) * blockIdx.z / gridDim.z", "(slices) * blockIdx.z / (gridDim.z + 1)"),
        "turned copy past the end": ("n + j < N && k + i < K", "n + j < N"),
        "stack of the other operand": ("B += blockIdx.y * apart_B", "B += blockIdx.y * apart_A"),
        "one part twice": ("i < members; i++) {", "i < members - 1; i++) {"),
        "slots of all tiles in one place": ("parts += tile * left * SLOT;", ""),
        "counter not reset": ("if (first) *counter = 0;", ""),
        "no fence before the count": ("    fence();\n    __syncthreads();", "    __syncthreads();"),
    },
    ("sums", "sum_rows, sums_of_rows, sum_pixels_and_images"): {
        "last part not added": ("part < count;", "part < count - 1;"),
        "parts of all columns in one place": ("parts += static_cast<long long>(tile) * gridDim.z * 32;", ""),
        "counter of another tile": ("last_to_arrive(arrived + tile, gridDim.z)", "last_to_arrive(arrived, gridDim.z)"),
        "one block too early": ("before[0] < members - 1", "before[0] < members - 2"),
        "last image forgotten": ("matrix < gridDim.y", "matrix < gridDim.y - 1"),
        "column sums without barrier": ("] = value;\n    __syncthreads();", "] = value;"),
        "column sums too narrow": ("for (int i = 0; i < 8; i++) sum", "for (int i = 0; i < 7; i++) sum"),
        "threads that leave early": (
            "    if (column < columns) {\n        UNROLL\n        for (int row",
            "    if (column >= columns) return 0.f;\n    {\n        UNROLL\n        for (int row",
        ),
    },
    ("convolution", "convolve"): {
        "padding to the right read": ("& 0x80008000u", "& 0x80000000u"),
        "padding at the top read": ("& 0x80008000u", "& 0x8000u"),
        "pixels before the first alone": ("(at | (last - at))", "at"),
        "pixels past the last alone": ("(at | (last - at))", "(last - at)"),
        "rows past the last": ("if (m >= M) return {0, both(-32768, -32768)};", ""),
        "stride forgotten": ("q * stride_w - left", "q - left"),
        "wrapped once too few": ("for (c += TILE_K; c >= C; c -= C)", "if ((c += TILE_K) >= C && (c -= C, true))"),
        "embedding of the first image": ("*e = E + of_image(to)", "*e = E"),
        "corners without barrier": (
            "M - 1));\n    }\n    __syncthreads();\n\n    int first",
            "M - 1));\n    }\n\n    int first",
        ),
    },
    ("convolution", "convolve_input_gradient"): {
        "class starts at 0": ("q * step_w + start_w", "q * step_w"),
        "filter not transposed": ("= tile[threadIdx.x][k]", "= tile[k][threadIdx.x]"),
        "turn without barrier": ("k0 + threadIdx.x];\n    __syncthreads();", "k0 + threadIdx.x];"),
    },
    ("convolution", "convolve_weight_gradient"): {
        "corner ring too short": ("ring[(at + STAGES - 1) % (2 * STAGES)]", "ring[(at + STAGES - 1) % STAGES]"),
        "dilation forgotten": ("right = s * dilation_w;\n    const", "right = s;\n    const"),
    },
    ("normalization", "group_normalize, dropout"): {
        "sums read too early": ("s.column * VECTOR, sum);\n    __syncthreads();", "s.column * VECTOR, sum);"),
        "totals read too early": ("total[c] = whole;\n    }\n    __syncthreads();", "total[c] = whole;\n    }"),
        "reduction too narrow": ("for (int mask = s.columns; mask < 32;", "for (int mask = s.columns; mask < 16;"),
        "variance of the shifted values": ("squares[i] - own * sum[i] + ", "squares[i] + "),
        "mask turned round": ("uniform(word[i]) >= p", "uniform(word[i]) < p"),
        "pixels past the last": ("if (j < left) x[j] =", "x[j] ="),
        "the last of four pixels forgotten": (
            "if (k + j >= count) break;\n            if (tiled)",
            "if (k + j >= count || j == AHEAD - 1) break;\n            if (tiled)",
        ),
        "last pixel forgotten": (
            "s.row < P ? (P - s.row - 1) / s.rows + 1 : 0;  // pixels",
            "s.row < P ? (P - 1) / s.rows : 0;  // pixels",
        ),
    },
    ("normalization", "group_normalize_backward, dropout"): {
        "tiles that overlap": ("tiled ? 2 * P * slab : 0", "tiled ? P * slab : 0"),
        "mean over pixels only": ("A[i] /= P * D", "A[i] /= P"),
        "term of the variance": (" - z[i] * B[i])", ")"),
        "images counted twice": ("n < N; n += 8", "n < N; n += 7"),
    },
    ("normalization", "onto another"): {
        "what waits at the first of two pixels": ("load(l, there + at);", "load(l, there + at - j * apart);"),
    },
    ("normalization", "bf16 onto another"): {
        "rounded before the sum": (
            "load(l, there + at);",
            "{ Piece q; narrow(q, z); widen(z, q); } load(l, there + at);",
        ),
    },
    ("normalization", "bf16 group_normalize"): {
        "entries exchanged": ("rounded<PRECISION>(v[6], v[7])", "rounded<PRECISION>(v[7], v[6])"),
        "sums in an odd tile": ("(entries + WHOLE - 1) / WHOLE * WHOLE", "entries / WHOLE * WHOLE"),
    },
    ("normalization", "fp16 dropout"): {
        "grown twice": ("l);  // as it was read, or 0", "l), multiply(l, 2.f);"),
        "words of the first four": ("philox(four, j / 4 + k, draw)", "philox(four, j / 4, draw)"),
    },
    ("attention", "softmax, softmax_backward"): {
        "lanes past the end": ("X[lane + 32 * k] : -INFINITY", "X[lane + 32 * k] : 0.f"),
        "totals without barrier": (
            "of_warp[threadIdx.x / 32] = total;\n    __syncthreads();",
            "of_warp[threadIdx.x / 32] = total;",
        ),
        "last warp forgotten": ("w < WARPS; w++", "w < WARPS - 1; w++"),
        "maximum not followed": ("b.sum * exp_(b.top - top)", "b.sum"),
        "row sum without barrier": ("row_sum[0] = sum;\n    __syncthreads();", "row_sum[0] = sum;"),
    },
    ("noise", "mse_loss"): {
        "block sum without barrier": ("= v;\n    __syncthreads();", "= v;"),
        "last block forgotten": ("i < blocks; i += THREADS", "i < blocks - 1; i += THREADS"),
    },
    ("noise", "draws"): {
        "rounds of Philox": ("round < 10", "round < 9"),
        "high half of the seed": ("k1 = static_cast<unsigned>(draw.seed >> 32)", "k1 = 0"),
        "elements past the end": ("if (k < n - i) words[i + k] = word[k];", "words[i + k] = word[k];"),
    },
    ("noise", "q_sample"): {
        "next image too late": ("if (++inside == size)", "if (++inside > size)"),
    },
    ("noise", "reverse_step"): {
        "variance among the images": ("output[j + channels]", "output[j]"),
    },
    ("optimizer", "squared_norm, clip"): {
        "run of the next block": ("length = min(per_block, n - start)", "length = n - start"),
        "unaligned reads": ("aligned(x) && n - i >= N) return load", "n - i >= N) return load"),
    },
    ("optimizer", "launch_adam, adam"): {
        "moments exchanged": ("store_up_to(m, i, n, first)", "store_up_to(m, i, n, second)"),
    },
    ("optimizer", "loss scale"): {
        "gradient left multiplied": ("max_norm / norm : 1.f) / S", "max_norm / norm : 1.f)"),
        "overflow taken for a failure": ("&& !overflow) failed[0]", ") failed[0]"),
        "failure taken for an overflow": ("loss_scale && S > least &&", "loss_scale &&"),
        "good steps counted on": ("loss_scale[1] = doubled ? 0.f : good", "loss_scale[1] = good"),
        "half the scale each time": ("overflow ? S * 0.5f : doubled", "doubled"),
    },
    ("optimizer", "fp16 launch_adam"): {
        "weights from before the step": (
            "if (half) store_up_to(half, i, n, weight)",
            "if (half) store_up_to(half, i, n, first)",
        ),
        "their average": ("store_up_to(half, i, n, weight)", "store_up_to(half, i, n, average)"),
    },
    ("resampling", "repeat_pixels, sum_pixel_blocks, join, cut"): {
        "width not doubled": ("put<VECTOR>(Y + (at + k / 2 * (2 * width)", "put<VECTOR>(Y + (at + k / 2 * width"),
        "threads past the end": ("if (i >= size) return;\n    const int channels", "const int channels"),
    },
}


def first_failure(check):
    """What the first comparison that fails says, or None."""

    def run(function, *args, **options):
        with on_host():
            return function(*args, **options)

    try:
        for ours, truth in check(np.random.default_rng(0), run):
            error = backends.distance(ours, truth)
            if not error <= backends.TOLERANCE:
                return f"off by {error:.1e}"
    except KernelError as error:
        return str(error)
    return None


CASES = [
    pytest.param(*where, *what, id=name, marks=[pytest.mark.slow] * (where[1][:4] in ("bf16", "fp16")))
    for where, defects in DEFECTS.items()
    for name, what in defects.items()
]


@pytest.mark.parametrize("family, checks, text, replacement", CASES)
def test_defects_are_caught(family, checks, text, replacement, monkeypatch):
    load = source.load

    def planted(name, host=False):
        whole = load(name, host)
        if name != f"{family}.cu":
            return whole
        assert text in whole, f"{name} has changed, plant the defect elsewhere"
        return whole.replace(text, replacement)

    monkeypatch.setattr(source, "load", planted)
    monkeypatch.setattr(
        host, "FLAGS", ("-O0", *(flag for flag in host.FLAGS if flag != "-O2"))
    )  # compiles in half the time
    monkeypatch.setattr(split_k, "_counters", {})
    noticed = (first_failure(backends.BY_SOURCE[family][check]) for check in checks.split(", "))
    failure = next(filter(None, noticed), None)
    if any(counters.any() for counters in split_k._counters.values()):
        failure = failure or "counters are not 0 again"
    assert failure, "nothing noticed"
    assert "does not compile" not in failure, failure


def test_the_kernels_as_they_are(monkeypatch):
    """Without a defect, all is right, and every kernel is run by a check; what the command line prints is a line for each.
    On tensor cores in TF32 alone: for others the compiler takes seconds, and test_backends.py has them."""
    quick = {
        family: {name: check for name, check in checks.items() if name[:4] not in ("bf16", "fp16")} or checks
        for family, checks in backends.BY_SOURCE.items()
    }
    monkeypatch.setattr(backends, "BY_SOURCE", quick)
    lines = []
    assert backends.check_kernels(seed=1, write=lines.append, every=False)
    kernels = [k for path in source.folder().glob("*.cu") for k in source.kernels(source.load(path.name))]
    assert sorted(line.split()[1] for line in lines[:-1]) == sorted(kernels)
    assert all(line.split()[2] == "right" for line in lines[:-1])
    assert lines[-1].startswith(f"{len(kernels)} kernels agree with float64")


def test_a_wrong_kernel_gets_a_line(monkeypatch):
    load = source.load
    wrong = lambda name, host=False: load(name, host).replace("k % 2) * channels + c, x)", "k / 2) * channels + c, x)")  # noqa: E731
    monkeypatch.setattr(source, "load", wrong)
    monkeypatch.setattr(backends, "BY_SOURCE", {"resampling": backends.BY_SOURCE["resampling"]})
    lines = []
    assert not backends.check_kernels(write=lines.append)
    assert sum("WRONG" in line for line in lines) > 0
    variants = {line.partition(":")[0].strip() for line in lines[:-1] if line[0] == " "}
    halves = {f"PRECISION={p} VECTOR={n}" for p in ("FP16", "BF16") for n in (8, 1)}
    assert variants == {"VECTOR=4", "VECTOR=1"} | halves
    assert lines[-1].startswith("5 kernels in 6 variants do not all agree")
