"""Functions of PyTorch's tensors, and its autograd.Functions, checked as they are."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tinydiff.gradcheck.subject import Arrays, Subject, add, input_names
from tinydiff.gradcheck.trees import outputs_of


class TorchSubject(Subject):
    """A function of PyTorch's tensors, or a torch.autograd.Function; differentiated by PyTorch."""

    chooses_gradients = True

    def __init__(self, fn: Any, args: Sequence[Any], checked: Sequence[int], generators: Sequence[Any] = ()) -> None:
        super().__init__(_in_float64(fn), args, checked, generators)
        if isinstance(fn, type):  # its forward takes a context first
            self.input_names = input_names(getattr(fn, "forward", fn), len(args) + 1)[1:]
            self.names = [self.input_names[i] for i in checked]

    def call(self, arrays: Arrays, needs: Sequence[bool], same: Any = None) -> tuple[list[Any], list[Any]]:
        import torch

        args = [torch.from_numpy(np.ascontiguousarray(a)) if isinstance(a, np.ndarray) else a for a in self.args]
        leaves: list[Any] = []
        for k, i in enumerate(self.checked):
            if same is not None and k == same[1]:
                leaf = leaves[same[0]]
            else:
                leaf = torch.tensor(np.ascontiguousarray(arrays[k])).requires_grad_(bool(needs[k]))
            leaves.append(leaf)
            args[i] = leaf
        apply = getattr(self.fn, "apply", None)  # of a torch.autograd.Function
        ys = apply(*args) if isinstance(self.fn, type) and apply is not None else self.fn(*args)
        return outputs_of(ys)[0], leaves

    @contextmanager
    def same_noise(self) -> Iterator[None]:
        import torch

        with super().same_noise(), torch.random.fork_rng(devices=[]):
            yield

    def forward(self, arrays: Arrays) -> list[Any]:
        import torch

        with self.same_noise(), torch.no_grad():
            ys, _ = self.call(arrays, [False] * len(arrays))
        return [y.numpy() if y.is_floating_point() or y.is_complex() else None for y in ys]

    def vjp(
        self, arrays: Arrays, cotangents: Arrays, needs: Sequence[bool] | None = None, same: Any = None
    ) -> list[Any]:
        with self.same_noise():
            ys, leaves = self.call(arrays, needs or [True] * len(arrays), same)
            return self.pull(ys, leaves, cotangents)

    def pull(self, ys: list[Any], leaves: list[Any], cotangents: Arrays) -> list[Any]:
        import torch

        used = [(y, u) for y, u in zip(ys, cotangents, strict=True) if u is not None and y.requires_grad]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        if not used or not wanted:
            return [None] * len(leaves)
        Us = [torch.tensor(np.ascontiguousarray(u)) for _, u in used]
        grads = torch.autograd.grad([y for y, _ in used], wanted, Us, allow_unused=True)
        by_leaf = {id(leaf): g for leaf, g in zip(wanted, grads, strict=True)}
        got = [by_leaf.get(id(leaf)) for leaf in leaves]
        return [None if g is None else g.numpy() for g in got]

    def vjp_of_two(self, first: Arrays, second: Arrays, cotangents: Arrays) -> list[Any]:
        with self.same_noise():
            with self.same_noise():
                ys, leaves = self.call(first, [True] * len(first))
            zs, others = self.call(second, [True] * len(second))
            grads = self.pull(ys, leaves, cotangents)
            return [add(a, b) for a, b in zip(grads, self.pull(zs, others, cotangents), strict=True)]


def _in_float64(fn: Any) -> Any:
    """A module whose weights are float64, as the inputs are."""
    import torch

    if isinstance(fn, torch.nn.Module) and any(p.dtype == torch.float32 for p in fn.parameters()):
        return copy.deepcopy(fn).double()
    return fn


def on_tensors(fn: Any) -> Any:
    """A function of PyTorch's tensors as one of arrays; what it returns may stay tensors."""
    import torch

    def tensors(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return torch.from_numpy(np.array(value))
        return type(value)(map(tensors, value)) if type(value) in (tuple, list) else value

    @functools.wraps(fn)
    def called(*args: Any) -> Any:
        with torch.no_grad():
            return fn(*map(tensors, args))

    if hasattr(fn, "__self__"):
        called.__self__ = fn.__self__  # type: ignore[attr-defined]
    return called
