"""cupy.ndarray over host memory, its operators, and CuPy's functions of arrays."""

import operator
import types

import numpy as np

from tests.cupy_stand_in import streams
from tests.cupy_stand_in.signatures import COUNTS, api, check, load_libraries, needs_cublas
from tests.cupy_stand_in.streams import launch, read_back, refuse

SCALARS = (bool, int, float, complex, np.generic)
PROPERTIES = ("shape", "dtype", "ndim", "size", "strides", "nbytes", "itemsize", "flags")
CONVERTERS = ("asarray", "array", "ascontiguousarray", "asfortranarray", "asnumpy")  # these may take NumPy's arrays
IN_PLACE = ("fill", "sort", "partition", "put")
SIZED_BY_VALUES = (
    "nonzero",
    "flatnonzero",
    "argwhere",
    "unique",
    "compress",
    "extract",
)  # CuPy reads them to know its shape
JOINED_BY_POINTERS = (
    8,
    2 << 20,
)  # more arrays than this, of fewer bytes on average: CuPy copies a table of their addresses


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
    made._array, made.base, memory = array, None, streams.root(array)
    for source in sources:
        owner = source if source.base is None else source.base
        if streams.root(owner._array) is memory:
            made.base = owner
    if made.base is None:
        streams.own(memory)
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

    def __del__(self):
        if self.base is None and streams.root is not None:  # it is None at the interpreter's end
            streams.release(streams.root(self._array))

    def __getattr__(self, name):
        if name in PROPERTIES:
            return getattr(self._array, name)
        if name.startswith("__") or name not in api()["methods"]:
            raise AttributeError(f"'cupy.ndarray' object has no attribute {name!r}")
        return lambda *args, **kwargs: self._call(name, args, kwargs)

    def _call(self, name, args, kwargs):
        """A method that NumPy has too."""
        check("methods", name, self, *args, **kwargs)
        load_libraries(name)
        refuse_host_data(name, (self, *args))
        if name in ("item", "tolist"):
            read_back()
            return getattr(self._array, name)(*args)
        given, options = plain(args, name), plain(kwargs, name)
        out = self._array if name in IN_PLACE else options.get("out")
        result = launch(lambda: getattr(self._array, name)(*given, **options), self._array, out=out)
        return None if name in IN_PLACE else wrap(result, self, *arrays_in([*args, *kwargs.values()]))

    @property
    def data(self):
        return types.SimpleNamespace(ptr=self._array.ctypes.data)

    @property
    def device(self):
        return streams.the_device()

    @property
    def T(self):
        return wrap(self._array.T, self)

    @property
    def real(self):
        return wrap(self._array.real, self)

    @property
    def imag(self):
        return wrap(self._array.imag, self)

    def get(self, *args, **kwargs):
        check("methods", "get", self, *args, **kwargs)
        read_back()
        return self._array.copy()

    def set(self, arr, *args, **kwargs):
        check("methods", "set", self, arr, *args, **kwargs)
        if not isinstance(arr, np.ndarray) or arr.dtype != self.dtype or arr.shape != self.shape:
            raise TypeError(f"only a numpy.ndarray of {self.dtype} {self.shape} can be set")
        if not self.flags.c_contiguous:
            raise RuntimeError("Cannot set to non-contiguous array")
        refuse("H2D transfers")
        COUNTS["copies to the device"] += 1
        self._array[...] = arr

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()` instead.")

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        if method != "__call__":
            return NotImplemented
        return call_ufunc(ufunc.__name__, *inputs, **kwargs)

    def __getitem__(self, index):
        refuse_host_data("index", index if isinstance(index, tuple) else (index,))
        at = plain(index, "index")
        return wrap(launch(lambda: self._array[at], self._array), self)

    def __setitem__(self, index, value):
        at, value = plain(index, "index"), plain(value, "assignment")
        launch(lambda: self._array.__setitem__(at, value), out=self._array)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __len__(self):
        return len(self._array)

    def __bool__(self):
        read_back()
        return bool(self._array)

    def __float__(self):
        read_back()
        return float(self._array)

    def __int__(self):
        read_back()
        return int(self._array)

    def __index__(self):
        read_back()
        return operator.index(self._array.item()) if self._array.ndim == 0 else operator.index(self._array)

    def __format__(self, spec):
        read_back()
        return format(self._array.item() if self._array.ndim == 0 else self._array, spec)

    def __repr__(self):
        return repr(self._array)

    def __dlpack_device__(self):
        return (2, 0)


ndarray.__module__ = "cupy"


def refuse_host_data(name, args):
    """Fails, where the current stream captures, for what makes CuPy copy from or to the host: indices that are lists, shapes
    that depend on values, many small arrays joined."""
    if streams.capturing() is None:
        return
    if needs_cublas(name):
        refuse("cuBLAS")
    masks = [a for a in arrays_in(args) if a.dtype == bool] if name == "index" else []
    if masks or name in SIZED_BY_VALUES or (name == "where" and len(args) == 1):
        refuse("D2H transfers")
    if name in ("index", "take") and any(isinstance(a, list | np.ndarray) for a in args):
        refuse("H2D transfers")
    if name in ("concatenate", "stack", "hstack", "vstack"):
        count, size = JOINED_BY_POINTERS
        joined = list(arrays_in(args[:1]))
        if (
            len(joined) > count
            and len({a.dtype for a in joined}) == 1
            and sum(a.nbytes for a in joined) < size * len(joined)
        ):
            refuse("H2D transfers")


# --------------------------------------------------------------------------------------------------------------- operators


def operate(symbol, a, b):
    load_libraries(symbol)
    if symbol == "matmul":
        refuse("cuBLAS")
    a, b = checked(a, symbol), checked(b, symbol)
    return wrap(launch(lambda: getattr(operator, symbol)(a, b)))


def checked(x, symbol):
    if not isinstance(x, (ndarray, *SCALARS)):
        raise TypeError(f"Unsupported type {type(x)} in cupy's {symbol}")
    return plain(x, symbol)


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
            other = checked(other, symbol)
            launch(lambda: getattr(operator, f"i{symbol}")(self._array, other), out=self._array)
            return self

        return method

    def unary(symbol):
        return lambda self: wrap(launch(lambda: getattr(operator, symbol)(self._array)))

    for symbol in (
        "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor", "lshift", "rshift",
    ):  # fmt: skip
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


# --------------------------------------------------------------------------------------------------------------- functions


def call_ufunc(name, *args, **kwargs):
    check("ufuncs", name, *args, **kwargs)
    load_libraries(name)
    if needs_cublas(name):
        refuse("cuBLAS")
    out = kwargs.get("out")
    if isinstance(out, tuple):
        kwargs["out"] = out = out[0]
    given, options = [plain(a, name) for a in args], plain(kwargs, name)
    result = launch(lambda: getattr(np, name)(*given, **options), out=options.get("out"))
    return out if out is not None else wrap(result)


class Ufunc:
    def __init__(self, name):
        self.__name__ = name

    def __call__(self, *args, **kwargs):
        return call_ufunc(self.__name__, *args, **kwargs)

    def at(self, a, indices, b=None):
        if self.__name__ not in ("add", "subtract", "maximum", "minimum", "bitwise_and", "bitwise_or", "bitwise_xor"):
            raise TypeError(f"cupy's {self.__name__}.at is not supported")
        given = [plain(x, "at") for x in (a, indices, b)]
        launch(lambda: getattr(np, self.__name__).at(*given), out=given[0])


def call_function(home, name, *args, **kwargs):
    full = f"{home.__name__.removeprefix('numpy').removeprefix('.')}.{name}".removeprefix(".")
    check("functions", full, *args, **kwargs)
    load_libraries(full)
    refuse_host_data(full, args)
    numpy_too = name in CONVERTERS
    given, options = plain(args, full, numpy_too), plain(kwargs, full, numpy_too)

    def compute():
        return getattr(home, name)(*given, **options)

    out, arrays = kwargs.get("out"), list(arrays_in([*args, *kwargs.values()]))
    if name in ("empty", "empty_like"):
        result = compute()
        streams.poison(result)
        COUNTS["allocations"] += 1
    elif numpy_too and not arrays:
        refuse("H2D transfers")
        result = compute()
        foreign = [a for a in args if isinstance(a, np.ndarray)]
        if any(np.shares_memory(result, a) for a in foreign):
            result = result.copy()  # what comes from NumPy is copied to the device
        COUNTS["copies to the device"] += 1
        COUNTS["allocations"] += 1
    else:
        result = launch(compute, *(a._array for a in arrays), out=options.get("out"))
    if isinstance(result, np.dtype):
        return result
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
            "inf", "pi", "nan", "newaxis",
        ):  # fmt: skip
            return value
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
