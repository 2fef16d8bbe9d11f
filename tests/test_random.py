"""tinydiff/random.py: Random123's known answers, the layout of draws against Philox in plain Python integers, and
distributions with a stated chance of failing."""

import math

import numpy as np
import pytest

from tinydiff import random
from tinydiff.random import Generator, philox4x32

# Random123 1.14, tests/kat_vectors, "philox4x32 10": counter, key, result
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def hexadecimal(words):
    return [int(word, 16) for word in words.split()]


def philox(counter, key):
    """Philox4x32-10 of one counter, in Python integers (Salmon et al., 2011, section 3.3)."""
    a, b, c, d = counter
    k, m = key
    for _ in range(10):
        left, right = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (right >> 32) ^ b ^ k, right % 2**32, (left >> 32) ^ d ^ m, left % 2**32
        k, m = (k + 0x9E3779B9) % 2**32, (m + 0xBB67AE85) % 2**32
    return [a, b, c, d]


def expected_words(seed, stream, step, offset, n):
    words = []
    for block in range(offset, offset - (-n // 4)):
        words += philox([block % 2**32, block >> 32, step, stream], [seed % 2**32, seed >> 32])
    return words[:n]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_known_answers(counter, key, result):
    counter, key, result = map(hexadecimal, (counter, key, result))
    assert philox(counter, key) == result
    columns = np.array([counter, counter, [0, 0, 0, 0]], np.uint32).T
    before = columns.copy()
    out = philox4x32(columns, tuple(key))
    assert out.dtype == np.uint32
    assert out[:, 0].tolist() == out[:, 1].tolist() == result
    assert out[:, 2].tolist() == philox([0] * 4, key)
    np.testing.assert_array_equal(columns, before)


def test_generator_gives_the_first_known_answer():
    assert Generator(0).words(4).tolist() == hexadecimal(KNOWN_ANSWERS[0][2])


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 0x299F31D0A4093822, 2**64 - 1])
@pytest.mark.parametrize(
    ("stream", "step", "offset"), [(0, 0, 0), (4, 7, 3), (8, 2**32 - 1, 2**32 - 2), (2**32 - 1, 5, 2**40)]
)
def test_layout_of_key_and_counter(seed, stream, step, offset):
    words = Generator(seed, stream, step, offset).words(23)
    assert words.dtype == np.uint32
    assert words.tolist() == expected_words(seed, stream, step, offset, 23)


def test_a_long_draw_is_the_sequence_of_its_blocks():
    n = 4 * 70_000 + 1
    words = Generator(5, 1, 2).words(n)
    assert words.shape == (n,)
    for block in (0, 1, 16_383, 16_384, 16_385, 32_768, 65_535, 65_536, 69_999, 70_000):
        assert words[4 * block : 4 * block + 4].tolist() == expected_words(5, 1, 2, block, 4 if block < 70_000 else 1)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 7, 8, 9, 1001])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_draw_of_n_elements_advances_the_offset_by_a_quarter_rounded_up(n, dtype):
    for draw in (
        lambda g: g.words(n),
        lambda g: g.uniform(n, dtype),
        lambda g: g.normal((n,), dtype),
        lambda g: g.integers(3, 9, (n, 1)),
    ):
        generator = Generator(3, 2, 1, 10)
        assert len(draw(generator)) == n
        assert generator.offset == 10 + math.ceil(n / 4)


@pytest.mark.parametrize("method", ["uniform", "normal"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_draws_split_at_multiples_of_four_equal_one_draw(method, dtype):
    whole, parts = Generator(11), Generator(11)
    one = getattr(whole, method)(4 * 5 + 3, dtype)
    several = [getattr(parts, method)(n, dtype) for n in (4, 12, 4, 3)]
    np.testing.assert_array_equal(one, np.concatenate(several))
    assert whole.state == parts.state


def test_element_j_comes_from_word_j():
    words = np.array(expected_words(9, 4, 2, 0, 41), np.float64)
    uniform = Generator(9).at(4, 2).uniform(41, np.float64)
    assert np.abs(uniform - words / 2**32).max() <= 2.0**-32
    integers = Generator(9).at(4, 2).integers(0, 2**32, 41)
    np.testing.assert_array_equal(integers, words.astype(np.int64))
    first, second = words[0:40:2], words[1:40:2]
    radius, angle = np.sqrt(-2 * np.log((first + 0.5) / 2**32)), 2 * np.pi * (second + 0.5) / 2**32
    normal = Generator(9).at(4, 2).normal(40, np.float64)
    np.testing.assert_allclose(normal[0::2], radius * np.cos(angle), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(normal[1::2], radius * np.sin(angle), rtol=1e-12, atol=1e-12)


def test_at_starts_another_stream_and_step_at_offset_zero():
    generator = Generator(77, 3, 4)
    generator.normal(100)
    state = generator.state
    other = generator.at(random.NOISE, 12)
    assert other.state == (77, 4, 12, 0)
    assert generator.state == state, "at() must not touch the generator it is called on"
    np.testing.assert_array_equal(other.normal(10), Generator(77, 4, 12).normal(10))
    assert generator.at(5).state == (77, 5, 0, 0)


def test_streams_are_numbered_as_agreed():
    streams = (
        random.INIT, random.DATA_ORDER, random.FLIPS, random.TIME, random.NOISE, random.DROPOUT, random.LABEL_DROPOUT,
        random.SAMPLING, random.PREVIEWS,
    )  # fmt: skip
    assert streams == tuple(range(9))


def test_the_state_is_all_there_is():
    generator = Generator(123, 1, 2)
    generator.normal(17)
    copy = Generator(*generator.state)
    assert (generator.seed, generator.stream, generator.step, generator.offset) == (123, 1, 2, 5)
    np.testing.assert_array_equal(generator.uniform(9), copy.uniform(9))
    assert generator.state == copy.state


def test_words_of_many_steps_are_those_of_each(monkeypatch):
    monkeypatch.setattr(random, "_BLOCKS_AT_ONCE", 5)  # so that there are several runs
    for n in (0, 1, 4, 7, 25):
        rows = random.words_of_steps(2**40 + 7, 3, range(9, 14), n)
        assert rows.shape == (5, n)
        for step, row in zip(range(9, 14), rows, strict=True):
            np.testing.assert_array_equal(row, Generator(2**40 + 7, 3, step).words(n))


def test_a_clock_moves_step_and_offset():
    clock = np.array([3, 1000], np.uint32)
    moving, there = Generator(7, 2, 5, 2**32 - 2, clock), Generator(7, 2, 8, 2**32 + 998)
    np.testing.assert_array_equal(moving.words(9), there.words(9))
    assert moving.state[4] is clock and moving.at(4, 1).clock is clock
    clock[0] = 4
    np.testing.assert_array_equal(moving.normal(8), Generator(7, 2, 9, there.offset).normal(8))


def test_every_part_of_the_state_matters():
    states = [(1, 0, 0, 0), (2, 0, 0, 0), (1 + 2**32, 0, 0, 0), (1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 16)]
    draws = [Generator(*state).words(64) for state in states]
    assert len({draw.tobytes() for draw in draws}) == len(draws)


# Distributions. With fixed seeds these are deterministic; the bounds below would fail a perfect generator with a
# probability under 1e-6 each (5 standard errors; for Kolmogorov-Smirnov 2 exp(-2 d^2) with d = 2.7).

N = 400_000


def kolmogorov_smirnov(sample, cdf):
    """sqrt(n) times the largest distance between the sample's and the given distribution function."""
    values = cdf(np.sort(sample))
    n = len(sample)
    grid = np.arange(n + 1) / n
    return math.sqrt(n) * max((grid[1:] - values).max(), (values - grid[:-1]).max())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_uniform_is_uniform_on_the_half_open_interval(dtype):
    u = Generator(1).uniform((N // 4, 4), dtype)
    assert u.dtype == dtype
    assert u.shape == (N // 4, 4)
    assert u.min() >= 0
    assert u.max() < 1
    u = u.reshape(-1).astype(np.float64)
    assert abs(u.mean() - 1 / 2) < 5 * math.sqrt(1 / 12 / N)
    assert abs(u.var() - 1 / 12) < 5 * math.sqrt(1 / 180 / N)
    assert kolmogorov_smirnov(u, lambda x: x) < 2.7
    for lag in (1, 2, 3, 4):
        assert abs(np.mean((u[lag:] - 0.5) * (u[:-lag] - 0.5))) < 5 / 12 / math.sqrt(N)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_normal_is_normal(dtype):
    z = Generator(2).normal(N, dtype)
    assert z.dtype == dtype
    z = z.astype(np.float64)
    assert np.isfinite(z).all()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(np.mean(z**power) - moment) < 5 * math.sqrt(variance / N)
    cdf = np.vectorize(lambda x: 0.5 * math.erfc(-x / math.sqrt(2)))
    assert kolmogorov_smirnov(z[: N // 8], cdf) < 2.7
    for lag in (1, 2, 3, 4):  # neighbours come from one pair of words and must still be uncorrelated
        assert abs(np.mean(z[lag:] * z[:-lag])) < 5 / math.sqrt(N)
        assert abs(np.mean(z[lag:] ** 2 * z[:-lag] ** 2) - 1) < 5 * math.sqrt(8 / N)
    assert np.abs(z).max() > 4  # P(none of 400,000 beyond 4) = 1e-11


def test_float32_and_float64_normals_agree_to_rounding():
    single, double = Generator(3).normal(100_000, np.float32), Generator(3).normal(100_000, np.float64)
    error = np.abs(single - double)
    assert np.median(error) < 2e-7
    assert np.quantile(error, 0.99) < 3e-6
    # sqrt(-2 log u) has an infinite slope at u = 1: half a unit in the last place there is worth sqrt(2 * 2^-24)
    assert error.max() <= 1.01 * math.sqrt(2 * 2.0**-24)


def test_extreme_words_give_finite_normals(monkeypatch):
    words = np.array([0, 0, 0, 2**32 - 1, 2**32 - 1, 0, 2**32 - 1, 2**32 - 1], np.uint32)
    monkeypatch.setattr(Generator, "words", lambda self, n, device="cpu": words[:n].copy())
    for dtype in (np.float32, np.float64):
        assert np.isfinite(Generator(0).normal(8, dtype)).all()
        assert Generator(0).uniform(8, dtype).max() < 1
    assert Generator(0).integers(-3, 3, 8).tolist() == [-3, -3, -3, 2, 2, -3, 2, 2]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 2), (1, 1001), (-5, 5), (0, 7)])
def test_integers_are_uniform(low, high):
    values = Generator(4).integers(low, high, N)
    assert values.dtype == np.int64
    assert values.min() == low
    assert values.max() == high - 1
    k = high - low
    counts = np.bincount(values - low, minlength=k)
    chi_square = ((counts - N / k) ** 2 / (N / k)).sum()
    assert abs(chi_square - (k - 1)) <= 6 * math.sqrt(2 * (k - 1))


def test_numpy_integers_as_bounds_and_state():
    expected = Generator(4, 1, 2).integers(3, 10, 50)
    generator = Generator(np.uint64(4)).at(np.int32(1), np.int64(2))
    np.testing.assert_array_equal(generator.integers(np.int64(3), np.int64(10), np.int64(50)), expected)
    np.testing.assert_array_equal(Generator(4, 1, 2).integers(3, np.int32(10), (50,)), expected)


@pytest.mark.parametrize(
    "misuse", [lambda: Generator(1.5), lambda: Generator(0).normal(-3), lambda: Generator(0).normal((2.5,))]
)
def test_fractions_and_negative_sizes_are_refused(misuse):
    with pytest.raises((TypeError, ValueError)):
        misuse()


def test_integers_over_the_whole_range_of_a_word():
    values = Generator(4).integers(-(2**31), 2**31, 1000)
    assert values.min() < -(2**30)
    assert values.max() > 2**30


@pytest.mark.parametrize("n", [0, 1, 2, 5, 1000])
def test_permutation_holds_every_index_once(n):
    order = Generator(6).permutation(n)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(n))
    np.testing.assert_array_equal(order, Generator(6).permutation(n))


def test_permutation_sorts_64_bit_keys():
    """Which order a seed gives is part of what a run can be repeated from."""
    words = [int(w) for w in Generator(6, 1, 3).words(2 * 50)]
    keys = [(words[2 * i] << 32) + words[2 * i + 1] for i in range(50)]
    assert Generator(6, 1, 3).permutation(50).tolist() == sorted(range(50), key=keys.__getitem__)


def test_permutations_of_four_are_equally_likely():
    generator = Generator(8)
    counts = {}
    for _ in range(4800):
        order = tuple(generator.permutation(4))
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    assert sum((c - 200) ** 2 / 200 for c in counts.values()) < 23 + 6 * math.sqrt(46)


def test_successive_permutations_differ():
    generator = Generator(6)
    assert (generator.permutation(100) != generator.permutation(100)).any()


@pytest.mark.parametrize("shape", [(), 3, (3,), (2, 0, 3), [2, 3], np.int64(4)])
def test_shapes(shape):
    expected = np.empty(shape).shape
    for draw in (Generator(0).normal, Generator(0).uniform):
        assert draw(shape).shape == expected
        assert draw(shape).dtype == np.float32
    assert Generator(0).integers(0, 5, shape).shape == expected


def test_results_own_their_memory():
    first = Generator(0).normal(8)
    before = first.copy()
    Generator(0).normal(8)[:] = 0
    Generator(1).normal(8)
    np.testing.assert_array_equal(first, before)
    assert first.flags.writeable


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_outside_64_bits_are_refused(seed):
    with pytest.raises(ValueError, match=rf"seed.*{seed}"):
        Generator(seed)


@pytest.mark.parametrize(("name", "position"), [("stream", 1), ("step", 2)])
@pytest.mark.parametrize("value", [-1, 2**32])
def test_streams_and_steps_outside_32_bits_are_refused(name, position, value):
    arguments = [0, 0, 0]
    arguments[position] = value
    with pytest.raises(ValueError, match=rf"{name}.*{value}"):
        Generator(*arguments)
    with pytest.raises(ValueError, match=rf"{name}.*{value}"):
        Generator(0).at(*arguments[1:])


@pytest.mark.parametrize(("low", "high"), [(0, 0), (3, 2), (0, 2**32 + 1)])
def test_impossible_ranges_of_integers_are_refused(low, high):
    with pytest.raises(ValueError, match=rf"{low}.*{high}"):
        Generator(0).integers(low, high, 3)
