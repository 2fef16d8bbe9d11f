"""tinydiff/cuda/tensor_attention.py against float64 on rounded operands; test_backends.py has more sizes."""

from pathlib import Path

import numpy as np
import pytest

from tests.cuda.test_tensor import wavefronts
from tinydiff.cuda import attending, launch, nvrtc, source, tensor, tensor_attention
from tinydiff.gradcheck.attention_cases import truths
from tinydiff.precision import in_memory

INF = np.float32(np.inf)


def arrays(leading, L, M, D, E, seed=0):
    """Q, K, V and L_Y."""
    rng = np.random.default_rng([seed, L, M, D, E])
    return [rng.standard_normal((*leading, *s)).astype(np.float32) for s in ((L, D), (M, D), (M, E), (L, E))]


def attention(device, Q, K, V, L_Y, scale=0.4, precision="tf32", needs=(True,) * 3, seed=0):
    """Everything that the kernels make of it: z, Y, L_Q, L_K, L_V."""

    def run(Q, K, V, L_Y):
        Y, z = tensor_attention.attend(Q, K, V, scale, precision)
        return z, Y, *tensor_attention.attend_backward(L_Y, Q, K, V, z, scale, needs, precision)

    return device.run(run, *(in_memory(X, precision) for X in (Q, K, V, L_Y)), seed=seed)


def check(device, sizes, precision="tf32", seed=0, spread=1):
    """spread: of the logits."""
    Q, *others = arrays(*sizes, seed=seed)
    ours = attention(device, spread * Q, *others, precision=precision)
    expected = truths(spread * Q, *others, 0.4, precision)
    for (name, truth), a in zip(expected.items(), ours, strict=True):
        largest = np.abs(truth.value).max()
        np.testing.assert_allclose(truth.beside(a), truth.value, rtol=0, atol=4e-6 * largest, err_msg=name)


ODD = [((), 1, 1, 4, 4), ((3,), 17, 64, 20, 16), ((1, 2), 65, 63, 8, 36), ((2,), 16, 16, 12, 264), ((), 3, 256, 8, 8)]


@pytest.mark.parametrize("sizes", ODD, ids=str)
def test_odd_sizes(device, sizes):
    check(device, sizes)


def test_large_logits_lose_nothing(device):
    check(device, ((), 7, 33, 8, 8), spread=30)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_random_sizes(device, precision, seed):
    rng, chunk = np.random.default_rng(seed), 4 if precision == "tf32" else 8
    L, M, D, E = (int(rng.integers(1, n)) for n in (*((65, 65) if seed % 2 else (257, 257)), 12, 40))
    check(device, ((int(rng.integers(1, 3)),), L, M, D * chunk, E * chunk), precision, seed)


def test_the_same_bits_whatever_the_order_of_threads(device):
    inputs = arrays((2,), 65, 130, 16, 8)
    for a, b in zip(attention(device, *inputs, seed=1), attention(device, *inputs, seed=2), strict=True):
        np.testing.assert_array_equal(a, b)


def test_more_queries_than_a_block_has_forward_alone(device):
    Q, K, V, L_Y = arrays((), 300, 9, 8, 8)
    Y, z = device.run(tensor_attention.attend, Q, K, V, 0.4, "tf32")
    expected = truths(Q, K, V, L_Y, 0.4, "tf32")
    for truth, a in ((expected["Y"], Y), (expected["z"], z)):
        np.testing.assert_allclose(truth.beside(a), truth.value, rtol=0, atol=1e-5)
    assert tensor_attention.attend_backward(L_Y, Q, K, V, z, 0.4, (True,) * 3, "tf32") is None


@pytest.mark.parametrize("needs", [(True, False, False), (False, True, False), (False, False, True)], ids=str)
def test_only_the_gradients_that_are_needed(device, needs, monkeypatch):
    inputs, ran, launched = arrays((2,), 9, 5, 8, 12), [], launch.launch
    everything = attention(device, *inputs)
    monkeypatch.setattr(tensor_attention, "launch", lambda *args: (ran.append(args[1]), launched(*args)))
    for need, a, e in zip(needs, attention(device, *inputs, needs=needs)[2:], everything[2:], strict=True):
        if need:
            np.testing.assert_array_equal(a, e)
        else:
            assert a is None
    assert ran[1:] == [
        f"attention_{of}_gradient" for of, yes in (("queries", not needs[2]), ("keys", not needs[0])) if yes
    ]


def test_a_nan_fills_its_query_and_no_other(device):
    Q, K, V, L_Y = arrays((), 70, 9, 8, 8)
    Q[3, 2] = np.nan
    z, Y, L_Q, L_K, L_V = attention(device, Q, K, V, L_Y)
    for a in (z, Y, L_Q):
        assert np.isnan(a[3]).all() and np.isfinite(np.delete(a, 3, 0)).all()
    assert np.isnan(L_K).all() and np.isnan(L_V).all()


def test_infinite_values_and_padding_do_not_meet(device):
    """Keys and queries past the last are zeros, which times infinity would be NaN."""
    Q, K, V, L_Y = arrays((), 9, 5, 8, 8)
    Q[:, 0], K[:, 0] = np.abs(Q[:, 0]) + 1, 1
    K[2, 0] = -INF  # attended to by nobody
    z, Y, _, _, L_V = attention(device, Q, K, V, L_Y)
    others = np.arange(5) != 2
    expected = truths(Q, K[others], V[others], L_Y, 0.4, "tf32")
    np.testing.assert_allclose(z, expected["z"].value, rtol=0, atol=1e-5)
    np.testing.assert_allclose(expected["Y"].beside(Y), expected["Y"].value, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(L_V[2], 0)
    np.testing.assert_allclose(expected["L_V"].beside(L_V[others]), expected["L_V"].value, rtol=0, atol=1e-5)
    V[1, 3] = INF
    _, Y, *_ = attention(device, Q, K, V, L_Y)
    assert (Y[:, 3] == INF).all() and np.isfinite(np.delete(Y, 3, 1)).all()


def test_logits_of_minus_infinity_alone_attend_to_nothing(device):
    Q, K, V, L_Y = np.full((2, 4), 1e30), np.full((7, 4), -1e30), np.ones((7, 4)), np.ones((2, 4))
    z, *zeros = attention(device, *(X.astype(np.float32) for X in (Q, K, V, L_Y)))
    np.testing.assert_array_equal(z, INF)
    for a in zeros:
        np.testing.assert_array_equal(a, 0)
    z, Y, *_ = attention(device, *(X.astype(np.float32) for X in (Q, -K, V, L_Y)))  # and of plus infinity: NaN
    assert (z == INF).all() and np.isnan(Y).all()


def test_views_of_one_array_are_read_where_they_are(device, monkeypatch):
    """As q, k and v side by side; what cannot be read so is copied."""
    together = np.random.default_rng(1).standard_normal((2, 9, 36)).astype(np.float32)
    L_Y = arrays((2,), 9, 9, 8, 12)[3]

    def run(whole, L_Y, copied):
        parts = whole[..., :12], whole[..., 12:24], whole[..., 24:]
        Q, K, V = (p.copy() for p in parts) if copied else parts
        Y, z = tensor_attention.attend(Q, K, V, 0.4, "tf32")
        return Y, z, *tensor_attention.attend_backward(L_Y, Q, K, V, z, 0.4, (True,) * 3, "tf32")

    expected = device.run(run, together, L_Y, True)
    for whole, fits in (
        (together, True),
        (np.asfortranarray(together), False),
        (np.repeat(together, 2, 1)[:, ::2], True),
    ):
        part = device.run(lambda x: tensor_attention._strided(x[..., 12:24])[0].size, whole)
        assert (part > 2 * 9 * 12) == fits or device.name == "cuda"
        for a, e in zip(device.run(run, whole, L_Y, False), expected, strict=True):
            np.testing.assert_array_equal(a, e)
    same = np.broadcast_to(together[:, :1], together.shape)  # rows that are 0 entries apart
    for a, e in zip(device.run(run, same, L_Y, False), device.run(run, same, L_Y, True), strict=True):
        np.testing.assert_array_equal(a, e)
    odd = np.zeros(2 * 9 * 12 + 1, np.float32)[1:].reshape(2, 9, 12)  # begins off 16 bytes
    odd[...] = together[..., :12]
    Y, _ = device.run(tensor_attention.attend, odd, odd, odd, 0.4, "tf32")
    same, _ = device.run(tensor_attention.attend, odd.copy(), odd.copy(), odd.copy(), 0.4, "tf32")
    np.testing.assert_array_equal(Y, same)


VIEWS = {  # of an array (1, 70, 16), and in 16 bits (1, 40, 16): two tiles of rows, or one, and several slices of keys
    "some columns": lambda x: x[..., 8:],
    "two heads side by side": lambda x: x.reshape(1, 70, 2, 8).swapaxes(1, 2),
    "rows from last to first": lambda x: x[:, ::-1, :8],
    "columns off 16 bytes": lambda x: x[..., 1:9],
    "all of it off 16 bytes": lambda x: x.ravel()[1 : 1 + 70 * 8].reshape(1, 70, 8),
}


@pytest.mark.parametrize("name, precision", [*((name, "tf32") for name in VIEWS), ("some columns", "fp16")])
def test_views_have_the_results_of_their_copies(device, name, precision):
    """For all four inputs alike, whether they are read where they are or copied."""

    def run(arrays, copied):
        arrays = [VIEWS[name](X) for X in arrays]
        Q, K, V, L_Y = [X.copy() for X in arrays] if copied else arrays
        Y, z = tensor_attention.attend(Q, K, V, 0.4, precision)
        return Y, z, *tensor_attention.attend_backward(L_Y, Q, K, V, z, 0.4, (True,) * 3, precision)

    shape = 4, 1, 70 if precision == "tf32" else 40, 16
    whole = list(in_memory(np.random.default_rng(1).standard_normal(shape).astype(np.float32), precision))
    for a, e in zip(device.run(run, whole, False), device.run(run, whole, True), strict=True):
        np.testing.assert_array_equal(a, e)


def test_what_is_left_to_others():
    def taken(leading=(), L=4, M=4, D=8, E=8, precision="tf32", as_if=None):
        arrays_ = [in_memory(X, precision) for X in arrays(leading, L, M, D, E)[:3]]
        return tensor_attention.takes(*arrays_, as_if or precision, M)

    assert taken() and taken(M=256) and taken(precision="bf16") and taken(precision="fp16") and taken(D=12)
    assert not taken(M=257) and not taken(D=10) and not taken(E=6) and not taken(precision="bf16", D=12)
    assert not taken(M=0) and not taken(L=0) and not taken(precision="float32")
    assert not taken(as_if="bf16") and not taken(precision="fp16", as_if="tf32")
    Q, K, V, _ = arrays((2,), 4, 4, 8, 8)
    assert not tensor_attention.takes(Q, K[:1], V[:1], "tf32", 4)
    Q, K, V, L_Y = (in_memory(X, "fp16") for X in arrays((), 4, 4, 8, 8))
    rest = Q, K, V, np.zeros((4, 1), np.float32), 0.4, (True,) * 3, "fp16"
    assert tensor_attention.attend_backward(L_Y.astype(np.float32), *rest) is None


def test_a_block_of_tf32_reaches_attention(device, monkeypatch):
    """And float32 is computed by other kernels, as is what is left to them."""
    ran = []
    for module in (tensor_attention, attending.products, tensor):
        launched = module.launch

        def noted(*args, launched=launched, **options):
            ran.append(args[1])
            launched(*args, **options)

        monkeypatch.setattr(module, "launch", noted)

    def run(Q, K, V, L_Y):
        Y, z = attending.attend(Q, K, V, 0.4)
        return Y, attending.attend_backward(L_Y, Q, K, V, z, Y, 0.4)[0]

    def in_tf32(*inputs):
        with tensor.precision("tf32"):
            return run(*inputs)

    kernels = [f"attention_{kernel}" for kernel in ("forward", "queries_gradient", "keys_gradient")]
    for precision, D, expected in (("tf32", 8, True), ("tf32", 6, False), ("float32", 8, False)):
        ran.clear()
        inputs = arrays((), 9, 7, D, 8)
        Y, L_Q = device.run(in_tf32 if precision == "tf32" else run, *inputs)
        assert (ran == kernels) == expected and (expected or not set(kernels) & set(ran))
        truth = truths(*inputs, 0.4, "tf32")
        np.testing.assert_allclose(Y, truth["Y"].value, rtol=0, atol=2e-3)
        np.testing.assert_allclose(L_Q, truth["L_Q"].value, rtol=0, atol=4e-3)


def test_sixteen_bits_go_by_the_arrays(monkeypatch):
    found = []
    monkeypatch.setattr(tensor_attention, "attend", lambda *args: found.append(args[4]))
    monkeypatch.setattr(tensor_attention, "attend_backward", lambda *args: found.append(args[7]))
    arrays_ = [X.astype(np.float16) for X in arrays((), 5, 7, 8, 8)]
    assert attending.attend(*arrays_[:3], 0.4) is NotImplemented
    assert attending.attend_backward(arrays_[3], *arrays_[:3], None, None, 0.4) is NotImplemented
    assert found == ["fp16", "fp16"]


@pytest.mark.parametrize("columns", tensor_attention.COLUMNS)
def test_what_a_block_needs_is_there_on_every_card(columns):
    assert tensor_attention.threads(columns) == columns
    for size in (2, 4):
        assert tensor_attention.shared(columns, size) <= 96 << 10


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["TF32", "BF16"])
def test_no_two_threads_wait_for_one_bank(device, precision):
    """But for pairs of TF32 that are written, 8 bytes each: 16 threads take two cycles instead of one."""
    copied, written = np.zeros((3, 256), np.uint32), np.zeros((32, 256), np.uint32)
    read = np.zeros((3, 4, 256), np.uint32)
    file = str(Path(__file__).with_name("test_tensor_attention.cu"))

    def run(*found):
        launch.launch(
            file, "addresses", (1, 1, 1), (256, 1, 1), found, 0, tensor_attention.defines(256, precision.lower())
        )
        return found

    copied, read, written = device.run(run, copied, read, written)
    assert {wavefronts(each) for each in copied.reshape(-1, 8).tolist()} == {1}
    for operand in range(3):
        words = precision == "TF32" and operand == 2
        assert {wavefronts(each) for each in read[operand].reshape(-1, 32 if words else 8).tolist()} == {1}
    if precision == "TF32":
        halves = [[*each, *(a + 4 for a in each)] for each in written.reshape(-1, 16).tolist()]
        assert {wavefronts(each) for each in halves} == {2}
    else:
        assert {wavefronts(each) for each in written.reshape(-1, 32).tolist()} == {1}
    assert len(set(written.ravel().tolist())) == written.size, "every pair has a place of its own"


@pytest.mark.slow
@pytest.mark.skipif(nvrtc.missing() is not None, reason=str(nvrtc.missing()))
@pytest.mark.parametrize("architecture", [a for a in nvrtc.ARCHITECTURES if a >= tensor.OLDEST])
@pytest.mark.parametrize("variant", tensor_attention.VARIANTS, ids=lambda v: " ".join(source.flags(v[1])))
def test_every_variant_compiles_without_spills(architecture, variant):
    ((_, defines, usages),) = nvrtc.compile_variants([architecture], [variant])
    assert isinstance(usages, list), usages
    size = 4 if defines["PRECISION"] == "TF32" else 2
    for usage in usages:
        assert not usage.spills and usage.registers <= 240, usage
        assert usage.shared + tensor_attention.shared(defines["TILE_N"], size) <= 99 << 10
