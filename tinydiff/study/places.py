"""Where an operation was called: the caller's line, and the module whose forward pass was running."""

from __future__ import annotations

import itertools
import linecache
import os
import types
import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

from tinydiff.autograd.tensor import Tensor
from tinydiff.gradcheck.source import OWN, short
from tinydiff.nn import Module, Parameter

_PLUMBING = {
    "ops",
    "autograd",
    "machine",
    "nn",
    "study",
    "dispatch.py",
}  # what stands between an operation and its caller

_MOST_ITEMS = 200  # of a list or an object that are looked through for a tensor


class Place(NamedTuple):
    """module: the path from the outermost module that runs, such as "down_blocks.0.resnets.1.conv1"; the outermost one's
    class where it is that; "" outside of modules. file, line: of the first caller outside of tinydiff, or of the network or
    loss that calls where there is only the command line; text: the line. is_root: whether module is the outermost one."""

    module: str
    file: str
    line: int
    text: str
    is_root: bool = False

    @property
    def shown(self) -> str:
        return f"{self.file}:{self.line}" if self.file else ""


class Places:
    """Finds places, and names of tensors."""

    def __init__(self) -> None:
        self._names: weakref.WeakKeyDictionary[Module, dict[int, str]] = weakref.WeakKeyDictionary()

    def find(self, frame: types.FrameType | None, weights: Iterable[Parameter]) -> tuple[Place, list[dict[str, Any]]]:
        """The place of the operation that runs in a frame, and the variables of callers, nearest first, then those of the
        user's file. An operation with weights counts for the module that holds them all, as some blocks call the operation
        of a layer of theirs."""
        running: list[Module] = []
        variables: list[dict[str, Any]] = []
        caller: types.FrameType | None = None
        inside: types.FrameType | None = (
            None  # the line of a network or loss of tinydiff, for the command line's own callers
        )
        ended = False
        while frame is not None:
            code = frame.f_code
            own = code.co_filename.startswith(OWN)
            room = code.co_filename[len(OWN) :].partition(os.sep)[0] if own else ""
            ended = ended or room == "cli"
            if own and inside is None and room not in _PLUMBING:
                inside = frame
            if caller is None and not (own or ended):
                caller = frame
            if code.co_argcount:
                first = frame.f_locals.get(code.co_varnames[0])
                if isinstance(first, Module):
                    running.append(first)
            if len(variables) < 3 and not (ended or room in _PLUMBING):
                variables.append(frame.f_locals)
            frame = frame.f_back
        if caller is not None:
            variables.append(caller.f_globals)
        module = self._path(running, weights)
        is_root = bool(running) and not module
        module = type(running[-1]).__name__ if is_root else module
        caller = caller or inside
        if caller is None:
            return Place(module, "", 0, "", is_root), variables
        file, line = caller.f_code.co_filename, caller.f_lineno
        shown = os.path.join("tinydiff", file[len(OWN) :]) if file.startswith(OWN) else short(file)
        return Place(module, shown, line, linecache.getline(file, line).strip(), is_root), variables

    def _path(self, running: list[Module], weights: Iterable[Parameter]) -> str:
        if not running:
            return ""
        names = self.names_in(running[-1])
        path = next((names[id(m)] for m in running if id(m) in names), "")
        owners = {names[id(w)].rpartition(".")[0] for w in weights if id(w) in names}
        if len(owners) == 1:
            (owner,) = owners
            if not path or owner == path or owner.startswith(path + "."):
                path = owner
        return path

    def names_in(self, root: Module) -> dict[int, str]:
        """Paths of the modules and weights of a module, by id."""
        if root not in self._names:
            names = {id(module): name for name, module in root.named_modules()}
            names.update({id(w): name for name, w in root.named_parameters()})
            self._names[root] = names
        return self._names[root]

    def name_of(self, tensor: Any, variables: list[dict[str, Any]]) -> str:
        """What a leaf is called: a weight by its path in the module that was seen first, another tensor or array by the
        variable of the caller that holds it; "" where neither is known."""
        for names in self._names.values():
            if id(tensor) in names:
                return names[id(tensor)]
        data = tensor.data if isinstance(tensor, Tensor) else tensor

        def holds(value: Any) -> bool:
            return value is tensor or value is data or (isinstance(value, Tensor) and value.data is data)

        for scope in variables:
            for name, value in list(scope.items()):
                if name[:1] == "_" and name != "_":
                    continue
                if holds(value):
                    return name
                parts: Any = ()
                if isinstance(value, dict):
                    parts = ((f"{name}[{key!r}]", item) for key, item in value.items())
                elif isinstance(value, list | tuple):
                    parts = ((f"{name}[{i}]", item) for i, item in enumerate(value))
                elif hasattr(value, "__dict__") and not isinstance(value, type | types.ModuleType):
                    parts = ((f"{name}.{key}", item) for key, item in vars(value).items())
                for path, item in itertools.islice(parts, _MOST_ITEMS):
                    if holds(item):
                        return path
        return ""
