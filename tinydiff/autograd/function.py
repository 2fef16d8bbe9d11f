"""Function: an operation as a pair of forward and backward on plain arrays.

    class Square(td.Function):
        def forward(self, X):
            self.save(X)
            return X * X
        def backward(self, L_Y):
            (X,) = self.saved
            return 2 * X * L_Y

    y = Square.apply(x)

`forward` and `backward` never see tensors. `backward` gets the gradient of the loss with respect to each output and
returns one for each input (None where there is none to give), in the input's shape.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from tinydiff.autograd import halves
from tinydiff.autograd.conversion import to_array
from tinydiff.autograd.tape import Node, edge_to, is_recording, mode, note_inputs, refuse_non_finite
from tinydiff.backend import HALVES, array_module, device_of, is_array, is_float, refuse_missing_library, widened
from tinydiff.machine.threads import operation
from tinydiff.precision import held

_tensor_type: Any = None


def register_tensor_type(cls: Any) -> Any:
    """Tensor stands above this file and introduces itself here."""
    global _tensor_type
    _tensor_type = cls
    return cls


class Version:
    """Counts in-place changes to one piece of memory; tensors that share the memory share the counter."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class Function:
    """Base class of all operations; see the module's docstring for how to write one.

    Inside, `self.needs[i]` tells whether input i needs a gradient (all False where nothing is recorded) and
    `self.shapes[i]` its shape. Whatever is put on `self` lives until the backward pass has used it.

    `gives_new = True` promises that backward returns new arrays, a different one for each input, or an L_Y as it came: the
    tape then adds to them in place where gradients meet.

    `adds_waiting = True` allows kernels to add what other operations have sent to the first input already, see `waiting.py`.

    `widens_half = True` has arrays of 16-bit floating point numbers come to forward and backward as float32; outputs and
    gradients are rounded again. `takes_half = True` has them come as they are: forward and backward leave all sums to functions
    that `dispatch.accelerated` widens them for. What these return in float32 is rounded as well.

    `weights`: which of the inputs are factors of products. In a block of `precision.mixed` they come in 16 bits where the first
    input does; their gradients are float32.
    """

    gives_new: ClassVar[bool] = False
    adds_waiting: ClassVar[bool] = False
    widens_half: ClassVar[bool] = False
    takes_half: ClassVar[bool] = False
    weights: ClassVar[slice] = slice(0)

    needs: tuple[bool, ...]
    shapes: tuple[Any, ...]
    _saved: tuple[Any, ...] = ()
    _watched: tuple[tuple[Version, int], ...] = ()
    rounds_to: Any = None  # the dtype of 16 bits that NumPy would give the result of widened inputs

    @classmethod
    def apply(cls, *inputs: Any, **options: Any) -> Any:
        """Runs forward on the inputs' arrays and records it. Inputs: tensors, arrays, numbers or None; options go to
        forward as they are. Returns a tensor, or a tuple of them if forward returns a tuple."""
        op = cls()
        tensors, arrays, op.shapes, half = _read(inputs, cls.__name__)
        recording = is_recording()
        if recording:
            edges = tuple([edge_to(x) if isinstance(x, _tensor_type) else None for x in inputs])
            op.needs = tuple([edge is not None for edge in edges])
            recording = True in op.needs
        else:
            note_inputs(tensors)
            op.needs = (False,) * len(inputs)

        rounded: tuple[Any, ...] = ()  # weights, and their arrays of 16 bits
        if half and (cls.widens_half or cls.takes_half):
            op.rounds_to, rounded = _mixed(inputs, arrays, cls.weights)
            arrays = [widened(a) for a in arrays] if cls.widens_half else arrays
        observer = mode.observer
        try:
            if observer is None:
                results = operation(op.forward, arrays, options)
            else:
                results = operation(observer, (op, "forward", arrays, options), {})
        except (ImportError, RuntimeError) as error:
            refuse_missing_library(error, cls.__name__)
            raise
        several = isinstance(results, tuple)
        results = results if several else (results,)
        if not all([isinstance(y, np.ndarray) for y in results]):
            results = _as_arrays(results, arrays, cls.__name__)
        if op.rounds_to is not None:
            results = tuple([y.astype(op.rounds_to) if y.dtype == "float32" else y for y in results])
        refuse_non_finite(results, cls.__name__)

        outputs = tuple([_tensor_type._wrap(y, _version(y, tensors)) for y in results])
        if recording:
            # tensors made apart may share one piece of memory
            memories = [(_memory(x.data), x._version) for x in (*tensors, *outputs)]
            memories += [(_memory(a), x._version) for x, a in rounded]
            saved = {id(_memory(a)) for a in op._saved if is_array(a)}
            op._watched = tuple({v: v.count for memory, v in memories if id(memory) in saved}.items())
            node = Node(op, edges, results)
            for index, y in enumerate(outputs):
                if is_float(y.dtype, or_complex=True):
                    y._attach(node, index)
        if observer is not None and hasattr(observer, "recorded"):
            observer.recorded(op, inputs, outputs)
        return outputs if several else outputs[0]

    def forward(self, *arrays: Any, **options: Any) -> Any:
        """Computes the output, an array or a tuple of them, from the inputs' arrays and the options of `apply`. Each
        subclass defines it."""
        raise TypeError(f"{type(self).__name__} does not define forward")

    def backward(self, *L_Ys: Any) -> Any:
        """The gradients of the loss with respect to each input, a tuple (or one array for one input), from L_Ys, those
        with respect to each output. Each subclass defines it."""
        raise TypeError(f"{type(self).__name__} does not define backward")

    def save(self, *arrays: Any) -> None:
        """Keeps arrays for backward. Inputs and outputs among them are watched for changes in place."""
        self._saved = arrays

    @property
    def saved(self) -> tuple[Any, ...]:
        """What was saved. RuntimeError if an array among it was changed in place since forward."""
        if True in [version.count != count for version, count in self._watched]:
            raise RuntimeError(
                f"an array that {type(self).__name__} saved for its backward pass was changed in place since then"
            )
        return self._saved

    def release(self) -> None:
        """Forgets everything on `self`, once the backward pass has used it."""
        self.__dict__.clear()


def _mixed(inputs: tuple[Any, ...], arrays: list[Any], weights: slice) -> tuple[Any, tuple[Any, ...]]:
    """The dtype of 16 bits of the result, None for another one. In a block of `precision.mixed` it is that of the first input; then
    arrays get weights of that dtype, which are also returned with their tensors."""
    dtype = held()
    if dtype is None or getattr(arrays[0], "dtype", None) != dtype:
        return _half_of([a.dtype for a in arrays if is_array(a)]), ()
    rounded = []
    for i in range(len(arrays))[weights]:
        if isinstance(inputs[i], _tensor_type):
            arrays[i] = halves.of(inputs[i], dtype)
            rounded.append((inputs[i], arrays[i]))
        elif is_array(arrays[i]):
            arrays[i] = arrays[i].astype(dtype, copy=False)
    return dtype, tuple(rounded)


def _half_of(dtypes: list[Any]) -> Any:
    """The dtype of 16 bits that NumPy gives a result of arrays of these dtypes; None where it is another one."""
    try:
        dtype = np.result_type(*dtypes)
    except TypeError:  # of float16 and bfloat16, say
        return None
    return dtype if dtype.char in HALVES else None


def _read(inputs: tuple[Any, ...], name: str) -> tuple[list[Any], list[Any], tuple[Any, ...], bool]:
    """The tensors among the inputs, the plain arrays of all inputs, their shapes, and whether one is of `HALVES`; in
    one loop, as it runs for every operation. Numbers beside an array stay numbers, so that they take its dtype."""
    tensors, arrays, shapes, usual, half = [], [], [], True, False
    for x in inputs:
        if isinstance(x, _tensor_type):
            tensors.append(x)
            x = x.data
        arrays.append(x)
        if isinstance(x, np.ndarray):
            shapes.append(x.shape)
            half = half or x.dtype.char in HALVES
        else:
            shapes.append(None)
            usual = usual and x is None
    if usual:
        return tensors, arrays, tuple(shapes), half
    devices = {device_of(a) for a in arrays if is_array(a)}
    if len(devices) > 1:
        raise ValueError(f"{name}: the inputs are on different devices (cpu and cuda); move them with .to(device)")
    for i, a in enumerate(arrays):
        if not (a is None or is_array(a) or (devices and isinstance(a, int | float))):
            if isinstance(a, _tensor_type):
                raise TypeError(
                    f"{name}: the .data of a tensor is a tensor; write w.data = y.data instead of w.data = y"
                )
            arrays[i] = np.asarray(a) if isinstance(a, np.generic) else to_array(a, name)
    half = any(is_array(a) and a.dtype.char in HALVES for a in arrays)
    return tensors, arrays, tuple([None if a is None else getattr(a, "shape", ()) for a in arrays]), half


def _as_arrays(results: tuple[Any, ...], arrays: list[Any], name: str) -> tuple[Any, ...]:
    """What forward returned, with numbers as arrays of the inputs' module. TypeError for anything else."""
    if not all(is_array(y) or isinstance(y, int | float | np.generic) for y in results):
        raise TypeError(f"{name}.forward must return an array or a tuple of arrays, not {_types(results)}")
    xp = array_module(next((a for a in arrays if is_array(a)), None))
    return tuple(y if is_array(y) else xp.asarray(y) for y in results)  # one may have moved to another device


def _memory(a: Any) -> Any:
    """The array that owns the memory of a view, or the array itself."""
    base = a.base
    return a if base is None or not is_array(base) else base


def _version(y: Any, tensors: list[Any]) -> Version | None:
    """The version of the piece of memory that the array lies in, if one of the tensors lies in it too."""
    memory = _memory(y)
    for x in tensors:
        if x.data is memory or x.data.base is memory:
            return x._version
    return None


def _types(values: tuple[Any, ...]) -> str:
    return ", ".join(type(value).__name__ for value in values)
