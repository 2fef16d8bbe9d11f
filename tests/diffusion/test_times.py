"""tinydiff/diffusion/times.py: what depends on t, on the host and, on the stand-in for CuPy, for times on the GPU."""

import sys

import numpy as np
import pytest

import tinydiff as td
from tests import cupy_stand_in
from tinydiff import backend
from tinydiff.diffusion import Diffusion, Schedule
from tinydiff.diffusion.times import times_of
from tinydiff.random import Generator

S = Schedule.linear(20, 1e-3, 0.4)
T = np.array([1, 20, 1, 2, 7])
KINDS = [
    {"predict": "eps"},
    {"predict": "v", "min_snr": 5.0},
    {"predict": "eps", "variance": "learned"},
    {"predict": "x0", "variance": "learned", "min_snr": 2.0},
]


@pytest.fixture
def cupy(monkeypatch):
    module = cupy_stand_in.make()
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(cupy_stand_in, "MISSING", {"cublas"})
    backend.cupy.cache_clear()
    yield module
    backend.cupy.cache_clear()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_times_on_the_gpu_are_those_of_the_host(kind, cupy):
    diffusion = Diffusion(S.respaced(10), **kind)
    t = np.minimum(T, 10)
    ours, expected = times_of(diffusion, cupy.asarray(t)), times_of(diffusion, t)
    cupy_stand_in.COUNTS.clear()
    times_of(diffusion, cupy.asarray(t))
    assert (
        cupy_stand_in.COUNTS["synchronisations"] == 0 and cupy_stand_in.COUNTS["copies to the device"] == 1
    )  # t itself
    for name, a, b in zip(ours._fields, ours, expected, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            assert a.shape == b.shape == t.shape
            np.testing.assert_array_equal(a.get(), b if name == "t" else b.astype(np.float32), err_msg=name)
    some = expected.rows(slice(1, 3))
    assert (some.signal.tolist() == expected.signal[1:3].tolist() and some.weight is None) or "min_snr" in kind


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("where", ["host", "GPU"])
def test_the_loss_and_its_gradient_for_times_on_the_gpu(kind, where, cupy):
    """Where the variance is learned, images at t = 1 have another term than the others."""
    diffusion, rng = Diffusion(S, **kind), np.random.default_rng(0)
    channels = 4 if kind.get("variance") == "learned" else 2
    x0, output = np.rint(rng.uniform(0, 255, (5, 3, 3, 2))) / 127.5 - 1, rng.normal(size=(5, 3, 3, channels))
    found = []
    for device in ("cpu", "cuda"):
        y = td.Tensor(backend.to_device(output.astype(np.float32), device), requires_grad=True)
        t = backend.to_device(T, device) if where == "GPU" else T
        images = backend.to_device(x0.astype(np.float32), device)
        state = Generator(3, step=2)
        loss = diffusion.loss(lambda x, t, y=y: y * 1, images, state, t=t)
        loss.backward()
        found.append((loss.item(), backend.to_numpy(y.grad)))
    (expected, L), (ours, L_y) = found
    assert ours == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(L_y, L, rtol=0, atol=2e-6 * np.abs(L).max())


def test_a_wrong_time_on_the_gpu_is_an_error_when_something_is_read(cupy):
    for wrong in (0, 21):
        times = times_of(Diffusion(S), cupy.asarray(np.array([3, wrong])))
        with pytest.raises(IndexError, match=r"not in 0\.\.19"):
            backend.to_numpy(times.signal)
        backend.to_numpy(times.signal)
