"""Counter-based random numbers: Philox4x32-10 (Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3").

A draw is a function of its position alone: key = the two halves of the seed, counter = (block low, block high, step,
stream). Only an offset is carried from draw to draw. So four integers save a generator, a training step can be repeated
without those before it, and a GPU kernel can make noise again instead of storing it.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from tinydiff import replay
from tinydiff.backend import array_module, device_of, module_for
from tinydiff.dispatch import accelerated

# What each stream of random numbers is for. Training step k uses step k in every stream.
INIT, DATA_ORDER, FLIPS, TIME, NOISE, DROPOUT, LABEL_DROPOUT, SAMPLING, PREVIEWS, HOLDOUT = range(10)

State = tuple[Any, ...]  # of a generator: (seed, stream, step, offset), and its clock where it has one

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF
_BLOCKS_AT_ONCE = 1 << 14  # few enough to stay in the cache


def philox4x32(counter: Any, key: tuple[int, int], rounds: int = 10) -> Any:
    """Philox4x32: counter (4, n) uint32 and two 32-bit key words -> (4, n) uint32, on the counter's device.

    One of the `rounds` multiplies two of the four words to 64 bits, spreads the halves and mixes the key in; then Weyl
    constants are added to the key. Agrees with Random123's known-answer tests.
    """
    c0, c1, c2, c3 = counter.astype("uint64")
    k0, k1 = key
    for _ in range(rounds):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _WORD, (p0 >> 32) ^ c3 ^ k1, p0 & _WORD
        k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD, (k1 + _KEY_STEPS[1]) & _WORD
    out = counter.copy()
    for word, value in zip(out, (c0, c1, c2, c3), strict=True):
        word[:] = value
    return out


@accelerated
def words(n: int, state: State, device: str) -> Any:
    """The n words of a draw, uint32 (n,), on a device, "cpu" or "cuda". state: (seed, stream, step, offset) where
    the draw begins; a clock behind them is added to step and offset."""
    xp, (seed, stream, step, first, *clock), blocks = module_for(device), state, -(-n // 4)
    out = xp.empty((blocks, 4), "uint32")
    for start in range(0, blocks, _BLOCKS_AT_ONCE):
        stop = min(start + _BLOCKS_AT_ONCE, blocks)
        index = xp.arange(first + start, first + stop, dtype="uint64")
        counter = xp.empty((4, stop - start), "uint32")
        counter[2], counter[3] = step, stream
        for steps, offset in clock:
            index += offset
            counter[2] += steps
        counter[0], counter[1] = index & _WORD, index >> 32
        out[start:stop] = philox4x32(counter, (seed & _WORD, seed >> 32)).T
    return out.reshape(-1)[:n]


def words_of_steps(seed: int, stream: int, steps: range, n: int) -> np.ndarray:
    """The first n words of a stream at each of several steps, uint32 (len(steps), n): row i is that of
    `Generator(seed, stream, steps[i]).words(n)`. All in one go, where each step alone would cost more than its words."""
    blocks, number = -(-n // 4), np.array(steps, np.uint32)
    out = np.empty((len(steps), blocks, 4), np.uint32)
    at_once = max(1, _BLOCKS_AT_ONCE // max(1, blocks))
    for start in range(0, len(steps), at_once):
        step = number[start : start + at_once]
        counter = np.zeros((4, len(step), blocks), np.uint32)
        counter[0], counter[2], counter[3] = np.arange(blocks), step[:, None], stream
        drawn = philox4x32(counter.reshape(4, -1), (seed & _WORD, seed >> 32))
        out[start : start + at_once] = drawn.T.reshape(len(step), blocks, 4)
    return out.reshape(len(steps), -1)[:, :n]


@accelerated
def uniform(n: int, state: State, device: str) -> Any:
    """Uniform on [0, 1), float32 (n,): the top 24 bits of each word. state, device: as for `words`."""
    return as_uniform(words(n, state, device))


def as_uniform(words: Any) -> Any:
    """Random words, uint32 of any shape, as float32 on [0, 1): their top 24 bits. words: such an array."""
    return (words >> 8).astype("float32") * np.float32(2.0**-24)


def as_integers(words: Any, low: int, high: int) -> Any:
    """Random words, uint32 of any shape, as int64 in low..high-1: the high half of each word times high - low. words: such an
    array."""
    return low + ((words.astype("uint64") * (high - low)) >> 32).astype("int64")


@accelerated
def normal(n: int, state: State, device: str) -> Any:
    """Standard normals, float32 (n,), see `box_muller`. state, device: as for `words`."""
    return box_muller(words(n + n % 2, state, device), np.float32)[:n]


def box_muller(words: Any, dtype: Any) -> Any:
    """Standard normals of a dtype from an even number of words, uint32 (n,) -> (n,) (Box and Muller, 1958).

    Neighbours (w0, w1) give r cos a and r sin a with r = sqrt(-2 ln u(w0)), a = 2 pi u(w1), u(w) = (w + 1/2) / 2**32.
    """
    xp, real = array_module(words), np.dtype(dtype)
    u = words.astype(real)
    u *= real.type(2.0**-32)
    u += real.type(2.0**-33)
    pairs = u.reshape(-1, 2)
    radius = xp.sqrt(-2 * xp.log(pairs[:, 0]))
    angle = real.type(2 * np.pi) * pairs[:, 1]
    pairs[:, 0] = radius * xp.cos(angle)
    pairs[:, 1] = radius * xp.sin(angle)
    return u


class Generator:
    """A stream of random numbers, with the state (seed, stream, step, offset), all plain integers.

    seed: in 0..2^64-1. stream, step: in 0..2^32-1. offset: how many blocks of four words were drawn before. ValueError
    for a seed, stream or step out of range.
    clock: None, or uint32 (2,) on the GPU, which kernels add to step and offset when they draw. So what is launched once
    and replayed, in a CUDA graph, draws anew each time that the clock has moved on. RuntimeError for draws on the CPU.

    Element j of a draw is made of word j % 4 of block `offset + j // 4`, whatever its dtype; a draw of n elements
    advances `offset` by ceil(n / 4). The words are the same bits on every device; normals agree to rounding.
    """

    def __init__(self, seed: int, stream: int = 0, step: int = 0, offset: int = 0, clock: Any = None) -> None:
        seed, stream, step, offset = map(operator.index, (seed, stream, step, offset))
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed must be in 0..2**64-1, not {seed}")
        for name, value in (("stream", stream), ("step", step)):
            if not 0 <= value <= _WORD:
                raise ValueError(f"{name} must be in 0..2**32-1, not {value}")
        self.seed, self.stream, self.step, self.offset, self.clock = seed, stream, step, offset, clock

    def __repr__(self) -> str:
        return f"Generator(seed={self.seed}, stream={self.stream}, step={self.step}, offset={self.offset})"

    def at(self, stream: int, step: int = 0) -> Generator:
        """A generator of the same seed, and clock, at the start of another stream and step."""
        self._refuse_unless_tied()
        return Generator(self.seed, stream, step, clock=self.clock)

    @property
    def state(self) -> State:
        """(seed, stream, step, offset): everything there is to save; `Generator(*state)` continues from here. The clock comes
        last, where there is one."""
        state = self.seed, self.stream, self.step, self.offset
        return state if self.clock is None else (*state, self.clock)

    def advance(self, n: int) -> State:
        """The state before a draw of n elements. The generator moves past it."""
        state = self.state
        self._refuse_unless_tied()
        _note_use(self)
        self.offset += -(-n // 4)
        return state

    def _refuse_unless_tied(self) -> None:
        if self.clock is None:
            replay.refuse(f"what {self} gives", "make the generator outside of the step, and give it as an argument")

    def words(self, n: int, device: str = "cpu") -> Any:
        """The next n words, uint32 (n,), on a device, "cpu" or "cuda". Advances the offset by ceil(n / 4)."""
        return self._draw(words, n, device)

    def uniform(self, shape: Any = (), dtype: Any = np.float32, device: str = "cpu") -> Any:
        """Uniform on [0, 1), of a shape, an int or a tuple: the top 24 bits of a word for float32, all 32 for float64.

        dtype: floating point. device: "cpu" or "cuda". ValueError for negative lengths.
        """
        shape, n = _shape(shape)
        if np.dtype(dtype) == np.float64:
            return (self.words(n, device) * 2.0**-32).reshape(shape)
        return self._draw(uniform, n, device).astype(dtype, copy=False).reshape(shape)

    def normal(self, shape: Any = (), dtype: Any = np.float32, device: str = "cpu") -> Any:
        """Standard normals of a shape, an int or a tuple, see `box_muller`.

        dtype: floating point; float32 is computed in float32, as in a kernel, and float64 in float64. device: "cpu" or
        "cuda". ValueError for negative lengths.
        """
        shape, n = _shape(shape)
        if np.dtype(dtype) == np.float64:
            return box_muller(self.words(n + n % 2, device), np.float64)[:n].reshape(shape)
        return self._draw(normal, n, device).astype(dtype, copy=False).reshape(shape)

    def _draw(self, draw: Callable[[int, State, str], Any], n: int, device: str) -> Any:
        module_for(device)  # imports CuPy, so that `draw` finds its fast version
        if self.clock is not None and device_of(self.clock) != device:
            raise RuntimeError("a generator with a clock draws where that is, on the GPU: give device='cuda'")
        return draw(n, self.advance(n), device)

    def integers(self, low: int, high: int, shape: Any = (), device: str = "cpu") -> Any:
        """int64 of a shape, uniform on low..high-1: the high half of word * (high - low), with a bias below (high -
        low) / 2**32.

        shape: an int or a tuple. device: "cpu" or "cuda". ValueError unless low < high and there are at most 2**32
        values.
        """
        low, high = operator.index(low), operator.index(high)
        if not 0 < high - low <= 2**32:
            raise ValueError(f"integers needs low < high and at most 2**32 values, not low={low}, high={high}")
        shape, n = _shape(shape)
        return as_integers(self.words(n, device), low, high).reshape(shape)

    def permutation(self, n: int) -> np.ndarray:
        """A random order of 0..n-1, int64 (n,): the indices that sort n random 64-bit keys."""
        words = self.words(2 * n).astype("uint64")
        return np.argsort(words[0::2] << np.uint64(32) | words[1::2], kind="stable").astype("int64")


def _shape(shape: Any) -> tuple[tuple[int, ...], int]:
    shape = (shape,) if isinstance(shape, int | np.integer) else shape
    shape = tuple(map(operator.index, shape))
    if any(n < 0 for n in shape):
        raise ValueError(f"a shape has no negative lengths, as {shape} does")
    return shape, int(np.prod(shape, dtype=np.int64))


class _Recording(threading.local):
    uses: dict[Generator, int] | None = None
    again = 0  # how many blocks of `replaying` are open


_recording = _Recording()


def _note_use(generator: Generator) -> None:
    if _recording.uses is not None:
        _recording.uses.setdefault(generator, generator.offset)


@contextmanager
def recording() -> Iterator[dict[Generator, int]]:
    """A block that collects, for every generator drawn from inside it, the offset before. `autograd.recompute`
    replays by it."""
    outer, _recording.uses = _recording.uses, {}
    inner = _recording.uses
    try:
        yield inner
    finally:
        _recording.uses = outer
        if outer is not None:
            for generator, offset in inner.items():
                outer.setdefault(generator, offset)


@contextmanager
def replaying(uses: dict[Generator, int]) -> Iterator[None]:
    """A block in which generators begin again at recorded offsets; afterwards they stand where they stood before.

    uses: {generator: offset}, what `recording` gave.
    """
    now = {generator: generator.offset for generator in uses}
    for generator, offset in uses.items():
        generator.offset = offset
    _recording.again += 1
    try:
        yield
    finally:
        _recording.again -= 1
        for generator, offset in now.items():
            generator.offset = offset


def is_replaying() -> bool:
    """Whether this thread is in a block of `replaying`: what is computed was computed before."""
    return _recording.again > 0
