"""Modules: a tree of layers that finds its own weights.

A `Module` finds its weights in its attributes: Parameters, Buffers, Modules, and lists of them, in the order of assignment. That
is also the order of `parameters()` and `state_dict()`. A name is the path through the attributes:
"down_blocks.0.conv.weight".

Weights stand on the right, as in the sources: linear (D, M), convolution (R, S, C / groups, K). PyTorch puts these axes
in another order. `load_torch_state_dict` and `torch_state_dict` convert; nothing else in the project does.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from tinydiff.autograd.hooks import Handle, add
from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import array_module, is_float, to_device, to_numpy
from tinydiff.errors import InputError
from tinydiff.machine.pages import keep_freed_memory
from tinydiff.nn.hooks import ModuleHooks
from tinydiff.random import Generator

_LISTED = 8  # names shown of a long list of missing or unknown weights


class Parameter(Tensor):
    """A tensor that is learned. It needs a gradient, and a Module that has it as an attribute lists it.

    data: as for `Tensor`: an array, taken as it is, or numbers, which become float32. TypeError for integer arrays.
    """

    __slots__ = ()

    def __init__(self, data: Any) -> None:
        keep_freed_memory()  # before a network's other weights and its gradients are made
        super().__init__(data, requires_grad=True)


class Buffer(Tensor):
    """What a module keeps beside its weights, such as running averages. It is saved, loaded, moved and cast as weights are,
    but `parameters()` does not list it: optimisers and averages of weights leave it alone.

    data: as for `Tensor`.
    """

    __slots__ = ()

    def __init__(self, data: Any) -> None:
        super().__init__(data)


class Module:
    """A function with weights. A subclass assigns Parameters, Buffers and Modules (or lists of them) to its attributes in
    `__init__` and computes in `forward`; `module(x)` calls it. A new module is in training mode."""

    training: bool = True
    generator: Generator | None = None
    # PyTorch's order of a weight's axes: weight.transpose(axes) is in its layout. Weights not listed are alike in both.
    torch_axes: ClassVar[Mapping[str, tuple[int, ...]]] = {}
    _hooks: ModuleHooks | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._hooks is not None:
            return self._hooks.call(self, args, kwargs)
        return self.forward(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What `module(*args, **kwargs)` computes; each subclass says what it takes. NotImplementedError in `Module`
        itself."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({sum(p.size for p in self.parameters()):,} parameters)"

    def _repr_html_(self) -> str:
        left = 'style="text-align:left"'
        rows = "".join(
            f"<tr><td {left}>{html.escape(name)}</td><td {left}>{p.shape}</td><td>{p.size:,}</td><td {left}>{p.dtype}</td>"
            f"<td {left}>{'learned' if p.requires_grad else 'frozen'}</td></tr>"
            for name, p in self.named_parameters()
        )
        head = f"<th {left}>weight</th><th {left}>shape</th><th>elements</th><th {left}>dtype</th><th {left}>in training</th>"
        table = f'<table style="text-align:right;border-spacing:10px 1px;margin:0"><tr>{head}</tr>{rows}</table>'
        return f'<div><code>{html.escape(repr(self))}</code><div style="max-height:400px;overflow:auto">{table}</div></div>'

    def register_forward_pre_hook(self, hook: Callable[..., Any]) -> Handle:
        """Calls hook(module, args) before each forward; what it returns, unless None, takes the place of args. Returns a
        handle with `remove()`."""
        return add(self._registered().before, hook)

    def register_forward_hook(self, hook: Callable[..., Any]) -> Handle:
        """Calls hook(module, args, output) after each forward; what it returns, unless None, takes the place of the output.
        Returns a handle with `remove()`."""
        return add(self._registered().after, hook)

    def register_full_backward_hook(self, hook: Callable[..., Any]) -> Handle:
        """Calls hook(module, grad_input, grad_output) in backward, once the gradients of the inputs are computed.

        Both are tuples of plain arrays, one for each positional input and each output, None for those without a gradient. A
        tuple that hook returns takes the place of grad_input. Returns a handle with `remove()`.
        """
        return add(self._registered().backward, hook)

    def _registered(self) -> ModuleHooks:
        if self._hooks is None:
            self._hooks = ModuleHooks()
        return self._hooks

    def requires_grad_(self, requires_grad: bool = True) -> Module:
        """Freezes all weights (requires_grad=False) or frees them. Optimisers leave frozen ones as they are. Returns the
        module."""
        for parameter in self.parameters():
            parameter.requires_grad_(requires_grad)
        return self

    def attributes(self) -> Iterator[tuple[str, Any]]:
        """(name, value) of the attributes in the order of assignment. Items of lists and tuples come one by one:
        "blocks.0"."""
        for name, value in vars(self).items():
            if isinstance(value, list | tuple):
                yield from ((f"{name}.{i}", item) for i, item in enumerate(value))
            else:
                yield name, value

    def modules(self) -> Iterator[Module]:
        """This module and all below it, each once; a module comes before those that it holds."""
        return (module for _, module in self.named_modules())

    def named_modules(self) -> Iterator[tuple[str, Module]]:
        """(name, module) of this module, whose name is empty, and of all below it, each once."""
        return self._walk("", set())

    def _walk(self, prefix: str, seen: set[int]) -> Iterator[tuple[str, Module]]:
        if id(self) not in seen:
            seen.add(id(self))
            yield prefix, self
            for name, value in self.attributes():
                if isinstance(value, Module):
                    yield from value._walk(_join(prefix, name), seen)

    def parameters(self) -> Iterator[Parameter]:
        """All weights, each once, in the order of `named_parameters`."""
        return (parameter for _, parameter in self.named_parameters())

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(name, weight) of all weights, each once: a module's own before those of the modules that it holds."""
        return ((name, value) for name, value in self._named_tensors() if isinstance(value, Parameter))

    def buffers(self) -> Iterator[Buffer]:
        """All buffers, each once, in the order of `named_buffers`."""
        return (buffer for _, buffer in self.named_buffers())

    def named_buffers(self) -> Iterator[tuple[str, Buffer]]:
        """(name, buffer) of all buffers, each once: a module's own before those of the modules that it holds."""
        return ((name, value) for name, value in self._named_tensors() if isinstance(value, Buffer))

    def _named_tensors(self) -> Iterator[tuple[str, Parameter | Buffer]]:
        return ((name, value) for name, value, _ in self._tensors())

    def _tensors(self) -> Iterator[tuple[str, Parameter | Buffer, tuple[int, ...]]]:
        """(name, weight or buffer, its axes in PyTorch's order) of all of them, each once."""
        seen = set()
        for prefix, module in self.named_modules():
            for name, value in module.attributes():
                if isinstance(value, Parameter | Buffer) and id(value) not in seen:
                    seen.add(id(value))
                    yield _join(prefix, name), value, module.torch_axes.get(name, tuple(range(value.ndim)))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients of all weights. set_to_none: as for `Tensor.zero_grad`."""
        for parameter in self.parameters():
            parameter.zero_grad(set_to_none)

    def train(self, generator: Generator | bool | None = None) -> Module:
        """Training mode for this module and all below it; dropout draws from `generator`. True is training mode without a
        generator, False is `eval()`. Returns the module."""
        if isinstance(generator, bool):
            return self.train() if generator else self.eval()
        for module in self.modules():
            module.training, module.generator = True, generator
        return self

    def eval(self) -> Module:
        """Evaluation mode, without dropout, for this module and all below it. Returns the module."""
        for module in self.modules():
            module.training = False
        return self

    def to(self, device: str) -> Module:
        """Moves all weights, their gradients and buffers to a device, "cpu" or "cuda", in place. Returns the module.
        InputError where there is no such device."""
        for _, tensor in self._named_tensors():
            tensor.data = to_device(tensor.data, device)
            if tensor.grad is not None:
                tensor.grad = to_device(tensor.grad, device)
        return self

    def astype(self, dtype: Any) -> Module:
        """Casts all weights, and buffers of floating point, to a dtype, in place, and forgets gradients. Returns the module.
        TypeError unless the dtype is floating point."""
        dtype = np.dtype(dtype)
        if not is_float(dtype):
            raise TypeError(f"weights must be floating point, not {dtype}")
        for _, tensor in self._named_tensors():
            if is_float(tensor.dtype):
                tensor.data, tensor.grad = tensor.data.astype(dtype, copy=False), None
        return self

    def state_dict(self) -> dict[str, np.ndarray]:
        """A copy of all weights and buffers as NumPy arrays, by name, in tinydiff's layout."""
        return {name: np.array(to_numpy(p.data), order="C") for name, p in self._named_tensors()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Copies weights and buffers into the module, cast to its dtype.

        state: arrays by name, in tinydiff's layout. strict: whether the names must be exactly the module's; otherwise
        the others are ignored. InputError, before anything is changed, for names that do not fit and for a shape that
        differs.
        """
        self._load(state, strict, [(name, p, tuple(range(p.ndim))) for name, p in self._named_tensors()])

    def torch_state_dict(self) -> dict[str, np.ndarray]:
        """A copy of all weights and buffers as NumPy arrays, by name, in PyTorch's layout.

        That is (M, D) for linear weights and (K, C / groups, R, S) for convolutions; others are the same in both.
        """
        return {name: np.array(to_numpy(p.data).transpose(axes), order="C") for name, p, axes in self._tensors()}

    def load_torch_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Copies weights from arrays or CPU tensors in PyTorch's layout, see `torch_state_dict`. state and strict are
        as for `load_state_dict`, and so are the errors.

        layer.load_torch_state_dict(torch_layer.state_dict()) makes a layer equal to its PyTorch counterpart.
        """
        self._load(state, strict, list(self._tensors()))

    def _load(self, state: Mapping[str, Any], strict: bool, weights: list[Any]) -> None:
        if strict:
            names = {name for name, _, _ in weights}
            _refuse("are missing", [name for name, _, _ in weights if name not in state], self)
            _refuse("are not part of it", [name for name in state if name not in names], self)
        changes = []
        for name, parameter, axes in weights:
            if name not in state:
                continue
            array = to_numpy(state[name].data if isinstance(state[name], Tensor) else state[name])
            shape = tuple(parameter.shape[axis] for axis in axes)
            if array.shape != shape:
                raise InputError(f"weight {name} has shape {array.shape}, but this {type(self).__name__} needs {shape}")
            if array.dtype.kind not in "iu" and not is_float(array.dtype):
                raise InputError(f"weight {name} must be numbers, not {array.dtype}")
            changes.append((parameter, array.transpose(np.argsort(axes))))
        for parameter, array in changes:
            parameter.data[...] = array_module(parameter.data).asarray(array)
            parameter._version.count += 1


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _refuse(what: str, names: list[str], module: Module) -> None:
    if names:
        shown = ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
        raise InputError(f"the weights do not fit this {type(module).__name__}: {len(names)} {what}, {shown}")
