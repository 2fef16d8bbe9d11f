"""tinydiff/nn/hooks.py: hooks on modules, with PyTorch's meaning. And functions of modules that PyTorch's users know."""

import numpy as np
import pytest

import tinydiff as td
from tinydiff import nn


def net():
    return nn.Sequential(nn.Linear(2, 3), td.ops.relu, nn.Linear(3, 1))


X = np.array([[1.0, 2.0], [-1.0, 0.5]], np.float32)


def test_forward_hooks():
    model, seen = net(), []
    plain = model(X).data
    pre = model[0].register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    post = model[0].register_forward_hook(lambda module, args, output: seen.append((module, args[0], output.shape)))
    last = model.register_forward_hook(lambda module, args, output: output * 3)
    doubled = model(X).data
    assert seen[0][0] is model[0] and seen[0][2] == (2, 3)
    np.testing.assert_array_equal(seen[0][1], 2 * X)
    for handle in (pre, post):
        handle.remove()
    np.testing.assert_allclose(model(X).data, 3 * plain, rtol=1e-6)
    assert not np.allclose(doubled, 3 * plain)
    last.remove()
    np.testing.assert_array_equal(model(X).data, plain)
    assert len(seen) == 1


@pytest.mark.parity
@pytest.mark.parametrize("input_needs", [True, False])
def test_backward_hooks_are_pytorchs(input_needs):
    torch = pytest.importorskip("torch")
    ours = net()
    theirs = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    theirs.load_state_dict({name: torch.tensor(a) for name, a in ours.torch_state_dict().items()})
    seen = {"ours": [], "theirs": []}

    def hook(name, at):
        def see(module, grad_input, grad_output):
            seen[name].append((at, *[None if g is None else np.array(g) for g in (*grad_input, *grad_output)]))
            return tuple(None if g is None else g * 2 for g in grad_input)

        return see

    for at in (0, 2):
        ours[at].register_full_backward_hook(hook("ours", at))
        theirs[at].register_full_backward_hook(hook("theirs", at))
    x, y = td.Tensor(X.copy(), requires_grad=input_needs), torch.tensor(X, requires_grad=input_needs)
    ours(x).sum().backward()
    theirs(y).sum().backward()
    assert [row[0] for row in seen["ours"]] == [row[0] for row in seen["theirs"]] == [2, 0]
    for a, b in zip(seen["ours"], seen["theirs"], strict=True):
        assert len(a) == len(b)
        for one, other in zip(a[1:], b[1:], strict=True):
            assert (one is None) == (other is None)
            assert one is None or np.allclose(one, other, atol=1e-6)
    np.testing.assert_allclose(ours[0].weight.grad, theirs[0].weight.grad.numpy().T, rtol=1e-5)
    if input_needs:
        np.testing.assert_allclose(x.grad, y.grad.numpy(), rtol=1e-5)


def test_hooks_run_where_layers_are_computed_together():
    seen, layers = [], [nn.Linear(2, 3) for _ in range(3)]
    plain = [y.data for y in nn.project(X, layers)]
    layers[1].register_forward_hook(lambda module, args, output: seen.append(output.data))
    for one, other in zip(nn.project(X, layers), plain, strict=True):
        np.testing.assert_allclose(one.data, other, rtol=1e-6)
    np.testing.assert_allclose(seen[0], plain[1], rtol=1e-6)


def test_a_backward_hook_that_returns_another_number_of_gradients():
    layer = nn.Linear(2, 3)
    layer.register_full_backward_hook(lambda module, grad_input, grad_output: (grad_input[0], grad_input[0]))
    with pytest.raises(ValueError, match="2 gradients for 1 inputs"):
        layer(td.Tensor(X, requires_grad=True)).sum().backward()


def test_modes_freezing_and_zeroing():
    model = net()
    assert not model.train(False).training and model.train(True).training and model.generator is None
    assert model.requires_grad_(False) is model and not model[0].weight.requires_grad
    assert not model(X).requires_grad
    model.requires_grad_()
    model(X).sum().backward()
    model.zero_grad(set_to_none=False)
    assert not model[0].weight.grad.any()
    model.zero_grad(set_to_none=True)
    assert model[0].weight.grad is None


def test_in_a_notebook():
    model = net()
    model[0].weight.requires_grad = False
    page = model._repr_html_()
    assert page.count("<tr>") == 5 and "0.weight" in page and "(2, 3)" in page and "frozen" in page
    cells = td.Tensor([[1.0, -2.0], [0.0, float("nan")]])._repr_html_()
    assert cells.count("<td") == 4
    for colour in ("rgb(36,88,184)", "rgb(255,255,255)", "rgb(176,0,122)"):
        assert colour in cells
    assert ">-2</code>" in cells and "Tensor (2, 2), float32, 1 not finite (purple)" in cells
    image = td.Tensor(np.full((2, 20, 40, 3), 0.5, np.float32), requires_grad=True)._repr_html_()
    assert "float32, requires_grad=True, a part is shown: [0, :16, :32, 0]<" in image and "<code>0.5</code>" in image
    assert "Tensor (100,), float64, a part is shown: [:32]<" in td.Tensor(np.zeros(100))._repr_html_()
    assert "a part is shown: [1, 1, :, :]<" in td.Tensor(np.zeros((3, 3, 2, 4)))._repr_html_()
    assert ">2.5</code>" in td.Tensor(2.5)._repr_html_() and ">True</code>" in td.Tensor(np.array([True]))._repr_html_()
    for shape in ((), (0,), (3, 0, 2), (100, 100), (2, 3, 4, 5)):
        assert "<table" in td.Tensor(np.zeros(shape))._repr_html_()
    assert len(td.Tensor(np.zeros((500, 500)))._repr_html_()) < 60_000
