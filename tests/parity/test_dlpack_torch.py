"""td.from_dlpack and torch.from_dlpack on each other's memory."""

import numpy as np
import pytest

import tinydiff as td

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool])
def test_a_tensor_of_pytorch_is_taken_without_a_copy(dtype):
    theirs = torch.arange(24).to(dtype).reshape(4, 6)[1:, ::2]
    x = td.from_dlpack(theirs)
    assert x.data.ctypes.data == theirs.data_ptr()
    np.testing.assert_array_equal(x.data, theirs.numpy())
    theirs[0, 0] = 1
    assert x.data[0, 0] == 1


@pytest.mark.parametrize("index", [np.s_[:], np.s_[::2], np.s_[:, 1], np.s_[:0]])
def test_pytorch_takes_a_tensor_without_a_copy(index):
    x = td.Tensor(np.arange(24.0, dtype=np.float32).reshape(4, 6)[index])
    theirs = torch.from_dlpack(x)
    assert x.size == 0 or theirs.data_ptr() == x.data.ctypes.data
    assert theirs.dtype == torch.float32 and tuple(theirs.shape) == x.shape
    np.testing.assert_array_equal(theirs.numpy(), x.data)
    theirs += 1
    np.testing.assert_array_equal(theirs.numpy(), x.data)


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: torch.zeros(2, dtype=torch.bfloat16), "dtype"),
        (lambda: torch.zeros(2, requires_grad=True), "detach"),
        (lambda: torch.zeros(2, device="meta"), "meta"),
        (lambda: torch.eye(2).to_sparse(), "strided"),
    ],
)
def test_what_cannot_be_shared_is_refused(make, said):
    with pytest.raises(ValueError, match=rf"memory of this torch\.Tensor: .*{said}"):
        td.from_dlpack(make())


def test_a_gradient_computed_here_can_be_used_there():
    weight = torch.nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    w = td.from_dlpack(weight.detach())
    w.requires_grad = True
    x = np.array([[1.0, -1.0]], np.float32)
    (td.ops.linear(x, w) ** 2).sum().backward()
    weight.grad = torch.from_dlpack(td.Tensor(w.grad))
    ours = weight.grad.clone()
    weight.grad = None
    ((torch.tensor(x) @ weight) ** 2).sum().backward()
    torch.testing.assert_close(ours, weight.grad)
