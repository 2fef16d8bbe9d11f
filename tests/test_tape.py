"""tinydiff/tape.py: the walk backwards, what is alive before and after it, in-place changes, no_grad, recompute."""

import gc
import threading
import tracemalloc
import weakref

import numpy as np
import pytest

from tinydiff import ops, tape
from tinydiff.function import Function
from tinydiff.random import Generator
from tinydiff.tape import NonFiniteError, check_finite, no_grad, recompute
from tinydiff.tensor import Tensor


def leaf(array):
    return Tensor(np.asarray(array), requires_grad=True)


@pytest.fixture
def no_collector():
    """Without the cyclic collector, so that only reference counting frees anything."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def alive():
    """How many tensors, nodes and functions there are."""
    return sum(issubclass(type(o), Tensor | tape.Node | Function) for o in gc.get_objects())


# The walk


def test_gradients_add_up_over_paths():
    x, y = leaf(3.0), leaf(4.0)
    a = x * y
    b = a + x
    c = a * b  # xy (xy + x) = x^2 y^2 + x^2 y
    c.backward()
    assert x.grad == 2 * 3 * 16 + 2 * 3 * 4
    assert y.grad == 2 * 9 * 4 + 9


def test_every_op_runs_once_and_after_everything_that_used_it():
    order = []

    class Named(Function):
        def forward(self, *arrays, name):
            self.name = name
            return sum(arrays)

        def backward(self, L_Y):
            order.append(self.name)
            return (L_Y,) * len(self.needs)

    x = leaf(1.0)
    a = Named.apply(x, name="a")
    b = Named.apply(a, name="b")
    c = Named.apply(a, b, name="c")
    d = Named.apply(c, a, b, name="d")  # a is reached by paths of length 1, 2 and 3
    Named.apply(a, name="unused")
    d.backward()
    assert sorted(order) == ["a", "b", "c", "d"]
    for later, earlier in ("dc", "db", "da", "cb", "ca", "ba"):
        assert order.index(later) < order.index(earlier)
    assert x.grad == 4  # d = c + a + b, c = a + b: paths through a: c-a, c-b-a, a, b-a


def test_a_ladder_with_2_to_the_60_paths():
    x = leaf(1.0)
    y = x
    for _ in range(60):
        y = y + y
    y.backward()
    assert x.grad == 2.0**60


def test_a_random_graph_against_forward_differentiation(rng):
    """Each value also carries its derivative by the leaf forwards, in plain Python numbers."""
    x = leaf(0.7)
    values = [(x, 0.7, 1.0), (Tensor(np.array(0.3)), 0.3, 0.0)]
    for _ in range(300):
        (a, va, da), (b, vb, db) = (values[i] for i in rng.integers(0, len(values), 2))
        if rng.random() < 0.5:
            values.append((a * b, va * vb, va * db + vb * da))
        else:
            values.append((0.5 * a + 0.5 * b, 0.5 * va + 0.5 * vb, 0.5 * da + 0.5 * db))
    total = sum(v[0] for v in values)
    total.backward()
    np.testing.assert_allclose(x.grad, sum(v[2] for v in values), rtol=1e-12)


# No aliasing


def test_the_same_gradient_array_for_two_parents():
    x, y = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    L = np.array([1.0, 10.0])
    (x + y).backward(L)  # both parents get L_Y itself
    assert not np.shares_memory(x.grad, y.grad)
    assert not np.shares_memory(x.grad, L)
    assert not np.shares_memory(y.grad, L)
    x.grad += 5
    assert y.grad.tolist() == [1, 10]
    assert L.tolist() == [1, 10]


def test_x_plus_x():
    x = leaf([1.0, 2.0])
    L = np.array([1.0, 10.0])
    (x + x).backward(L)
    assert x.grad.tolist() == [2, 20]
    assert L.tolist() == [1, 10]


class Fork(Function):
    """The sum of its inputs; returns one and the same array as the gradient of each."""

    def forward(self, *arrays):
        return sum(arrays)

    def backward(self, L_Y):
        return (L_Y,) * len(self.needs)


@pytest.mark.parametrize("arrangement", range(4))
def test_diamonds_do_not_add_into_a_shared_array(arrangement):
    x, y = leaf([1.0]), leaf([1.0])
    a, b = x * 1, y * 1
    L = np.array([1.0])
    if arrangement == 0:  # a gets the shared array, then more: b's must not change
        (Fork.apply(a, b) + a + a).backward(L)
        expected = (3, 1)
    elif arrangement == 1:
        (a + a + Fork.apply(a, b)).backward(L)
        expected = (3, 1)
    elif arrangement == 2:
        Fork.apply(Fork.apply(a, b), a, b, a, a).backward(L)
        expected = (4, 2)
    else:
        Fork.apply(a, b, Fork.apply(b, a, b), Fork.apply(a, a)).backward(L)
        expected = (4, 3)
    assert (x.grad.item(), y.grad.item()) == expected
    assert L.tolist() == [1]


def test_gradient_views_do_not_alias_leaves():
    x, y = leaf(np.zeros((2, 3))), leaf(np.zeros(6))
    L = np.arange(6.0)
    (ops.reshape(x, (6,)) + y).backward(L)
    assert not np.shares_memory(x.grad, y.grad)
    assert not np.shares_memory(x.grad, L)
    a = leaf(np.zeros((3, 2)))
    (ops.transpose(a).reshape(6) + ops.concatenate([y, y])[3:9]).backward(L)
    assert not np.shares_memory(a.grad, y.grad)
    a.grad[:] = -1
    y.grad[:] = -1
    assert L.tolist() == [0, 1, 2, 3, 4, 5]


def test_retained_gradients_are_not_added_into():
    x = leaf([1.0])
    y = x * 1
    y.retain_grad()
    z = y + x
    z.retain_grad()
    (z + y + y).backward()
    assert (z.grad.item(), y.grad.item(), x.grad.item()) == (1, 3, 4)
    y.grad += 100
    assert (z.grad.item(), x.grad.item()) == (1, 4)


# What is alive, and for how long


def test_after_backward_only_leaves_are_alive(no_collector):
    x, w = leaf(np.ones((4, 3))), leaf(np.ones((3, 2)))
    ops.softplus(x[0] @ w).sum().backward()
    before = alive()
    loss = (ops.softmax(ops.relu(x @ w) * 2 + ops.exp(x).sum(), -1) ** 2).mean() + ops.split(x, 2)[1].sum()
    assert alive() > before + 10
    loss.backward()
    del loss
    assert alive() == before


def test_dropping_a_graph_without_backward_frees_it(no_collector):
    x = leaf(np.ones(3))
    before = alive()
    y = ops.tanh(x * x + x).sum()
    pieces = ops.split(x * 2, 3)
    piece = recompute(ops.exp, x)
    del y, pieces, piece
    assert alive() == before


def test_no_cycles_are_left_for_the_collector():
    x = leaf(np.ones((2, 3)))
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        y = recompute(lambda a: ops.layer_norm(a * a), x)
        y.retain_grad()
        (y.sum() + ops.attention(x, x, x).sum()).backward()
        del y
        with pytest.raises(RuntimeError):
            z = x * 2
            z.backward(np.ones((2, 3)))
            z.backward(np.ones((2, 3)))
        del z
        gc.collect()
        mine = [o for o in gc.garbage if type(o).__module__.startswith("tinydiff")]
        assert [o for o in mine if not isinstance(o, RuntimeError)] == []
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


class Chain(Function):
    """x + 1, with a saved array and outgoing gradients that are watched from outside."""

    log: list = []  # noqa: RUF012
    saved_arrays: list = []  # noqa: RUF012
    gradients: list = []  # noqa: RUF012

    def forward(self, X):
        kept = X + 1
        self.saved_arrays.append(weakref.ref(kept))
        self.save(kept)
        return X + 1

    def backward(self, L_Y):
        L_X = L_Y * 2
        self.log.append((sum(r() is not None for r in self.saved_arrays), sum(r() is not None for r in self.gradients)))
        self.gradients.append(weakref.ref(L_X))
        return L_X


def test_saved_arrays_and_consumed_gradients_go_during_the_walk(no_collector):
    for log in (Chain.log, Chain.saved_arrays, Chain.gradients):
        log.clear()
    x = leaf(np.ones(3))
    y = x
    for _ in range(10):
        y = Chain.apply(y)
    y.backward(np.ones(3))
    assert x.grad.tolist() == [1024] * 3
    assert [saved for saved, _ in Chain.log] == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert max(gradients for _, gradients in Chain.log) <= 1  # the one that just arrived
    assert not any(r() is not None for r in Chain.saved_arrays)


def test_peak_memory_of_backward_is_below_that_of_two_arrays_more_than_forward(no_collector):
    n = 1 << 17  # 1 MiB of float64
    x = leaf(np.full(n, 0.5))
    (x * 1.0).sum().backward()
    tracemalloc.start()
    try:
        y = x
        for _ in range(24):
            y = ops.tanh(y)
        loss = y.sum()
        del y
        after_forward, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        loss.backward()
        after_backward, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after_forward > 24 * 8 * n
    assert peak - after_forward < 5.5 * 8 * n  # a few gradients and temporaries, not one per op
    assert after_backward < 0.1 * 8 * n


def test_activations_that_nobody_saved_are_freed_in_forward(no_collector):
    references = []
    x = leaf(np.ones(5))
    y = x
    for _ in range(4):
        y = y + 1  # its backward needs no array
        references.append(weakref.ref(y.data))
    assert [r() is not None for r in references] == [False, False, False, True]


def test_a_chain_of_100_000_nodes_neither_recurses_nor_leaks(no_collector):
    before = alive()
    for walk in (True, False):
        x = leaf(np.float32(1))
        y = x
        for _ in range(100_000):
            y = -y
        if walk:
            y.backward()
            assert x.grad == 1
        del x, y
        assert alive() == before


def test_a_wide_graph_of_100_000_edges():
    x = leaf(np.float32(1))
    y = Fork.apply(*[x * 1] * 100_000)
    y.backward()
    assert x.grad == 100_000


# Second backward


def test_second_backward_raises_a_sentence():
    x = leaf([1.0, 2.0])
    y = (x * x).sum()
    y.backward()
    with pytest.raises(RuntimeError, match=r"Sum.*second time.*forward"):
        y.backward()
    np.testing.assert_array_equal(x.grad, [2, 4])


def test_backward_into_a_part_that_was_freed_raises_a_sentence():
    x = leaf([1.0])
    shared = x * x
    (shared * 2).backward()
    with pytest.raises(RuntimeError, match=r"Multiply.*second time"):
        (shared * 3).backward()


def test_backward_again_after_a_new_forward_accumulates():
    x = leaf([3.0])
    for _ in range(3):
        (x * x).backward()
    assert x.grad.tolist() == [18]


def test_second_backward_through_ops_that_save_nothing_raises_too():
    x = leaf([1.0])
    y = ops.reshape(x + 1, (1, 1))
    y.backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


def test_second_backward_through_a_recomputed_block_raises():
    x = leaf([1.0])
    y = recompute(ops.exp, x)
    y.backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


# Changes in place between forward and backward


def set_all(x):
    x[...] = 7.0


def add_one(x):
    x += 1.0


def subtract_one(x):
    x -= 1.0


def double(x):
    x *= 2.0


def halve(x):
    x /= 2.0


@pytest.mark.parametrize("change", [set_all, add_one, subtract_one, double, halve])
def test_a_saved_input_that_changes_is_an_error_naming_the_op(change):
    x, w = leaf([1.0, 2.0]), Tensor(np.array([3.0, 4.0]))
    y = (x * w).sum()
    with no_grad():
        change(w)
    with pytest.raises(RuntimeError, match=r"Multiply.*in place"):
        y.backward()
    assert x.grad is None


def test_a_leaf_updated_too_early_is_an_error():
    w = leaf([1.0])
    y = w * w
    with no_grad():
        w -= 0.1  # an optimiser step before backward
    with pytest.raises(RuntimeError, match=r"Multiply.*in place"):
        y.backward()


VIEWS = {
    "reshape": lambda x: ops.reshape(x, (4,)),
    "transpose": ops.transpose,
    "detach": lambda x: x.detach(),
    "getitem": lambda x: x[0],
    "expand_dims": lambda x: ops.expand_dims(x, 0),
    "squeeze": lambda x: ops.squeeze(ops.expand_dims(x, 0), 0),
    "split": lambda x: ops.split(x, 2)[1],
    "several": lambda x: ops.transpose(ops.reshape(x.detach(), (1, 4)))[1:3],
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_change_through_a_view_is_an_error_naming_the_op(view):
    x = leaf([[1.0, 2.0], [3.0, 4.0]])
    part = view(x)
    assert np.shares_memory(part.data, x.data)
    y = ops.sin(x).sum()
    with no_grad():
        part[...] = 0.0
    with pytest.raises(RuntimeError, match=r"Sin.*in place"):
        y.backward()


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_change_of_the_whole_is_an_error_for_an_op_that_saved_a_view(view):
    x, scale = leaf([[1.0, 2.0], [3.0, 4.0]]), leaf([2.0])
    y = (scale * view(x)).sum()
    with no_grad():
        x += 1.0
    with pytest.raises(RuntimeError, match=r"Multiply.*in place"):
        y.backward()


def test_a_saved_output_that_changes_is_an_error():
    x = leaf([1.0, 2.0])
    y = ops.exp(x)  # keeps its own result for backward
    with no_grad():
        y += 1.0
    with pytest.raises(RuntimeError, match=r"Exp.*in place"):
        y.backward(np.ones(2))


def test_a_change_through_a_view_of_an_output_is_an_error():
    y = ops.exp(leaf([1.0, 2.0]))
    view = y.detach()[:1]
    view[0] = 0.0
    with pytest.raises(RuntimeError, match=r"Exp.*in place"):
        y.backward(np.ones(2))


@pytest.mark.parametrize(
    ("name", "compute"),
    [
        ("Linear", lambda x, w: ops.linear(x, w)),
        ("Matmul", lambda x, w: ops.matmul(x, w)),
        ("Einsum", lambda x, w: ops.einsum("ij,jk->ik", x, w)),
        ("Divide", lambda x, w: x / w),
        ("Power", lambda x, w: x**w),
        ("Conv2d", lambda x, w: ops.conv2d(ops.reshape(x, (1, 2, 2, 1)), ops.reshape(w, (2, 2, 1, 1)))),
        ("Attention", lambda x, w: ops.attention(x, w, w)),
        ("LayerNorm", lambda x, w: ops.layer_norm(x, w[0], w[1])),
        ("Maximum", lambda x, w: ops.maximum(x, w)),
    ],
)
def test_constants_that_change_are_noticed_by(name, compute):
    x, w = leaf([[1.0, 2.0], [3.0, 4.0]]), Tensor(np.full((2, 2), 2.0))
    y = compute(x, w).sum()
    w *= 3.0
    with pytest.raises(RuntimeError, match=rf"{name}.*in place"):
        y.backward()


def test_views_of_memory_that_numpy_does_not_own():
    """An array over a buffer, as files are read, has a base that is no array."""
    x, w = leaf(np.ones(3)), Tensor(np.frombuffer(bytearray(24)))
    view = w.reshape(3, 1)
    y = (x * w).sum()
    view += 3.0
    with pytest.raises(RuntimeError, match=r"Multiply.*in place"):
        y.backward()


@pytest.mark.parametrize("changed", [0, 1])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_tensors_made_of_one_array_are_both_watched(changed, order):
    rows = np.ones((2, 3))
    tensors = [Tensor(rows[0]), Tensor(rows[1])]
    y = Product.apply(*(tensors[i] for i in order), leaf(np.ones(3))).sum()
    tensors[changed] *= 3.0
    with pytest.raises(RuntimeError, match=r"Product.*in place"):
        y.backward()


class Product(Function):
    """Of three arrays; the third needs the gradient."""

    def forward(self, A, B, C):
        self.save(A, B, C)
        return A * B * C

    def backward(self, L_Y):
        A, B, _ = self.saved
        return None, None, L_Y * A * B


def test_changes_that_no_backward_needs_are_allowed():
    x, w = leaf([1.0, 2.0]), Tensor(np.array([3.0, 4.0]))
    y = (x + w).sum()
    w += 1.0  # the backward of a sum does not look at its inputs
    y.backward()
    assert x.grad.tolist() == [1, 1]
    x.grad = None
    w += 1.0
    (x * w).sum().backward()  # a change before forward is no change in between
    assert x.grad.tolist() == [5, 6]
    copy = Tensor(w.data.copy())
    y = (x * w).sum()
    copy += 1.0  # other memory
    y.backward()


def test_an_in_place_change_of_a_branch_that_needs_no_gradient_is_allowed():
    x, w = Tensor(np.array([1.0])), leaf([2.0])
    y = x * w  # needs x for L_w, not w
    with no_grad():
        x += 0.0  # noticed all the same: x was saved
    with pytest.raises(RuntimeError, match="Multiply"):
        y.backward()


# no_grad


def test_no_grad_records_nothing():
    x = leaf([1.0])
    assert tape.is_recording()
    with no_grad():
        assert not tape.is_recording()
        y = x * 2
        z = recompute(ops.exp, x)
    assert tape.is_recording()
    assert not y.requires_grad
    assert not z.requires_grad
    assert (x * 2).requires_grad


def test_no_grad_survives_exceptions_and_nesting():
    x = leaf([1.0])
    with pytest.raises(KeyError), no_grad(), no_grad():
        raise KeyError
    assert (x * 2).requires_grad
    with no_grad():
        with no_grad():
            pass
        assert not (x * 2).requires_grad
        with pytest.raises(KeyError), no_grad():
            raise KeyError
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad


def test_no_grad_as_a_decorator():
    x = leaf([1.0])

    @no_grad()
    def evaluate(depth):
        """The docstring."""
        if depth:
            assert not evaluate(depth - 1).requires_grad
        return x * 2

    assert evaluate.__doc__ == "The docstring."
    for _ in range(3):
        assert not evaluate(2).requires_grad
        assert (x * 2).requires_grad


def test_one_no_grad_object_can_be_used_again():
    block = no_grad
    for _ in range(2):
        with block():
            assert not tape.is_recording()
        assert tape.is_recording()


def test_no_grad_is_a_matter_of_its_own_thread():
    x = leaf([1.0])
    inside, done = threading.Event(), threading.Event()
    seen = []

    def sample():
        with no_grad():
            inside.set()
            done.wait(10)
            seen.append((x * 2).requires_grad)
        seen.append((x * 2).requires_grad)

    worker = threading.Thread(target=sample)
    worker.start()
    inside.wait(10)
    recorded_here = (x * 2).requires_grad
    with no_grad():
        other = []
        second = threading.Thread(target=lambda: other.append((x * 2).requires_grad))
        second.start()
        second.join(10)
    done.set()
    worker.join(10)
    assert recorded_here
    assert other == [True]
    assert seen == [False, True]


def test_backward_in_several_threads():
    results = [None] * 4

    def work(i):
        x = leaf(np.arange(5.0))
        for _ in range(50):
            y = x
            for _ in range(10):
                y = y * 1.0 + float(i) * x
            y.sum().backward()
        results[i] = x.grad

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for i in range(4):
        np.testing.assert_array_equal(results[i], np.full(5, 50 * (1 + 10.0 * i)))


# recompute


def block(x, w):
    return ops.tanh(ops.layer_norm(x @ w) * w[0]) + x.sum()


def gradients_of(run, *leaves):
    for x in leaves:
        x.grad = None
    y = run()
    loss = (y * np.linspace(-1, 1, y.size).reshape(y.shape)).sum()
    loss.backward()
    return [loss.data, *(x.grad for x in leaves)]


def assert_same_bits(a, b):
    for left, right in zip(a, b, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_recompute_gives_the_same_bits(rng, dtype):
    x, w = (leaf(rng.normal(size=(4, 4)).astype(dtype)) for _ in range(2))
    plain = gradients_of(lambda: block(x * 2, w), x, w)
    assert_same_bits(plain, gradients_of(lambda: recompute(block, x * 2, w), x, w))


def test_recompute_reaches_parameters_captured_by_closure(rng):
    x, w = leaf(rng.normal(size=(4, 4))), leaf(rng.normal(size=(4, 4)))
    plain = gradients_of(lambda: block(x, w), x, w)
    assert_same_bits(plain, gradients_of(lambda: recompute(lambda a: block(a, w), x), x, w))
    constant = Tensor(x.data)
    for run in (lambda: block(constant, w), lambda: recompute(lambda a: block(a, w), constant)):
        result = gradients_of(run, w)
        np.testing.assert_array_equal(result[1], plain[2])


def test_recompute_reaches_values_captured_from_outside_the_block(rng):
    x, w = leaf(rng.normal(size=(4, 4))), leaf(rng.normal(size=(4, 4)))

    def run(wrap):
        scale = ops.exp(w)  # computed outside, used inside and after
        y = wrap(lambda a: ops.sin(a * scale) @ scale, x)
        return y + scale

    assert_same_bits(gradients_of(lambda: run(lambda f, a: f(a)), x, w), gradients_of(lambda: run(recompute), x, w))


def test_recompute_of_a_block_whose_input_is_used_elsewhere_too(rng):
    x = leaf(rng.normal(size=(4, 4)))

    def run(wrap):
        a = ops.sin(x)
        y = wrap(lambda b: ops.exp(b) * b + b, a)
        return y * a + wrap(ops.cos, a) + wrap(lambda b, c: b @ c, a, a)

    assert_same_bits(gradients_of(lambda: run(lambda f, *a: f(*a)), x), gradients_of(lambda: run(recompute), x))


def test_nested_recompute(rng):
    x, w = leaf(rng.normal(size=(4, 4))), leaf(rng.normal(size=(4, 4)))

    def run(wrap):
        def outer(a):
            b = wrap(lambda c: ops.tanh(c @ w), a)
            return wrap(lambda c: wrap(ops.exp, c * w), b) + a

        return wrap(outer, wrap(outer, x))

    assert_same_bits(gradients_of(lambda: run(lambda f, *a: f(*a)), x, w), gradients_of(lambda: run(recompute), x, w))


def test_recompute_with_several_outputs(rng):
    x = leaf(rng.normal(size=(4, 4)))

    def pair(a):
        return ops.sin(a), ops.exp(a) * 2, a * 3

    def run(wrap):
        first, _, third = wrap(pair, x)
        return first * third

    assert isinstance(recompute(pair, x), tuple)
    assert_same_bits(gradients_of(lambda: run(lambda f, a: f(a)), x), gradients_of(lambda: run(recompute), x))


def test_integer_outputs_of_a_recomputed_block_need_no_gradient():
    x = leaf([3.0, 1.0, 2.0])
    ordered, order = recompute(lambda a: (a[np.argsort(a.data)], Tensor(np.argsort(a.data))), x)
    assert not order.requires_grad
    assert order.data.tolist() == [1, 2, 0]
    ordered.backward(np.array([1.0, 2.0, 3.0]))
    assert x.grad.tolist() == [3, 1, 2]


def test_recompute_of_a_block_that_returns_its_input_or_a_constant():
    x = leaf([1.0, 2.0])
    same, constant = recompute(lambda a: [a, Tensor([5.0, 6.0])], x)
    (same * constant).sum().backward()
    assert x.grad.tolist() == [5, 6]


def test_recompute_replays_dropout(rng):
    x = leaf(rng.normal(size=(64, 8)))

    def run(wrap, generator):
        y = wrap(lambda a: ops.dropout(ops.exp(a), 0.5, generator) * a, x)
        return ops.dropout(wrap(lambda a: ops.dropout(a, 0.3, generator), y), 0.1, generator)

    plain_generator, generator = Generator(5, 5), Generator(5, 5)
    plain = gradients_of(lambda: run(lambda f, a: f(a), plain_generator), x)
    replayed = gradients_of(lambda: run(recompute, generator), x)
    assert_same_bits(plain, replayed)
    assert generator.state == plain_generator.state
    assert plain_generator.offset == 3 * 64 * 8 // 4


def test_recompute_replays_dropout_in_nested_blocks_and_mid_stream(rng):
    x = leaf(rng.normal(size=(16, 8)))

    def run(wrap, generator):
        def inner(a):
            return ops.dropout(a * a, 0.4, generator)

        def outer(a):
            b = ops.dropout(a, 0.2, generator)
            return wrap(inner, b) + wrap(inner, ops.dropout(a, 0.2, generator))

        y = wrap(outer, x)
        generator.normal(7)  # draws between forward and backward must not matter
        return wrap(outer, y)

    plain_generator, generator = Generator(1, 5, 3, 17), Generator(1, 5, 3, 17)
    plain = gradients_of(lambda: run(lambda f, a: f(a), plain_generator), x)
    replayed = gradients_of(lambda: run(recompute, generator), x)
    assert_same_bits(plain, replayed)
    assert generator.state == plain_generator.state


def test_recompute_of_a_generator_made_inside_the_block(rng):
    x = leaf(rng.normal(size=(16, 8)))

    def noisy(a):
        return ops.dropout(a * a, 0.5, Generator(3).at(5, 1))

    assert_same_bits(gradients_of(lambda: noisy(x), x), gradients_of(lambda: recompute(noisy, x), x))


def test_recompute_frees_what_is_inside(no_collector):
    references = []
    x = leaf(np.ones(1000))

    def deep(a):
        for _ in range(5):
            a = ops.tanh(a)
            references.append(weakref.ref(a.data))
        return a

    y = recompute(deep, x)
    assert [r() is not None for r in references] == [False] * 4 + [True]  # the result itself is y
    before = alive()
    y.sum().backward()
    assert len(references) == 10, "the block runs once forward and once in backward"
    del y
    assert not any(r() is not None for r in references)
    assert alive() < before


def test_peak_memory_of_recomputed_blocks(no_collector):
    n = 1 << 15
    x = leaf(np.full(n, 0.5))

    def deep(a):
        for _ in range(8):
            a = ops.tanh(a)
        return a

    def peak(wrap):
        tracemalloc.start()
        try:
            y = x
            for _ in range(8):
                y = wrap(deep, y)
            loss = y.sum()
            del y
            loss.backward()
            return tracemalloc.get_traced_memory()[1] / (8 * n)
        finally:
            tracemalloc.stop()

    plain, recomputed = peak(lambda f, a: f(a)), peak(recompute)
    assert plain > 64
    assert recomputed < 8 + 8 + 6  # the blocks' inputs, one block inside, gradients


def test_recompute_where_nothing_needs_a_gradient():
    y = recompute(ops.exp, Tensor(np.ones(2)))
    np.testing.assert_allclose(y.data, np.e)
    assert not (y * 2).requires_grad, "a block of constants is a constant"


def test_recompute_of_an_input_changed_in_place_is_an_error():
    x = leaf([1.0])
    y = recompute(lambda a: a * 2, x)
    with no_grad():
        x += 1.0
    with pytest.raises(RuntimeError, match="in place"):
        y.backward()


def test_recompute_takes_arrays_and_numbers_beside_tensors():
    x, array = leaf([1.0, 2.0]), np.array([3.0, 4.0])
    y = recompute(lambda a, b, c: a * b * c, x, array, 2.0)
    y.backward(np.ones(2))
    assert x.grad.tolist() == [6, 8]


def test_recompute_inside_no_grad_and_backward_inside_no_grad():
    x = leaf([2.0])
    y = recompute(lambda a: a * a, x)
    with no_grad():
        y.backward()  # the block must be recorded again all the same
    assert x.grad.tolist() == [4]
    assert tape.is_recording()


def test_an_exception_in_a_recomputed_block_leaves_the_tape_recording():
    x, generator = leaf([1.0]), Generator(0)

    def fail(a):
        generator.uniform(4)
        raise KeyError

    with pytest.raises(KeyError):
        recompute(fail, x)
    assert tape.is_recording()
    y = recompute(lambda a: ops.dropout(a, 0.5, generator), x)
    assert y.requires_grad


def test_recompute_calls_the_block_once_more_and_only_if_needed():
    calls = []

    def count(a):
        calls.append(tape.is_recording())
        return a * 2

    x = leaf([1.0])
    y = recompute(count, x)
    assert len(calls) == 1
    y.backward()
    assert len(calls) == 2
    recompute(count, x)
    x.backward()
    assert len(calls) == 3


# check_finite


def test_check_finite_names_the_op_of_forward():
    x = leaf([1.0, -1.0])
    with np.errstate(all="ignore"):
        y = ops.log(x)  # silent outside
        with check_finite(), pytest.raises(NonFiniteError, match="Log"):
            ops.exp(ops.log(x) * 2)
        with check_finite(), pytest.raises(NonFiniteError, match="Divide"):
            1.0 / (x - x)
    assert np.isnan(y.data[1])


def test_check_finite_names_the_op_of_backward():
    x = leaf([0.0, 1.0])
    with np.errstate(all="ignore"), check_finite():
        y = ops.sqrt(x * 2.0)  # finite, but its slope at 0 is not
        with pytest.raises(NonFiniteError, match=r"backward.*Sqrt"):
            y.sum().backward()


def test_check_finite_is_an_arithmetic_error_and_ends_with_its_block():
    assert issubclass(NonFiniteError, ArithmeticError)
    x = Tensor(np.array([np.inf]))
    with check_finite():
        (Tensor([1.0]) * 2).sum()
        with pytest.raises(NonFiniteError):
            x * 2.0
    (x * 2.0).sum()
    with check_finite(), check_finite():
        pass
    (x * 2.0).sum()


def test_check_finite_looks_into_recomputed_blocks():
    x = leaf([0.0, 1.0])
    with np.errstate(all="ignore"), check_finite():
        y = recompute(lambda a: ops.sqrt(a) * 3.0, x)
        with pytest.raises(NonFiniteError, match="Sqrt"):
            y.sum().backward()


def test_check_finite_is_not_disturbed_by_integers():
    with check_finite():
        assert (Tensor(np.array([1, 2])) + 1).data.tolist() == [2, 3]
