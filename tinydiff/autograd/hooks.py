"""Functions that see a gradient on its way, and may replace it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from tinydiff.backend import array_module


class Handle:
    """What registering a hook returns; `remove()` takes the hook away again. In a `with` block it is removed at the end."""

    def __init__(self, hooks: dict[Any, Any]) -> None:
        self._hooks = hooks

    def remove(self) -> None:
        """Takes the hook away. A second call does nothing."""
        self._hooks.pop(self, None)

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *error: Any) -> None:
        self.remove()

    def __deepcopy__(self, memo: Any) -> Handle:
        return self  # a copied module keeps its hooks


def add(hooks: dict[Any, Any], hook: Callable[..., Any]) -> Handle:
    """Adds a hook to those of a tensor or module. TypeError for what cannot be called."""
    if not callable(hook):
        raise TypeError(f"a hook must be a function, not of type {type(hook).__name__}")
    handle = Handle(hooks)
    hooks[handle] = hook
    return handle


def run(hooks: dict[Any, Any], L: Any) -> Any:
    """The gradient L after all hooks, in the order in which they were registered. It is an array of its own, so a hook may
    also change it in place. ValueError for a hook that returns a gradient of another shape."""
    L = L.copy()
    for hook in list(hooks.values()):
        result = hook(L)
        if result is not None:
            result = array_module(L).asarray(getattr(result, "data", result) if hasattr(result, "_node") else result)
            if result.shape != L.shape:
                raise ValueError(f"a hook returned a gradient of shape {result.shape} for a tensor of shape {L.shape}")
            L = result.astype(L.dtype, copy=False)
    return L


class Watch:
    """Those who want to see the gradient of one output of a node: hooks, then the tensor that retains it."""

    def __init__(self) -> None:
        self.hooks: dict[Any, Any] = {}
        self.keeper: weakref.ref[Any] | None = None

    def pass_on(self, L: Any, arrived: bool) -> Any:
        """L, as the hooks leave it. They are not called where no gradient arrived."""
        if self.hooks and arrived:
            L = run(self.hooks, L)
        if self.keeper is not None and (tensor := self.keeper()) is not None:
            tensor._accumulate(L)
        return L
