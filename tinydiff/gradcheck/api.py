"""The public function: the order in which a gradient is checked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinydiff.errors import InputError
from tinydiff.gradcheck.report import GradientError, Report


def gradcheck(
    fn: Any,
    inputs: Sequence[Any],
    *,
    wrt: int | str | Sequence[int | str] | None = None,
    seed: int = 0,
    rtol: float | None = None,
    atol: float | None = None,
    backward: Callable[..., Any] | None = None,
    cache: bool = False,
    parameters: Any = None,
    generator: Any = None,
    dtype: Any = None,
    reference: Callable[..., Any] | None = None,
    kernels: bool = False,
    skip: str | Collection[str] = (),
    sizes: bool = False,
    png: str | Path | None = None,
    name: str | None = None,
    names: Mapping[str, str] | None = None,
) -> Report:
    """Checks every gradient of fn at `inputs`. Returns a Report, or raises GradientError, an AssertionError.

    fn: a function of tensors (one for each input) that returns a tensor or a tuple of them, a `td.Function` class, or a
        module, whose parameters are then checked too. With `backward`, a function of plain arrays. Without it, also a
        function or method of plain arrays that returns (loss, gradients), an object with methods forward and backward,
        a `torch.autograd.Function`, or a function of PyTorch's tensors where inputs are such.
    inputs: arrays, tensors, lists of floats, or dicts and lists of them. Floating point ones are checked, in float64;
        everything else is passed on as it is, and so are Python's floats beside arrays, unless backward returns a gradient.
    wrt: positions or names of the inputs to check, and names of parameters; None: all. Where it names no parameter, all
        of them are checked beside the inputs named.
    seed: of the random directions, which the report states; the same seed repeats the same check.
    rtol, atol: the allowed difference, relative to the size of the sum that is compared, and absolute. None: rtol is
        sqrt(eps sqrt(n)) for n elements and the dtype's eps, that is half of the digits, less what n roundings cost
        (a hundredth of it where the derivative is known exactly); atol is 0. The error of the differences, which is
        measured, is added.
    backward: a backward pass written by hand: `backward(L_Y, *inputs)`, or with `cache` `backward(L_Y, cache)` where fn
        returns (output, cache) (`backward(res, g)` too, if its first argument has a name like that), or `backward(L_Y)`
        of an object that remembers, or `gradient(*inputs)` of a loss. It returns a gradient for each input: one, a tuple,
        or a dict whose keys are the inputs' names, with or without a d before them.
    parameters: a module, a dict or a sequence of tensors that fn uses beside its inputs and whose gradients count. Beside a
        backward by hand: names of arrays that its object holds (["W", "b"]), a dict of them, the object, or a list of
        layers; their gradients are found where these store them (self.dW, self.grads["W"]), or {"W": "gW"} says where.
    generator: a NumPy Generator (or several) that fn draws from. It is put back before every call and left as it was, like
        those that are found without being named: in closures, globals, arguments and layers, `td.random.Generator`s, and
        the states of np.random and random.
    dtype: np.float32 runs the backward pass in float32, as a kernel does, and compares it with derivatives in float64.
    reference: a function that does the same in float64 and is differentiated numerically instead of fn; its values are
        compared with fn's too.
    kernels: run fn by the CUDA kernels of its operations, on the host, which makes dtype float32, and compare values and
        gradients with those operations on NumPy in float64. The report names the kernels that ran.
    skip: names of probes to leave out: strides, layouts, needs, dropped, shared, reuse, repeats, sizes.
    sizes: whether a gradient that is right at the inputs' sizes and wrong with an axis of length 0, of length 1 or shortened
        alone is an error. Otherwise the report has a note of it. Sizes scaled by three count always.
    png: where to save a picture of the error if there is one.
    name: of what is checked, for the report.
    names: {variable of backward: variable of forward whose gradient it holds}, for those that are not called dz, grad_z,
        L_z, ... beside z. They help to find the line that is wrong; whether gradients are right does not depend on them.

    InputError for arguments that make no check. What fn itself raises at the inputs comes through unchanged.
    """
    __tracebackhide__ = True  # pytest shows the report, not this function
    from tinydiff.gradcheck.check import Check  # loaded when first used: `import tinydiff` stays quick
    from tinydiff.gradcheck.diagnosis import explain
    from tinydiff.gradcheck.making import make_subject
    from tinydiff.gradcheck.pairs import readings
    from tinydiff.gradcheck.probes import PROBES
    from tinydiff.gradcheck.slopes import settle

    generators = () if generator is None else generator if isinstance(generator, tuple | list) else (generator,)
    skip = {skip} if isinstance(skip, str) else set(skip)
    _check_arguments(fn, seed, rtol, atol, backward, cache, parameters, generators, reference, png)
    pairs = names.items() if isinstance(names, Mapping) else [(None, None)] if names is not None else []
    if not all(isinstance(word, str) for pair in pairs for word in pair):
        raise InputError(f"names maps variables of backward to those of forward, as {{'ds': 'scores'}}, not {names!r}")
    if unknown := skip - set(PROBES):
        raise InputError(f"there is no probe {min(unknown)!r} to skip; there are {', '.join(PROBES)}")
    kind = _dtype(np.float32 if kernels and dtype is None else dtype)
    if kernels and kind != np.float32:
        raise InputError(f"kernels compute in float32: leave dtype out, it is {kind}")
    subject = make_subject(fn, inputs, wrt, backward, cache, parameters, generators)
    ground = subject
    if reference is not None:
        ground = make_subject(reference, inputs, wrt, backward, False, None, generators)
    elif kernels:
        ground = make_subject(fn, inputs, wrt, backward, cache, parameters, generators)
    ran: set[str] = set()
    if kernels:
        subject.kernels = ran, seed
    check = Check(subject, ground, Report(name or _name(fn), seed, str(kind)), kind, rtol, atol or 0.0, sizes)
    check.given_names = dict(names or {})
    if settle(check):
        for probe_name, probe in PROBES.items():
            if probe_name not in skip and check.report.ok:
                probe(check)
                check.report.probes.append(probe_name)
    explain(check)
    check.report.notes += readings(subject)
    if kernels and not ran:
        raise InputError(f"no kernel took these arrays, so {check.report.name} was computed by NumPy alone")
    if ran:
        check.report.notes.append(f"kernels that ran: {', '.join(sorted(ran))}")
    if png is not None and not check.report.ok:
        check.report.save_png(png)
    if not check.report.ok:
        raise GradientError(check.report) from check.cause
    return check.report


def _name(fn: Any) -> str:
    name = getattr(fn, "__qualname__", None) or type(fn).__name__
    return name.rpartition("<locals>.")[2]


def _dtype(dtype: Any) -> np.dtype:
    try:
        kind = np.dtype(np.float64 if dtype is None else dtype)
    except TypeError:
        kind = None
    if kind not in (np.float32, np.float64):
        raise InputError(f"dtype must be float32 or float64, not {dtype if kind is None else kind}")
    return kind


def _check_arguments(
    fn: Any,
    seed: Any,
    rtol: Any,
    atol: Any,
    backward: Any,
    cache: bool,
    parameters: Any,
    generators: Sequence[Any],
    reference: Any,
    png: str | Path | None,
) -> None:
    """InputError for what makes no check, before anything runs."""
    for name, value in (("fn", fn), ("backward", backward), ("reference", reference)):
        is_layer = (
            name == "fn" and callable(getattr(value, "forward", None)) and callable(getattr(value, "backward", None))
        )
        if not callable(value) and not is_layer and (value is not None or name == "fn"):
            raise InputError(f"{name} must be a function, not {type(value).__name__}")
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise InputError(f"seed must be an integer of at least 0, not {seed!r}")
    for name, value in (("rtol", rtol), ("atol", atol)):
        if value is not None and not (isinstance(value, int | float | np.number) and 0 <= value < float("inf")):
            raise InputError(f"{name} must be a number of at least 0, not {value!r}")
    if reference is not None and parameters is not None:
        raise InputError("reference and parameters do not go together: make the parameters inputs")
    if cache and backward is None and not hasattr(fn, "backward"):
        raise InputError("cache=True is for a forward function with a backward written by hand: pass backward=")
    for generator in generators:
        if not isinstance(generator, np.random.Generator):
            raise InputError(f"generator must be a NumPy Generator (or several), not {type(generator).__name__}")
    if png is not None and not Path(png).resolve().parent.is_dir():
        raise InputError(f"png: there is no folder {Path(png).resolve().parent}")
