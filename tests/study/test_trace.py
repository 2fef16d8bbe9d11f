"""What a trace records: operations with module and line, gradients on their way, sums, memory, the first NaN."""

import gc
import inspect

import numpy as np
import pytest

import tinydiff as td
from tinydiff.autograd import tape


class Net(td.nn.Module):
    """Three fully connected layers, of which the middle one is added to."""

    def __init__(self):
        self.fc1, self.fc2, self.fc3 = td.nn.Linear(3, 5), td.nn.Linear(5, 5), td.nn.Linear(5, 2)

    def forward(self, x):
        h = td.ops.relu(self.fc1(x))
        return self.fc3(h + td.ops.relu(self.fc2(h)))


@pytest.fixture(scope="module")
def traced():
    rng = np.random.default_rng(3)
    net, x = Net(), td.Tensor(rng.normal(size=(4, 3)).astype(np.float32), requires_grad=True)
    target = rng.normal(size=(4, 2)).astype(np.float32)
    with td.trace() as trace:
        loss = td.ops.mse_loss(net(x), target)
        loss.backward()
    return trace, net, x


def by_name(trace, name):
    return [op for op in trace.operations if op.name == name]


def test_every_operation_has_its_module_and_the_callers_line(traced):
    trace, _, _ = traced
    assert [op.name for op in trace.operations] == ["Linear", "Relu", "Linear", "Relu", "Add", "Linear", "MseLoss"]
    assert [op.place.module for op in trace.operations] == ["fc1", "Net", "fc2", "Net", "Net", "fc3", ""]
    lines, start = inspect.getsourcelines(Net.forward)
    assert [op.place.line for op in trace.operations[:6]] == [start + 1, start + 1, *[start + 2] * 4]
    assert all(op.place.file.endswith("test_trace.py") for op in trace.operations)
    assert trace.operations[0].place.text == lines[1].strip()


def test_a_blocks_call_of_its_layers_operation_counts_for_the_layer():
    """Residual blocks give their convolutions' weights to a joined operation."""
    unet = td.UNet(8, 1, channels=4, channel_mults=(1, 2), blocks_per_level=1, attention_resolutions=(4,), groups=2)
    with td.no_grad(), td.trace() as trace:
        unet(np.zeros((1, 8, 8, 1), np.float32), 1)
    modules = {op.place.module: op.name for op in trace.operations}
    assert modules["down_blocks.0.resnets.0.conv1"] == modules["up_blocks.1.resnets.1.conv2"] == "Conv2d"
    assert modules["mid_block.resnets.1.norm2"] == "GroupNorm" and modules["mid_block.attentions.0"] == "Add"
    assert "no backward pass ran" in " ".join(trace.notes)


def test_gradients_in_and_out_are_those_of_the_tape(traced):
    trace, net, x = traced
    first, last = by_name(trace, "Linear")[0], by_name(trace, "Linear")[-1]
    for op, layer in ((first, net.fc1), (last, net.fc3)):
        L_X, L_W, L_b = op.L_Xs
        np.testing.assert_array_equal(L_W.values, layer.weight.grad)
        np.testing.assert_array_equal(L_b.values, layer.bias.grad)
        np.testing.assert_allclose(op.L_Ys[0].values @ op.inputs[1].values.T, L_X.values, rtol=1e-6)
        assert L_W.norm == pytest.approx(np.linalg.norm(layer.weight.grad))
    np.testing.assert_array_equal(first.L_Xs[0].values, x.grad)
    assert trace.operations[-1].L_Ys[0].values == 1 and first.names == ["X", "W", "b"]


def test_sources_lead_from_leaf_to_loss(traced):
    trace, _, _ = traced
    first, relu, _, _, added, _, loss = trace.operations
    assert [leaf.name for leaf in first.sources] == ["x", "fc1.weight", "fc1.bias"]
    assert [leaf.is_weight for leaf in first.sources] == [False, True, True]
    assert added.sources[0] == (relu, 0) and relu.users == 2
    assert loss.sources[1].name == "target" and loss.L_Xs[1] is None


def test_a_sum_where_gradients_meet_is_a_step(traced):
    trace, _, _ = traced
    (event,) = [event for event in trace.events if event.kind == "sum"]
    relu, middle = trace.operations[1], trace.operations[2]
    assert event.target is relu and event.came_from is middle
    assert event.parts == [(trace.operations[4], 0), (middle, 0)]
    np.testing.assert_array_equal(event.second.values, middle.L_Xs[0].values)
    np.testing.assert_array_equal(event.first.values + event.second.values, event.total.values)
    np.testing.assert_array_equal(event.total.values, relu.L_Ys[0].values)


def test_sums_at_leaves_of_shared_weights_and_earlier_gradients():
    w = td.Tensor(np.array([1.0, 2.0]), requires_grad=True)
    w.grad = np.array([10.0, 20.0])
    with td.trace() as trace:
        (w * w).sum().backward()
    sums = [event for event in trace.events if event.kind == "sum"]
    assert [event.target.name for event in sums] == ["w", "w"]
    product = trace.operations[0]
    assert [event.parts for event in sums] == [[None, (product, 0)], [None, (product, 0), (product, 1)]]
    np.testing.assert_array_equal([event.total.values for event in sums], [[11, 22], [12, 24]])
    np.testing.assert_array_equal(w.grad, [12, 24])


def test_the_parts_of_a_sum_are_those_of_its_own_walk():
    x = td.Tensor(np.array([1.0, 2.0]), requires_grad=True)
    with td.trace() as trace:
        y = td.ops.exp(x)
        loss = (y * 2 + y * 3 + td.ops.sin(y)).sum()
        loss.backward(retain_graph=True)
        loss.backward()
    names = [[part and part[0].name for part in e.parts] for e in trace.events if e.kind == "sum"]
    sums = [["Sin", "Multiply"], ["Sin", "Multiply", "Multiply"]]
    assert names == [*sums, *sums, ["Exp", "Exp"]]


WEIGHT = td.Tensor(np.ones(2), requires_grad=True)


def test_tensors_of_ones_own_have_the_names_of_their_variables():
    class Holder:
        pass

    def step():
        return td.ops.sum(holder.w * WEIGHT * layers[0]["w"] * td.Tensor([1.0, 2.0], requires_grad=True) * made())

    def made():
        later.append(td.Tensor([1.0, 2.0], requires_grad=True))
        return later[0]

    holder, layers, later = Holder(), [{"w": td.Tensor([1.0, 2.0], requires_grad=True)}], []
    holder.w, first = td.Tensor([1.0, 3.0], requires_grad=True), layers[0]["w"]
    with td.trace() as trace:
        step().backward()
    names = [leaf.shown for leaf in trace.leaves]
    _, start = inspect.getsourcelines(step)
    assert names == [
        "holder.w",
        "WEIGHT",
        "first",
        f"the array of {trace.operations[2].place.file}:{start + 1}",
        "later[0]",
    ]
    assert first.grad is not None


def test_what_is_recorded_can_be_read(traced):
    trace, _, _ = traced
    first = trace.operations[0]
    assert repr(first).startswith("Operation(#0 Linear, fc1 ") and "test_trace.py:" in repr(first)
    assert repr(first.sources[1]) == "Leaf(fc1.weight (3, 5))" and repr(first.L_Xs[1]).startswith(
        "Summary((3, 5) float32, norm "
    )
    (event,) = [event for event in trace.events if event.kind == "sum"]
    assert repr(event) == f"Event(sum, {trace.operations[1]!r})" and first.options == ""


def test_live_memory_rises_and_falls_to_nothing(traced):
    trace, _, _ = traced
    live = [event.live for event in trace.events]
    assert live[-1] == 0 and max(live) == sum(op.saved for op in trace.operations)
    relu, middle = trace.operations[1:3]
    assert relu.saved == 20 and relu.saved_arrays == [("closed", (4, 5), "bool", 20)]
    assert middle.saved == 80 and len(middle.saved_arrays) == 2  # h; the weight lives anyway
    assert trace.events[middle.freed_at].came_from is middle  # the last step that middle causes


def test_memory_of_a_graph_that_is_dropped_is_free(no_collector):
    x = td.Tensor(np.ones(8), requires_grad=True)
    with td.trace() as trace:
        y = td.ops.exp(x)
        kept = trace.events[-1].live
        del y
        td.ops.sum(td.Tensor(np.ones(2)))
    assert kept == 64 and trace.events[-1].live == 0 and trace.operations[0].freed_at is not None


def test_recorded_objects_do_not_keep_the_graph(alive):
    before = alive()
    with td.trace() as trace:
        td.ops.exp(td.Tensor(np.ones(3), requires_grad=True)).sum().backward()
    assert alive() == before and len(trace.operations) == 2


def test_large_arrays_are_sampled_and_that_is_said():
    x = td.Tensor(np.random.default_rng(0).normal(size=(2, 40, 33, 3)), requires_grad=True)
    with td.trace(values=100) as trace:
        y = td.ops.tanh(x)
        y.sum().backward()
    summary = trace.operations[0].outputs[0]
    assert summary.index == "0, ::3, ::3, 0" and summary.values.shape == (14, 11)
    np.testing.assert_array_equal(summary.values, y.data[0, ::3, ::3, 0])
    assert summary.norm == pytest.approx(np.linalg.norm(y.data)) and summary.high == y.data.max()
    assert "too large to keep whole" in " ".join(trace.notes)


def test_the_first_value_that_is_not_finite_is_named():
    x = td.Tensor(np.array([1.0, 0.0, 4.0]), requires_grad=True)
    with np.errstate(all="ignore"), td.trace() as trace:
        (td.ops.sqrt(x) * 2).sum().backward()
    found = trace.first_non_finite
    assert found.phase == "backward" and found.operation.name == "Sqrt"
    assert "L_A of the backward pass of Sqrt at" in str(found) and "1 of 3 elements" in str(found)
    with np.errstate(all="ignore"), td.trace() as trace:
        td.ops.exp(td.ops.log(x))
    found = trace.first_non_finite
    assert found.phase == "forward" and found.operation.name == "Log" and "td.ops.exp(td.ops.log(x))" in str(found)
    with td.trace() as trace:
        td.ops.exp(td.Tensor([np.nan, 1.0]))
    assert trace.first_non_finite.phase == "input"


def test_a_sum_that_overflows_is_named():
    x = td.Tensor(np.float32([1.0]), requires_grad=True)
    with np.errstate(all="ignore"), td.trace() as trace:
        (x + x).backward(np.float32([2e38]))
    assert trace.first_non_finite.phase == "sum" and str(trace.first_non_finite) == "a sum of gradients for x"


def test_blocks_that_are_recomputed_and_graphs_from_before():
    w = td.Tensor(np.array([0.3, 0.4]), requires_grad=True)
    before = td.ops.exp(w)
    with td.trace() as trace:
        td.recompute(lambda a: td.ops.tanh(td.ops.sin(a)), before).sum().backward()
    names = [op.name for op in trace.operations]
    assert sorted(names) == ["Exp", "Sin", "Sin", "Sum", "Tanh", "Tanh", "recompute"]
    assert {op.name for op in trace.operations if not op.known} == {"Exp", "recompute"}
    np.testing.assert_array_equal(by_name(trace, "Exp")[0].L_Xs[0].values, w.grad)
    assert [op.ran_backward for op in by_name(trace, "Sin")] == [False, True]


def test_a_recomputed_block_keeps_its_inputs_until_it_runs_again():
    x = td.Tensor(np.ones(4), requires_grad=True)
    with td.trace() as trace:
        h = td.ops.exp(x)  # keeps its result, 32 bytes
        for _ in range(3):  # each keeps what it takes: the first the same 32 bytes, the others 32 more
            h = td.recompute(lambda h: td.ops.tanh(td.ops.sin(h)), h)
        kept = trace.events[-1].live
        h.backward(np.ones(4))
    assert kept == 3 * 32 == sum(op.saved for op in trace.operations if op.name in ("Exp", "recompute"))
    assert trace.events[-1].live == 0
    assert max(event.live for event in trace.events) == kept + 32  # sin's input is the block's, tanh keeps its result


def test_the_terminal_table_fits_and_names_what_matters(traced, monkeypatch):
    trace, _, _ = traced
    gradients = [f"{L.shape}".replace(" ", "").replace(",)", ")") for op in trace.operations for L in op.L_Xs if L]
    for width in (60, 80, 120, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        text = str(trace).partition("gradients: shape")[0]
        head, *rows = text.splitlines()[1:]
        assert head.split()[:2] == ["step", "operation"] and max(map(len, rows)) <= width
        numbered = [row for row in rows if row[:5].strip()]
        assert [row.split()[0] for row in numbered] == ["1", "2-4", "5-6", "7", "8-10", "11", "12", "13-15"]
        assert numbered[1].split()[1:3] == ["Linear", "#5"] and numbered[5].split()[1:5] == ["sum", "for", "Relu", "#1"]
        if width >= 80:  # every shape is whole
            assert all(text.count(f" {shape} |") >= gradients.count(shape) for shape in gradients)
            assert "Add #4" in text and "+ Linear #2" in text
    assert len(rows) == 8 and "test_trace.py:" in rows[7]
    monkeypatch.delenv("COLUMNS")
    assert max(map(len, str(trace).splitlines()[1:-1])) <= 120  # not a terminal


def test_an_observer_around_a_trace_still_sees_the_passes(traced):
    seen = []

    def note(op, phase, arrays, options):
        seen.append(phase)
        return getattr(op, phase)(*arrays, **options)

    with tape.observing(note), td.trace() as trace:
        td.ops.exp(td.Tensor([1.0], requires_grad=True)).backward()
    assert seen == ["forward", "backward"] and len(trace.events) == 2
    with pytest.raises(RuntimeError, match="in use"), trace:
        pass
    gc.collect()


def test_norms_of_what_is_not_finite(monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    x = td.Tensor(np.array([1.0, 4.0]), requires_grad=True)
    with td.trace() as trace:
        (x * np.array([np.nan, 1.0])).sum().backward()
        (x * np.array([np.inf, 2.0])).sum().backward()
    L_As = [op.L_Xs[0] for op in by_name(trace, "Multiply")]
    assert np.isnan(L_As[0].norm) and L_As[1].norm == np.inf and L_As[0].high == 1
    assert "|NaN| 1 not finite" in str(trace) and "|inf| 1 not finite" in str(trace) and "|nan|" not in str(trace)


def test_gradients_of_single_numbers_are_recorded():
    x = td.Tensor(2.0, requires_grad=True)
    with td.trace() as trace:
        td.ops.log(x * x).backward()
    (log,), (product,) = by_name(trace, "Log"), by_name(trace, "Multiply")
    assert [L.norm for L in log.L_Xs] == [0.25]
    assert [L.norm for L in product.L_Ys] == [0.25] and [L.norm for L in product.L_Xs] == [0.5, 0.5]
