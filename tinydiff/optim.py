"""Optimisers, the moving average of the weights, clipping and warm-up.

All of them change weights in place without large temporary arrays: they go through the weights in blocks, spread over the
threads, each with one small scratch array that it uses over and over. Each change is noted in the tensor's
version, so that a backward pass through a graph recorded before it raises an error instead of giving wrong gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from tinydiff import arena
from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import array_module, device_of, to_numpy, widened
from tinydiff.errors import InputError
from tinydiff.machine.threads import share_tasks
from tinydiff.machine.workspaces import workspace
from tinydiff.ops.reduction import sum_of_squares

_BLOCK = 1 << 17  # elements; blocks that stay in a nearer cache are slower, as threads wait for the interpreter's lock


class Optimizer:
    """What optimisers share: the weights, the learning rate, and the state that they save.

    parameters: tensors that need gradients, such as `module.parameters()`; weights whose `.grad` is None are skipped.
    `lr` may be set at any time. `state_dict()` holds everything that `step` goes on from: an optimiser that loads it
    continues bit for bit.
    """

    slots: tuple[str, ...] = ()  # names of the arrays kept for each weight

    def __init__(self, parameters: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        self.parameters = _parameters(type(self).__name__, parameters)
        self.lr = _number(type(self).__name__, "lr", lr)
        self.weight_decay = _number(type(self).__name__, "weight_decay", weight_decay)
        self.steps = [0] * len(self.parameters)  # updates of each weight
        self.state: list[list[Any]] = [[] for _ in self.parameters]  # the arrays of `slots`, from the first update on

    def step(self, ema: EMA | None = None) -> None:
        """One update of all weights that have a gradient; then of their moving average, if one is given."""
        self._step()
        if ema is not None:
            ema.update()

    def _step(self) -> None:
        blocks = []
        for i, p in enumerate(self.parameters):
            if p.grad is None:
                continue
            name = type(self).__name__
            if p.grad.shape != p.shape:
                raise ValueError(f"{name}: weight {i} has shape {p.shape}, its gradient {p.grad.shape}")
            if len({device_of(a) for a in (p.data, p.grad, *self.state[i])}) > 1:
                raise ValueError(f"{name}: weight {i}, its gradient and its state are on different devices")
            if not self.state[i]:
                self.state[i] = [array_module(p.data).zeros_like(p.data, _wide(p.dtype)) for _ in self.slots]
            self.steps[i] += 1
            blocks += [(self.steps[i], *block) for block in _blocks(p.data, p.grad, *self.state[i])]
            p._version.count += 1
        share_tasks(lambda block: self._update_block(*block), blocks)

    def _update_block(self, step: int, p: Any, g: Any, *state: Any) -> None:
        """Weights of half precision are updated as float32, as is their state: half has no room for squared gradients."""
        wide = widened(p)
        self._update(step, wide, widened(g), *state, _scratch(wide))
        if wide is not p:
            p[...] = wide

    def _update(self, step: int, *arrays: Any) -> None:
        raise NotImplementedError(f"{type(self).__name__} does not define _update")

    def zero_grad(self) -> None:
        """Forgets the gradients of all weights."""
        for p in self.parameters:
            p.zero_grad()

    def state_dict(self) -> dict[str, np.ndarray]:
        """A copy of the state as NumPy arrays: "lr", "steps" (one count for each weight) and "slot.i" for weight i."""
        state = {"lr": np.array(self.lr, np.float64), "steps": np.array(self.steps, np.int64)}
        for i, arrays in enumerate(self.state):
            for slot, array in zip(self.slots, arrays, strict=False):
                state[f"{slot}.{i}"] = np.array(to_numpy(array), order="C")
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state. InputError, before anything is changed, where it does not fit the weights."""
        name = type(self).__name__
        if "lr" not in state or "steps" not in state or np.shape(state["steps"]) != (len(self.parameters),):
            needed = f"lr and steps for {len(self.parameters)} weights"
            raise InputError(f"the saved state does not fit this {name}: it needs {needed}")
        steps = [int(n) for n in state["steps"]]
        expected = {f"{slot}.{i}" for i, n in enumerate(steps) if n for slot in self.slots}
        if different := sorted(expected ^ (set(state) - {"lr", "steps"})):
            raise InputError(f"the saved state does not fit this {name}: {different[0]} is missing or not part of it")
        for i, p in enumerate(self.parameters):
            for key in [f"{slot}.{i}" for slot in self.slots] if steps[i] else []:
                if (shape := np.shape(state[key])) != p.shape:
                    raise InputError(f"{key} of the saved {name} has shape {shape}, weight {i} {p.shape}")
        self.lr, self.steps = float(state["lr"]), steps
        for i, p in enumerate(self.parameters):
            xp = array_module(p.data)
            self.state[i] = [xp.array(state[f"{slot}.{i}"], _wide(p.dtype)) for slot in self.slots] if steps[i] else []


class SGD(Optimizer):
    """Gradient descent: v = momentum v + g, p = p - lr v, with g the gradient plus weight_decay p."""

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.0, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, lr, weight_decay)
        self.momentum = _number("SGD", "momentum", momentum, below=1)
        self.slots = ("velocity",) if momentum else ()

    def _update(self, step: int, p: Any, g: Any, *state: Any) -> None:
        *velocity, s = state
        xp = array_module(p)
        if self.weight_decay:
            g = g + self.weight_decay * p
        if velocity:
            (v,) = velocity
            v *= self.momentum
            v += g
            g = v
        xp.multiply(g, self.lr, out=s)
        p -= s


class Adam(Optimizer):
    """Adam (Kingma & Ba, 2015, algorithm 1):

        m = beta1 m + (1 - beta1) g,    v = beta2 v + (1 - beta2) g^2
        p = p - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    with g the gradient, plus weight_decay p where that is not 0; t counts the updates of the weight.
    """

    slots = ("m", "v")
    coupled = True  # weight decay is part of the gradient

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr, weight_decay)
        name = type(self).__name__
        self.betas = _number(name, "beta1", betas[0], below=1), _number(name, "beta2", betas[1], below=1)
        self.eps = _number(name, "eps", eps)

    def step(self, ema: EMA | None = None) -> None:
        """One update of all weights that have a gradient; then of their moving average, if one is given. On the GPU it is one
        kernel for all of that, and the weights become views of one piece of memory."""
        if not arena.adam_step(self, ema):
            super().step(ema)

    def _update(self, step: int, p: Any, g: Any, *state: Any) -> None:
        m, v, s = state
        xp, (beta1, beta2) = array_module(p), self.betas
        if self.weight_decay:
            g = self._decay(p, g, xp)
        m *= beta1
        xp.multiply(g, 1 - beta1, out=s)
        m += s
        v *= beta2
        xp.multiply(g, g, out=s)
        s *= 1 - beta2
        v += s
        # m / c1 / (sqrt(v) / c2 + eps) as m (c2 / c1) / (sqrt(v) + eps c2), which takes two passes less
        c1, c2 = 1 - beta1**step, math.sqrt(1 - beta2**step)
        xp.sqrt(v, out=s)
        s += self.eps * c2
        xp.divide(m, s, out=s)
        s *= self.lr * c2 / c1
        p -= s

    def _decay(self, p: Any, g: Any, xp: Any) -> Any:
        return g + self.weight_decay * p


class AdamW(Adam):
    """Adam with weight decay decoupled from the gradient: first p = p - lr weight_decay p, then Adam's step
    (Loshchilov & Hutter, 2019, algorithm 2)."""

    coupled = False

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(parameters, lr, betas, eps, weight_decay)

    def _decay(self, p: Any, g: Any, xp: Any) -> Any:
        p *= 1 - self.lr * self.weight_decay
        return g


class EMA:
    """An exponential moving average of weights: average = d average + (1 - d) weight after each training step.

    The decay d of the update after k earlier ones is min(decay, (1 + k) / (10 + k)), so that the first weights are soon
    forgotten. Samples are drawn with the average, see `applied`; training goes on with the weights themselves. The average of
    weights of half precision is float32: half cannot hold so small changes.
    """

    def __init__(self, parameters: Iterable[Tensor], decay: float = 0.9999) -> None:
        self.parameters = _parameters("EMA", parameters)
        self.decay = _number("EMA", "decay", decay, below=1)
        self.updates = 0
        self.averages = [p.data.astype(_wide(p.dtype), order="C") for p in self.parameters]
        self._swapped = False

    @property
    def current_decay(self) -> float:
        """The decay of the next update."""
        return min(self.decay, (1 + self.updates) / (10 + self.updates))

    def averages_of(self, weights: list[Tensor]) -> list[Any]:
        """The averages, one for each of the weights in their order; ValueError if they are of other weights."""
        self._refuse_applied()
        if len(weights) != len(self.parameters) or any(
            a is not b for a, b in zip(weights, self.parameters, strict=True)
        ):
            raise ValueError("the moving average is of other weights than the optimiser's")
        return self.averages

    def _refuse_applied(self) -> None:
        if self._swapped:
            raise RuntimeError("EMA.update inside EMA.applied, where the weights are the averages themselves")

    def update(self) -> None:
        """Takes the weights as they are now into the average."""
        self._refuse_applied()
        rest = 1 - self.current_decay

        def take(block: tuple[Any, Any]) -> None:
            data, average = block
            change = array_module(data).subtract(data, average, out=_scratch(average))
            change *= rest
            average += change

        pairs = zip(self.parameters, self.averages, strict=True)
        share_tasks(take, [block for p, average in pairs for block in _blocks(p.data, average)])
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """A block in which the weights are the averages; afterwards, also after an error, they are themselves again."""
        if self._swapped:
            raise RuntimeError("EMA.applied inside EMA.applied")
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for i, p in enumerate(self.parameters):
            p.data, self.averages[i] = self.averages[i], p.data
        self._swapped = not self._swapped

    def state_dict(self) -> dict[str, np.ndarray]:
        """A copy of the averages ("average.i" of weight i) and "updates" as NumPy arrays."""
        averages = [p.data for p in self.parameters] if self._swapped else self.averages
        state = {f"average.{i}": np.array(to_numpy(a), order="C") for i, a in enumerate(averages)}
        return {"updates": np.array(self.updates, np.int64), **state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state. InputError, before anything is changed, where it does not fit the weights."""
        names = {"updates", *(f"average.{i}" for i in range(len(self.parameters)))}
        if different := sorted(names ^ set(state)):
            raise InputError(f"the saved averages do not fit this EMA: {different[0]} is missing or not part of it")
        for i, p in enumerate(self.parameters):
            if np.shape(state[f"average.{i}"]) != p.shape:
                raise InputError(f"average.{i} has shape {np.shape(state[f'average.{i}'])}, weight {i} {p.shape}")
        self.updates = int(state["updates"])
        self.averages = [
            array_module(p.data).array(state[f"average.{i}"], _wide(p.dtype)) for i, p in enumerate(self.parameters)
        ]


def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Scales all gradients together, in place, so that their joint Euclidean norm is at most max_norm (inf: never).

    Returns the norm before, accumulated in float64 (on the GPU in float32, block by block). A norm that is not finite is
    returned too, with the gradients left as they are: there is no length that would make them right. Tensors without a
    gradient count as 0.
    """
    max_norm = float(max_norm)
    if not max_norm > 0:
        raise ValueError(f"clip_grad_norm: max_norm must be greater than 0, not {max_norm}")
    parameters = list(parameters)
    if (norm_on_gpu := arena.clip_grad_norm(parameters, max_norm)) is not None:
        return norm_on_gpu
    blocks = [block for p in parameters if p.grad is not None for (block,) in _blocks(p.grad)]
    norm = math.sqrt(_sum_of_squares(blocks))
    if max_norm < norm < math.inf:
        share_tasks(lambda block: block.__imul__(max_norm / norm), blocks)
    return norm


def _sum_of_squares(blocks: list[Any]) -> float:
    def square(block: Any) -> Any:
        wide = _scratch(block, np.float64)
        wide[...] = block
        return sum_of_squares(wide.reshape(-1))

    return float(sum(share_tasks(square, blocks)))  # the only time that a GPU is waited for


def warmup(lr: float, step: int, warmup_steps: int) -> float:
    """The learning rate of training step 1, 2, ...: rises linearly to lr at step `warmup_steps` and stays there."""
    _number("warmup", "lr", lr)
    if step < 0 or warmup_steps < 0:
        raise ValueError(f"warmup: step {step} and warmup_steps {warmup_steps} must be at least 0")
    return lr * min(1.0, step / warmup_steps) if warmup_steps else lr


def _blocks(*arrays: Any) -> Iterator[tuple[Any, ...]]:
    """Views of the arrays, which are of one shape, block by block.

    On the GPU, and where an array is not contiguous, there is one block: everything.
    """
    if array_module(arrays[0]) is not np or not all(a.flags.c_contiguous for a in arrays):
        yield arrays
        return
    flat = [a.reshape(-1) for a in arrays]
    for start in range(0, flat[0].size, _BLOCK):
        yield tuple(a[start : start + _BLOCK] for a in flat)


def _wide(dtype: Any) -> Any:
    """float32 for half precision, else the dtype itself: that of the state and the average of weights."""
    return np.result_type(dtype, np.float32)


def _scratch(block: Any, dtype: Any = None) -> Any:
    """An array of a block's shape with arbitrary content, the calling thread's."""
    return workspace("optimizer", block.shape, dtype or block.dtype, array_module(block))


def _parameters(name: str, parameters: Iterable[Tensor]) -> list[Tensor]:
    if isinstance(parameters, Tensor):
        raise TypeError(f"{name} takes a list of tensors, such as module.parameters(), not one tensor")
    found = list(parameters)
    if not found:
        raise ValueError(f"{name} got no parameters")
    for i, p in enumerate(found):
        if not isinstance(p, Tensor) or not p.requires_grad or p._node is not None:
            raise TypeError(f"{name} takes tensors made with requires_grad=True; number {i} is not one")
    if len({id(p) for p in found}) != len(found):
        raise ValueError(f"{name} got a parameter twice")
    return found


def _number(name: str, what: str, value: Any, below: float = math.inf) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < below:
        limit = "finite" if below == math.inf else f"below {below}"
        raise ValueError(f"{name}: {what} must be a number of at least 0 and {limit}, not {value!r}")
    return number
