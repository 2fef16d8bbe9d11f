"""What can be checked, brought to one form: values out of arrays, gradients out of arrays and cotangents.

A cotangent is the gradient of the loss with respect to an output (L_Y in this project), as the checker makes it up.
"""

from __future__ import annotations

import inspect
import random as python_random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from tinydiff import random
from tinydiff.autograd.function import Function
from tinydiff.autograd.tape import no_grad
from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import array_module, to_numpy
from tinydiff.errors import InputError
from tinydiff.gradcheck.kernels import by_kernels
from tinydiff.gradcheck.surroundings import random_sources

Arrays = Sequence[Any]


class Subject:
    """Something with gradients.

    `names`: of the arrays that are checked, in the order in which `forward` and `vjp` take them: first those of the
    inputs `args` at the positions `checked`, then parameters. Outputs that are not floating point come out as None.
    """

    chooses_gradients = False  # whether single gradients can be left out
    kernels: tuple[set[str], int] | None = None  # run by kernels: their names as they run, and a seed

    def __init__(self, fn: Any, args: Sequence[Any], checked: Sequence[int], generators: Sequence[Any] = ()) -> None:
        self.fn, self.args, self.checked = fn, list(args), list(checked)
        self.input_names = input_names(fn, len(args))
        self.names = [self.input_names[i] for i in checked]
        self.generators = list(dict.fromkeys([*generators, *random_sources([fn], args)]))

    @property
    def point(self) -> list[Any]:
        return [self.args[i] for i in self.checked]

    def moved(self, args: Sequence[Any]) -> Subject:
        """The same subject with other inputs."""
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.args = list(args)
        return other

    def filled(self, arrays: Arrays) -> list[Any]:
        args = list(self.args)
        for i, a in zip(self.checked, arrays, strict=False):
            args[i] = a
        return args

    @contextmanager
    def same_noise(self) -> Iterator[None]:
        """Generators drawn from inside the block are put back to where they were: every call draws the same."""
        states = [_state(g) for g in self.generators]
        legacy, plain = np.random.get_state(), python_random.getstate()  # of np.random.normal and its like
        with by_kernels(*self.kernels) if self.kernels else nullcontext(), random.recording() as uses:
            try:
                yield
            finally:
                np.random.set_state(legacy)
                python_random.setstate(plain)
                for generator, state in zip(self.generators, states, strict=True):
                    if isinstance(generator, np.random.RandomState):
                        generator.set_state(state)
                    else:
                        generator.bit_generator.state = state
                for generator, offset in uses.items():
                    generator.offset = offset

    def forward(self, arrays: Arrays) -> list[Any]:
        """The outputs as arrays in host memory."""
        raise NotImplementedError

    def vjp(
        self, arrays: Arrays, cotangents: Arrays, needs: Sequence[bool] | None = None, same: Any = None
    ) -> list[Any]:
        """The gradients for one cotangent per output (None: output not used); None where there is none.

        needs: which gradients are wanted. same: positions (i, j) of two arrays to be given as one object.
        """
        raise NotImplementedError

    def vjp_of_two(self, first: Arrays, second: Arrays, cotangents: Arrays) -> list[Any]:
        """Two forward passes, then both backward: the sum of the gradients of the two."""
        raise NotImplementedError


class TapeSubject(Subject):
    """A function of tensors, differentiated by the tape; `parameters` are tensors that it uses beside its inputs."""

    chooses_gradients = True
    function: type[Function] | None = None  # where fn is one operation

    def __init__(
        self,
        fn: Any,
        args: Sequence[Any],
        checked: Sequence[int],
        generators: Sequence[Any],
        parameters: Mapping[str, Tensor],
    ) -> None:
        super().__init__(fn, args, checked, generators)
        self.parameters = list(parameters.values())
        self.values = [float64(p.data) for p in self.parameters]
        self.names += list(parameters)

    @property
    def point(self) -> list[Any]:
        return [*super().point, *self.values]

    def call(self, arrays: Arrays, needs: Sequence[bool], same: Any = None) -> tuple[list[Any], list[Tensor]]:
        args = list(self.args)
        leaves: list[Tensor] = []
        for k, i in enumerate(self.checked):
            twin = same is not None and k == same[1]
            leaf = leaves[same[0]] if twin else Tensor(arrays[k], requires_grad=bool(needs[k]))
            leaves.append(leaf)
            args[i] = leaf
        for p, a, need in zip(self.parameters, arrays[len(leaves) :], needs[len(leaves) :], strict=True):
            p.data, p.requires_grad, p.grad = a, bool(need), None
            leaves.append(p)
        ys = self.fn(*args)
        ys = list(ys) if isinstance(ys, tuple | list) else [ys]
        return [y if isinstance(y, Tensor) else Tensor(np.asarray(y)) for y in ys], leaves

    def forward(self, arrays: Arrays) -> list[Any]:
        with self.same_noise(), self.borrowed(), no_grad():
            ys, _ = self.call(arrays, [False] * len(arrays))
        return [to_numpy(y.data) if y.dtype.kind in "fc" else None for y in ys]

    def vjp(
        self, arrays: Arrays, cotangents: Arrays, needs: Sequence[bool] | None = None, same: Any = None
    ) -> list[Any]:
        with self.same_noise(), self.borrowed():
            ys, leaves = self.call(arrays, needs or [True] * len(arrays), same)
            _backward(ys, cotangents)
            return [leaf.grad for leaf in leaves]

    def vjp_of_two(self, first: Arrays, second: Arrays, cotangents: Arrays) -> list[Any]:
        inputs = len(self.checked)
        with self.same_noise(), self.borrowed():
            with self.same_noise():
                ys, leaves = self.call(first, [True] * len(first))
            zs, others = self.call([*second[:inputs], *first[inputs:]], [True] * len(first))
            _backward(ys + zs, [*cotangents, *cotangents])
            grads = [leaf.grad for leaf in leaves]
            return [add(g, other.grad) for g, other in zip(grads, others[:inputs], strict=False)] + grads[inputs:]

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """Parameters get their own arrays, gradients and flags back after the block."""
        state = [(p.data, p.grad, p.requires_grad) for p in self.parameters]
        try:
            yield
        finally:
            for p, (data, grad, flag) in zip(self.parameters, state, strict=True):
                p.data, p.grad, p.requires_grad = data, grad, flag


class _Seed(Function):
    """Starts a backward walk at several outputs, handing each its gradient just as it is."""

    def forward(self, *Ys, L_Ys):
        self.L_Ys = L_Ys
        return array_module(Ys[0]).zeros((), Ys[0].dtype)

    def backward(self, _):
        return self.L_Ys


def _backward(ys: list[Tensor], cotangents: Arrays) -> None:
    used = [(y, u) for y, u in zip(ys, cotangents, strict=True) if u is not None and y.requires_grad]
    if len(used) == 1:
        used[0][0].backward(used[0][1])
    elif used:
        _Seed.apply(*(y for y, _ in used), L_Ys=tuple(u for _, u in used)).backward()


def named_tensors(parameters: Any) -> dict[str, Tensor]:
    if parameters is None:
        return {}
    if hasattr(parameters, "named_parameters"):
        parameters = dict(parameters.named_parameters())
    if isinstance(parameters, Tensor):
        parameters = [parameters]
    if not isinstance(parameters, Mapping):
        if not isinstance(parameters, Iterable):
            raise InputError(f"parameters must be a module, a dict or a sequence of Tensors, not {parameters!r}")
        parameters = {f"parameter {i}": p for i, p in enumerate(parameters)}
    unique: dict[int, tuple[str, Tensor]] = {}
    for name, p in parameters.items():
        if not isinstance(p, Tensor) or p.dtype.kind != "f":
            raise InputError(f"parameter {name!r} must be a floating point Tensor, not {type(p).__name__}")
        unique.setdefault(id(p), (name, p))
    return dict(unique.values())


def input_names(fn: Any, count: int) -> list[str]:
    """The names of fn's parameters where each input has one of its own, else input 0, input 1, ..."""
    names = [p.name for p in positional_parameters(fn)[0]]
    if not names and getattr(fn, "__name__", "") == "__call__":  # of a base class, which hands on *inputs
        names = [p.name for p in positional_parameters(getattr(fn.__self__, "forward", None))[0]]
    return names[:count] + [f"input {i}" for i in range(len(names), count)]


def positional_parameters(fn: Any) -> tuple[list[inspect.Parameter], bool | None]:
    """The positional parameters of fn, or of a Function's forward, and whether it takes more; None: nobody knows."""
    if isinstance(fn, type) and issubclass(fn, Function):
        fn = fn.forward.__get__(fn())
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        return [], None
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return positional, any(p.kind is p.VAR_POSITIONAL for p in parameters)


def _state(generator: Any) -> Any:
    return generator.get_state() if isinstance(generator, np.random.RandomState) else generator.bit_generator.state


def float64(a: Any) -> Any:
    return array_module(a).array(a, dtype=np.float64)


def add(a: Any, b: Any) -> Any:
    return b if a is None else a if b is None else a + b
