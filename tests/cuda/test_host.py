"""kernels/host.h and host/*: what CUDA promises holds on the host, and what it forbids is reported."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tinydiff.cuda import host, source
from tinydiff.cuda.launch import launch
from tinydiff.cuda.source import KernelError
from tinydiff.dispatch import on_host

pytestmark = pytest.mark.skipif(host.missing() is not None, reason=str(host.missing()))

SOURCE = Path(__file__).with_name("test_host.cu")


def run(kernel, grid, block, *args, **options):
    """Runs a kernel of SOURCE."""
    grid, block = ((*x, 1, 1)[:3] if isinstance(x, tuple) else (x, 1, 1) for x in (grid, block))
    launch(str(SOURCE), kernel, grid, block, args, **options)


def floats(*shape):
    return np.full(shape, np.nan, np.float32)


def test_indices():
    grid, block = (2, 3, 4), (3, 2, 5)
    Y = np.full((24 * 30, 12), -1, np.int32)
    run("indices", grid, block, Y)
    expected = [
        (tx, ty, tz, bx, by, bz, *block, *grid)
        for bz in range(4) for by in range(3) for bx in range(2)
        for tz in range(5) for ty in range(2) for tx in range(3)
    ]  # fmt: skip
    np.testing.assert_array_equal(Y, expected)


def test_values_of_every_kind():
    Y = floats(6)
    bytes_ = np.array([7, 255], np.uint8)
    run("values", 1, 1, Y, np.float32(0.5), np.int32(-3), np.uint32(2**31), np.uint64(0x123456789ABCDEF), bytes_, None)
    assert Y.tolist() == [0.5, -3, 2**31, 1, 255, 1]


def test_barriers(rng):
    X, Y = rng.normal(size=(3, 256)).astype(np.float32), floats(3, 256)
    for n in (1, 2, 7):
        run("reverse", 3, 256, X, Y, np.int32(n), np.int32(1))
        expected = (X[:, ::-1] if n % 2 else X).copy()
        for _ in range(n):
            expected += 1
        np.testing.assert_allclose(Y, expected, rtol=0, atol=1e-5)


def test_a_missing_barrier_shows_and_depends_on_the_order():
    X = np.zeros((3, 256), np.float32)
    results = []
    for seed in (0, 0, 1):
        Y = floats(3, 256)
        with on_host(seed):
            run("reverse", 3, 256, X, Y, np.int32(6), np.int32(0))
        assert not (Y == 6).all()
        results.append(Y)
    np.testing.assert_array_equal(results[0], results[1])
    assert (results[0] != results[2]).any()


def test_shared_memory_is_poisoned_in_every_block():
    Y, Z = np.zeros((5, 32), np.float32), np.zeros(5, np.int32)
    run("poison", 5, 32, Y, Z, shared=128)
    assert np.isnan(Y).all()
    assert (Z == -1).all()


@pytest.mark.parametrize("mask, distance", [(1, 1), (16, 31), (21, 0)])
def test_shuffles(rng, mask, distance):
    X, Y, Z = rng.normal(size=64).astype(np.float32), floats(5, 64), np.zeros(64, np.int32)
    run("shuffles", 1, 64, X, Y, Z, np.int32(mask), np.int32(distance))
    warps, lane = X.reshape(2, 32), np.arange(32)
    np.testing.assert_array_equal(Y[0].reshape(2, 32), warps[:, lane ^ mask])
    np.testing.assert_array_equal(Y[1].reshape(2, 32), warps[:, np.where(lane + distance < 32, lane + distance, lane)])
    np.testing.assert_array_equal(Y[2].reshape(2, 32), warps[:, (3 * lane + 1) % 32])
    sums = Y[3].reshape(2, 32)
    np.testing.assert_allclose(sums[:, 0], warps.sum(1, dtype=np.float64), rtol=0, atol=1e-5)
    assert (sums == sums[:, :1]).all()
    np.testing.assert_array_equal(Y[4].reshape(2, 32), np.broadcast_to(warps.max(1, keepdims=True), (2, 32)))
    np.testing.assert_array_equal(Z, (np.arange(64) ^ mask) - 100)


def test_copies_land_at_the_wait_and_not_before():
    X, Y = np.arange(128, dtype=np.float32), np.zeros(320, np.float32)
    run("copies", 1, 32, X, Y, np.int32(100))
    assert np.isnan(Y[:128]).all()  # issued: the old content is gone, the new one is not there
    np.testing.assert_array_equal(Y[128:256], np.where(X < 100, X, 0))
    assert np.isnan(Y[256:288]).all()  # of the second group, which may still be on its way
    np.testing.assert_array_equal(Y[288:], X[:32])
    run("copies", 1, 32, X, Y, np.int32(8), defines={"WAIT": 1})
    assert np.isnan(Y[288:]).all()


def test_copies_that_are_not_valid_read_nothing():
    Y = np.zeros(320, np.float32)
    run("copies", 1, 32, np.ones(8, np.float32), Y, np.int32(8))  # 120 elements less than valid copies would read
    assert Y[128:256].sum() == 8 and Y[288:].sum() == 8


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(transposed):
    X, Y = np.arange(256, dtype=np.uint16).reshape(4, 8, 8), np.zeros((32, 4), np.uint32)
    run("matrices", 1, 32, X, Y, np.int32(transposed))
    pairs, matrices = Y.view(np.uint16).reshape(32, 4, 2), X.swapaxes(1, 2) if transposed else X
    for lane in range(32):
        np.testing.assert_array_equal(pairs[lane], matrices[:, lane // 4, 2 * (lane % 4) : 2 * (lane % 4) + 2])


def round_mantissa(x, bits, ties_to_even):
    """float32 rounded to the given bits of mantissa (implicit one not counted), by way of float64."""
    mantissa, exponent = np.frexp(x.astype(np.float64))
    scaled = mantissa * 2.0 ** (bits + 1)
    whole = np.rint(scaled) if ties_to_even else np.trunc(scaled + np.copysign(0.5, scaled))
    return np.ldexp(whole, exponent - bits - 1)


def test_rounding_to_16_bits_and_tf32(rng):
    X = rng.normal(size=32).astype(np.float32)
    X.view(np.uint32)[:4] = 0x3F808000, 0x3F818000, 0x3F801000, 0x3F803000  # halfway, with even and odd neighbours
    X[4:7] = 0, -0.0, np.inf
    # fp16: the largest, halfway to the next, above, halfway between small multiples of 2^-24, half of the smallest, the
    # largest below 2^-14, halfway to it
    X[7:15] = 65504, 65520, -65519, 2.5 * 2**-24, 3.5 * 2**-24, 2**-25, 1023 * 2**-24, 1023.5 * 2**-24
    Y, Z = np.zeros((32, 3), np.uint32), floats(32, 4)
    run("rounding", 1, 32, X, Y, Z)
    low, high = (Y[:, 0] << 16).view(np.float32), (Y[:, 0] & 0xFFFF0000).view(np.float32)
    np.testing.assert_array_equal(low, round_mantissa(X, 7, ties_to_even=True))
    np.testing.assert_array_equal(high, -low)
    halves = np.ascontiguousarray(Y[:, 1]).view(np.float16).reshape(32, 2)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(halves, np.stack([X, -X], 1).astype(np.float16))
    np.testing.assert_array_equal(Y[:, 2].copy().view(np.float32), round_mantissa(X, 10, ties_to_even=False))
    np.testing.assert_array_equal(Z, np.stack([low, high, *halves.T.astype(np.float32)], 1))


def test_every_fp16_is_the_same_as_float32_and_back():
    every = np.arange(2**16, dtype=np.uint32).astype(np.uint16).view(np.float16)
    X = every[np.isfinite(every)].astype(np.float32)
    Y, Z = np.zeros((len(X), 3), np.uint32), floats(len(X), 4)
    run("rounding", len(X) // 32, 32, X, Y, Z)
    np.testing.assert_array_equal(Z[:, 2], X)
    np.testing.assert_array_equal(np.signbit(Z[:, 2]), np.signbit(X))
    run("rounding", 1, 32, np.full(32, np.nan, np.float32), Y, Z)
    assert np.isnan(Z[:32]).all()


@pytest.mark.parametrize("kind, K", [("bf16", 16), ("fp16", 16), ("tf32", 8)])
def test_products_of_matrices(rng, kind, K):
    A, B, D = (rng.normal(size=shape).astype(np.float32) for shape in ((16, K), (K, 8), (16, 8)))
    if kind == "bf16":
        a, b = (round_mantissa(x, 7, ties_to_even=True) for x in (A, B))
    elif kind == "fp16":
        a, b = (x.astype(np.float16).astype(float) for x in (A, B))
    else:  # the low 13 bits of an operand do not count; those of B were rounded away
        a, b = (A.view(np.uint32) & ~np.uint32(0x1FFF)).view(np.float32), round_mantissa(B, 10, ties_to_even=False)
    expected = a @ b + D
    if kind == "tf32":
        run("product_tf32", 1, 32, A, B, D)
    else:
        run("product_16_bits", 1, 32, A, B, D, np.int32(kind == "fp16"))
    np.testing.assert_allclose(D, expected, rtol=0, atol=2e-6)


def test_blocks_hand_on_what_they_wrote():
    X = np.random.default_rng(0).integers(0, 9, (5, 64)).astype(np.float32)
    for seed in range(3):
        Y, counter = floats(64), np.zeros(1, np.uint32)
        with on_host(seed):
            run("hand_on", 5, 64, X, floats(5, 64), Y, counter, np.int32(64))
        np.testing.assert_array_equal(Y, X.sum(0))
        assert counter[0] == 5
    with pytest.raises(KernelError, match=r"count at test_host.cu:\d+, and thread \(63, 0, 0\) has not called fence"):
        run("hand_on", 5, 64, X, floats(5, 64), Y, counter, np.int32(63))


def test_functions_are_accurate(rng):
    X, Y = rng.uniform(0.1, 5, 32).astype(np.float32), floats(32, 7)
    run("functions", 1, 32, X, Y)
    x = X.astype(np.float64)
    exact = [np.exp(x), np.log(x), np.sqrt(x), 1 / np.sqrt(x), np.tanh(x), np.sin(x), np.cos(x)]
    np.testing.assert_allclose(Y, np.stack(exact, 1), rtol=3e-7, atol=1e-7)


MISTAKES = {
    "reads past the end": (0, 1, r"thread \(31, 0, 0\): reads or writes X\[32\], and it has 32 elements"),
    "reads far past the end": (0, 1000, r"reads or writes X\[10\d\d\], and it has 32"),
    "reads far before the start": (0, -2000000, r"reads or writes X\[-1999\d\d\d\], and it has 32"),
    "writes past the end": (1, 1, r"reads or writes Y\[32\], and it has 32 elements"),
    "writes before the start": (1, -1, r"writes to Y\[-1\], and it has 32 elements"),
    "writes far before the start": (1, -5000, r"reads or writes Y\[-4\d\d\d\], and it has 32 elements"),
    "writes to const": (2, 0, "writes to X, which is const"),
    "an index in a row": (3, 2, r"an index is outside of its array \(test_host.cu:\d+\)"),
    "past shared memory": (4, 1, r"reads or writes shared memory line\[32\], and it has 32"),
    "before shared memory": (4, -1, r"writes to shared memory line\[-1\], and it has 32"),
    "misaligned float2": (5, 1, r"an address is not a multiple .*\(test_host.cu:\d+\)"),
    "division by zero": (6, 0, "an integer is divided by zero"),
    "an index that overflows": (7, 1, "a signed product overflows"),
    "a shift by all bits": (8, 32, "a shift is by"),
    "a misaligned copy": (9, 1, r"cp_async16 at test_host.cu:\d+ needs addresses that are multiples of 16"),
    "a copy past the end": (9, 32, r"reads or writes X\[32\], and it has 32 elements"),
    "a copy to global memory": (10, 0, r"cp_async4 at test_host.cu:\d+ writes outside of shared memory"),
    "a misaligned matrix": (11, 1, "ldmatrix needs rows at multiples of 16 bytes"),
    "a matrix in part outside": (11, 32, "ldmatrix reads a row outside of shared memory"),
    "a matrix in global memory": (12, 0, "ldmatrix reads a row outside of shared memory"),
    "a misaligned matrix, transposed": (16, 1, "ldmatrix needs rows at multiples of 16 bytes"),
    "a matrix in global memory, transposed": (17, 0, "ldmatrix reads a row outside of shared memory"),
    "past dynamic shared memory": (13, 1000000, r"shared memory \(dynamic\)\[\d+\], and it has 128"),
    "writes past dynamic shared memory": (14, 1, r"writes to shared memory \(dynamic\)\[128\]"),
    "an address of nothing": (15, 1, "belongs to none of its arrays"),
}


def needs_alignment_checks():
    if "clang" in host._compiler_version():
        pytest.skip("clang does not check the alignment of structures that are copied whole")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_reported(mistake):
    if mistake == "misaligned float2":
        needs_alignment_checks()
    which, n, sentence = MISTAKES[mistake]
    X, Y = np.ones(32, np.float32), np.zeros(32, np.float32)
    with pytest.raises(KernelError, match=f"test_host.cu: kernel mistakes, block \\(0, 0, 0\\).*{sentence}"):
        run("mistakes", 1, 32, X, Y, np.int32(n), np.int32(which), shared=128)
    assert (Y == 0).all() and (X == 1).all()  # a kernel that failed leaves nothing
    run("mistakes", 1, 32, X, Y, np.int32(0), np.int32(0), shared=128)  # and the next one runs
    assert (Y == 1).all()


def test_reads_before_the_start_give_nan():
    Y = np.zeros(32, np.float32)
    run("mistakes", 1, 32, np.ones(32, np.float32), Y, np.int32(-1), np.int32(0), shared=128)
    assert np.isnan(Y[0]) and (Y[1:] == 1).all()


def test_absent_arrays_are_named():
    with pytest.raises(KernelError, match=r"follows a null pointer \(absent: X\)"):
        run("mistakes", 1, 32, None, np.zeros(32, np.float32), np.int32(0), np.int32(0), shared=128)


def test_arrays_keep_their_alignment():
    """A view that starts at an odd element is as misaligned for the kernel as it would be on a GPU."""
    needs_alignment_checks()
    Y = np.zeros(33, np.float32)
    run("mistakes", 1, 32, np.ones(32, np.float32), Y[:32], np.int32(0), np.int32(5), shared=128)
    with pytest.raises(KernelError, match="not a multiple"):
        run("mistakes", 1, 32, np.ones(32, np.float32), Y[1:], np.int32(0), np.int32(5), shared=128)


def test_an_array_given_twice_is_one_and_overlaps_are_refused():
    X = np.arange(256, dtype=np.float32)
    run("reverse", 1, 256, X, X, np.int32(1), np.int32(1))
    np.testing.assert_array_equal(X, np.arange(256, 0, -1))
    base = np.zeros(300, np.float32)
    with pytest.raises(KernelError, match="its arrays X and Y overlap in part"):
        run("reverse", 1, 256, base[:256], base[10:266], np.int32(1), np.int32(1))


def test_deadlocks_say_who_waits_for_what():
    line = SOURCE.read_text().splitlines().index("KERNEL(ends_early, 64)(float* Y, int n) {") + 3
    with pytest.raises(KernelError) as caught:
        run("ends_early", 1, 64, floats(64), np.int32(7))
    assert str(caught.value).endswith(
        "test_host.cu: kernel ends_early, block (0, 0, 0): deadlock: thread (0, 0, 0) of warp 0 and 6 more ended; "
        f"thread (7, 0, 0) of warp 0 and 56 more wait at __syncthreads (test_host.cu:{line})"
    )
    with pytest.raises(KernelError, match=r"deadlock: thread \(0, 0, 0\) of warp 0 ended; thread \(1, 0, 0\)"):
        run("ends_early", 1, 64, floats(64), np.int32(1))


def test_divergence_is_reported():
    with pytest.raises(
        KernelError, match=r"diverged barriers: it is at __syncthreads \(test_host.cu:\d+\), thread .* at that of"
    ):
        run("two_barriers", 1, 64, floats(64), np.int32(5))
    with pytest.raises(KernelError, match=r"warp 1 diverged: it is at a shuffle \(.*other lanes are at a shuffle \("):
        run("two_shuffles", 1, 64, floats(64), np.int32(40))
    with pytest.raises(KernelError, match=r"deadlock: .* wait at a shuffle \(.*wait at __syncthreads"):
        run("shuffle_or_barrier", 1, 64, floats(64), np.int32(5))
    for kernel in ("two_barriers", "two_shuffles"):  # whole warps, or all threads, on one side
        run(kernel, 1, 64, floats(64), np.int32(64))
    run("two_shuffles", 1, 64, floats(64), np.int32(32))


def test_collectives_need_whole_warps():
    with pytest.raises(KernelError, match="a shuffle in warp 1, which has only 8 lanes"):
        run("two_shuffles", 1, 40, floats(64), np.int32(64))


def test_limits():
    with pytest.raises(KernelError, match="uses more than 64 KiB of local memory"):
        run("large", 1, 32, floats(32), np.int32(1))
    with pytest.raises(KernelError, match="blocks of 128 threads, and it is declared for at most 64"):
        run("ends_early", 1, 128, floats(128), np.int32(0))
    with pytest.raises(KernelError, match="bytes of shared memory, and there are at most 232448"):
        run("poison", 1, 32, floats(32), np.zeros(1, np.int32), shared=240000)


def test_blocks_use_the_stacks_of_earlier_ones():
    """A new stack is a new page at least, and the system counts those: 256,000 if each of these threads had its own."""
    resource = pytest.importorskip("resource", reason="this system does not count pages")
    Y = floats(1000)
    run("many_barriers", 1, 256, Y, np.int32(20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run("many_barriers", 1000, 256, Y, np.int32(20))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 25_600
    assert (Y == 45).all()


def test_sources_use_the_same_stacks():
    """Linux gives a process some 65,000 mappings of memory; a stack and its protected page take two."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not tell mappings")
    Y = floats(1)
    run("many_barriers", 1, 256, Y, np.int32(1), defines={"WAIT": 0})
    before = maps.read_text().count("\n")
    run("many_barriers", 1, 256, Y, np.int32(1), defines={"WAIT": 1})
    assert maps.read_text().count("\n") - before < 128


def test_the_c_librarys_fibers_do_as_well(monkeypatch):
    """Where nobody wrote a change of stacks for the processor."""
    monkeypatch.setattr(host, "FLAGS", (*host.FLAGS, "-DTD_OWN_SWITCH=0"))
    host._library.cache_clear()
    X = np.arange(256, dtype=np.float32)
    Y = floats(256)
    run("reverse", 1, 256, X, Y, np.int32(7), np.int32(1))
    np.testing.assert_array_equal(Y, X[::-1] + 7)
    with pytest.raises(KernelError, match="deadlock"):
        run("ends_early", 1, 64, floats(64), np.int32(7))
    with pytest.raises(KernelError, match=r"reads or writes X\[32\]"):
        run("mistakes", 1, 32, X[:32].copy(), floats(32), np.int32(1), np.int32(0), shared=128)
    host._library.cache_clear()


def test_the_process_keeps_its_own_signal_handlers():
    """A segmentation fault that is not a kernel's still ends the process as ever."""
    code = (
        "import faulthandler, numpy as np\n"
        "from tinydiff.cuda.launch import launch\n"
        f"launch({str(SOURCE)!r}, 'ends_early', (1, 1, 1), (64, 1, 1), (np.zeros(64, 'f4'), np.int32(0)))\n"
        "print('ran', flush=True)\n"
        "faulthandler._sigsegv()\n"
    )
    root = str(source.folder().parent)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.stdout.strip() == "ran"
    assert done.returncode == -11


def test_messages_of_the_compiler_point_into_the_source(tmp_path):
    path = tmp_path / "wrong.cu"
    path.write_text('#include "tinydiff.cuh"\n\nKERNEL(wrong, 32)(float* Y) {\n    Y[0] = nothing;\n}\n')
    with pytest.raises(KernelError, match=r"(?s)wrong\.o does not compile on the host:.*wrong\.cu:4:.*nothing"):
        launch(str(path), "wrong", (1, 1, 1), (32, 1, 1), (floats(1),))


def test_without_a_compiler_a_sentence_says_so(monkeypatch):
    monkeypatch.setattr(host, "compiler", lambda: None)
    host._library.cache_clear()
    with pytest.raises(KernelError, match=re.escape("install g++ or clang++, or set CXX")):
        run("ends_early", 1, 64, floats(64), np.int32(0))
    host._library.cache_clear()


@pytest.mark.parametrize("writable", [True, False])
def test_the_cache_is_where_the_user_wants_it(monkeypatch, tmp_path, writable):
    home = tmp_path if writable else tmp_path / "file" / "below"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    folder = host.cache_folder.__wrapped__()
    assert folder.is_dir()
    assert (folder == tmp_path / "tinydiff" / "kernels") == writable


@pytest.mark.slow
def test_processes_that_compile_at_once_do_not_meet(tmp_path):
    path = tmp_path / "both.cu"
    path.write_text('#include "tinydiff.cuh"\nKERNEL(one, 1)(float* Y) { Y[0] = 1; }\n')
    code = (
        "import numpy as np\nfrom tinydiff.cuda.launch import launch\nY = np.zeros(1, 'f4')\n"
        f"launch({str(path)!r}, 'one', (1, 1, 1), (1, 1, 1), (Y,))\nassert Y[0] == 1\n"
    )
    env = {"XDG_CACHE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin:/usr/local/bin"}
    root = str(source.folder().parent)
    both = [subprocess.Popen([sys.executable, "-c", code], cwd=root, env=env) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    cached = sorted(p.name.partition("-")[2] for p in (tmp_path / "tinydiff" / "kernels").iterdir())
    assert cached == ["both.o", "both.so", "runtime.o"]
