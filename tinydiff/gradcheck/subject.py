"""What can be checked, brought to one form: values out of arrays, gradients out of arrays and cotangents.

A cotangent is the gradient of the loss with respect to an output (L_Y in this project), as the checker makes it up.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from tinydiff import random
from tinydiff.autograd.function import Function
from tinydiff.autograd.tape import no_grad
from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import array_module, is_array, to_numpy
from tinydiff.errors import InputError
from tinydiff.gradcheck.kernels import by_kernels

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
        self.input_names = _input_names(fn, len(args))
        self.names = [self.input_names[i] for i in checked]
        self.generators = [*generators, *(a for a in args if isinstance(a, np.random.Generator))]

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
        states = [g.bit_generator.state for g in self.generators]
        with by_kernels(*self.kernels) if self.kernels else nullcontext(), random.recording() as uses:
            try:
                yield
            finally:
                for generator, state in zip(self.generators, states, strict=True):
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
        self.values = [_float64(p.data) for p in self.parameters]
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
            return [_add(g, other.grad) for g, other in zip(grads, others[:inputs], strict=False)] + grads[inputs:]

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """Parameters get their own arrays, gradients and flags back after the block."""
        state = [(p.data, p.grad, p.requires_grad) for p in self.parameters]
        try:
            yield
        finally:
            for p, (data, grad, flag) in zip(self.parameters, state, strict=True):
                p.data, p.grad, p.requires_grad = data, grad, flag


class PairSubject(Subject):
    """A function of plain arrays and a backward function written by hand.

    backward(L_Y, *inputs), or with `cache` backward(L_Y, cache) where fn returns (output, cache), or backward(L_Y) of
    an object that keeps what it needs. It returns one gradient per floating point input (a tuple, or a dict by name).
    """

    def __init__(
        self,
        fn: Any,
        args: Sequence[Any],
        checked: Sequence[int],
        generators: Sequence[Any],
        backward: Callable[..., Any],
        cache: bool,
    ) -> None:
        super().__init__(fn, args, checked, generators)
        self.backward, self.cache = backward, cache

    def run(self, args: Sequence[Any]) -> tuple[list[Any], Any]:
        result, cache = self.fn(*args), None
        if self.cache:
            if not isinstance(result, tuple) or len(result) != 2:
                raise InputError("with cache=True, the forward function must return (output, cache)")
            result, cache = result
        ys = list(result) if isinstance(result, tuple | list) else [result]
        for y in ys:
            if isinstance(y, Tensor) or not (is_array(y) or np.isscalar(y)):
                raise InputError(
                    f"the forward function must return arrays or numbers beside a backward, not {type(y).__name__}; "
                    "if it returns (output, cache), pass cache=True"
                )
        return [y if is_array(y) else np.asarray(y) for y in ys], cache

    def forward(self, arrays: Arrays) -> list[Any]:
        with self.same_noise():
            ys, _ = self.run(self.filled(arrays))
        return [to_numpy(y) if y.dtype.kind in "fc" else None for y in ys]

    def remembers(self, outputs: int) -> bool:
        """Whether backward takes nothing but the gradients of the outputs: an object that keeps what it needs."""
        parameters, more = positional_parameters(self.backward)
        return more is False and sum(p.default is p.empty for p in parameters) == outputs

    def pull(self, ys: list[Any], cache: Any, args: Sequence[Any], cotangents: Arrays) -> list[Any]:
        L_Ys = [np.zeros(y.shape) if u is None else u for y, u in zip(ys, cotangents, strict=True)]
        if self.cache:
            rest: Sequence[Any] = (cache,)
        else:
            rest = () if self.remembers(len(ys)) else args
        grads = self.backward(*L_Ys, *rest)
        if isinstance(grads, Mapping):
            names = _input_names(self.fn, len(args))
            grads = [grads.get(n) for n in names]
        grads = list(grads) if isinstance(grads, tuple | list) else [grads]
        floating = [i for i, a in enumerate(args) if is_array(a) and a.dtype.kind == "f"]
        where = next((w for w in (floating, range(len(args)), self.checked) if len(w) == len(grads)), None)
        if where is None:
            raise ValueError(
                f"backward returned {len(grads)} gradients for {len(floating)} floating point inputs; with wrt=, name "
                "those that it returns"
            )
        by_position = dict(zip(where, grads, strict=True))
        return [None if by_position.get(i) is None else np.asarray(by_position[i]) for i in self.checked]

    def vjp(
        self, arrays: Arrays, cotangents: Arrays, needs: Sequence[bool] | None = None, same: Any = None
    ) -> list[Any]:
        if same is not None:
            arrays = [arrays[same[0]] if k == same[1] else a for k, a in enumerate(arrays)]
        args = self.filled(arrays)
        with self.same_noise():
            ys, cache = self.run(args)
            grads = self.pull(ys, cache, args, cotangents)
        if same is not None:
            grads[same[0]] = _add(grads[same[0]], grads[same[1]])
        return grads

    def vjp_of_two(self, first: Arrays, second: Arrays, cotangents: Arrays) -> list[Any]:
        one, two = self.filled(first), self.filled(second)
        with self.same_noise():
            ys, cache = self.run(one)
        with self.same_noise():
            zs, other = self.run(two)
        if not self.cache and self.remembers(len(ys)):
            return []  # an object that keeps one forward pass cannot be asked for two
        grads = self.pull(zs, other, two, cotangents)
        return [_add(a, b) for a, b in zip(grads, self.pull(ys, cache, one, cotangents), strict=True)]


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


def make_subject(
    fn: Any,
    inputs: Sequence[Any],
    wrt: int | str | Sequence[int | str] | None = None,
    backward: Any = None,
    cache: bool = False,
    parameters: Any = None,
    generators: Sequence[Any] = (),
) -> Subject:
    """The subject for what a user gives; floating point inputs become float64 copies. InputError if there is none."""
    if isinstance(inputs, Tensor) or is_array(inputs):
        raise InputError("inputs must be a sequence with one entry for each argument of fn: write [x], not x")
    if not isinstance(inputs, Sequence):
        raise InputError(
            f"inputs must be a sequence with one entry for each argument of fn, not {type(inputs).__name__}"
        )
    args = [x.data if isinstance(x, Tensor) and x.dtype.kind == "f" else x for x in inputs]
    args = [np.asarray(a) if isinstance(a, np.floating) else a for a in args]
    args = [_float64(a) if is_array(a) and a.dtype.kind == "f" else a for a in args]
    floating = [i for i, a in enumerate(args) if is_array(a) and a.dtype.kind == "f"]
    if backward is None and parameters is None and hasattr(fn, "named_parameters"):
        parameters = fn
    named = _named(parameters)
    names = _input_names(fn, len(args))
    if wrt is None:
        checked = floating
    else:
        wrt = [wrt] if isinstance(wrt, int | str) else wrt
        known: dict[Any, int] = {**{n: i for i, n in enumerate(names)}, **{i: i for i in range(len(args))}}
        if missing := [w for w in wrt if w not in known and w not in named]:
            raise InputError(
                f"wrt names {missing[0]!r}; there are inputs {', '.join(names)} and parameters {list(named)}"
            )
        checked = [known[w] for w in wrt if w in known]
        named = {n: p for n, p in named.items() if n in wrt or not any(w in named for w in wrt)}
        if wrong := [i for i in checked if i not in floating]:
            raise InputError(f"input {names[wrong[0]]} has no gradient: it is not a floating point array")
    if not checked and not named:
        given = ", ".join(f"an array of {a.dtype}" if is_array(a) else type(a).__name__ for a in args) or "none"
        raise InputError(
            f"there is nothing to check: among the inputs ({given}) is no floating point array, such as np.array(2.0), "
            "and there are no parameters"
        )
    for i in checked:
        if (bad := np.argwhere(np.isnan(to_numpy(args[i])))).size:
            raise InputError(f"input {names[i]} is NaN at {[int(n) for n in bad[0]]}")
    if backward is not None:
        return PairSubject(fn, args, checked, generators, backward, cache)
    subject = TapeSubject(fn, args, checked, generators, named)
    if isinstance(fn, type) and issubclass(fn, Function):
        subject.fn = lambda *xs: fn.apply(*xs)
    return subject


def _named(parameters: Any) -> dict[str, Tensor]:
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


def _input_names(fn: Any, count: int) -> list[str]:
    """The names of fn's parameters where each input has one of its own, else input 0, input 1, ..."""
    names = [p.name for p in positional_parameters(fn)[0]]
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


def _float64(a: Any) -> Any:
    return array_module(a).array(a, dtype=np.float64)


def _add(a: Any, b: Any) -> Any:
    return b if a is None else a if b is None else a + b
