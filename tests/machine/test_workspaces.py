"""Workspaces of threads, and what is made of them."""

import numpy as np

from tinydiff.machine import workspaces


def test_layouts_are_kept_until_a_workspace_is_replaced():
    made = []

    def make(size):
        made.append(size)
        return workspaces.workspace("layout", (size,))

    first = workspaces.prepared(make, 10)
    assert workspaces.prepared(make, 10) is first and made == [10]
    assert np.shares_memory(workspaces.prepared(make, 5), first) and made == [10, 5]
    larger = workspaces.prepared(make, 1000)
    assert workspaces.prepared(make, 1000) is larger and made == [10, 5, 1000]
    assert np.shares_memory(workspaces.prepared(make, 10), larger) and made == [10, 5, 1000, 10]


def test_layouts_do_not_pile_up():
    for i in range(3 * workspaces.LAYOUTS_KEPT):
        assert workspaces.prepared(lambda i: i, i) == i
    assert len(workspaces._workspaces.prepared) <= workspaces.LAYOUTS_KEPT
