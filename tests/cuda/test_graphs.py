"""Replays of a CUDA graph give the bits of eager steps, on the stand-in for CuPy and, with `-m gpu`, on a GPU."""

import re
from contextlib import nullcontext

import numpy as np
import pytest

import tinydiff as td
from tests import cupy_stand_in
from tinydiff import backend, ops, optim, precision
from tinydiff.cuda import host, tensor
from tinydiff.precision import mixed
from tinydiff.random import Generator
from tinydiff.replay import NotRepeatable

pytestmark = pytest.mark.skipif(host.missing() is not None, reason=str(host.missing()))


@pytest.fixture(params=["stand-in", pytest.param("CuPy", marks=pytest.mark.gpu)], autouse=True)
def cupy(request, monkeypatch):
    monkeypatch.delenv("TINYDIFF_GRAPH", raising=False)
    if request.param == "CuPy":
        if backend.cupy() is None:
            pytest.skip("needs an NVIDIA GPU and CuPy")
        yield backend.cupy()
    else:
        with cupy_stand_in.put_in_place(monkeypatch) as module:
            yield module


class Loop:
    """Two layers with dropout and a table of labels, trained by Adam with an average, and all that a step changes."""

    def __init__(self, graphed):
        generator = Generator(1)
        self.layers = td.nn.Sequential(
            td.nn.Linear(3, 4, generator=generator),
            ops.silu,
            td.nn.Dropout(0.5),
            td.nn.Linear(4, 4, generator=generator),
        ).to("cuda")
        self.table = td.nn.Parameter(backend.to_device(np.ones((3, 4), np.float32), "cuda"))
        self.weights = [*self.layers.parameters(), self.table]
        self.adam, self.ema = optim.Adam(self.weights, 0.1), optim.EMA(self.weights, 0.9)
        self.dropout = Generator(2, 5)
        self.layers.train(self.dropout)
        self.step = td.cuda.graph(self._step) if graphed else self._step
        self.passes = 0

    def _step(self, x, labels, noise):
        self.passes += 1
        self.adam.zero_grad()
        z = noise.normal(x.shape, device="cuda") + noise.at(3, noise.step).normal(x.shape, device="cuda")
        y = self.layers(x + z * 0.1) + ops.embedding(labels, self.table)
        loss = ops.mean(y * y)
        loss.backward()
        self.adam.step(self.ema)
        return loss, {"y": y}

    def run(self, steps, before=lambda loop, k: None):
        """Everything that is there after each of so many steps."""
        noise, seen = Generator(3), []
        self.noise = noise
        for k in range(1, steps + 1):
            noise.step = self.dropout.step = k
            self.adam.lr = 0.1 / k
            before(self, k)
            x = backend.to_device(Generator(4, 0, k).normal((2, 3)), "cuda")
            loss, rest = self.step(x, backend.to_device(np.array([k % 3, 1]), "cuda"), noise)
            arrays = [
                loss.data,
                rest["y"].data,
                *(a for p in self.weights for a in (p.data, p.grad)),
                *self.ema.averages,
            ]
            numbers = (
                list(self.adam.steps),
                self.ema.updates,
                noise.state,
                self.dropout.state,
                self.table._version.count,
            )
            seen.append(([a.get() for a in arrays], numbers))
        return seen


def test_replays_have_the_bits_of_eager_steps():
    """With inputs, labels, dropout and noise, learning rate, bias corrections and average that differ from step to step."""
    eager, loop = Loop(False).run(7), Loop(True)
    for k, (ours, theirs) in enumerate(zip(loop.run(7), eager, strict=True), 1):
        assert ours[1] == theirs[1], k
        for a, b in zip(ours[0], theirs[0], strict=True):
            np.testing.assert_array_equal(a, b, err_msg=f"step {k}")
    assert loop.passes == 4  # three that computed, one that was captured


def weights():
    return td.Tensor(backend.to_device(np.ones((2, 3), np.float32), "cuda"), requires_grad=True)


def called(step, *args, times=5):
    return [step(*args) for _ in range(times)]


def on_gpu(*shape):
    return backend.to_device(np.ones(shape, np.float32), "cuda")


def no_number(x, w):
    return ops.sum(ops.linear(x, w)).item()


def no_upload(x, w):
    return ops.linear(x, w) * backend.to_device(np.ones(3, np.float32), "cuda")


def no_clipping(x, w):
    ops.sum(ops.linear(x, w)).backward()
    return optim.clip_grad_norm([w], 1.0)


def no_host_value(x, w):
    ops.linear(x, w)
    return 3.0


FALLBACKS = {
    no_number: r"reads a value from the GPU \(test_graphs.py:\d+: return ops.sum\(ops.linear\(x, w\)\).item\(\)\)",
    no_upload: r"copies an array to the GPU.*\(test_graphs.py:\d+: return ops.linear",
    no_clipping: r"reads a value from the GPU \(test_graphs.py:\d+: return optim.clip_grad_norm",
    no_host_value: "it returns float, a value of the host",
}


@pytest.mark.parametrize("step", FALLBACKS, ids=lambda f: f.__name__)
def test_what_cannot_be_captured_goes_on_without_a_graph_and_says_why_once(step, capfd):
    w, x = weights(), on_gpu(4, 2)
    eager = called(lambda x: step(x, w), x)
    gradient, w.grad = w.grad, None
    for ours, theirs in zip(called(td.cuda.graph(lambda x: step(x, w)), x), eager, strict=True):
        assert (ours == theirs) if isinstance(theirs, float) else (ours.numpy() == theirs.numpy()).all()
    if gradient is not None:  # added up as if nobody had tried to capture
        np.testing.assert_array_equal(w.grad.get(), gradient.get())
    said = capfd.readouterr().err
    assert said.count("runs without a CUDA graph") == 1, said
    assert re.search(FALLBACKS[step], said), said


def new_generator(x, w, adam):
    return x + Generator(0, 3, 4).normal(x.shape, device="cuda")


def generator_of_a_number(x, w, adam):
    return x + GENERATOR.normal(x.shape, device="cuda") + GENERATOR.at(3, 7).normal(x.shape, device="cuda")


def counted_inside(x, w, adam):
    GENERATOR.step += 1
    return x + GENERATOR.normal(x.shape, device="cuda")


def descent(x, w, adam):
    ops.sum(ops.linear(x, w)).backward()
    optim.SGD([w], 0.1).step()
    return x


GENERATOR = Generator(5)
REFUSED = {
    new_generator: r"Generator\(seed=0, stream=3, step=4.* would be the same in every replay .* give it as an argument",
    generator_of_a_number: r"generator.at\(3, 7\) would draw the same noise .* write generator.at\(3, generator.step\)",
    counted_inside: "count it before each call, not inside",
    descent: "SGD's learning rate would be the same",
}


@pytest.mark.parametrize("step", REFUSED, ids=lambda f: f.__name__)
def test_what_a_graph_would_freeze_is_refused_with_what_to_write(step):
    w = weights()
    graphed = td.cuda.graph(lambda x: step(x, w, None))
    with pytest.raises(NotRepeatable, match=REFUSED[step]):
        called(graphed, on_gpu(4, 2))
    with pytest.raises(NotRepeatable, match="use weights inside the step"):
        graphed(w)


def test_other_shapes_and_values_make_other_graphs():
    w, passes = weights(), []

    def step(x, factor):
        passes.append(factor)
        return ops.linear(x, w) * factor

    graphed = td.cuda.graph(step)
    for _ in range(6):
        for n, factor in ((4, 2.0), (5, 2.0), (4, 3.0)):
            np.testing.assert_array_equal(graphed(on_gpu(n, 2), factor).numpy(), np.full((n, 3), 2 * factor))
    assert len(passes) == 3 * 4


def test_every_precision_of_maps_and_of_products_has_a_graph_of_its_own():
    w, passes = weights(), []

    def step(x):
        passes.append(x)
        return ops.linear(x, w)

    graphed = td.cuda.graph(step)
    x = backend.to_device(np.ones((4, 2), np.float16), "cuda")
    for block in (nullcontext, lambda: mixed("fp16"), lambda: tensor.precision("tf32"), nullcontext):
        with block():
            for _ in range(5):
                assert graphed(x).dtype == (precision.held() or np.float32)
    assert len(passes) == 3 * 4


def test_replaced_weights_and_kept_gradients_make_a_new_graph(capfd):
    """Gradients that nobody forgets are added up as in eager steps; they are replaced as soon as somebody does."""
    seen = {}
    for graphed in (False, True):
        w, x = weights(), on_gpu(4, 2)

        def plain(x, w=w):
            loss = ops.sum(ops.linear(x, w))
            loss.backward()
            return loss

        step, values = td.cuda.graph(plain) if graphed else plain, []
        for k in range(12):
            if k in (6, 9):
                w.grad = None
            step(x)
            values.append(w.grad.get())
        seen[graphed] = values
    np.testing.assert_array_equal(seen[True], seen[False])


@pytest.mark.parametrize("off", ["environment", "definition"])
def test_graphs_can_be_turned_off(off, monkeypatch, cupy):
    cupy_stand_in.MISSING.clear()
    w, passes = weights(), []

    def step(x):
        passes.append(None)
        return ops.linear(x, w)

    graphed = td.cuda.graph(step)
    if off == "environment":
        monkeypatch.setenv("TINYDIFF_GRAPH", "0")
        called(graphed, on_gpu(4, 2))
    else:
        with td.by_definition():
            called(graphed, on_gpu(4, 2))
    assert len(passes) == 5


def test_on_the_cpu_the_function_is_called():
    w, passes = td.Tensor(np.ones((2, 3), np.float32)), []

    @td.cuda.graph
    def step(x, w=w):
        """Doc."""
        passes.append(None)
        return ops.linear(x, w)

    assert len(called(step, np.ones((4, 2), np.float32))) == len(passes) == 5 and step.__doc__ == "Doc."


def test_gradients_that_are_forgotten_outside_are_those_of_each_call():
    w, passes = weights(), []

    @td.cuda.graph
    def step(x):
        passes.append(None)
        loss = ops.sum(ops.linear(x, w))
        loss.backward()
        return loss

    for k in range(1, 7):
        w.grad = None
        step(on_gpu(4, 2) * k)
        np.testing.assert_array_equal(w.grad.get(), np.full((2, 3), 4 * k))
    assert len(passes) == 4


def test_an_update_that_is_not_finite_does_not_count():
    """As in eager steps: the weights stay, and the next update has the number of the one that was left out."""
    seen = {}
    for graphed in (False, True):
        w = weights()
        adam, ema = optim.Adam([w], 0.1), optim.EMA([w], 0.9)

        def plain(x, w=w, adam=adam, ema=ema):
            adam.zero_grad()
            loss = ops.mean(ops.linear(x, w) ** 2)
            loss.backward()
            adam.clipped_step([loss.data], 1.0, ema)
            return loss

        step, values = td.cuda.graph(plain) if graphed else plain, []
        for k in range(1, 9):
            step(on_gpu(4, 2) * (np.nan if k in (3, 6) else k))
            values.append((w.data.get(), adam.steps[0], ema.updates))
        seen[graphed] = values
    for ours, theirs in zip(seen[True], seen[False], strict=True):
        assert ours[1:] == theirs[1:]
        np.testing.assert_array_equal(ours[0], theirs[0])
    assert seen[True][-1][1:] == (6, 6)


def test_a_graph_inside_another_becomes_a_part_of_it(capfd):
    w, passes = weights(), []

    @td.cuda.graph
    def inner(x):
        passes.append(None)
        return ops.linear(x, w)

    @td.cuda.graph
    def outer(x):
        return inner(x) * 2

    for k in range(7):
        np.testing.assert_array_equal(outer(on_gpu(4, 2) * k).numpy(), np.full((4, 3), 4 * k))
    assert len(passes) == 4 and capfd.readouterr().err == ""


def test_an_error_of_the_step_while_it_is_captured_is_the_callers_and_leaves_nothing_behind():
    """The fourth call, which captures, fails; it is made again."""

    def failing(loop, k):
        if k != 4:
            return
        update, loop.adam.step = loop.adam.step, lambda ema: 1 / 0
        with pytest.raises(ZeroDivisionError):
            loop.step(on_gpu(2, 3), backend.to_device(np.array([0, 1]), "cuda"), loop.noise)
        loop.adam.step = update

    eager, loop = Loop(False).run(7), Loop(True)
    for ours, theirs in zip(loop.run(7, failing), eager, strict=True):
        assert ours[1] == theirs[1]
        for a, b in zip(ours[0], theirs[0], strict=True):
            np.testing.assert_array_equal(a, b)


def test_too_little_memory_for_a_graph(cupy, monkeypatch, capfd):
    def full(self, size):
        raise MemoryError

    w = weights()
    graphed = td.cuda.graph(lambda x: ops.linear(x, w))
    if cupy.cuda.MemoryPool is not cupy_stand_in.streams.MemoryPool:
        pytest.skip("a GPU has enough")
    monkeypatch.setattr(cupy_stand_in.streams.MemoryPool, "take", full)
    for y in called(graphed, on_gpu(4, 2)):
        np.testing.assert_array_equal(y.numpy(), np.full((4, 3), 2))
    assert capfd.readouterr().err.count("too little memory") == 1
