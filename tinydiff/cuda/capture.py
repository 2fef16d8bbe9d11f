"""Captures what a function launches as a CUDA graph, and replays it.

CuPy captures on a stream that is not the default one. Memory that the graph's kernels write to comes from a pool of its own,
which nothing else is ever served from. Replays run on the current stream, so they are in order with all other work.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from tinydiff import replay
from tinydiff.backend import PinnedArray, module_for
from tinydiff.dispatch import uses_kernels
from tinydiff.random import Generator
from tinydiff.replay import NotRepeatable, Recording

FED_BYTES = 1 << 14  # what can be copied to the GPU before each replay
_ALIGNED = 16  # bytes: kernels read so many at once
_WORD = 2**32

_PACKAGE = Path(__file__).parents[1]


def wanted() -> bool:
    """Whether graphs are to be used: not where TINYDIFF_GRAPH is 0, nor where kernels are turned off."""
    return os.environ.get("TINYDIFF_GRAPH", "1") not in ("", "0") and uses_kernels()


class NotCapturable(Exception):
    """A step that cannot be captured. The message says why: what it does, and where."""


class Outdated(Exception):
    """Weights, gradients or generators are others than when the graph was captured."""


class Captured:
    """A CUDA graph of what `work()` launches. `result` is what it returned; each `replay` fills its arrays anew.

    work: a function without arguments, whose arrays have fixed places. It has run before, as part of a `rehearsal`: nothing
        may be compiled inside a capture.
    generators: those that it draws from, which go on from replay to replay as they do from call to call.

    NotCapturable where it reads a value, copies from or to the host, or uses cuBLAS; `NotRepeatable` where a graph would
    repeat what changes. In both cases nothing was computed, and the host stands where it stood before.
    """

    def __init__(self, work: Callable[[], Any], generators: Sequence[Generator] = ()) -> None:
        cupy = module_for("cuda")
        self._pool, stream = cupy.cuda.MemoryPool(), cupy.cuda.Stream(non_blocking=True)
        self._fed, self._used = cupy.zeros(FED_BYTES, np.uint8), 0
        self._recording = Recording(self._place)
        self._starts = [(g, g.seed, g.stream, g.offset) for g in generators]
        cupy.get_default_memory_pool().free_all_blocks()  # what steps before left there is now taken from the pool
        done, recording = False, self._recording
        with stream, cupy.cuda.using_allocator(self._pool.malloc):
            stream.begin_capture()
            try:
                with _tied(self._recording, generators), replay.recorded_by(self._recording):
                    self.result = work()
                if not recording.launches:
                    raise NotCapturable("it launches none of tinydiff's kernels on the GPU")
                done = True
            except NotRepeatable:
                raise
            except (RuntimeError, NotImplementedError) as error:
                raise NotCapturable(_reason(error)) from error
            finally:
                self._recording.settle(done)
                with suppress(RuntimeError) if not done else _as_not_capturable():
                    self._graph = stream.end_capture()
        # Two, in turn: the host writes the numbers of a replay while the GPU may not yet have those of the one before.
        self._buffers = [PinnedArray((self._used,), np.uint8) for _ in range(2)]
        self._fed, self._sent = self._fed[: self._used], b""

    def _place(self, values: np.ndarray) -> Any:
        start, size = -(-self._used // _ALIGNED) * _ALIGNED, values.nbytes
        if start + size > FED_BYTES:
            raise NotCapturable("it needs too many numbers from the host")
        self._used = start + size
        return self._fed[start : start + size].view(values.dtype).reshape(values.shape)

    def replay(self) -> None:
        """Does what work() would do now. `Outdated` where it would do it with other arrays."""
        for generator, seed, stream, offset in self._starts:
            if (generator.seed, generator.stream) != (seed, stream) or not 0 <= generator.offset - offset < _WORD:
                raise Outdated
        sent = bytearray()
        for compute in self._recording.feeds:
            sent += bytes(-len(sent) % _ALIGNED) + np.ascontiguousarray(compute()).tobytes()
        if sent != self._sent:
            self._buffers.reverse()
            self._buffers[0].writable()[:] = np.frombuffer(sent, np.uint8)
            self._buffers[0].copy_to(self._fed)
            self._sent = bytes(sent)
        self._graph.launch()
        self._recording.advance()

    def fits(self) -> bool:
        """Whether a replay does what a call would do, as far as gradients and the optimiser's arrays go."""
        return self._recording.fits()


@contextmanager
def rehearsal(generators: Sequence[Generator] = ()) -> Iterator[None]:
    """A block in which a step runs as it will inside a capture, but computes: what it needs is compiled."""
    xp = module_for("cuda")
    recording = Recording(xp.asarray)
    with _tied(recording, generators), replay.recorded_by(recording):
        yield
    recording.finish()


class _Step(int):
    """The step of a generator whose clock is on the GPU."""


@contextmanager
def _tied(recording: Recording, generators: Sequence[Generator]) -> Iterator[None]:
    """A block in which draws of these generators follow their state from replay to replay. Others are refused."""
    tied = list({id(g): g for g in generators}.values())
    for generator in tied:
        _tie(recording, generator)
    try:
        yield
        if any(type(generator.step) is not _Step for generator in tied):
            raise NotRepeatable(
                "no replay of a CUDA graph counts generator.step: count it before each call, not inside"
            )
    finally:
        for generator in tied:
            generator.step, generator.clock = int(generator.step), None
            del generator.at


def _tie(recording: Recording, generator: Generator) -> None:
    step, offset = int(generator.step), generator.offset

    def moved() -> np.ndarray:
        return np.array([(int(generator.step) - step) % _WORD, generator.offset - offset], np.uint32)

    recording.counts(generator, "offset")

    def moved_step() -> np.ndarray:
        return moved() * np.array([1, 0], np.uint32)

    clock, of_step = recording.feed(moved(), moved), recording.feed(moved_step(), moved_step)

    def at(stream: int, step: Any = 0) -> Generator:
        """`Generator.at`, whose result follows the step."""
        if not isinstance(step, _Step):
            raise NotRepeatable(
                f"generator.at({stream}, {step}) would draw the same noise in every replay of a CUDA graph: write "
                f"generator.at({stream}, generator.step), and count generator.step before each call"
            )
        made = Generator(generator.seed, stream, int(step), clock=of_step)
        made.step, made.at = _Step(made.step), at  # type: ignore[method-assign]
        return made

    generator.step, generator.clock, generator.at = _Step(step), clock, at  # type: ignore[method-assign]


def _reason(error: Exception) -> str:
    """What a step did that ended its capture, and where."""
    text = str(error)
    if "D2H" in text:
        what = "it reads a value from the GPU"
    elif "H2D" in text:
        what = "it copies an array to the GPU; make it before, or give it as an argument"
    elif "cuBLAS" in text or "cublas" in text:
        what = "it uses cuBLAS"
    elif "aptur" in text:
        what = "it waits for the GPU"
    elif type(error).__name__ == "NcclError":
        what = f"NCCL did not let its sums be captured ({text})"
    else:
        raise error
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _is_users(f.filename)]
    return f"{what} ({Path(frames[-1].filename).name}:{frames[-1].lineno}: {frames[-1].line})" if frames else what


def _is_users(filename: str) -> bool:
    return not Path(filename).is_relative_to(_PACKAGE) and "cupy" not in filename and "site-packages" not in filename


@contextmanager
def _as_not_capturable() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise NotCapturable(f"CUDA could not capture it ({error})") from error
