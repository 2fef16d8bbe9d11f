"""tinydiff/cpu/attending.py against the definitions."""

import numpy as np
import pytest

from tests.cpu.agreement import check, leaves
from tinydiff import ops
from tinydiff.cpu import attending as module
from tinydiff.cpu import blas
from tinydiff.machine.threads import BLOCK, share_tasks, threads
from tinydiff.ops.attending import attend, attend_backward

SHAPES = [  # leading axes, L, M, D, E
    ((2, 3), 4, 5, 3, 2), ((), 7, 6, 5, 4), ((2,), 1, 1, 1, 1), ((3,), 1, 9, 2, 5), ((1,), 256, 256, 32, 16),
    ((12,), 64, 96, 64, 24), ((2,), 33, 31, 17, 3), ((), 300, 256, 128, 128), ((40,), 64, 64, 32, 32),
]  # fmt: skip


def arguments(stack, L, M, D, E, size, rng):
    """L_Y, Q, K, V with logits of about that size."""
    L_Y, Q, K, V = (rng.normal(size=(*stack, *s)) for s in ((L, E), (L, D), (M, D), (M, E)))
    return L_Y, size * Q, K, V


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("size", [0.1, 3, 40])
def test_agrees_with_the_definition(shapes, size, rng):
    L_Y, Q, K, V = arguments(*shapes, size, rng)
    scale, double = shapes[3] ** -0.5, max(1e-13, 1e-13 * size)
    check(attend, Q, K, V, scale, single=max(3e-6, 5e-6 * size), double=double)
    Y, z = attend.definition(Q, K, V, scale)
    check(attend_backward, L_Y, Q, K, V, z, Y, scale, single=max(1e-5, 3e-5 * size), double=double)


@pytest.mark.parametrize("needs", [tuple(bool(k >> i & 1) for i in range(3)) for k in range(8)], ids=str)
@pytest.mark.parametrize("small", [True, False])
def test_only_the_gradients_that_are_needed(needs, small, rng, monkeypatch):
    """With panels of K and with K transposed by the library, as it is by the library."""
    for place in (blas, module):
        monkeypatch.setattr(place, "has_small_products", lambda: small)
    L_Y, Q, K, V = arguments((3,), 40, 96, 16, 24, 1, rng)
    check(attend, Q, K, V, 0.3)
    Y, z = attend.definition(Q, K, V, 0.3)
    check(attend_backward, L_Y, Q, K, V, z, Y, 0.3, needs, single=1e-5)


def test_what_is_left_to_the_definition(rng):
    L_Y, Q, K, V = arguments((2,), 4, 5, 3, 6, 1, rng)
    Y, z = attend.definition(Q, K, V, 1.0)
    none, no_z = V[:, :0], np.zeros((2, 0, 1))
    for q, k, v in ((Q.astype(np.float32), K, V), (Q, K, V.astype(np.float32)), (Q[:1], K, V), (Q, K[0], V)):
        assert leaves(attend, q, k, v, 1.0)
        assert leaves(attend_backward, L_Y, q, k, v, z, Y, 1.0)
    for l_y, q, k, v, z_, y in ((none, Q[:, :0], K, V, no_z, none), (0 * Y, Q, K[:, :0], none, z - np.inf, 0 * Y)):
        assert leaves(attend, q, k, v, 1.0)
        assert leaves(attend_backward, l_y, q, k, v, z_, y, 1.0)


def test_no_keys_give_zeros():
    Y, z = attend(np.ones((2, 3, 4)), np.ones((2, 0, 4)), np.ones((2, 0, 5)), 1.0)
    assert Y.shape == (2, 3, 5) and not Y.any() and (z == -np.inf).all()


@pytest.mark.parametrize("n", [1, 2, 3, 5, 40])
@pytest.mark.parametrize(("L", "M"), [(256, 256), (200, 64), (31, 1000), (1, 1), (3000, 500)])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_every_row_of_every_matrix_is_in_one_block(n, L, M, count, monkeypatch):
    monkeypatch.setattr(module, "count", lambda: count)
    seen, blocks = np.zeros((n, L), int), module._blocks(n, L, M)
    for block in blocks:
        seen[block] += 1
        assert seen[block].size * M <= max(BLOCK, L * M)
        assert (block[1].stop - block[1].start) % 32 == 0  # rows that products can be cut into
    assert (seen == 1).all()
    assert len(blocks) >= min(count, n * -(-L // 64))  # every thread has something to do, unless there is little


def test_one_large_matrix_is_spread_over_the_threads(rng, monkeypatch):
    parts = []

    def tasks(work, blocks):
        parts.append(len(blocks))
        return share_tasks(work, blocks)

    monkeypatch.setattr(module, "share_tasks", tasks)
    q, k, v = rng.normal(size=(3, 1, 256, 128)).astype(np.float32)
    small = rng.normal(size=(1, 256, 16)).astype(np.float32)
    with threads(2):
        ops.attention(q, k, v)
        ops.attention(small, small, small)  # not worth a second thread
    assert parts == [2]
