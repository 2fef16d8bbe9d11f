"""FLOPs and the table of costs: against PyTorch's count of the same layers, and against a known network."""

import numpy as np
import pytest

import tinydiff as td
from tinydiff.cli.info import cost
from tinydiff.errors import InputError


def counted(fn, *xs):
    """FLOPs of forward and backward of a sum of fn's outputs."""
    with td.trace(values=0) as trace:
        ys = fn(*xs)
        ys = ys if isinstance(ys, tuple) else (ys,)
        sum(y.sum() for y in ys).backward()
    return trace.cost().total.flops


def tensor(*shape):
    return td.Tensor(np.ones(shape, np.float32), requires_grad=True)


def test_products_by_hand():
    x, w, b = tensor(4, 3), tensor(3, 5), tensor(5)
    assert counted(td.ops.linear, x, w, b) == (120, 240)
    assert counted(td.ops.linear, x.detach(), w, b) == (120, 120)  # no L_X
    assert counted(lambda x: td.ops.exp(x).sum(), x) == (0, 0)
    assert counted(lambda a, b: td.ops.einsum("nij,njk->nik", a, b), tensor(2, 3, 4), tensor(2, 4, 5)) == (240, 480)
    q, v = tensor(2, 6, 3), tensor(2, 7, 5)
    assert counted(td.ops.attention, q, tensor(2, 7, 3), v) == (2 * 84 * 8, 2 * 84 * (3 + 10 + 6))
    joined = td.ops.fully_connected.linears
    assert counted(lambda x: joined(x, [(tensor(3, 5), None), (tensor(3, 2), None)]), x) == (168, 336)


@pytest.mark.parity
@pytest.mark.parametrize(
    "name", ["linear", "matmul", "conv", "strided", "grouped", "dilated", "transposed", "upsampled", "attention"]
)
def test_flops_are_pytorchs(name):
    torch = pytest.importorskip("torch")
    from torch.nn import functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    x4, w4 = (2, 9, 8, 4), (3, 3, 4, 6)

    def conv(**options):
        return lambda x, w: td.ops.conv2d(x, w, **options), lambda x, w: F.conv2d(x, w, **options)

    channels_last = {"conv": {}, "strided": {"stride": 2, "padding": 1}, "dilated": {"dilation": 2}}
    if name in channels_last:
        (ours, theirs), shapes = conv(**channels_last[name]), (x4, w4)
    elif name == "grouped":
        (ours, theirs), shapes = conv(groups=2), (x4, (3, 3, 2, 6))
    elif name == "transposed":
        ours = lambda x, w: td.ops.conv_transpose2d(x, w, stride=2)  # noqa: E731
        theirs, shapes = lambda x, w: F.conv_transpose2d(x, w, stride=2), ((2, 5, 5, 6), w4)
    elif name == "upsampled":
        ours = td.ops.convolution.upsample_conv2d
        theirs, shapes = lambda x, w: F.conv2d(F.interpolate(x, scale_factor=2), w, padding=1), (x4, w4)
    elif name == "attention":
        ours = td.ops.attention
        theirs, shapes = F.scaled_dot_product_attention, ((2, 6, 4),) * 3
    else:
        ours, theirs = (td.ops.linear, F.linear) if name == "linear" else (td.ops.matmul, torch.matmul)
        shapes = ((4, 3), (3, 5)) if name == "linear" else ((2, 4, 3), (2, 3, 5))
    forward, backward = counted(ours, *(tensor(*shape) for shape in shapes))

    orders = {4: (0, 3, 1, 2)} if name not in ("linear", "matmul", "attention") else {}
    laid = [np.ones(shape, np.float32).transpose(orders.get(len(shape), range(len(shape)))) for shape in shapes]
    if len(shapes) == 2 and name != "matmul":
        laid[1] = np.ones(shapes[1], np.float32).transpose((3, 2, 0, 1) if len(shapes[1]) == 4 else (1, 0))
    if name == "attention":
        laid = [a[:, None] for a in laid]  # one head
    tensors = [torch.tensor(a, requires_grad=True) for a in laid]
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        y = theirs(*tensors)
        theirs_forward = counter.get_total_flops()
        y.sum().backward()
    assert forward == theirs_forward
    theirs_backward = counter.get_total_flops() - theirs_forward
    if name == "attention":  # ours computes the scores again
        theirs_backward += theirs_forward // 2
    if name == "grouped":  # theirs leaves the groups out of L_W's
        theirs_backward = 2 * forward
    assert backward == theirs_backward


def test_the_network_of_the_paper_has_its_known_cost():
    """12.44 GFLOP for an image of CIFAR-10: the shapes alone decide, so nothing is computed here."""
    from tinydiff.study.flops import count_flops

    total = 0

    def count(op, phase, arrays, options):
        nonlocal total
        Y = shapes_only(op, arrays, options)
        total += count_flops(op, arrays, Y if isinstance(Y, tuple) else (Y,), op.needs)[0]
        return Y

    from tinydiff.autograd import tape

    unet = td.UNet(32, 3)
    with tape.observing(count), td.no_grad():
        unet(np.zeros((1, 32, 32, 3), np.float32), 1)
    assert total == 12_443_713_536


def shapes_only(op, arrays, options):
    """An output of the right shape for the operations that cost time, the real one of others."""
    name, X = type(op).__name__, arrays[0]
    if name == "Conv2d":
        return np.zeros((len(X), *options["window"].output_size(X.shape), arrays[1].shape[3]), np.float32)
    if name == "UpsampleConv2d":
        return np.zeros((len(X), 2 * X.shape[1], 2 * X.shape[2], arrays[1].shape[3]), np.float32)
    if name == "Attention":
        op.simple = True
        return np.zeros_like(X)
    return op.forward(*arrays, **options)


def test_the_table_of_costs(traced_unet):
    trace = traced_unet
    found = trace.cost()
    total, rows = found.total, found.by_operation
    assert total.flops[0] == sum(row.flops[0] for row in rows.values()) == sum(op.flops[0] for op in trace.operations)
    assert sum(row.saved for row in found.by_module.values()) == total.saved == max(e.live for e in trace.events)
    assert rows["Conv2d"].calls == 3 and rows["GroupNorm"].flops == (0, 0) and rows["Conv2d"].bytes[0] > 0
    text = str(found)
    assert "a multiplication with an addition is two" in text and "resnets.0.conv1" in text
    assert max(map(len, text.splitlines()[:-2])) < 160


def test_costs_have_an_order_and_the_largest_operations(traced_unet):
    by_saved, by_flops = traced_unet.cost(sort="saved"), traced_unet.cost()
    saved = [op.saved for op, _ in by_saved.largest]
    assert saved == sorted((op.saved for op in traced_unet.operations), reverse=True) and saved[0] > saved[-1]
    top = by_saved.largest[0][0]
    title = "single operations that save the most memory for backward"
    for text in (str(by_saved), str(by_flops)):  # the list is there in any order
        assert text.count(title) == 1
        assert text.split(title)[1].split("\n")[1].startswith(f"#{top.number} {top.name} {top.place.module}")
    flops = [sum(row.flops) for _, row in by_flops.largest]
    assert flops == sorted(flops, reverse=True) and "most FLOPs" in str(by_flops) and "most FLOPs" not in str(by_saved)
    names = [line.partition(" ")[0] for line in str(by_saved).splitlines()[2:]]
    kinds = sorted(by_saved.by_operation, key=lambda name: -by_saved.by_operation[name].saved)
    assert names[: names.index("all")][0] == kinds[0]
    with pytest.raises(InputError, match="flops, bytes, saved, time, not 'size'"):
        traced_unet.cost("size")


@pytest.fixture(scope="module")
def traced_unet():
    unet = td.UNet(4, 1, channels=4, channel_mults=(1,), blocks_per_level=1, attention_resolutions=(), groups=1)
    with td.trace() as trace:
        h = unet.conv_in(np.zeros((1, 4, 4, 1), np.float32))
        unet.down_blocks[0](h, td.Tensor(np.ones((1, 16), np.float32)), []).sum().backward()
    return trace


def test_info_tells_the_cost(tmp_path, monkeypatch):
    unet = td.UNet(4, 1, channels=4, channel_mults=(1,), blocks_per_level=1, attention_resolutions=(), groups=1)
    td.checkpoint.save(tmp_path, unet, td.diffusion.Diffusion(td.diffusion.Schedule.linear()))
    text = cost(tmp_path)
    assert text.startswith("cost:") and "GFLOP in the forward pass of one image" in text and "conv_in" in text
