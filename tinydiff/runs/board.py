"""TensorBoard's event files in the folder of a run: what log.csv has, and the previews as pictures.

They are written by tensorboardX (extra `tensorboard`). Like log.csv they are for people: a run neither needs them nor stops
because of them. Each start writes a file of its own; of those that are there, a resumed run first removes the events of steps
that it makes again, so no step is there twice.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from tinydiff.errors import InputError, RunFailed, named
from tinydiff.machine.terminal import say
from tinydiff.runs.atomic import write_file

PREFIX, SUFFIX = "events.out.tfevents.", ".tinydiff"  # TensorBoard looks for the first
_OFTEN = 10.0  # seconds that events wait at most
_LENGTH, _CHECKSUM = 8, 4  # bytes around a record: its length, a checksum of that, the record, its checksum


def require() -> None:
    """InputError, which says what to install, where tensorboardX is missing."""
    if find_spec("tensorboardX") is None:
        raise InputError(
            f"{named('log', 'tensorboard')} needs tensorboardX, which is not installed: pip install 'tinydiff[tensorboard]'"
        )
    try:
        _protos(), _summaries()
    except Exception as error:  # of another package, protobuf above all
        raise InputError(f"{named('log', 'tensorboard')}: tensorboardX cannot be loaded: {error}") from None


def files_in(folder: Path) -> list[Path]:
    """The event files that runs have written to a folder."""
    return sorted(path for path in folder.glob(f"{PREFIX}*{SUFFIX}") if path.is_file())


class Board:
    """The event file of a run that is in progress, in its folder. What cannot be written is told once, and then no more is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: Any = None
        self._flushed = 0.0

    def open(self, step: int) -> None:
        """Begins a file behind the events of `step`; later ones, which a resumed run makes again, go."""
        from tensorboardX import RecordWriter

        with self._told():
            for path in files_in(self.folder):
                _keep_until(path, step)
            self._file = RecordWriter(str(self.folder / f"{PREFIX}{self._number():010d}.{os.getpid()}{SUFFIX}"))
            self._write(0, file_version="brain.Event:2")
            if step:  # a TensorBoard that is open has read what is gone now: this tells it so
                self._write(step + 1, session_log=_protos().SessionLog(status=_protos().SessionLog.START))
            self.flush()

    def _number(self) -> int:
        """The seconds of now, or what comes behind all files that are there: also within a second, and on a clock set back."""
        found = [path.name.removeprefix(PREFIX).partition(".")[0] for path in files_in(self.folder)]
        return max([int(time.time()), *(int(text) + 1 for text in found if text.isascii() and text.isdecimal())])

    def add(self, step: int, values: Mapping[str, float | None]) -> None:
        """Numbers of a step, by tag; None is left out."""
        summary = _summaries()
        found = [summary.Value(tag=tag, simple_value=x) for tag, x in values.items() if x is not None]
        self._write(step, summary=summary(value=found))
        if time.monotonic() - self._flushed >= _OFTEN:
            self.flush()

    def picture(self, step: int, tag: str, picture: np.ndarray) -> None:
        """A picture uint8 (H, W, C) of a step."""
        from PIL import Image

        buffer, channels = io.BytesIO(), picture.shape[-1]
        Image.fromarray(np.ascontiguousarray(picture[..., 0] if channels == 1 else picture)).save(buffer, "PNG")
        size = {"height": picture.shape[0], "width": picture.shape[1], "colorspace": channels}
        image = _summaries().Image(encoded_image_string=buffer.getvalue(), **size)
        self._write(step, summary=_summaries()(value=[_summaries().Value(tag=tag, image=image)]))
        self.flush()

    def flush(self) -> None:
        """Brings all events to the disk, as far as that can be done."""
        self._flushed = time.monotonic()
        with self._told():
            if self._file is not None:
                self._file.flush()

    def close(self) -> None:
        """Writes what is left and closes the file."""
        self.flush()
        if self._file is not None:
            file, self._file = self._file, None
            with contextlib.suppress(OSError):
                file.close()

    def _write(self, step: int, **content: Any) -> None:
        with self._told():
            if self._file is not None:
                event = _protos().Event(wall_time=time.time(), step=step, **content)
                self._file.write(event.SerializeToString())

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, InputError, RunFailed) as error:
            self._file = None
            reason = getattr(error, "strerror", None) or error
            say(f"warning: events for TensorBoard cannot be written ({reason}); the run goes on without them")


def _protos() -> Any:
    from tensorboardX.proto import event_pb2

    return event_pb2


def _summaries() -> Any:
    from tensorboardX.proto.summary_pb2 import Summary

    return Summary


def _keep_until(path: Path, step: int) -> None:
    """Removes the events after a step from a file, and whatever a killed process left half written at its end."""
    content = path.read_bytes()
    kept = [record for record, event in _records(content) if event.step <= step]
    if sum(map(len, kept)) != len(content):
        write_file(path, b"".join(kept))


def _records(content: bytes) -> Iterator[tuple[bytes, Any]]:
    """(record with what is around it, event) of a file of events, as far as they are whole."""
    from google.protobuf.message import DecodeError

    start = 0
    while start + _LENGTH + 2 * _CHECKSUM <= len(content):
        (length,) = struct.unpack_from("<Q", content, start)
        first = start + _LENGTH + _CHECKSUM
        end = first + length + _CHECKSUM
        if end > len(content):
            return
        try:
            event = _protos().Event.FromString(content[first : first + length])
        except DecodeError:
            return
        yield content[start:end], event
        start = end
