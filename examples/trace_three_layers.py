"""A small network whose backward pass is good to look at: three fully connected layers, one of which is skipped as well.

    tinydiff trace examples/trace_three_layers.py:loss --html trace.html

Open trace.html in a browser and press the right arrow. Where the skip meets the layer that it passes, the two gradients
are added in a step of their own.
"""

import numpy as np

import tinydiff as td


class Network(td.nn.Module):
    def __init__(self):
        self.first, self.middle, self.last = td.nn.Linear(3, 4), td.nn.Linear(4, 4), td.nn.Linear(4, 2)

    def forward(self, x):
        h = td.ops.relu(self.first(x))
        h = h + td.ops.tanh(self.middle(h))  # h is used twice
        return self.last(h)


def loss():
    td.nn.manual_seed(4)
    rng = np.random.default_rng(0)
    x, target = (rng.normal(size=(5, n)).astype(np.float32) for n in (3, 2))
    return td.ops.mse_loss(Network()(x), target)


if __name__ == "__main__":
    with td.trace() as trace:
        loss().backward()
    print(trace)
    print(trace.cost())
