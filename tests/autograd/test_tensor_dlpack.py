"""td.from_dlpack and Tensor.__dlpack__: one memory for two libraries."""

import numpy as np
import pytest

import tinydiff as td
from tinydiff.errors import a_type

writes_shared_memory = pytest.mark.skipif(
    np.lib.NumpyVersion(np.__version__) < "2.1.0",
    reason="NumPy 2.0 gives memory that others share read-only, and shares none such",
)


@writes_shared_memory
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int64, np.uint8, np.bool_])
@pytest.mark.parametrize("index", [np.s_[:], np.s_[::2, 1:], np.s_[:0]], ids=["whole", "strided", "empty"])
def test_numpy_and_tinydiff_share_memory_both_ways(dtype, index):
    array = np.arange(12).reshape(4, 3).astype(dtype)[index]
    x = td.from_dlpack(array)
    assert isinstance(x, td.Tensor) and (x.dtype, x.shape, x.data.strides) == (dtype, array.shape, array.strides)
    back = np.from_dlpack(td.Tensor(array))
    assert (back.dtype, back.shape, back.strides) == (dtype, array.shape, array.strides)
    if array.size:
        array[0, 0] = 1
        assert x.data[0, 0] == 1 == back[0, 0]
        x.data[-1, -1] = 0
        assert array[-1, -1] == 0


def test_a_tensor_made_from_shared_memory_is_a_leaf_like_any_other():
    array = np.array([2.0, 3.0], np.float32)
    x = td.from_dlpack(array)
    x.requires_grad = True
    (x * x).sum().backward()
    assert x.grad.tolist() == [4, 6]
    assert not np.shares_memory(x.grad, array)


def test_memory_outlives_the_array_it_came_from():
    x = td.from_dlpack(np.full(1000, 7.0))
    assert (x.data == 7).all()


@writes_shared_memory
def test_memory_that_must_not_be_written_stays_so():
    array = np.zeros(3)
    array.flags.writeable = False
    assert not td.from_dlpack(array).data.flags.writeable


def test_a_view_that_runs_backwards_is_refused_in_a_sentence():
    with pytest.raises(BufferError, match="runs backwards"):
        np.from_dlpack(td.Tensor(np.arange(3.0)[::-1]))


@pytest.mark.parametrize("thing", [[1.0, 2.0], 3.0, None, "text"])
def test_what_offers_no_memory_is_refused(thing):
    with pytest.raises(TypeError, match=f"DLPack, not {a_type(thing)}"):
        td.from_dlpack(thing)


class Foreign:
    """An array whose library puts it on a device that tinydiff does not have, or fails to share it."""

    def __init__(self, device, error=None):
        self.device, self.error = device, error

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, **options):
        raise self.error


@pytest.mark.parametrize(
    "foreign, said",
    [
        (Foreign((10, 1)), "device 10:1"),
        (Foreign((1, 0), BufferError("no such dtype")), "no such dtype"),
        (Foreign((1, 0), RuntimeError("it needs a gradient")), "it needs a gradient"),
    ],
)
def test_what_cannot_be_shared_is_refused_with_the_reason(foreign, said):
    with pytest.raises(ValueError, match=f"cannot share the memory of this .*Foreign: .*{said}"):
        td.from_dlpack(foreign)


@pytest.mark.gpu
def test_cupy_and_tinydiff_share_memory_both_ways():
    cupy = td.backend.cupy()
    if cupy is None:
        pytest.skip("needs an NVIDIA GPU and CuPy")
    array = cupy.arange(12, dtype="float32").reshape(4, 3)[::2]
    x = td.from_dlpack(array)
    assert x.device == "cuda" and x.data.data.ptr == array.data.ptr and x.data.strides == array.strides
    assert cupy.from_dlpack(x).data.ptr == array.data.ptr
