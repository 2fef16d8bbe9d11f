"""The command line. Every mistake in what it was given ends in one sentence on stderr and exit status 2."""

from __future__ import annotations

import argparse
import errno
import io
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout, suppress
from typing import Any, NoReturn

from tinydiff.backend import missing_library
from tinydiff.cli import bench, doctor, evaluate, exercise, gradcheck, info, sample, trace, train
from tinydiff.cli.numbers import INTERRUPTED
from tinydiff.errors import InputError, RunFailed, of_system, spelling
from tinydiff.machine import starting
from tinydiff.machine.terminal import escaped, is_muted, mute, say
from tinydiff.ranks import announced, stay_alone
from tinydiff.version import __version__

_BY_RANKS = (
    "train",
    "sample",
    "evaluate",
    "doctor",
)  # commands that know of other ranks; of any other, one does the work

# What writing to a pipe, a file or a terminal may say, with no name of a file.
_OF_OUTPUT = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status: 0 done, 1 the run failed, 2 wrong input, 129, 130 and 143 interrupted, 141
    nobody reads the output any more."""
    try:
        starting.begin()
        _prepare_output()
        with spelling(_flag):
            status = _run(argv)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a failure can be told
        return status
    except BrokenPipeError:  # somebody closed our output, as `head` does
        _drop_output()
        return INTERRUPTED + 13
    except OSError as error:  # files say so themselves; this is the output
        _drop_output()
        return _fail(f"the output cannot be written: {error.strerror or error}", 1)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED + signal.SIGINT)
    finally:
        starting.end()


def _prepare_output() -> None:
    """Characters that the terminal lacks become escapes. Streams that are closed lead nowhere, so that no file of ours gets
    their number."""
    for name in ("stdin", "stdout", "stderr"):
        if (stream := getattr(sys, name)) is None:
            with suppress(OSError):
                setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
        elif name != "stdin":
            with suppress(AttributeError, ValueError, OSError):  # it may be any object
                stream.reconfigure(errors="backslashreplace")


def _flag(name: str, *value: Any) -> str:
    """How sentences name a parameter here: image_size is --image-size, or with its value --image-size 8."""
    flag = "--shape" if name == "shapes" else "--" + name.replace("_", "-")
    if not value or value[0] is True:
        return flag
    if value[0] is None or value[0] is False:
        return "--all-terms" if name == "terms" else flag.replace("--", "--no-", 1)
    text = ",".join(map(str, value[0])) if isinstance(value[0], tuple) else str(value[0])
    return f'{flag} "{text}"' if " " in text else f"{flag} {text}"


def _called(name: str) -> str:
    """An argument, for a sentence."""
    return f"the {name}" if name in ("path", "target", "name") else _flag(name)


def _drop_output() -> None:
    """So that flushing it at exit is quiet."""
    with suppress(OSError, AttributeError, ValueError):  # it may be no file, or closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(argv: Sequence[str] | None) -> int:
    # Numbers out of range are told in our own words; NumPy's would come first, with lines of source.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"tinydiff\.")
    (rank, size), muted = announced(), is_muted()
    mute(muted or rank > 0)  # all ranks would say the same
    try:
        for word in sys.argv[1:] if argv is None else argv:
            if word.startswith("--") and word.endswith("=--"):  # which argparse reads as a list without words
                raise InputError(f"{word[:-3]} must not be --")
        with redirect_stdout(io.StringIO()) if rank else nullcontext():
            arguments = _parser().parse_args(argv)
    except SystemExit:  # after --help and --version
        return 0
    except InputError as error:
        return _fail(error, 2)
    finally:
        mute(muted)
    if size > 1 and arguments.command not in _BY_RANKS:
        if rank:
            return 0
        stay_alone()
        say(
            f"tinydiff {arguments.command} works in one process: rank 0 of {size} does it; TINYDIFF_RANKS=0 makes each do it"
        )
    try:
        for name, value in vars(arguments).items():
            if value == "":
                raise InputError(f"{_called(name)} must not be empty")
            if isinstance(value, str) and "\0" in value:
                raise InputError(f"{_called(name)} must not hold a zero byte")
        arguments.words = sys.argv[1:] if argv is None else list(argv)
        arguments.of_program = argv is None
        return arguments.run(arguments)
    except InputError as error:
        return _fail(error, 2)
    except RunFailed as error:
        return _fail(error, 1)
    except ImportError as error:
        return _fail(RunFailed(missing_library(error) or f"a part of the installation cannot be loaded: {error}"), 1)
    except RuntimeError as error:
        if (sentence := missing_library(error)) is None:
            raise
        return _fail(sentence, 1)
    except MemoryError:
        training = arguments.command in ("train", "doctor")
        advice = "; a smaller --batch-size with a larger --accumulate needs less" if training else ""
        return _fail(f"out of memory{advice}", 1)
    except OSError as error:
        if error.filename is None and error.errno in _OF_OUTPUT:
            raise
        return _fail(InputError(of_system(error)), 2)  # of a file, before work began: what fails later is a RunFailed
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if isinstance(error, Exception):
            raise
        # SystemExit, and with what test frameworks skip: only a user's own code raises it, and its status would be ours
        return _fail(InputError(f"the code that was to run ended with {type(error).__name__}: {error}"), 2)


def _fail(message: object, status: int) -> int:
    with suppress(OSError, ValueError):  # of standard error: then only the status tells
        if not is_muted():
            print(f"tinydiff: {escaped(str(message))}", file=sys.stderr, flush=True)
    return status


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one sentence, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="tinydiff", description="Trains and samples small diffusion models (DDPMs) without PyTorch.")
    parser.add_argument("--version", action="version", version=f"tinydiff {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (train, sample, info, gradcheck, trace, exercise, evaluate, doctor, bench):
        command.add_command(commands)
    return parser
