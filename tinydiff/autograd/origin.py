"""Where an operation is called: the module whose forward pass is running, and the caller's line."""

from __future__ import annotations

import linecache
import os
import sys
from pathlib import Path
from types import FrameType

_OWN = str(Path(__file__).parents[1]) + os.sep
_PLUMBING = {"autograd", "ops", "nn", "machine", "dispatch.py", "cpu", "cuda"}  # between an operation and its caller


def here() -> str:
    """ "conv1 (file.py:12: y = conv1(x))" for the call that is running: the path of the module from the outermost one that
    runs, and the line of the nearest caller, a user's or that of a network or loss of tinydiff. Each part is left out where
    there is none."""
    frame: FrameType | None = sys._getframe(1)
    line = ""
    running: list[object] = []
    while frame is not None:
        code = frame.f_code
        if not line and (file := _shown(code.co_filename)):
            text = linecache.getline(code.co_filename, frame.f_lineno).strip()
            line = f"{file}:{frame.f_lineno}" + (text and f": {text}")
        if code.co_argcount:
            first = frame.f_locals.get(code.co_varnames[0])
            if hasattr(type(first), "named_modules"):  # a module, which stands above this file
                running.append(first)
        frame = frame.f_back
    names = {id(module): name for name, module in running[-1].named_modules()} if running else {}  # type: ignore[attr-defined]
    path = next((names[id(module)] for module in running if names.get(id(module))), "")
    path = path or (type(running[-1]).__name__ if running else "")
    return f"{path} ({line})" if path and line else path or line


def _shown(file: str) -> str:
    """How a file is named; "" for one that stands between an operation and its caller."""
    if file.startswith(_OWN):
        inside = file[len(_OWN) :]
        return "" if inside.partition(os.sep)[0] in _PLUMBING else os.path.join("tinydiff", inside)
    near = os.path.relpath(file) if os.path.exists(file) else file
    return file if near.startswith("..") else near
