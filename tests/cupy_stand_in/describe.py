"""Writes down CuPy's signatures, and the options that it adds for the compiler, where it is installed, and NCCL too:

python -m tests.cupy_stand_in.describe
"""

import functools
import inspect
import json
import re
import sys

import numpy as np

from tests.cupy_stand_in.signatures import FILE, signature

OF_CUDA = (
    "Device", "Device.synchronize", "Event", "Event.record", "Event.synchronize", "Graph.launch", "MemoryPool",
    "MemoryPool.free_all_blocks", "MemoryPool.free_bytes", "MemoryPool.malloc", "MemoryPool.total_bytes", "Stream",
    "Stream.begin_capture", "Stream.end_capture", "Stream.is_capturing", "Stream.record", "Stream.synchronize",
    "Stream.wait_event", "get_current_stream", "get_elapsed_time", "nccl.NcclCommunicator",
    "nccl.NcclCommunicator.allGather", "nccl.NcclCommunicator.allReduce", "nccl.get_unique_id",
    "using_allocator",
)  # fmt: skip


def compiler_options(cupy, given, architecture="90"):
    """What CuPy's RawModule gives NVRTC beside the architecture and options of ours, in order; nothing is compiled."""
    compiler, seen = cupy.cuda.compiler, []

    class Program:
        def __init__(self, *args, **kwargs):
            pass

        def compile(self, options=(), *rest):
            seen.append(list(options))
            return b"", None

    kept, compiler._NVRTCProgram = compiler._NVRTCProgram, Program
    try:
        compiler._compile_with_cache_cuda("", tuple(given), architecture, cache_in_memory=True)
    except Exception:  # an empty binary cannot be loaded
        pass
    finally:
        compiler._NVRTCProgram = kept
    return [o for o in seen[-1] if o not in given and not o.startswith("-arch=")]


def describe():
    """The signatures of CuPy's functions, methods and ufuncs that NumPy has as well, from its documentation where it is
    compiled."""
    import cupy
    import cupy.cuda.nccl

    def bare(f):
        """A signature without annotations, defaults as text only where they are plain values."""
        parameters = []
        for p in inspect.signature(f).parameters.values():
            plain_default = p.default is p.empty or isinstance(p.default, bool | int | float | str | None)
            parameters.append(p.replace(annotation=p.empty, default=p.default if plain_default else None))
        return str(inspect.Signature(parameters))

    def text_of(f):
        try:
            text = bare(f)
        except (TypeError, ValueError):  # compiled: the first line of its documentation has it, with C's types
            match = re.match(r"[\w.]*\((.*?)\)(?:\s*->.*)?\s*(?:\n|$)", (f.__doc__ or "").replace("\\*", "*"))
            if match is None:
                return None
            text = "(" + ", ".join(part.split()[-1] for part in match[1].split(",") if part.strip()) + ")"
        try:
            signature(text)
        except (SyntaxError, NameError):
            return None
        return text

    found = {
        "version": cupy.__version__, "functions": {}, "methods": {}, "ufuncs": {}, "cuda": {},
        "compiler": compiler_options(cupy, ()),
    }  # fmt: skip
    for prefix, module, theirs in (
        ("", cupy, np), ("linalg.", cupy.linalg, np.linalg),
        ("lib.stride_tricks.", cupy.lib.stride_tricks, np.lib.stride_tricks),
    ):  # fmt: skip
        for name in dir(module):
            thing = getattr(module, name)
            if name.startswith("_") or not callable(thing) or isinstance(thing, type) or not hasattr(theirs, name):
                continue
            kind = "ufuncs" if isinstance(thing, cupy.ufunc) else "functions"
            if (text := text_of(thing)) is not None:
                found[kind][prefix + name] = text
    for name in dir(cupy.ndarray):
        thing = getattr(cupy.ndarray, name)
        if not name.startswith("_") and callable(thing) and (text := text_of(thing)) is not None:
            found["methods"][name] = text if text.startswith("(self") else f"(self, {text[1:]}"
    for name in OF_CUDA:
        thing = functools.reduce(getattr, name.split("."), cupy.cuda)
        text = text_of(thing)
        home = functools.reduce(getattr, name.split(".")[:-1], cupy.cuda)
        takes_self = isinstance(thing, type) or isinstance(home, type)
        found["cuda"][name] = f"(self, {text[1:]}" if takes_self and not text.startswith("(self") else text
    return found


if __name__ == "__main__":
    described = describe()
    FILE.write_text(json.dumps(described, indent=0, sort_keys=True) + "\n", encoding="utf-8")
    print({kind: len(names) for kind, names in described.items() if kind != "version"}, file=sys.stderr)
