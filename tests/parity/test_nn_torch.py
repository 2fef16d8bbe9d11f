"""Layers against PyTorch's, made alike by `load_torch_state_dict`; optimisers and clipping against PyTorch's."""

import numpy as np
import pytest

from tinydiff import nn, optim
from tinydiff.nn import Parameter

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.parity


def to_torch(x):
    return torch.tensor(x if x.ndim != 4 else x.transpose(0, 3, 1, 2).copy(), requires_grad=x.dtype.kind == "f")


def from_torch(x):
    x = x.detach().numpy()
    return x if x.ndim != 4 else x.transpose(0, 2, 3, 1)


LAYERS = {
    "linear": (lambda: nn.Linear(4, 6), lambda: torch.nn.Linear(4, 6), (3, 4)),
    "linear without bias": (lambda: nn.Linear(4, 6, bias=False), lambda: torch.nn.Linear(4, 6, bias=False), (3, 4)),
    "convolution": (
        lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2),
        lambda: torch.nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2),
        (2, 7, 8, 4),
    ),
    "group norm": (lambda: nn.GroupNorm(2, 4), lambda: torch.nn.GroupNorm(2, 4), (2, 3, 5, 4)),
    "layer norm": (lambda: nn.LayerNorm(4), lambda: torch.nn.LayerNorm(4), (2, 3, 4)),
    "batch norm": (lambda: nn.BatchNorm(4), lambda: torch.nn.BatchNorm2d(4), (2, 3, 5, 4)),
    "batch norm, evaluating": (lambda: nn.BatchNorm(4).eval(), lambda: torch.nn.BatchNorm2d(4).eval(), (2, 3, 5, 4)),
    "embedding": (lambda: nn.Embedding(5, 3), lambda: torch.nn.Embedding(5, 3), None),
    "several": (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.GroupNorm(1, 4)),
        lambda: torch.nn.Sequential(torch.nn.Conv2d(4, 4, 1), torch.nn.GroupNorm(1, 4)),
        (1, 2, 2, 4),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(rng, name):
    make_ours, make_theirs, shape = LAYERS[name]
    torch.manual_seed(0)
    ours, theirs = make_ours().astype(np.float64), make_theirs().double()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(torch.randn_like(p))
    ours.load_torch_state_dict(theirs.state_dict())
    x = rng.integers(0, 5, (2, 3)) if shape is None else rng.normal(size=shape)
    y, y_t = ours(x), theirs(to_torch(x))
    np.testing.assert_allclose(y.data, from_torch(y_t), rtol=1e-11, atol=1e-11)
    L_Y = rng.normal(size=y.shape)
    y.backward(L_Y)
    y_t.backward(to_torch(L_Y).detach())
    expected = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    expected |= {name: buffer.numpy() for name, buffer in theirs.named_buffers()}
    for p in ours.parameters():
        p.data[...] = p.grad
    state = ours.torch_state_dict()
    assert state.keys() == expected.keys()
    for name, array in state.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-10, atol=1e-10, err_msg=name)
    theirs.load_state_dict({name: torch.tensor(array) for name, array in state.items()})  # and back


OPTIMIZERS = {
    "SGD": ({"lr": 0.1}, "SGD"),
    "SGD, momentum": ({"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}, "SGD"),
    "Adam": ({"lr": 0.02}, "Adam"),
    "Adam, decay": ({"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}, "Adam"),
    "AdamW": ({"lr": 0.02}, "AdamW"),
    "AdamW, decay": ({"lr": 0.02, "weight_decay": 0.3}, "AdamW"),
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(rng, name, dtype, tolerance):
    options, cls = OPTIMIZERS[name]
    start = [rng.normal(size=shape).astype(dtype) for shape in ((3, 2), (5,))]
    ours, theirs = [Parameter(a.copy()) for a in start], [torch.tensor(a.copy(), requires_grad=True) for a in start]
    one, two = getattr(optim, cls)(ours, **options), getattr(torch.optim, cls)(theirs, **options)
    for k in range(12):
        if k == 6:  # a new learning rate, as a schedule sets it
            one.lr = two.param_groups[0]["lr"] = 0.005
        for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            g = None if i == 1 and k % 3 == 0 else rng.normal(size=p.shape).astype(dtype)
            p.grad, q.grad = g, None if g is None else torch.tensor(g)
        one.step()
        two.step()
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.data, q.detach().numpy(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("max_norm", [0.1, 100.0])
def test_clipping(rng, max_norm):
    grads = [rng.normal(size=shape) for shape in ((3, 2), (5,))]
    ours, theirs = (
        [Parameter(np.ones(g.shape)) for g in grads],
        [torch.ones(g.shape, dtype=torch.float64) for g in grads],
    )
    for p, q, g in zip(ours, theirs, grads, strict=True):
        p.grad, q.grad = g.copy(), torch.tensor(g)
    norm = optim.clip_grad_norm(ours, max_norm)
    assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(theirs, max_norm)), rel=1e-12)
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.grad, q.grad.numpy(), rtol=1e-4)  # PyTorch divides by norm + 1e-6
