"""Which call of a user's code is running, read from its bytecode. The source need not be at hand: positions in it suffice."""

from __future__ import annotations

import builtins
import dis
import functools
from types import CodeType, FrameType, ModuleType
from typing import Any, NamedTuple

import numpy as np


class Call(NamedTuple):
    """function: what is called, None where the bytecode does not tell. name: its last name. is_method: whether it was called
    as an attribute. lists: whether a list or a tuple is among the arguments."""

    function: Any
    name: str
    is_method: bool
    lists: bool


class _Parsed(NamedTuple):
    """path: the names of the called expression, "" first where it begins with something else than a name. arguments: the
    names of arguments that are variables. literal: whether an argument is written as a list or a tuple."""

    path: tuple[str, ...]
    arguments: tuple[str, ...]
    literal: bool


def running_call(frame: FrameType) -> Call | None:
    """The call that a frame waits for; None where it waits for something else or is code of another library."""
    code = frame.f_code
    parsed = None if "-packages" in code.co_filename else _parse(code, frame.f_lasti)
    if parsed is None:
        return None
    lists = parsed.literal or any(isinstance(_value(frame, name), list | tuple) for name in parsed.arguments)
    return Call(_resolve(frame, parsed.path), parsed.path[-1], len(parsed.path) > 1, lists)


def stores_element(frame: FrameType) -> bool:
    """Whether the frame is at array[i] = x."""
    return dis.opname[frame.f_code.co_code[frame.f_lasti]].startswith("STORE_S")  # SUBSCR, SLICE


@functools.lru_cache(256)
def _parse(code: CodeType, at: int) -> _Parsed | None:
    """The call at an instruction. Every instruction knows the range of text that it was compiled from: those of the called
    expression begin where the call begins, those of an argument lie behind."""
    if not dis.opname[code.co_code[at]].startswith("CALL"):
        return None
    instructions = [(i, _range(i)) for i in dis.get_instructions(code) if i.offset <= at]
    start, end = instructions[-1][1] or (None, None)
    if start is None or end is None:
        return None
    inside = [
        (i, r) for i, r in instructions[:-1] if r is not None and start <= r[0] and r[1] <= end and r != (start, end)
    ]
    head = sorted((r[1], i.offset, i) for i, r in inside if r[0] == start)
    named = [i for _, _, i in head if i.opname.startswith("LOAD_") and isinstance(i.argval, str)]
    if not named:
        return None
    plain = all(i.opname.startswith("LOAD_") or i.opname == "PUSH_NULL" for _, _, i in head)
    attributes = [i.argval for i in named if i.opname in ("LOAD_ATTR", "LOAD_METHOD")]
    first = [i.argval for i in named if i.opname not in ("LOAD_ATTR", "LOAD_METHOD")]
    path = (first[0] if plain and first else "", *attributes) if attributes else (first[0],)
    behind = head[-1][0]
    rest = [(i, r) for i, r in inside if r[0] >= behind]
    outer = [r for _, r in rest if not any(o != r and o[0] <= r[0] and r[1] <= o[1] for _, o in rest)]
    last = {r: i for i, r in rest if r in outer}
    made = ("BUILD_LIST", "BUILD_TUPLE", "LIST_EXTEND", "LIST_APPEND", "LIST_TO_TUPLE")
    literal = any(i.opname in made for i in last.values()) or any(
        getattr(i.argval, "co_name", "") == "<listcomp>" or i.opname == "LIST_APPEND" for i, _ in rest
    )
    loaded = [i.argval for i in last.values() if i.opname.startswith("LOAD_")]
    names = tuple(n for x in loaded for n in (x if isinstance(x, tuple) else (x,)) if isinstance(n, str))
    return _Parsed(path, names, literal)


def _range(instruction: Any) -> tuple[tuple[int, int], tuple[int, int]] | None:
    p = instruction.positions
    if p is None or None in (p.lineno, p.end_lineno, p.col_offset, p.end_col_offset):
        return None
    return (p.lineno, p.col_offset), (p.end_lineno, p.end_col_offset)


def _value(frame: FrameType, name: str) -> Any:
    for scope in (frame.f_locals, frame.f_globals, vars(builtins)):
        if name in scope:
            return scope[name]
    return None


def _resolve(frame: FrameType, path: tuple[str, ...]) -> Any:
    """What the names stand for. Attributes are read of modules and NumPy's objects alone, since others may compute."""
    value = _value(frame, path[0])
    for name in path[1:]:
        known = isinstance(value, ModuleType | np.ndarray) or type(value).__module__.startswith("numpy.random")
        value = getattr(value, name, None) if known else None
    return value
