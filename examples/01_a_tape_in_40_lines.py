# %% [markdown]
# # 1. A tape in 40 lines
#
# Back-propagation needs three things: a list of what was computed, in the order in which it was computed; for each entry, how
# to turn the derivative of the loss with respect to its result into derivatives with respect to its inputs; and a walk back
# over the list. Here are all three. [autograd/tape.py](../tinydiff/autograd/tape.py) does the same for arrays.

# %%
import itertools

import numpy as np
from picture import options, panels, save

import tinydiff as td

args = options("01_a_tape_in_40_lines")

# %% [markdown]
# A `Node` is an entry of the tape. `parents` are the nodes that it was computed from. `slopes` are its derivatives with
# respect to each of them, known as soon as the value is. `number` says when it was made: a node is always newer than its parents.

# %%
numbers = itertools.count()


class Node:
    def __init__(self, value, parents=(), slopes=(), name=""):
        self.value, self.parents, self.slopes, self.name = value, parents, slopes, name
        self.number = next(numbers)

    def __add__(self, other):
        return Node(self.value + other.value, (self, other), (1.0, 1.0), "+")

    def __mul__(self, other):
        return Node(self.value * other.value, (self, other), (other.value, self.value), "*")


def sin(a):
    return Node(np.sin(a.value), (a,), (np.cos(a.value),), "sin")


def backward(end):
    """The derivative of `end` by every node that it was computed from."""
    L = {end: 1.0}  # the derivative of the loss by itself
    waiting = {end}
    while waiting:
        node = max(waiting, key=lambda node: node.number)  # the newest: all that is to come to it has arrived
        waiting.remove(node)
        for parent, slope in zip(node.parents, node.slopes, strict=True):
            L[parent] = L.get(parent, 0.0) + L[node] * slope  # the chain rule; ways that meet are added
            waiting.add(parent)
    return L


# %% [markdown]
# That is all. Take the first of `tinydiff exercise`: u = a b, v = sin(u), y = v² + a. Here `a` reaches y in two ways, and v
# is both factors of a product.

# %%
a, b = Node(0.8, name="a"), Node(1.5, name="b")
u = a * b
v = sin(u)
w = v * v
y = w + a
L = backward(y)

for name, node in dict(a=a, b=b, u=u, v=v, w=w, y=y).items():
    print(f"{name} = {node.value:7.4f}    L_{name} = {L[node]:7.4f}")

# %% [markdown]
# Is it right? By differences, and by tinydiff's own tape.


# %%
def f(a, b):
    return np.sin(a * b) ** 2 + a


h = 1e-6
by_differences = (f(0.8 + h, 1.5) - f(0.8 - h, 1.5)) / (2 * h), (f(0.8, 1.5 + h) - f(0.8, 1.5 - h)) / (2 * h)
assert np.allclose([L[a], L[b]], by_differences, rtol=1e-8)

A, B = td.Tensor(0.8, requires_grad=True), td.Tensor(1.5, requires_grad=True)
(td.ops.sin(A * B) ** 2 + A).backward()
assert np.isclose(L[a], A.grad) and np.isclose(L[b], B.grad)

# %% [markdown]
# Why "newest first"? A node may pass its derivative on only when all of it has arrived. For p = x², q = p x, r = q p, the node p
# is used twice: by q and by r. A walk that takes the oldest node comes to p before q has sent its share. When q has, p is taken
# again, and passes on r's share a second time.


# %%
def oldest_first(end):
    L, waiting = {end: 1.0}, [end]
    while waiting:
        node = min(waiting, key=lambda node: node.number)
        waiting.remove(node)
        for parent, slope in zip(node.parents, node.slopes, strict=True):
            L[parent] = L.get(parent, 0.0) + L[node] * slope
            if parent not in waiting:
                waiting.append(parent)
    return L


x = Node(1.1, name="x")
p = x * x
q = p * x
r = q * p  # x^5
assert np.isclose(backward(r)[x], 5 * 1.1**4)
print(
    f"\nd x^5 / dx at 1.1: {5 * 1.1**4:.4f}; newest first {backward(r)[x]:.4f}; oldest first {oldest_first(r)[x]:.4f}"
)
assert not np.isclose(oldest_first(r)[x], 5 * 1.1**4)

# %% [markdown]
# The real tape differs in what an entry knows: a `Function` that computes L_X from L_Y instead of a list of slopes, since the
# slopes of arrays are matrices that nobody wants to build (see [2](02_fully_connected.py)). The walk is this one, with a heap
# for "the newest".

# %%
figure, axes = panels(1, 1, 9.6, 4)
axis = axes[0, 0]
tape = [a, b, u, v, w, y]
made = ["a", "b", "u = a b", "v = sin u", "w = v v", "y = w + a"]
for i, node in enumerate(tape):
    for parent, bend in zip(node.parents, (-0.5, -0.3), strict=False):  # v is both parents of w
        j = tape.index(parent)
        curve = {"arrowstyle": "->", "connectionstyle": f"arc3,rad={bend}", "lw": 1.4}
        axis.annotate("", (i - 0.15, 0.4), (j + 0.15, 0.4), arrowprops={**curve, "color": "tab:blue"})
        axis.annotate("", (j + 0.15, -0.4), (i - 0.15, -0.4), arrowprops={**curve, "color": "tab:red"})
    axis.fill_between([i - 0.38, i + 0.38], -0.37, 0.37, facecolor="white", edgecolor="black")
    axis.text(i, 0.22, made[i], ha="center", va="center")
    axis.text(i, 0, f"{node.value:.3f}", ha="center", va="center", color="tab:blue")
    axis.text(i, -0.22, f"L_{made[i][0]} = {L[node]:.3f}", ha="center", va="center", color="tab:red")
axis.set(xlim=(-0.5, 5.5), ylim=(-1.75, 1.75))
axis.set_title("the tape, from old to new: values on the way there (above), derivatives on the way back (below)")
axis.axis("off")
save(figure, args)
