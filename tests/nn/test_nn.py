"""Modules and layers: what they compute, what they are called, how they start, how weights come and go."""

import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load, save

import tinydiff as td
from tinydiff import nn
from tinydiff.errors import InputError
from tinydiff.random import Generator


class Net(nn.Module):
    """Every place in which a module may have its weights."""

    def __init__(self, generator=None):
        self.first = nn.Linear(3, 4, generator=generator)
        self.scale = nn.Parameter(np.ones(4, np.float32))
        self.blocks = [nn.Sequential(nn.Linear(4, 4, generator=generator), nn.Dropout(0.5)), nn.LayerNorm(4)]
        self.tables = (nn.Parameter(np.zeros((2, 3), np.float32)), None)
        self.again, self.same = self.first, self.scale
        self.size, self.note = 3, "no weight"

    def forward(self, x):
        return self.blocks[1](self.blocks[0](self.first(x) * self.scale))


NAMES = [
    "scale", "tables.0", "first.weight", "first.bias",
    "blocks.0.0.weight", "blocks.0.0.bias", "blocks.1.weight", "blocks.1.bias",
]  # fmt: skip


def test_weights_are_found_by_name_each_once_in_order():
    net = Net()
    assert [name for name, _ in net.named_parameters()] == NAMES
    assert all(a is b for a, (_, b) in zip(net.parameters(), net.named_parameters(), strict=True))
    assert list(net.state_dict()) == NAMES
    modules = [name for name, _ in net.named_modules()]
    assert modules == ["", "first", "blocks.0", "blocks.0.0", "blocks.0.1", "blocks.1"]
    assert repr(net) == "Net(54 parameters)"


def test_a_module_without_forward_says_so():
    with pytest.raises(NotImplementedError, match="Module does not define forward"):
        nn.Module()(1)


def test_state_dict_is_a_copy_and_survives_safetensors():
    net, other = Net(Generator(1)), Net(Generator(2))
    state = net.state_dict()
    net.first.weight.data[...] = 7
    assert not np.any(state["first.weight"] == 7)
    other.load_state_dict(load(save(state)))
    for name, array in other.state_dict().items():
        np.testing.assert_array_equal(array, state[name])


def test_loading_keeps_memory_and_dtype_and_is_noted_by_the_tape():
    layer = nn.Linear(2, 2)
    memory = layer.weight.data
    y = layer(np.ones((1, 2), np.float32)).sum()
    layer.load_state_dict({"weight": np.eye(2), "bias": td.Tensor(np.zeros(2))})
    assert layer.weight.data is memory and memory.dtype == np.float32
    np.testing.assert_array_equal(memory, np.eye(2))
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("scale"), "1 are missing, scale"),
        (lambda s: s.update(extra=np.zeros(1)), "1 are not part of it, extra"),
        (lambda s: s.update(scale=np.zeros(5)), r"weight scale has shape \(5,\), but this Net needs \(4,\)"),
        (lambda s: s.update({"blocks.1.bias": np.array(["a"] * 4)}), "weight blocks.1.bias must be numbers, not <U1"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_anything_changes(change, message):
    net, state = Net(), {name: array + 1 for name, array in Net().state_dict().items()}
    before = net.state_dict()
    change(state)
    with pytest.raises(InputError, match=message):
        net.load_state_dict(state)
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_a_long_list_of_names_is_cut():
    state = {f"w{i}": np.zeros(1) for i in range(30)} | Net().state_dict()
    with pytest.raises(InputError, match=r"30 are not part of it, w0, .*, w7 and 22 more$"):
        Net().load_state_dict(state)


def test_not_strict_takes_what_fits():
    net = Net()
    net.load_state_dict({"scale": np.full(4, 2), "other": np.zeros(1)}, strict=False)
    assert net.scale.data.tolist() == [2, 2, 2, 2]
    with pytest.raises(InputError, match="shape"):
        net.load_state_dict({"scale": np.zeros(3)}, strict=False)


def test_pytorchs_layout_is_told_index_by_index(rng):
    net = nn.Sequential(nn.Conv2d(6, 4, (3, 2), groups=2), nn.Linear(4, 5), nn.Embedding(7, 3), nn.GroupNorm(2, 4))
    ours, torchs = net.state_dict(), net.torch_state_dict()
    assert torchs["0.weight"].shape == (4, 3, 3, 2) and torchs["1.weight"].shape == (5, 4)
    for r, s, c, k in [(0, 0, 0, 0), (2, 1, 0, 3), (1, 0, 2, 1)]:
        assert torchs["0.weight"][k, c, r, s] == ours["0.weight"][r, s, c, k]
    assert torchs["1.weight"][3, 1] == ours["1.weight"][1, 3]
    for name in ("0.bias", "1.bias", "2.weight", "3.weight"):
        np.testing.assert_array_equal(torchs[name], ours[name])
    assert all(array.flags.c_contiguous for array in torchs.values())

    new = {name: rng.normal(size=array.shape).astype(np.float32) for name, array in torchs.items()}
    net.load_torch_state_dict(new)
    for name, array in net.torch_state_dict().items():
        np.testing.assert_array_equal(array, new[name])
    with pytest.raises(InputError, match=r"1.weight has shape \(4, 5\), but this Sequential needs \(5, 4\)"):
        net.load_torch_state_dict(ours | {"0.weight": torchs["0.weight"]})


def test_layers_compute_what_their_operations_do(rng):
    x = rng.normal(size=(2, 6, 5, 4)).astype(np.float32)
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=((0, 1), (2, 0)), dilation=(1, 2), groups=2)
    conv.bias.data[:] = rng.normal(size=6)
    expected = td.ops.conv2d(x, conv.weight, conv.bias, 2, ((0, 1), (2, 0)), (1, 2), 2)
    np.testing.assert_array_equal(conv(x).data, expected.data)
    linear = nn.Linear(4, 3)
    linear.bias.data[:] = [1, 2, 3]
    np.testing.assert_allclose(linear(x).data, x @ linear.weight.data + [1, 2, 3], rtol=1e-5, atol=1e-6)
    norm = nn.GroupNorm(2, 4, eps=0.5)
    norm.weight.data[:], norm.bias.data[:] = [1, 2, 3, 4], [5, 6, 7, 8]
    parts = x.astype(np.float64).reshape(2, 30, 2, 2)
    z = (parts - parts.mean((1, 3), keepdims=True)) / np.sqrt(parts.var((1, 3), keepdims=True) + 0.5)
    np.testing.assert_allclose(norm(x).data, z.reshape(x.shape) * [1, 2, 3, 4] + [5, 6, 7, 8], rtol=1e-5, atol=1e-5)
    layer_norm = nn.LayerNorm(4, eps=0.5)
    layer_norm.weight.data[:], layer_norm.bias.data[:] = [1, 2, 3, 4], [5, 6, 7, 8]
    z = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 0.5)
    np.testing.assert_allclose(layer_norm(x).data, z * [1, 2, 3, 4] + [5, 6, 7, 8], rtol=1e-5, atol=1e-5)
    table = nn.Embedding(5, 3)
    np.testing.assert_array_equal(table(np.array([[4, 0]])).data[0], table.weight.data[[4, 0]])
    assert nn.Linear(4, 3, bias=False).bias is None and nn.Conv2d(4, 3, 1, bias=False).bias is None
    assert list(nn.Linear(4, 3, bias=False).state_dict()) == ["weight"]


def attention_by_definition(module, x, heads):
    """Pixel by pixel and head by head."""
    s = {name: array.astype(np.float64) for name, array in module.state_dict().items()}
    N, C, d = x.shape[0], x.shape[-1], x.shape[-1] // heads
    h = td.ops.group_norm(x, 2, s["group_norm.weight"], s["group_norm.bias"], 1e-6).data if module.group_norm else x
    h = h.reshape(N, -1, C)
    q, k, v = (h @ s[f"{name}.weight"] + s[f"{name}.bias"] for name in ("to_q", "to_k", "to_v"))
    y = np.zeros_like(h)
    for n in range(N):
        for i in range(h.shape[1]):
            for head in range(heads):
                part = slice(head * d, (head + 1) * d)
                weights = np.exp(k[n, :, part] @ q[n, i, part] / np.sqrt(d))
                y[n, i, part] = weights / weights.sum() @ v[n, :, part]
    return x + (y @ s["to_out.0.weight"] + s["to_out.0.bias"]).reshape(x.shape)


@pytest.mark.parametrize(("heads", "groups"), [(1, 2), (2, 2), (4, None)])
def test_attention(rng, heads, groups):
    module = nn.Attention(4, heads, groups).astype(np.float64)
    for p in module.parameters():
        p.data[...] = rng.normal(size=p.shape)
    x = rng.normal(size=(2, 2, 3, 4))
    np.testing.assert_allclose(module(x).data, attention_by_definition(module, x, heads), rtol=1e-12, atol=1e-12)
    td.gradcheck(module, [x])
    assert [name for name, _ in module.named_parameters()][-2:] == ["to_out.0.weight", "to_out.0.bias"]


def test_dropout_draws_from_the_generator_given_to_train():
    x = np.ones((50, 40), np.float32)
    net = nn.Sequential(nn.Dropout(0.25), nn.Sequential(nn.Dropout(0.25)))
    with pytest.raises(ValueError, match=r"p=0.25 needs a generator in training mode: call train\(generator\)"):
        net(x)
    y = net.train(Generator(3))(x).data
    assert abs(np.mean(y == 0) - (1 - 0.75**2)) < 0.03
    assert set(np.unique(y).tolist()) == {0.0, np.float32(1 / 0.75) ** 2}
    np.testing.assert_array_equal(net.train(Generator(3))(x).data, y)
    assert not np.array_equal(net.train(Generator(4))(x).data, y)
    np.testing.assert_array_equal(net.eval()(x), x)
    assert not any(module.training for module in net.modules())
    assert all(module.training for module in net.train().modules())
    with pytest.raises(ValueError, match="generator"):
        net(x)
    assert nn.Dropout(0)(x) is x


def test_two_layers_made_alike_differ_and_a_seed_repeats_them():
    nn.manual_seed(5)
    a, b = nn.Linear(4, 4).weight.data, nn.Linear(4, 4).weight.data
    assert not np.array_equal(a, b)
    Net(Generator(1))  # draws from its own generator
    c = nn.Embedding(2, 2).weight.data
    nn.manual_seed(5)
    for array, layer in ((a, nn.Linear(4, 4)), (b, nn.Linear(4, 4)), (c, nn.Embedding(2, 2))):
        np.testing.assert_array_equal(layer.weight.data, array)
    nn.manual_seed(6)
    assert not np.array_equal(nn.Linear(4, 4).weight.data, a)
    for one, two in zip(Net(Generator(1)).parameters(), Net(Generator(1)).parameters(), strict=True):
        np.testing.assert_array_equal(one.data, two.data)


@pytest.mark.parametrize(
    ("make", "fan_in", "fan_out"),
    [
        (lambda **o: nn.Linear(60, 140, **o), 60, 140),
        (lambda **o: nn.Conv2d(20, 40, (3, 2), **o), 120, 240),
        (lambda **o: nn.Conv2d(40, 80, 3, groups=4, **o), 90, 180),
    ],
)
def test_xavier_uniform(make, fan_in, fan_out):
    for scale in (1.0, 0.25, 0.0):
        layer = make(init_scale=scale, generator=Generator(0))
        w = layer.weight.data.astype(np.float64)
        variance = (scale or 1e-10) * 2 / (fan_in + fan_out)
        assert w.dtype == np.float64 and layer.weight.dtype == np.float32 and not layer.bias.data.any()
        assert np.abs(w).max() <= np.sqrt(3 * variance) * (1 + 1e-6)
        assert np.abs(w).max() > 0.99 * np.sqrt(3 * variance)
        # the mean of n squares of uniform numbers has the relative standard error sqrt(4/5 / n)
        assert abs(np.mean(w**2) / variance - 1) < 5 * np.sqrt(0.8 / w.size)
        assert abs(np.mean(w)) < 5 * np.sqrt(variance / w.size)
    table = nn.Embedding(200, 50, generator=Generator(0)).weight.data
    assert abs(table.std() - 1) < 0.05 and table.dtype == np.float32


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(0, 3), "Linear: in_features must be a whole number of at least 1, not 0"),
        (lambda: nn.Linear(3, 2.0), "Linear: out_features must be a whole number of at least 1, not 2.0"),
        (lambda: nn.Conv2d(3, 4, 3, groups=2), "Conv2d: 3 input and 4 output channels do not divide into 2 groups"),
        (lambda: nn.Conv2d(4, 3, 3, groups=2), "Conv2d: 4 input and 3 output channels do not divide into 2 groups"),
        (lambda: nn.Conv2d(4, 4, (3, 0)), "Conv2d: kernel_width must be"),
        (lambda: nn.GroupNorm(3, 4), "GroupNorm: 4 channels do not divide into 3 groups"),
        (lambda: nn.Attention(6, 4), "Attention: 6 channels do not divide into 4 heads"),
        (lambda: nn.Attention(6, 2, groups=4), "GroupNorm: 6 channels do not divide into 4 groups"),
        (lambda: nn.Dropout(1.0), "Dropout: p must be at least 0 and below 1, not 1.0"),
        (lambda: nn.Dropout(float("nan")), "Dropout: p must be"),
    ],
)
def test_sizes_that_make_no_layer(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_sequential_takes_modules_and_functions():
    with pytest.raises(TypeError, match="number 1 is of type int"):
        nn.Sequential(nn.Linear(1, 1), 3)
    with pytest.raises(TypeError, match="number 0 is the class Linear"):
        nn.Sequential(nn.Linear)
    net = nn.Sequential(nn.Linear(1, 2), td.ops.relu, nn.Linear(2, 3))
    assert len(net) == 3 and net[2].weight.shape == (2, 3)
    assert list(net.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    x = np.ones((4, 1), np.float32)
    np.testing.assert_array_equal(net(x).data, net[2](td.ops.relu(net[0](x))).data)


def test_moving_casting_and_zeroing(rng):
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    net(np.ones((4, 2), np.float32)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert net.to("cpu") is net
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())
    before = net.state_dict()
    assert net.astype(np.float64) is net
    for name, p in net.named_parameters():
        assert p.dtype == np.float64
        np.testing.assert_array_equal(p.data, before[name])
    with pytest.raises(TypeError, match="weights must be floating point, not int64"):
        net.astype(int)


def test_attention_calls_whatever_projects(rng):
    """A projection that was replaced, as for low-rank adaptation, or by a class of its own, is not passed over."""

    class Added(nn.Module):
        def __init__(self, inner):
            self.inner = inner

        def forward(self, x):
            return self.inner(x) + 1

    class Twice(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    x = rng.standard_normal((2, 3, 8))
    module = nn.Attention(8, groups=None, init_scale=1)
    before = [p(x).data for p in (module.to_q, module.to_k, module.to_v)]
    module.to_q, twice = Added(module.to_q), Twice(8, 8)
    twice.weight, twice.bias = module.to_v.weight, module.to_v.bias
    module.to_v = twice
    expected = td.ops.attention(before[0] + 1, before[1], 2 * before[2])
    np.testing.assert_allclose(module(x).data, x + module.to_out[0](expected).data, atol=1e-6)

    keys = module.to_k
    keys.forward = lambda x: nn.Linear.forward(keys, x) * 3
    expected = td.ops.attention(before[0] + 1, 3 * before[1], 2 * before[2])
    np.testing.assert_allclose(module(x).data, x + module.to_out[0](expected).data, atol=1e-6)


def test_a_forward_that_was_replaced_is_called_although_all_are_linear(rng):
    x, layers = rng.standard_normal((2, 3)), [nn.Linear(3, 4), nn.Linear(3, 4, bias=False)]
    ys = nn.project(x, layers)
    assert all(type(op := y._node.op).__name__ == "Linears" and op is ys[0]._node.op for y in ys)
    layers[1].forward = lambda x: 5
    y, five = nn.project(x, layers)
    np.testing.assert_array_equal(y.data, ys[0].data)
    assert five == 5


def test_a_layer_that_lends_a_forward_or_changes_the_call_is_not_passed_over(rng, monkeypatch):
    x, layers = rng.standard_normal((2, 3)), [nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(3, 4)]
    alone = [layer(x).data for layer in layers]

    class Negative(nn.Linear):
        def __call__(self, x):
            return -super().__call__(x)

    def check(expected):
        for y, value in zip(nn.project(x, layers), expected, strict=True):
            np.testing.assert_allclose(y.data, value, rtol=0, atol=1e-6)

    layers[1].forward = layers[0].forward  # layer 1 now computes with the weights of layer 0
    check([alone[0], alone[0], alone[2]])
    del layers[1].forward
    layers[2].__class__ = Negative
    check([alone[0], alone[1], -alone[2]])

    attention, seen = nn.Attention(4, groups=2), []
    call = nn.Module.__call__
    monkeypatch.setattr(nn.Module, "__call__", lambda self, *args: seen.append(self) or call(self, *args))
    attention(rng.standard_normal((1, 2, 2, 4)))
    inside = (attention.group_norm, attention.to_q, attention.to_k, attention.to_v, attention.to_out[0])
    assert all(part is module for part, module in zip(seen, (attention, *inside), strict=True))


def test_a_networks_weights_lie_in_memory_that_is_kept():
    """The allocator is told with the first weight, not with the first operation, when most of them are there."""
    code = (
        "import tinydiff as td; from tinydiff.machine.pages import keep_freed_memory as keep; "
        "before = keep.cache_info().currsize; td.nn.Parameter([1.0]); print(before, keep.cache_info().currsize)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "1"]
