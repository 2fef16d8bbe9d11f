"""Whose gradients meet in a sum: `Event.parts`."""

import numpy as np

import tinydiff as td


def givers(trace):
    """["Operation #number/input", ...] of each sum."""
    return [
        ["from before" if part is None else f"{part[0].name} #{part[0].number}/{part[1]}" for part in event.parts]
        for event in trace.events
        if event.kind == "sum"
    ]


def test_gradients_of_a_value_that_is_used_several_times():
    x = td.Tensor([1.0, 2.0], requires_grad=True)
    with td.trace() as trace:
        y = td.ops.exp(x)
        (td.ops.sin(y) + y * y).sum().backward()
    assert givers(trace) == [["Multiply #2/0", "Multiply #2/1"], ["Multiply #2/0", "Multiply #2/1", "Sin #1/0"]]
    with td.trace() as trace:
        td.ops.concatenate([x, x, x]).sum().backward()
    names = [f"Concatenate #0/{i}" for i in range(3)]
    # the gradient of the first trace is there before all three
    assert givers(trace) == [["from before", *names[:k]] for k in (1, 2, 3)]
    x.grad = None
    with td.trace() as trace:
        td.ops.concatenate([x, x, x]).sum().backward()
    assert givers(trace) == [names[:2], names]


def test_each_output_of_an_operation_has_its_own():
    x = td.Tensor(np.arange(4.0), requires_grad=True)
    with td.trace() as trace:
        a, b = td.ops.split(td.ops.exp(x), 2)
        (a * td.ops.sin(b) * td.ops.cos(b)).sum().backward()
    ((first, second),) = givers(trace)
    assert (first[:3], second[:3]) == ("Cos", "Sin")


def test_zero_grad_between_two_passes_begins_anew():
    w = td.Tensor([2.0], requires_grad=True)
    with td.trace() as trace:
        for _ in range(2):
            (td.ops.exp(w) * td.ops.sin(w)).sum().backward()
            w.grad = None
    assert givers(trace) == [["Sin #1/0", "Exp #0/0"], ["Sin #5/0", "Exp #4/0"]]
