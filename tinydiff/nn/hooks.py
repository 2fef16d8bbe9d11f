"""Functions that see what goes into a module and comes out of it, forwards and backwards, with PyTorch's meaning.

A backward hook sees the gradients at the module's borders: two operations that change nothing stand there, one that all inputs
pass and one that all outputs pass.
"""

from __future__ import annotations

from typing import Any

from tinydiff.autograd.function import Function
from tinydiff.autograd.tensor import Tensor


class ModuleHooks:
    """The hooks of one module, each kind in the order of registration."""

    def __init__(self) -> None:
        self.before: dict[Any, Any] = {}  # hook(module, args)
        self.after: dict[Any, Any] = {}  # hook(module, args, output)
        self.backward: dict[Any, Any] = {}  # hook(module, grad_input, grad_output)

    def call(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """module.forward(*args, **kwargs) with all hooks around it."""
        for hook in list(self.before.values()):
            changed = hook(module, args)
            if changed is not None:
                args = changed if isinstance(changed, tuple) else (changed,)
        seen: dict[str, Any] = {}
        if self.backward:
            args = _pass(_Inputs, args, hooks=self, module=module, seen=seen)
        output = module.forward(*args, **kwargs)
        for hook in list(self.after.values()):
            changed = hook(module, args, output)
            output = output if changed is None else changed
        if self.backward:
            several = isinstance(output, tuple | list)
            outputs = _pass(_Outputs, tuple(output) if several else (output,), hooks=self, module=module, seen=seen)
            output = type(output)(outputs) if several else outputs[0]
        return output

    def run_backward(self, module: Any, L_Xs: tuple[Any, ...], L_Ys: tuple[Any, ...]) -> tuple[Any, ...]:
        """The gradients of the inputs, as the hooks leave them. ValueError for a hook that returns another number."""
        for hook in list(self.backward.values()):
            changed = hook(module, L_Xs, L_Ys)
            if changed is not None:
                changed = changed if isinstance(changed, tuple | list) else (changed,)
                if len(changed) != len(L_Xs):
                    raise ValueError(f"a backward hook returned {len(changed)} gradients for {len(L_Xs)} inputs")
                L_Xs = tuple(x.data if isinstance(x, Tensor) else x for x in changed)
        return L_Xs


def _pass(function: Any, values: tuple[Any, ...], **options: Any) -> tuple[Any, ...]:
    """The values, tensors that need a gradient having passed the function together."""
    at = [i for i, x in enumerate(values) if isinstance(x, Tensor) and x.requires_grad]
    function_options = options | {"at": at, "count": len(values)}
    if not at:
        if function is _Inputs:
            options["seen"]["alone"] = len(values)  # no gradient goes further: the hooks run where the outputs' come in
        return values
    passed = function.apply(*[values[i] for i in at], **function_options)
    result = list(values)
    for i, x in zip(at, passed, strict=True):
        result[i] = x
    return tuple(result)


class _Border(Function):
    """L_Xs[i] = L_Ys[i]    (as the hooks leave it)"""

    def forward(self, *Xs: Any, hooks: Any, module: Any, seen: Any, at: Any, count: int) -> Any:
        self.hooks, self.module, self.seen, self.at, self.count = hooks, module, seen, at, count
        return Xs

    def spread(self, Ls: tuple[Any, ...]) -> tuple[Any, ...]:
        """The gradients with None for the values that have none."""
        found = dict(zip(self.at, Ls, strict=True))
        return tuple(found.get(i) for i in range(self.count))


class _Outputs(_Border):
    def backward(self, *L_Ys: Any) -> Any:
        self.seen["L_Ys"] = self.spread(L_Ys)
        if "alone" in self.seen:
            self.hooks.run_backward(self.module, (None,) * self.seen["alone"], self.seen["L_Ys"])
        return L_Ys


class _Inputs(_Border):
    def backward(self, *L_Xs: Any) -> Any:
        L_Xs = self.hooks.run_backward(self.module, self.spread(L_Xs), self.seen.get("L_Ys", ()))
        return tuple(L_Xs[i] for i in self.at)
