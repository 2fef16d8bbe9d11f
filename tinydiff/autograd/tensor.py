"""Tensor: an array that remembers what it was computed from."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tinydiff import replay
from tinydiff.autograd import copying, hooks, notebook, places, tape
from tinydiff.autograd.conversion import leaves, missing, refuse_tensor, to_array
from tinydiff.autograd.function import Function, Version, register_tensor_type
from tinydiff.backend import array_module, device_of, is_array, is_float, module_for, to_device, to_numpy
from tinydiff.errors import a_type


@register_tensor_type
class Tensor:
    """An array of NumPy or CuPy that remembers what it was computed from, for gradients.

    data: an array, taken as it is (no copy, same dtype), or numbers or lists, which become float32.
    requires_grad: whether `backward` leaves a gradient in `.grad`; TypeError for integers.

    `.data` and `.grad` are plain arrays of one shape; `.grad` is None until there is a gradient. Operators and
    functions on tensors are in `tinydiff.ops`, which also installs them as methods here.
    """

    __slots__ = (
        "__weakref__", "_half", "_hooks", "_index", "_node", "_place", "_version", "data", "grad", "requires_grad",
    )  # fmt: skip

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        version = None
        if isinstance(data, Tensor):
            refuse_tensor(data, type(self).__name__)
            data, version = data.data, data._version
        elif isinstance(data, np.generic):
            data = np.asarray(data)
        elif not is_array(data):
            data = to_array(data, type(self).__name__)
        if requires_grad and not is_float(data.dtype, or_complex=True):
            raise TypeError(f"only floating point tensors can require gradients, not {data.dtype}")
        self.data: Any = data
        self.grad: Any = None
        self.requires_grad = requires_grad
        self._node: tape.Node | None = None
        self._index = 0
        self._version = version or Version()
        self._hooks: dict[Any, Any] | None = None
        self._place: Any = None  # see `places`
        self._half: Any = None  # see `halves`

    @classmethod
    def _wrap(cls, data: Any, version: Version | None = None) -> Tensor:
        """A tensor of an array, in memory that others hold if there is a version."""
        tensor = cls.__new__(cls)
        tensor.data, tensor.grad, tensor.requires_grad = data, None, False
        tensor._node, tensor._index, tensor._version = None, 0, version or Version()
        tensor._hooks = tensor._place = tensor._half = None
        return tensor

    def _attach(self, node: tape.Node, index: int) -> None:
        self._node, self._index, self.requires_grad = node, index, True
        del self.grad  # so that reading it comes to `__getattr__`, which warns

    def _accumulate(self, L: Any, own: bool = False) -> None:
        """Adds L to `.grad`, an array of the tensor's own. L itself becomes `.grad` if nothing else holds it (`own`).
        An optimiser may have given the tensor a place for its gradient; then `.grad` lies there."""
        if (recording := replay.current()) is not None:
            recording.gradient(self, fresh=False)
        if self.grad is None and (place := places.place_of(self, L.dtype)) is not None:
            if L is not place:
                place[...] = L
            self.grad = place
        elif self.grad is None:
            self.grad = L if own and L.flags.c_contiguous else L.copy()
        else:
            self.grad += L

    def __getattr__(self, name: str) -> Any:
        return missing(self, name)

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of each axis."""
        return self.data.shape

    @property
    def dtype(self) -> np.dtype:
        """NumPy's type of the elements."""
        return self.data.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self.data.ndim

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.data.size

    @property
    def device(self) -> str:
        """ "cpu" or "cuda"."""
        return device_of(self.data)

    def __repr__(self) -> str:
        origin = f", from {self._node.name}" if self._node else ", requires_grad=True" if self.requires_grad else ""
        text = np.array2string(to_numpy(self.data), separator=", ", prefix="Tensor(", threshold=100)
        return f"Tensor({text}, {self.dtype}{origin})"

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a 0-d tensor has no length")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        if not self.shape:
            raise TypeError("iteration over a 0-d tensor")
        return (self[i] for i in range(self.shape[0]))

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else repr(self)

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ValueError(f"a tensor of shape {self.shape} is neither true nor false; use .data with any() or all()")
        return bool(self.item())

    def __float__(self) -> float:
        leaves(self)
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self.shape or self.dtype.kind not in "iu":
            raise TypeError(f"only a 0-d tensor of integers can be an index, not {self.dtype} of shape {self.shape}")
        return int(self.item())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self.device != "cpu":
            raise TypeError("this tensor is on the GPU; .numpy() copies it to the host")
        leaves(self)
        return np.array(self.data, dtype=dtype, copy=copy)

    def __dlpack__(self, **options: Any) -> Any:
        """The tensor's memory for another library: `numpy.from_dlpack(x)`, `torch.from_dlpack(x)`. No copy is made.
        Gradients do not follow, and the tape does not notice changes made there, as with `.numpy()`. options: those of
        the protocol.

        BufferError for a view that runs backwards, such as x[::-1]: PyTorch 2.13 ends the process when it meets one.
        """
        if any(stride < 0 for stride in self.data.strides):
            raise BufferError(
                "a view that runs backwards cannot be shared by DLPack; share a copy: td.Tensor(x.data.copy())"
            )
        return self.data.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.data.__dlpack_device__()

    def numpy(self) -> np.ndarray:
        """The values as a NumPy array: without a copy on the CPU, copied from the GPU."""
        return to_numpy(self.data)

    def item(self) -> Any:
        """The only element, as a Python number. ValueError if there are more or none."""
        if self.size != 1:
            raise ValueError(f"item() needs a tensor with one element, not of shape {self.shape}")
        return to_numpy(self.data).item()

    def detach(self) -> Tensor:
        """A tensor of the same memory that the tape does not follow."""
        return Tensor._wrap(self.data, self._version)

    def to(self, device: str) -> Tensor:
        """The tensor on a device, "cpu" or "cuda": itself if it is there already, else a copy. Gradients travel back.
        InputError where there is no such device."""
        return self if self.device == device else _Transfer.apply(self, device=device)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradient: `.grad` becomes None, or an array of zeros where there is one and set_to_none is False."""
        if (recording := replay.current()) is not None:
            recording.gradient(self, fresh=True)
        if set_to_none or self.grad is None:
            self.grad = None
        else:
            self.grad[...] = 0

    def retain_grad(self) -> None:
        """Keeps the gradient of this tensor in `.grad` although it is not a leaf. RuntimeError where none is
        required."""
        if not self.requires_grad:
            raise RuntimeError("retain_grad needs a tensor that requires a gradient")
        if self._node is not None:
            if self._watch().keeper is None:
                self.grad = None
            self._watch().keeper = weakref.ref(self)

    def _watch(self) -> hooks.Watch:
        assert self._node is not None
        return self._node.watchers.setdefault(self._index, hooks.Watch())

    def register_hook(self, hook: Callable[[Any], Any]) -> hooks.Handle:
        """Calls hook(L) in each backward pass with the gradient of the loss with respect to this tensor, a plain array, once
        all its parts are added up. What it returns, unless None, takes the place of the gradient.

        Hooks run in the order in which they are registered, before `.grad` is set. Returns a handle with `remove()`.
        RuntimeError where no gradient is required. TypeError for what is not a function.
        """
        if not self.requires_grad:
            raise RuntimeError("register_hook needs a tensor that requires a gradient")
        if self._node is not None:
            return hooks.add(self._watch().hooks, hook)
        self._hooks = {} if self._hooks is None else self._hooks
        return hooks.add(self._hooks, hook)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Sets `requires_grad` of this leaf, whether it needs a gradient; False freezes a weight. Returns the tensor.
        RuntimeError for a tensor that was computed from others; TypeError for integers."""
        if self._node is not None and not requires_grad:
            raise RuntimeError("only a leaf can be frozen; x.detach() is a tensor that the tape does not follow")
        if requires_grad and not is_float(self.dtype, or_complex=True):
            raise TypeError(f"only floating point tensors can require gradients, not {self.dtype}")
        self.requires_grad = requires_grad
        return self

    def __copy__(self) -> Tensor:
        return copying.copy(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return copying.deepcopy(self, memo)

    def __reduce__(self) -> Any:
        return copying.reduce(self)

    def _repr_html_(self) -> str:
        return notebook.heat_map(
            to_numpy(self.data), f"{self.dtype}{', requires_grad=True' if self.requires_grad else ''}"
        )

    def backward(self, L_Y: Any = None, retain_graph: bool = False, create_graph: bool = False) -> None:
        """Adds the gradients of the loss to `.grad` of every leaf that this tensor was computed from.

        L_Y: the gradient of the loss with respect to this tensor, of its shape. It may be left out (1) for one element.
        retain_graph: whether saved arrays are kept, so that a second backward through the same graph is possible.
        create_graph: refused, since derivatives are of first order only.
        RuntimeError where no gradient is required, and for a second backward through the same graph. ValueError where
        L_Y is missing, of another shape or on another device.
        """
        if create_graph:
            raise RuntimeError("create_graph is not possible: tinydiff's derivatives are of first order only")
        if not self.requires_grad:
            raise RuntimeError(
                "backward needs a tensor that was computed from one with requires_grad=True, outside no_grad and not by "
                "way of x.data, np.asarray(x) or float(x), which give values alone"
            )
        xp = array_module(self.data)
        if L_Y is None:
            if self.size != 1:
                raise ValueError(
                    f"backward on a tensor of shape {self.shape} needs L_Y, the gradient of the loss there"
                )
            L_Y = xp.ones(self.shape, self.dtype)
        L_Y = L_Y.data if isinstance(L_Y, Tensor) else L_Y if is_array(L_Y) else xp.asarray(L_Y)
        if L_Y.shape != self.shape:
            raise ValueError(f"L_Y has shape {L_Y.shape}, the tensor {self.shape}")
        if device_of(L_Y) != self.device:
            raise ValueError(f"L_Y is on {device_of(L_Y)}, the tensor on {self.device}")
        tape.backward(self, L_Y.astype(self.dtype, copy=False), retain_graph)

    __hash__ = object.__hash__  # == compares elements, so it cannot say whether two tensors are the same

    if TYPE_CHECKING:  # installed by tinydiff.ops

        def __add__(self, other: Any) -> Tensor: ...
        def __radd__(self, other: Any) -> Tensor: ...
        def __sub__(self, other: Any) -> Tensor: ...
        def __rsub__(self, other: Any) -> Tensor: ...
        def __mul__(self, other: Any) -> Tensor: ...
        def __rmul__(self, other: Any) -> Tensor: ...
        def __truediv__(self, other: Any) -> Tensor: ...
        def __rtruediv__(self, other: Any) -> Tensor: ...
        def __pow__(self, other: Any) -> Tensor: ...
        def __rpow__(self, other: Any) -> Tensor: ...
        def __matmul__(self, other: Any) -> Tensor: ...
        def __rmatmul__(self, other: Any) -> Tensor: ...
        def __lt__(self, other: Any) -> Tensor: ...
        def __le__(self, other: Any) -> Tensor: ...
        def __gt__(self, other: Any) -> Tensor: ...
        def __ge__(self, other: Any) -> Tensor: ...
        def __eq__(self, other: Any) -> Tensor: ...  # type: ignore[override]
        def __ne__(self, other: Any) -> Tensor: ...  # type: ignore[override]
        def __neg__(self) -> Tensor: ...
        def __pos__(self) -> Tensor: ...
        def __invert__(self) -> Tensor: ...
        def __and__(self, other: Any) -> Tensor: ...
        def __or__(self, other: Any) -> Tensor: ...
        def __xor__(self, other: Any) -> Tensor: ...
        def __abs__(self) -> Tensor: ...
        def __getitem__(self, index: Any) -> Tensor: ...
        @property
        def T(self) -> Tensor: ...
        def sum(self, axis: Any = None, keepdims: bool = False) -> Tensor: ...
        def mean(self, axis: Any = None, keepdims: bool = False) -> Tensor: ...
        def var(self, axis: Any = None, keepdims: bool = False, ddof: int = 0) -> Tensor: ...
        def std(self, axis: Any = None, keepdims: bool = False, ddof: int = 0) -> Tensor: ...
        def norm(self, axis: Any = None, keepdims: bool = False) -> Tensor: ...
        def max(self, axis: Any = None, keepdims: bool = False) -> Tensor: ...
        def min(self, axis: Any = None, keepdims: bool = False) -> Tensor: ...
        def reshape(self, *shape: Any) -> Tensor: ...
        def transpose(self, *axes: Any) -> Tensor: ...
        def squeeze(self, axis: Any = None) -> Tensor: ...
        def split(self, sections: Any, axis: int = 0) -> tuple[Tensor, ...]: ...
        def flatten(self, start: int = 0) -> Tensor: ...
        def tanh(self) -> Tensor: ...
        def relu(self) -> Tensor: ...
        def softmax(self, axis: int = -1) -> Tensor: ...
        def exp(self) -> Tensor: ...
        def log(self) -> Tensor: ...
        def sqrt(self) -> Tensor: ...
        def clip(self, low: Any = None, high: Any = None) -> Tensor: ...

    def __setitem__(self, index: Any, value: Any) -> None:
        self._change(value, "td.ops.where(mask, value, x) or td.ops.concatenate instead of x[index] = value")
        index = tuple(map(_plain, index)) if isinstance(index, tuple) else _plain(index)
        self.data[index] = _plain(value)

    def __iadd__(self, value: Any) -> Tensor:
        self._change(value)
        self.data += _plain(value)
        return self

    def __isub__(self, value: Any) -> Tensor:
        self._change(value)
        self.data -= _plain(value)
        return self

    def __imul__(self, value: Any) -> Tensor:
        self._change(value)
        self.data *= _plain(value)
        return self

    def __itruediv__(self, value: Any) -> Tensor:
        self._change(value)
        self.data /= _plain(value)
        return self

    def _change(self, value: Any, instead: str = "x = x + y instead of x += y") -> None:
        """Notes a change in place. The tape cannot record one, so where it would have to, that is an error."""
        if tape.is_recording() and (self.requires_grad or getattr(value, "requires_grad", False)):
            raise RuntimeError(f"a change in place is not recorded: write {instead}, or make it inside td.no_grad()")
        self._version.count += 1


def from_dlpack(x: Any) -> Tensor:
    """A tensor on the memory of x, an array of another library (PyTorch, NumPy, CuPy, JAX), without a copy. A change on
    either side is seen on the other. NumPy 2.0 shares memory read-only, later ones do not.
    https://dmlc.github.io/dlpack

    TypeError for an object that does not offer its memory by DLPack. ValueError where it cannot be shared: a device
    other than the CPU or a CUDA GPU, a dtype that NumPy does not have (bfloat16), a tensor of PyTorch that requires a
    gradient.
    """
    if not (hasattr(x, "__dlpack__") and hasattr(x, "__dlpack_device__")):
        raise TypeError(f"from_dlpack takes an array that offers its memory by DLPack, not {a_type(x)}")
    source = f"{type(x).__module__}.{type(x).__name__}"
    try:
        kind, number = x.__dlpack_device__()
        if kind not in _DLPACK_DEVICES:
            raise ValueError(f"it is on device {int(kind)}:{number} in DLPack's numbering, neither the CPU nor CUDA")
        return Tensor(module_for(_DLPACK_DEVICES[kind]).from_dlpack(x))
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"from_dlpack cannot share the memory of this {source}: {error}") from error


_DLPACK_DEVICES = {1: "cpu", 2: "cuda", 3: "cpu"}  # kDLCPU, kDLCUDA, kDLCUDAHost


def _plain(x: Any) -> Any:
    return x.data if isinstance(x, Tensor) else x


class _Transfer(Function):
    """L_X = L_Y    (back on the device of X)"""

    def forward(self, X: Any, device: str) -> Any:
        self.origin = device_of(X)
        return to_device(X, device)

    def backward(self, L_Y: Any) -> Any:
        return to_device(L_Y, self.origin)
