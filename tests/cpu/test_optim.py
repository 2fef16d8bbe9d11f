"""tinydiff/cpu/optim.py against the definitions in float64, and the same bits with any number of threads."""

import inspect
import math

import numpy as np
import pytest

from tinydiff import optim
from tinydiff.cpu import optim as fast
from tinydiff.cuda import optim as kernels
from tinydiff.machine.threads import threads

SHAPES = [(3, 4), (), (1,), (0, 2), (400, 700), (37, 5)]  # one larger than a block
STEP, LR, BETAS, EPS = 3, 0.02, (0.8, 0.97), 1e-3
TOLERANCE = {np.float64: 1e-14, np.float32: 1e-6, np.float16: 2e-3}


def contiguous(a):
    return a


def with_gaps(a):
    return a[..., None].repeat(2, -1)[..., 0]


LAYOUTS = [contiguous, np.asfortranarray, with_gaps]


def lists(rng, dtypes, layout=contiguous):
    """For each dtype a list of positive arrays, each list in another layout than the one before."""
    layouts = [layout if i % 2 == 0 else contiguous for i in range(len(dtypes))]
    return [
        [change(rng.uniform(0.1, 1, shape).astype(dtype)) for shape in SHAPES]
        for dtype, change in zip(dtypes, layouts, strict=True)
    ]


def agree(name, arrays, *options, dtype):
    """Calls the fast version with the arrays, the definition with their doubles, and compares all of them."""
    exact = [None if a is None else [x.astype(np.float64) for x in a] for a in arrays]
    result, truth = getattr(fast, name)(*arrays, *options), getattr(optim, name).definition(*exact, *options)
    assert result is not NotImplemented
    for ours, expected in zip(arrays, exact, strict=True):
        for a, e in zip(ours or (), expected or (), strict=True):
            np.testing.assert_allclose(a, e, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    return result, truth


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def spread(request):
    with threads(request.param):
        yield


@pytest.mark.parametrize("name", ["sgd", "adam", "move_averages", "clip", "gathered"])
def test_signatures(name):
    wanted = inspect.signature(getattr(optim, name).definition)
    for shelf in (fast, kernels):
        assert not hasattr(shelf, name) or inspect.signature(getattr(shelf, name)) == wanted


@pytest.mark.usefixtures("spread")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_sgd(dtype, layout, momentum, decay, rng):
    wide = np.result_type(dtype, np.float32)
    p, g, v = lists(rng, (dtype, dtype, wide), layout)
    agree("sgd", [p, g, v if momentum else None], LR, momentum, decay, dtype=dtype)
    assert {a.dtype for a in p} == {np.dtype(dtype)} and {a.dtype for a in v} == {wide}


@pytest.mark.usefixtures("spread")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("averages", [False, True])
@pytest.mark.parametrize(("decay", "decoupled"), [(0.0, False), (0.2, False), (0.0, True), (0.2, True)])
def test_adam(dtype, layout, averages, decay, decoupled, rng):
    wide = np.result_type(dtype, np.float32)
    *arrays, average = lists(rng, (dtype, dtype, wide, wide, wide), layout)
    options = STEP, LR, BETAS, EPS, decay, decoupled, 0.3
    agree("adam", [*arrays, average if averages else None], *options, dtype=dtype)
    for place, of in enumerate([*arrays, average]):
        assert {a.dtype for a in of} == {np.dtype(dtype if place < 2 else wide)}


@pytest.mark.usefixtures("spread")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_move_averages(dtype, layout, rng):
    agree("move_averages", lists(rng, (np.result_type(dtype, np.float32), dtype), layout), 0.7, dtype=dtype)


@pytest.mark.usefixtures("spread")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("max_norm", [5.0, 1e4, math.inf])
def test_clip(dtype, layout, max_norm, rng):
    ours, truth = agree("clip", lists(rng, (dtype,), layout), max_norm, dtype=dtype)
    assert ours == pytest.approx(truth, rel=1e-13) and 300 < ours < 400
    assert fast.clip([], 1.0) == 0


def test_a_gradient_of_higher_precision_than_its_weight(rng):
    arrays = lists(rng, (np.float32, np.float64, np.float32, np.float32))
    agree("adam", [*arrays, None], STEP, LR, BETAS, EPS, 0.1, False, 0.0, dtype=np.float32)


def test_blocks_of_any_size_give_the_same_bits(rng, monkeypatch):
    """What is not a multiple of a block, and sums over blocks but for their rounding."""
    start = lists(rng, [np.float32] * 5)
    results = []
    for size in (fast.ELEMENTS_OF_A_BLOCK, 10_007):
        monkeypatch.setattr(fast, "ELEMENTS_OF_A_BLOCK", size)
        arrays = [[a.copy() for a in of] for of in start]
        with threads(2):
            fast.adam(*arrays, STEP, LR, BETAS, EPS, 0.1, True, 0.3)
            fast.sgd(*arrays[:3], LR, 0.9, 0.1)
            norm = fast.clip(arrays[1], math.inf)
        results.append((norm, [a for of in arrays for a in of]))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-14)
    for a, b in zip(results[0][1], results[1][1], strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_norm_that_is_not_finite_leaves_the_gradients():
    for broken in (np.nan, np.inf):
        gradients = [np.array([broken, 1], np.float32), np.array([5], np.float32)]
        assert not math.isfinite(fast.clip(gradients, 1.0))
        assert gradients[0][1] == 1 and gradients[1][0] == 5


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtypes", [["f4"] * 5, ["f8"] * 5, ["f2", "f2", "f4", "f4", "f4"]], ids=lambda d: "".join(d))
def test_small_arrays_together_have_the_bits_that_each_has_alone(dtypes, layout, rng, monkeypatch):
    shapes = [(3, 4), (), (5,), (0, 2), (120, 100), (70, 60), (64, 64)] + 3 * [(2000,)]
    arrays = [[layout(rng.uniform(0.1, 1, shape).astype(dtype)) for shape in shapes] for dtype in dtypes]
    for gradient in arrays[1]:
        gradient.flags.writeable = False
    results = {}
    for most in (0, fast.ELEMENTS_OF_A_SMALL_ARRAY):
        for name, used, options in (
            ("adam", arrays, (STEP, LR, BETAS, EPS, 0.1, False, 0.9)),
            ("sgd", arrays[:3], (LR, 0.9, 0.1)),
            ("move_averages", [arrays[4], arrays[0]], (0.9,)),
        ):
            monkeypatch.setattr(fast, "ELEMENTS_OF_A_SMALL_ARRAY", most)
            monkeypatch.setattr(fast, "ELEMENTS_OF_A_BLOCK", 5000)  # so that there are several groups
            given = [[layout(np.array(a)) if a.flags.writeable else a for a in column] for column in used]
            getattr(fast, name)(*given, *options)
            results.setdefault(name, []).append(given)
    for alone, together in results.values():
        for column, expected in zip(together, alone, strict=True):
            for a, e in zip(column, expected, strict=True):
                assert a.dtype == e.dtype and a.tobytes() == e.tobytes()


def test_small_arrays_come_in_groups_of_one_type_no_larger_than_a_block(monkeypatch):
    monkeypatch.setattr(fast, "ELEMENTS_OF_A_BLOCK", 5000)
    row = [
        (np.zeros(n, dtype), np.zeros(n))
        for n, dtype in ((2000, "f8"), (2000, "f8"), (2000, "f8"), (9, "f4"), (5000, "f8"))
    ]
    small, large = fast._groups(row)
    assert [len(group) for group in small] == [2, 1] and [len(a) for a, _ in large] == [9, 5000]
