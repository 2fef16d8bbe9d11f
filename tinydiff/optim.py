"""Optimisers, the moving average of the weights, clipping, and the learning rate over time.

The formulas are in `tinydiff.ops.optim`. Optimisers hold the arrays and note each change in the tensor's version: backward
through a graph recorded before raises an error instead of giving wrong gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from tinydiff import replay
from tinydiff.autograd import halves, places
from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import array_module, device_of, to_numpy, widened_dtype
from tinydiff.errors import InputError
from tinydiff.ops.arguments import as_parameters, as_positive
from tinydiff.ops.optim import (
    Arrays,
    adam,
    clip,
    clipped_adam,
    gathered,
    move_averages,
    move_loss_scale,
    overflowed,
    sgd,
    unscaled,
)


class Optimizer:
    """What optimisers share: the weights, the learning rate, and the state that they save.

    parameters: such as `module.parameters()`. Skipped while `.grad` is None or `requires_grad` False: a frozen weight.
    lr: the learning rate, which may be set at any time. weight_decay: see the subclasses. ValueError for negative ones.
    `state_dict()` holds everything that `step` depends on: an optimiser that loads it continues bit for bit.
    """

    slots: tuple[str, ...] = ()  # names of the arrays kept for each weight

    def __init__(self, parameters: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        self.parameters = as_parameters(type(self).__name__, parameters)
        self.lr = as_positive(type(self).__name__, "lr", lr)
        self.weight_decay = as_positive(type(self).__name__, "weight_decay", weight_decay)
        self.steps = [0] * len(self.parameters)  # updates of each weight
        self.state: list[Arrays] = [[] for _ in self.parameters]  # the arrays of `slots`, from the first update on

    def step(self, ema: EMA | None = None) -> None:
        """One update of all weights that have a gradient; then, if an `ema` is given, one of the average."""
        for step, indices in self._updates().items():
            self._begin(indices)
            rows = [(self.parameters[i].data, self.parameters[i].grad, *self.state[i]) for i in indices]
            self._update(step, *map(list, zip(*rows, strict=True)))
        halves.renew(self.parameters)
        if ema is not None:
            ema.update()

    def _updates(self) -> dict[int, list[int]]:
        """Weights that have a gradient, by the number of their next update. ValueError where it or a state does not fit."""
        found: dict[int, list[int]] = {}
        name = type(self).__name__
        for i, p in enumerate(self.parameters):
            if p.grad is None or not p.requires_grad:
                continue
            if p.grad.shape != p.data.shape:
                raise ValueError(f"{name}: weight {i} has shape {p.shape}, its gradient {p.grad.shape}")
            if len(set(map(device_of, (p.data, p.grad, *self.state[i])))) > 1:
                raise ValueError(f"{name}: weight {i}, its gradient and its state are on different devices")
            found.setdefault(self.steps[i] + 1, []).append(i)
        return found

    def _begin(self, indices: Iterable[int]) -> None:
        """Counts an update of these weights; gives those that have no state yet one of zeros."""
        replay.counts(self, "steps")
        for i in indices:
            p = self.parameters[i]
            replay.counts(p._version, "count")
            if not self.state[i]:
                self.state[i] = [array_module(p.data).zeros_like(p.data, widened_dtype(p.dtype)) for _ in self.slots]
            self.steps[i] += 1
            p._version.count += 1

    def _update(self, *args: Any, **options: Any) -> None:
        """Takes the number of the update, then lists of the weights, the gradients and the arrays of each slot."""
        raise NotImplementedError(f"{type(self).__name__} does not define _update")

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients of all weights. set_to_none: as for `Tensor.zero_grad`."""
        for p in self.parameters:
            p.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, np.ndarray]:
        """A copy of the state as NumPy arrays: "lr", "steps" (one count for each weight) and "slot.i" for weight i."""
        state = {"lr": np.array(self.lr, np.float64), "steps": np.array(self.steps, np.int64)}
        arrays = [(i, *pair) for i, found in enumerate(self.state) for pair in zip(self.slots, found, strict=False)]
        return state | {f"{slot}.{i}": np.array(to_numpy(array), order="C") for i, slot, array in arrays}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a saved state. InputError, before anything is changed, where it does not fit the weights."""
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
            saved = [state[f"{slot}.{i}"] for slot in self.slots] if steps[i] else []
            self.state[i] = [array_module(p.data).array(a, widened_dtype(p.dtype)) for a in saved]


class SGD(Optimizer):
    """Gradient descent: v = momentum v + g, p = p - lr v, with g the gradient plus weight_decay p.

    parameters, lr: as for `Optimizer`. momentum: in [0, 1). weight_decay: at least 0.
    """

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.0, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, lr, weight_decay)
        self.momentum = as_positive("SGD", "momentum", momentum, below=1)
        self.slots = ("velocity",) if momentum else ()

    def _update(self, step: int, weights: Arrays, gradients: Arrays, velocities: Arrays | None = None) -> None:
        sgd(weights, gradients, velocities, self.lr, self.momentum, self.weight_decay)


class Adam(Optimizer):
    """Adam (Kingma & Ba, 2015, algorithm 1):

        m = beta1 m + (1 - beta1) g,    v = beta2 v + (1 - beta2) g^2
        p = p - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    with g the gradient, plus weight_decay p; t counts the updates of the weight.
    parameters, lr: as for `Optimizer`. betas: (beta1, beta2), both in [0, 1). eps, weight_decay: at least 0.
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
        self.betas = as_positive(name, "beta1", betas[0], below=1), as_positive(name, "beta2", betas[1], below=1)
        self.eps = as_positive(name, "eps", eps)

    def step(self, ema: EMA | None = None) -> None:
        """One update of all weights that have a gradient; then, if an `ema` is given, one of the average. On the GPU it
        is one kernel for all of that, and the weights become views of one piece of memory."""
        self._take(ema)

    def clipped_step(
        self, losses: Arrays, max_norm: float, ema: EMA | None = None, prepared: Any = None, loss_scale: Any = None
    ) -> Any:
        """`clip_grad_norm`, then `step(ema)`, unless the norm or one of the losses, arrays (), is not finite. Returns the
        losses as numbers and the norm before. max_norm: its limit. The GPU is waited for once, at the end; not where one
        kernel updates all weights by what is `prepared` (`tinydiff.cuda.updates`): then the result is None.

        loss_scale: None, or the state of the scale that the losses were multiplied with before backward, see
        `ops.optim.move_loss_scale`: gradients are divided by it, and it is moved. An update that is left out because of it counts
        in `steps`, as the step that it belongs to does. The numbers end with the scale."""
        return self._take(ema, losses, max_norm, prepared, loss_scale)

    def _take(
        self,
        ema: EMA | None,
        losses: Arrays | None = None,
        max_norm: float = 0,
        prepared: Any = None,
        loss_scale: Any = None,
    ) -> Any:
        weights = self.parameters
        at_once = [len(indices) for indices in self._updates().values()] == [len(weights)]
        at_once &= ema is None or type(ema).update is EMA.update
        averages = ema.averages_of(weights) if at_once and ema is not None else []
        arrays = [a for p in weights for a in (p.data, p.grad)] + [a for slots in self.state for a in slots] + averages
        if not at_once or len({a.dtype for a in arrays}) > 1 or len(set(map(device_of, arrays))) > 1:
            return self._take_each(ema, losses, max_norm, loss_scale)
        self._begin(range(len(weights)))
        pieces, parts = gathered([p.data for p in weights])
        for p, part in zip(weights, parts, strict=True):
            p.data = part
        gradients, parts = gathered([p.grad for p in weights])
        places.keep_all(weights, parts)
        (m, firsts), (v, seconds) = (gathered(list(slot)) for slot in zip(*self.state, strict=True))
        self.state = [list(pair) for pair in zip(firsts, seconds, strict=True)]
        moving, decay = None, lambda: 0.0
        if ema is not None:
            (moving, ema.averages), decay = gathered(averages), lambda: ema.current_decay
            replay.counts(ema, "updates")
        options = replay.live(lambda: self._options(self.steps[0], decay()), self, ema)
        replay.relies_on(
            lambda: [*(p.data for p in weights), *sum(self.state, ema.averages if ema else []), *self._options(0)[2:]]
        )
        short = halves.gathered_halves(weights, gathered)
        found = pieces, gradients, m, v, moving, *options, short
        if losses is None:
            result: Any = adam(*found)
        else:
            result = clipped_adam(gradients, losses, max_norm, found, prepared, loss_scale)
        if short is not None:
            halves.renewed(weights)
        if ema is not None:
            ema.updates += 1
        scaled = loss_scale is not None
        if result is not None and (recording := replay.current()) is not None:
            *result, read = result
            recording.afterwards(lambda: self._count_back_unless_finite(read(), ema, scaled))
            return tuple(result)
        if result is not None:
            self._count_back_unless_finite(result, ema, scaled)
        return result

    def _take_each(self, ema: EMA | None, losses: Arrays | None, max_norm: float, loss_scale: Any) -> Any:
        """The same where no one pass can update all weights."""
        gradients = [p.grad for p in self.parameters if p.grad is not None and p.requires_grad]
        numbers = [float(loss) for loss in (*(losses or ()), *unscaled(gradients, loss_scale))]
        norm = 0.0 if losses is None else clip_grad_norm(self.parameters, max_norm)
        finite = bool(np.isfinite([*numbers, norm]).all())
        if finite:
            super().step(ema)
        elif loss_scale is not None and overflowed(numbers, norm):
            self._begin([i for indices in self._updates().values() for i in indices])
            if ema is not None:
                ema.updates += 1
        move_loss_scale(loss_scale, finite)
        return numbers, norm

    def _count_back_unless_finite(self, result: Any, ema: EMA | None, scaled: bool) -> None:
        """result: losses and norm as numbers; after a failure, the update did not happen. scaled: the losses end with the scale."""
        if np.isfinite([*result[0], result[1]]).all() or (scaled and overflowed(*result)):
            return
        self.steps = [step - 1 for step in self.steps]
        if ema is not None:
            ema.updates -= 1

    def _update(self, step: int, weights: Arrays, gradients: Arrays, m: Arrays, v: Arrays) -> None:
        adam(weights, gradients, m, v, None, *self._options(step))

    def _options(self, step: int, average_decay: float = 0.0) -> tuple[Any, ...]:
        return step, self.lr, self.betas, self.eps, self.weight_decay, not self.coupled, average_decay


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019, algorithm 2): first p = p - lr weight_decay p. The
    arguments parameters, lr, betas, eps and weight_decay are as for `Adam`."""

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


class EMA:
    """An exponential moving average of weights: average = d average + (1 - d) weight after each training step.

    parameters: as for `Optimizer`. decay: in [0, 1). The decay d of the update after k earlier ones is
    min(decay, (1 + k) / (10 + k)), so the first weights are soon forgotten. start: so many updates come first that only
    copy the weights, d = 0, and are not among the k. Samples are drawn with the average, see `applied`. Weights of half
    precision have an average of float32. Frozen weights are averaged, too. ValueError for other numbers.
    """

    def __init__(self, parameters: Iterable[Tensor], decay: float = 0.9999, start: int = 0) -> None:
        self.parameters = as_parameters("EMA", parameters)
        self.decay = as_positive("EMA", "decay", decay, below=1)
        self.start = int(as_positive("EMA", "start", start))
        self.updates = 0
        self.averages = [p.data.astype(widened_dtype(p.dtype), order="C") for p in self.parameters]
        self._swapped = False

    @property
    def current_decay(self) -> float:
        """The decay of the next update."""
        k = self.updates - self.start
        return min(self.decay, (1 + k) / (10 + k)) if k >= 0 else 0.0

    def averages_of(self, weights: list[Tensor]) -> Arrays:
        """The averages, one for each of the weights in their order. ValueError if they belong to other weights."""
        self._refuse_applied()
        if [id(p) for p in weights] != [id(p) for p in self.parameters]:
            raise ValueError("the moving average is of other weights than the optimiser's")
        return self.averages

    def _refuse_applied(self) -> None:
        if self._swapped:
            raise RuntimeError("EMA.update inside EMA.applied, where the weights are the averages themselves")

    def update(self) -> None:
        """Moves the average towards the present weights. RuntimeError inside `applied`."""
        self._refuse_applied()
        move_averages(self.averages, [p.data for p in self.parameters], self.current_decay)
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """A block in which the weights are the averages. Afterwards, also after an error, they are themselves again."""
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
        """Continues from a saved state. InputError, before anything is changed, where it does not fit the weights."""
        names = {"updates", *(f"average.{i}" for i in range(len(self.parameters)))}
        if different := sorted(names ^ set(state)):
            raise InputError(f"the saved averages do not fit this EMA: {different[0]} is missing or not part of it")
        for i, p in enumerate(self.parameters):
            if np.shape(state[f"average.{i}"]) != p.shape:
                raise InputError(f"average.{i} has shape {np.shape(state[f'average.{i}'])}, weight {i} {p.shape}")
        self.updates = int(state["updates"])
        kinds = [(array_module(p.data), widened_dtype(p.dtype)) for p in self.parameters]
        self.averages = [xp.array(state[f"average.{i}"], dtype) for i, (xp, dtype) in enumerate(kinds)]


def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Scales the gradients of all parameters together, in place, to a joint Euclidean norm of at most max_norm.

    parameters: tensors; frozen and without a gradient they count as 0. max_norm: greater than 0 (ValueError); inf never scales.
    Returns the norm before, added up in float64 (on the GPU float32 in blocks). If it is not finite, nothing is scaled.
    """
    max_norm = float(max_norm)
    if not max_norm > 0:
        raise ValueError(f"clip_grad_norm: max_norm must be greater than 0, not {max_norm}")
    parameters = [p for p in parameters if p.grad is not None and p.requires_grad]
    pieces, parts = gathered([p.grad for p in parameters])
    places.keep_all(parameters, parts)
    return clip(pieces, max_norm)


def warmup(lr: float, step: int, warmup_steps: int) -> float:
    """The learning rate of training step 1, 2, ...: it rises linearly to lr at step `warmup_steps` and stays there."""
    as_positive("warmup", "lr", lr)
    if step < 0 or warmup_steps < 0:
        raise ValueError(f"warmup: step {step} and warmup_steps {warmup_steps} must be at least 0")
    return lr * min(1.0, step / warmup_steps) if warmup_steps else lr


def cosine(lr: float, step: int, steps: int, warmup_steps: int = 0) -> float:
    """The learning rate of training step 1, 2, ...: after `warmup_steps` it falls to 0 at step `steps` along half a cosine, and
    stays as it is then (Loshchilov & Hutter, 2017, eq. 5, without restarts):

        lr (1 + cos(pi (step - warmup_steps) / (steps - warmup_steps))) / 2

    ValueError for negative numbers and for steps below 1.
    """
    if steps < 1:
        raise ValueError(f"cosine: steps must be at least 1, not {steps}")
    if min(step, warmup_steps) < 0:
        raise ValueError(f"cosine: steps must not be negative, not step {step} and {warmup_steps} of warm-up")
    step = min(step, steps)
    if step <= warmup_steps:
        return warmup(lr, step, warmup_steps)
    return warmup(lr, step, 0) * (1 + math.cos(math.pi * (step - warmup_steps) / (steps - warmup_steps))) / 2
