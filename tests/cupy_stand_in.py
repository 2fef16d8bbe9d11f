"""A module that answers as CuPy does, on a machine without a GPU; its arrays live in host memory and refuse what CuPy refuses.

NumPy is more forgiving than CuPy: it takes more keywords, mixes with anything, turns results into scalars. So code that
runs with NumPy may fail with CuPy in its first line. Here every call is held to the signature that CuPy 14.2 has, as
written down in cupy_api.json with the options that CuPy adds for the compiler, which

    python tests/cupy_stand_in.py

writes anew where CuPy is installed (no GPU is needed). Beyond signatures it keeps CuPy's rules: no NumPy array gets into an
operation or an index, nothing turns into a NumPy array but by `get`, reductions give arrays of no axes.

Kernels run on the project's stand-in for CUDA, through `RawModule`, so that what launches them is tested too.

CuPy loads CUDA's libraries when it first needs one. A machine that lacks some is stood in for by their names in `MISSING`.
"""

import collections
import contextlib
import inspect
import json
import operator
import re
import sys
import types
from functools import cache
from pathlib import Path

import numpy as np

API_FILE = Path(__file__).with_name("cupy_api.json")
SCALARS = (bool, int, float, complex, np.generic)
PROPERTIES = ("shape", "dtype", "ndim", "size", "strides", "nbytes", "itemsize", "flags")
MISSING = set()  # of "nvrtc", "headers", "cublas"
PRODUCTS = ("matmul", "dot", "vdot", "inner", "tensordot", "einsum", "kron")  # what CuPy has cuBLAS compute
WITHOUT_KERNELS = ("empty", "empty_like", "zeros", "asarray", "array", "broadcast_to", "result_type", "reshape", "item")
COUNTS = collections.Counter()  # what the GPU was given: see `note`
CONVERTERS = ("asarray", "array", "ascontiguousarray", "asfortranarray", "asnumpy")  # these may take NumPy's arrays


def note(result, *sources, out=None):
    """Counts an operation and gives its result. One that computes is a launch, and an allocation unless it has an `out`; a
    view of its arguments is neither. A few of CuPy's functions launch more than one kernel; they count as one."""
    made = result if isinstance(result, tuple | list) else (result,)
    new = [a for a in made if isinstance(a, np.ndarray | np.generic) and not any(_shares(a, s) for s in sources)]
    if new or out is not None:
        COUNTS["launches of CuPy"] += 1
        COUNTS["allocations"] += len(new) if out is None else 0
    return result


def _shares(a, b):
    return isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and np.may_share_memory(a, b)


@cache
def api():
    return json.loads(API_FILE.read_text(encoding="utf-8"))


class DynamicLibNotFoundError(RuntimeError):
    """That of cuda.pathfinder, which CuPy asks for libraries."""


def load_libraries(name):
    """Fails as CuPy does where a function of that name needs a library that is MISSING."""
    if MISSING and name not in WITHOUT_KERNELS:
        if "nvrtc" in MISSING:
            raise DynamicLibNotFoundError(
                'Failure finding "libnvrtc.so.13": No such file: libnvrtc.so.13\n  listdir("/usr/lib"):'
            )
        if "headers" in MISSING:
            raise RuntimeError(
                "Failed to find CUDA headers. Please install CUDA toolkit headers (e.g., pip install cupy-cuda12x[ctk]) "
                "or specify CUDA_PATH environment variable."
            )
        if "cublas" in MISSING and (name in PRODUCTS or name.startswith("linalg.")):
            raise ImportError("libcublasLt.so.13: cannot open shared object file: No such file or directory")


@cache
def signature(text):
    """An inspect.Signature from text such as "(a, axis=None, *, out=None)"."""
    scope = {}
    exec(f"def f{text}: pass", scope)
    return inspect.signature(scope["f"])


def check(kind, name, *args, **kwargs):
    """Refuses a name that CuPy does not have, and arguments that it does not take."""
    known = api()[kind]
    if name not in known:
        raise AttributeError(f"CuPy has no {kind[:-1]} {name!r}")
    try:
        signature(known[name]).bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"cupy's {name}{known[name]}: {error}") from None


def plain(x, where, numpy_too=False):
    """What an argument is in NumPy's terms; TypeError where CuPy would refuse it."""
    if isinstance(x, ndarray):
        return x._array
    if isinstance(x, list | tuple):
        return type(x)(plain(y, where, numpy_too) for y in x)
    if isinstance(x, dict):
        return {key: plain(y, where, numpy_too) for key, y in x.items()}
    if isinstance(x, np.ndarray) and not numpy_too:
        raise TypeError(f"Unsupported type <class 'numpy.ndarray'> in cupy's {where}")
    return x


def wrap(result, *sources):
    """A result as arrays of this module; a view remembers the array whose memory it shows."""
    if isinstance(result, tuple | list):
        return type(result)(wrap(r, *sources) for r in result)
    if not isinstance(result, np.ndarray | np.generic):
        return result
    array = np.asarray(result)
    for source in sources:
        if array is source._array:
            return source
    made = ndarray.__new__(ndarray)
    made._array, made.base = array, None
    for source in sources:
        owner = source if source.base is None else source.base
        if array.base is not None and (array.base is owner._array or array.base is owner._array.base):
            made.base = owner
    return made


def arrays_in(values):
    for value in values:
        if isinstance(value, ndarray):
            yield value
        elif isinstance(value, list | tuple):
            yield from arrays_in(value)


class ndarray:
    """cupy.ndarray over host memory."""

    __hash__ = None
    __array_priority__ = 100

    def __init__(self, *args, **kwargs):
        raise TypeError("the stand-in makes arrays by functions only")

    def __getattr__(self, name):
        if name in PROPERTIES:
            return getattr(self._array, name)
        if name.startswith("__") or name not in api()["methods"]:
            raise AttributeError(f"'cupy.ndarray' object has no attribute {name!r}")

        def method(*args, **kwargs):
            check("methods", name, self, *args, **kwargs)
            load_libraries(name)
            result = getattr(self._array, name)(*plain(args, name), **plain(kwargs, name))
            if name in ("item", "tolist"):
                COUNTS["synchronisations"] += 1
            elif name not in PROPERTIES:
                note(result, self._array, out=kwargs.get("out"))
            return (
                wrap(result, self, *arrays_in([*args, *kwargs.values()])) if name not in ("item", "tolist") else result
            )

        return method

    @property
    def data(self):
        return types.SimpleNamespace(ptr=self._array.ctypes.data)

    @property
    def device(self):
        return DEVICE

    @property
    def T(self):
        return wrap(self._array.T, self)

    @property
    def real(self):
        return wrap(self._array.real, self)

    @property
    def imag(self):
        return wrap(self._array.imag, self)

    def get(self):
        COUNTS["synchronisations"] += 1
        return self._array.copy()

    def set(self, arr, stream=None):
        assert isinstance(arr, np.ndarray) and arr.shape == self.shape and arr.dtype == self.dtype
        COUNTS["copies to the device"] += 1
        self._array[...] = arr

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()` instead.")

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        if method != "__call__":
            return NotImplemented
        return call_ufunc(ufunc.__name__, *inputs, **kwargs)

    def __getitem__(self, index):
        return wrap(note(self._array[plain(index, "index")], self._array), self)

    def __setitem__(self, index, value):
        COUNTS["launches of CuPy"] += 1
        self._array[plain(index, "index")] = plain(value, "assignment")

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __len__(self):
        return len(self._array)

    def __bool__(self):
        COUNTS["synchronisations"] += 1
        return bool(self._array)

    def __float__(self):
        COUNTS["synchronisations"] += 1
        return float(self._array)

    def __int__(self):
        COUNTS["synchronisations"] += 1
        return int(self._array)

    def __index__(self):
        COUNTS["synchronisations"] += 1
        return operator.index(self._array.item()) if self._array.ndim == 0 else operator.index(self._array)

    def __format__(self, spec):
        COUNTS["synchronisations"] += 1
        return format(self._array.item() if self._array.ndim == 0 else self._array, spec)

    def __repr__(self):
        return repr(self._array)

    def __dlpack_device__(self):
        return (2, 0)


ndarray.__module__ = "cupy"


class Device(contextlib.nullcontext):
    """cupy.cuda.Device, of a GPU like an H100."""

    def __init__(self, device=0):
        super().__init__()
        self.id = device

    __hash__ = None  # as CuPy's

    attributes = {"MaxSharedMemoryPerBlockOptin": 232448, "MultiProcessorCount": 132}  # noqa: RUF012


DEVICE = Device()


def install_operators():
    def binary(symbol):
        def forward(self, other):
            if getattr(other, "__array_ufunc__", self) is None:
                return NotImplemented
            return operate(symbol, self, other)

        def reverse(self, other):
            return operate(symbol, other, self)

        return forward, reverse

    def in_place(symbol):
        def method(self, other):
            load_libraries(symbol)
            COUNTS["launches of CuPy"] += 1
            self._array = getattr(operator, f"i{symbol}")(self._array, checked(other, symbol))
            return self

        return method

    def unary(symbol):
        return lambda self: wrap(note(getattr(operator, symbol)(self._array)))

    def checked(x, symbol):
        if not isinstance(x, (ndarray, *SCALARS)):
            raise TypeError(f"Unsupported type {type(x)} in cupy's {symbol}")
        return plain(x, symbol)

    def operate(symbol, a, b):
        load_libraries(symbol)
        return wrap(note(getattr(operator, symbol)(checked(a, symbol), checked(b, symbol))))

    for symbol in (
        "add",
        "sub",
        "mul",
        "truediv",
        "floordiv",
        "mod",
        "pow",
        "matmul",
        "and",
        "or",
        "xor",
        "lshift",
        "rshift",
    ):
        name = f"{symbol}_" if symbol in ("and", "or") else symbol
        forward, reverse = binary(name)
        setattr(ndarray, f"__{symbol}__", forward)
        setattr(ndarray, f"__r{symbol}__", reverse)
        if symbol != "matmul":
            setattr(ndarray, f"__i{symbol}__", in_place(symbol))
    for symbol in ("lt", "le", "gt", "ge", "eq", "ne"):
        setattr(ndarray, f"__{symbol}__", binary(symbol)[0])
    for symbol in ("neg", "pos", "abs", "invert"):
        setattr(ndarray, f"__{symbol}__", unary(symbol))


install_operators()


def call_ufunc(name, *args, **kwargs):
    check("ufuncs", name, *args, **kwargs)
    load_libraries(name)
    out = kwargs.get("out")
    if isinstance(out, tuple):
        kwargs["out"] = out = out[0]
    result = getattr(np, name)(*(plain(a, name) for a in args), **plain(kwargs, name))
    note(result, out=out)
    return out if out is not None else wrap(result)


class Ufunc:
    def __init__(self, name):
        self.__name__ = name

    def __call__(self, *args, **kwargs):
        return call_ufunc(self.__name__, *args, **kwargs)

    def at(self, a, indices, b=None):
        if self.__name__ not in ("add", "subtract", "maximum", "minimum", "bitwise_and", "bitwise_or", "bitwise_xor"):
            raise TypeError(f"cupy's {self.__name__}.at is not supported")
        getattr(np, self.__name__).at(plain(a, "at"), plain(indices, "at"), plain(b, "at"))


def call_function(home, name, *args, **kwargs):
    full = f"{home.__name__.removeprefix('numpy').removeprefix('.')}.{name}".removeprefix(".")
    check("functions", full, *args, **kwargs)
    load_libraries(full)
    numpy_too = name in CONVERTERS
    result = getattr(home, name)(*plain(args, full, numpy_too), **plain(kwargs, full, numpy_too))
    if isinstance(result, np.dtype):
        return result
    foreign = [a for a in args if isinstance(a, np.ndarray)]
    if foreign and any(np.shares_memory(result, a) for a in foreign):
        result = result.copy()  # what comes from NumPy is copied to the device
    out, arrays = kwargs.get("out"), list(arrays_in([*args, *kwargs.values()]))
    if name in ("empty", "empty_like"):
        COUNTS["allocations"] += 1
    elif name in CONVERTERS and not arrays:
        COUNTS["copies to the device"] += 1
        COUNTS["allocations"] += 1
    else:
        note(result, *(a._array for a in arrays), out=out)
    return out if out is not None else wrap(result, *arrays)


class Namespace(types.ModuleType):
    """cupy, cupy.linalg and the like: NumPy's function of the same name, held to CuPy's signature."""

    def __init__(self, name, home):
        super().__init__(name)
        self._home = home

    def __getattr__(self, name):
        home = self._home
        prefix = f"{home.__name__.removeprefix('numpy').removeprefix('.')}.".removeprefix(".")
        if name in api()["ufuncs"] and home is np:
            return Ufunc(name)
        if f"{prefix}{name}" in api()["functions"]:
            return lambda *args, **kwargs: call_function(home, name, *args, **kwargs)
        value = getattr(home, name, None)
        if (home is np and (isinstance(value, type) and issubclass(value, np.generic))) or name in (
            "inf",
            "pi",
            "nan",
            "newaxis",
        ):
            return value
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


class RawModule:
    """Kernels from the text that the GPU would get, run by the project's stand-in for CUDA."""

    def __init__(self, *, code, backend, options=()):
        from tinydiff.cuda import source

        assert backend == "nvrtc" and isinstance(options, tuple)
        files = [p.name for p in source.folder().glob("*.cu")]
        (self.name,) = [name for name in files if source.load(name) == code]
        defines = [option.removeprefix("-D").partition("=") for option in options if option.startswith("-D")]
        self.defines = {name: value for name, _, value in defines}
        self.text = source.load(self.name, host=True)
        self.kernels = source.kernels(self.text)

    def get_function(self, name):
        from tinydiff.cuda import host

        load_libraries(name)

        def function(grid, block, args, *, shared_mem=0):
            assert shared_mem <= function.max_dynamic_shared_size_bytes
            parameters = self.kernels[name]
            values = []
            for parameter, value in zip(parameters, args, strict=True):
                if isinstance(value, ndarray):
                    values.append(value._array)
                else:
                    assert isinstance(value, np.generic), f"{name}: {type(value).__name__} gets to the GPU as 64 bits"
                    assert not parameter.is_array or (value.dtype.itemsize == 8 and value == 0)
                    values.append(None if parameter.is_array else value)
            COUNTS["launches of kernels"] += 1
            host.run(self.name, self.text, name, parameters, grid, block, values, shared_mem, self.defines)

        function.max_dynamic_shared_size_bytes = 48 << 10
        return function


def make_cuda():
    """cupy.cuda, as far as launching needs it."""

    failure = {
        name: type(name, (RuntimeError,), {}) for name in ("CompileException", "CUDADriverError", "CUDARuntimeError")
    }
    return types.SimpleNamespace(
        Device=Device,
        get_current_stream=lambda: types.SimpleNamespace(synchronize=lambda: None),
        alloc_pinned_memory=bytearray,
        Event=lambda **_: types.SimpleNamespace(record=lambda stream: None, synchronize=lambda: None),
        compiler=types.SimpleNamespace(CompileException=failure["CompileException"]),
        driver=types.SimpleNamespace(CUDADriverError=failure["CUDADriverError"]),
        runtime=types.SimpleNamespace(
            CUDARuntimeError=failure["CUDARuntimeError"],
            memGetInfo=lambda: (8 << 30, 16 << 30),
            runtimeGetVersion=lambda: 13000,
        ),
    )


def make():
    """The module, to be put into sys.modules as "cupy"."""
    cupy = Namespace("cupy", np)
    cupy.ndarray, cupy.is_available, cupy.__version__ = ndarray, lambda: True, api()["version"]
    cupy.RawModule, cupy.cuda = RawModule, make_cuda()
    cupy.get_default_memory_pool = lambda: types.SimpleNamespace(
        free_all_blocks=lambda: None, total_bytes=lambda: 0, free_bytes=lambda: 0
    )
    cupy.linalg = Namespace("cupy.linalg", np.linalg)
    cupy.lib = types.SimpleNamespace(stride_tricks=Namespace("cupy.lib.stride_tricks", np.lib.stride_tricks))
    return cupy


# ----------------------------------------------------------------------------------------- writing down CuPy's signatures


def compiler_options(cupy, given, architecture="90"):
    """What CuPy's RawModule gives NVRTC beside the architecture and options of ours, in order; nothing is compiled."""
    compiler, seen = cupy.cuda.compiler, []

    class Program:
        def __init__(self, *args, **kwargs):
            pass

        def compile(self, options=(), *rest):
            seen.append(list(options))
            return b"", None

    kept, compiler._NVRTCProgram = compiler._NVRTCProgram, Program
    try:
        compiler._compile_with_cache_cuda("", tuple(given), architecture, cache_in_memory=True)
    except Exception:  # an empty binary cannot be loaded
        pass
    finally:
        compiler._NVRTCProgram = kept
    return [o for o in seen[-1] if o not in given and not o.startswith("-arch=")]


def describe():
    """The signatures of CuPy's functions, methods and ufuncs that NumPy has as well, from its documentation where it is
    compiled."""
    import cupy

    def bare(f):
        """A signature without annotations, defaults as text only where they are plain values."""
        parameters = []
        for p in inspect.signature(f).parameters.values():
            plain_default = p.default is p.empty or isinstance(p.default, bool | int | float | str | None)
            parameters.append(p.replace(annotation=p.empty, default=p.default if plain_default else None))
        return str(inspect.Signature(parameters))

    def text_of(f):
        try:
            text = bare(f)
        except (TypeError, ValueError):  # compiled: the first line of its documentation has it, with C's types
            match = re.match(r"[\w.]*\((.*?)\)(?:\s*->.*)?\s*(?:\n|$)", (f.__doc__ or "").replace("\\*", "*"))
            if match is None:
                return None
            text = "(" + ", ".join(part.split()[-1] for part in match[1].split(",")) + ")"
        try:
            signature(text)
        except (SyntaxError, NameError):
            return None
        return text

    found = {
        "version": cupy.__version__, "functions": {}, "methods": {}, "ufuncs": {}, "compiler": compiler_options(cupy, ())
    }  # fmt: skip
    for prefix, module, theirs in (
        ("", cupy, np), ("linalg.", cupy.linalg, np.linalg),
        ("lib.stride_tricks.", cupy.lib.stride_tricks, np.lib.stride_tricks),
    ):  # fmt: skip
        for name in dir(module):
            thing = getattr(module, name)
            if name.startswith("_") or not callable(thing) or isinstance(thing, type) or not hasattr(theirs, name):
                continue
            kind = "ufuncs" if isinstance(thing, cupy.ufunc) else "functions"
            if (text := text_of(thing)) is not None:
                found[kind][prefix + name] = text
    for name in dir(cupy.ndarray):
        thing = getattr(cupy.ndarray, name)
        if not name.startswith("_") and callable(thing) and (text := text_of(thing)) is not None:
            found["methods"][name] = text if text.startswith("(self") else f"(self, {text[1:]}"
    return found


if __name__ == "__main__":
    described = describe()
    API_FILE.write_text(json.dumps(described, indent=0, sort_keys=True) + "\n", encoding="utf-8")
    print({kind: len(names) for kind, names in described.items() if kind != "version"}, file=sys.stderr)
