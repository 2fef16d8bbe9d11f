"""The operations to measure, those of a U-Net for small pictures, with the work of each.

FLOPs are those of the plain definition, where a product and a sum count as two. A fast algorithm may need fewer, and
then exceed the ceiling. Bytes count each input and output once, in float32. A backward pass reads the forward's inputs
and its output's gradient and writes the gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tinydiff import nn, ops, optim, unet
from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import to_device
from tinydiff.bench.timing import Work
from tinydiff.diffusion import Diffusion, Schedule
from tinydiff.ops.normalization import group_norm_silu
from tinydiff.random import Generator
from tinydiff.unet.variant import Variant

GLYPHS: dict[str, Any] = {
    "image_size": 28, "in_channels": 1, "channels": 32, "channel_mults": (1, 2, 2), "blocks_per_level": 1,
    "attention_resolutions": (14,),
}  # fmt: skip
GROUPS = 32


@dataclass(frozen=True)
class Case:
    """An operation: `kind` and `sizes` say which. `flops` and `bytes` are those of its forward pass; each backward pass
    has `back` times the FLOPs and twice the bytes."""

    name: str
    kind: str
    sizes: dict[str, int]
    flops: float
    bytes: float
    back: float = 2.0

    def work(self, device: str) -> Work:
        """The operation, ready to run on a device."""
        return MAKERS[self.kind](device, **self.sizes)


def all_cases(quick: bool = False) -> list[Case]:
    """The operations, in the order of the table; `quick` leaves out the large ones."""
    found = [_conv("conv 3x3, first layer", 32, 28, 1, 32), _conv("conv 3x3", 32, 28, 32, 32)]
    found += [_conv("conv 3x3", 32, 14, 64, 64), _conv("conv 3x3", 32, 7, 64, 64)]
    if not quick:
        found += [_conv("conv 3x3", 8, 32, 128, 128), _conv("conv 3x3", 8, 16, 256, 256)]
        found += [_conv("conv 3x3", 8, 8, 256, 256), _conv("conv 3x3", 8, 4, 256, 256)]
    found += [_conv("conv 3x3, last layer", 32, 28, 32, 1), _conv("conv 1x1", 32, 14, 128, 64, kernel=1)]
    found.append(_resampling("conv 3x3, stride 2", "downsample", 32, 28, 14, 64))
    found.append(_resampling("upsample, conv 3x3", "upsample", 32, 14, 28, 64))
    for name, kind, flops in (("group norm", "norm", 8), ("group norm + SiLU", "norm_silu", 13)):
        entries = 32 * 28 * 28 * 64
        found.append(Case(f"{name} 64 at 28", kind, {"n": 32, "size": 28, "c": 64}, flops * entries, 8 * entries))
    n, length, d = 32, 196, 64
    found.append(Case(f"attention {length} x {d}", "attention", {"n": n, "length": length, "d": d},
                      4 * n * length**2 * d, 16 * n * length * d, 2.5))  # fmt: skip
    rows, d, m = 6272, 64, 64
    found.append(Case(f"linear {d} -> {m}", "linear", {"rows": rows, "d": d, "m": m}, 2 * rows * d * m,
                      4 * (rows * (d + m) + d * m)))  # fmt: skip
    count = 1 << (20 if quick else 22)
    found.append(Case(f"Adam, {count / 1e6:.1f} M weights", "adam", {"count": count}, 12 * count, 28 * count, 0))
    n, size, c = 32, 14, 64
    flops, entries = 2 * 2 * 9 * n * size**2 * c * c, n * size**2 * c
    found.append(Case(f"ResBlock {c} at {size}", "resblock", {"n": n, "size": size, "c": c}, flops, 10 * 4 * entries))
    if not quick:
        found.append(Case("training step, glyph U-Net", "step", {"n": 32}, _flops_of_step(32), 0, 0))
    return found


def _conv(name: str, n: int, size: int, c: int, k: int, kernel: int = 3) -> Case:
    sizes = {"n": n, "size": size, "c": c, "k": k, "kernel": kernel}
    pixels, weights = n * size**2, kernel**2 * c * k
    return Case(f"{name} {c} -> {k} at {size}", "conv", sizes, 2 * pixels * weights, 4 * (pixels * (c + k) + weights))


def _resampling(name: str, kind: str, n: int, before: int, after: int, c: int) -> Case:
    flops, entries = 2 * n * after**2 * 9 * c * c, n * c * (before**2 + after**2) + 9 * c * c
    return Case(f"{name} {c} at {before}", kind, {"n": n, "size": before, "c": c}, flops, 4 * entries)


def _flops_of_step(n: int) -> float:
    """Of the convolutions, products and attention in a step: three times those of the forward pass."""
    counted = [0.0]

    def count(op: Any, phase: str, arrays: Any, options: Any) -> Any:
        result = getattr(op, phase)(*arrays, **options)
        weights = [
            a for a in arrays if getattr(a, "ndim", 0) == 4 and a.shape[0] == a.shape[1] and a.shape[0] in (1, 3)
        ]
        first = result[0] if isinstance(result, tuple) else result
        if weights:
            counted[0] += 2.0 * first.size * weights[0].size / weights[0].shape[3]
        elif type(op).__name__ in ("Linear", "Linears"):
            products = result if isinstance(result, tuple) else (result,)
            counted[0] += 2.0 * sum(y.size for y in products) * arrays[0].shape[-1]
        elif type(op).__name__ == "Attention":
            counted[0] += 4.0 * first.size * arrays[0].shape[-2]
        return result

    from tinydiff.autograd import tape

    with tape.observing(count), tape.no_grad():
        unet.UNet(**GLYPHS)(_normal((1, 28, 28, 1), "cpu"), 1)
    return 3 * n * counted[0]


def _normal(shape: tuple[int, ...], device: str, scale: float = 1.0) -> Any:
    return to_device(Generator(0, 1).normal(shape) * scale, device).astype("float32")


def _module(module: Any, shape: tuple[int, ...], device: str, *others: Any) -> Work:
    """Forward and backward of a module on an input that needs a gradient, as inside a network."""
    module.to(device)
    return _function(lambda x: module(x, *others), shape, device, list(module.parameters()))


def _function(function: Any, shape: tuple[int, ...], device: str, leaves: Sequence[Tensor], count: int = 1) -> Work:
    xs = [Tensor(_normal(shape, device), requires_grad=True) for _ in range(count)]
    L_Y: list[Any] = []

    def backward(y: Tensor) -> None:
        if not L_Y:
            L_Y.append(_normal(y.shape, device))
        for leaf in (*xs, *leaves):
            leaf.grad = None
        y.backward(L_Y[0])

    return Work(lambda: function(*xs), backward)


def _make_conv(device: str, n: int, size: int, c: int, k: int, kernel: int) -> Work:
    return _module(nn.Conv2d(c, k, kernel, padding=kernel // 2), (n, size, size, c), device)


def _make_norm(device: str, n: int, size: int, c: int, function: Callable[..., Tensor] = ops.group_norm) -> Work:
    norm = nn.GroupNorm(GROUPS, c, 1e-6)
    norm.to(device)
    leaves = [norm.weight, norm.bias]
    return _function(lambda x: function(x, GROUPS, *leaves, 1e-6), (n, size, size, c), device, leaves)


def _make_norm_silu(device: str, n: int, size: int, c: int) -> Work:
    return _make_norm(device, n, size, c, group_norm_silu)


def _make_adam(device: str, count: int) -> Work:
    parts = [Tensor(_normal((count // 8,), device), requires_grad=True) for _ in range(8)]
    for p in parts:
        p.grad = _normal(p.shape, device)
    optimizer = optim.Adam(parts, 1e-3)
    return Work(optimizer.step)


def make_resblock(c: int) -> unet.ResBlock:
    return unet.ResBlock(c, c, features=4 * c, groups=GROUPS, dropout=0.0, variant=Variant.read({}), generator=None)


def _make_step(device: str, n: int) -> Work:
    network = unet.UNet(**GLYPHS).to(device)
    optimizer = optim.Adam(list(network.parameters()), 1e-4)
    diffusion, x0 = Diffusion(Schedule.linear()), _normal((n, 28, 28, 1), device)
    network.train(Generator(0))

    def step() -> None:
        optimizer.zero_grad()
        diffusion.loss(network, x0, Generator(0, 1)).backward()
        optimizer.step()

    return Work(step)


MAKERS: dict[str, Callable[..., Work]] = {
    "conv": _make_conv,
    "downsample": lambda device, n, size, c: _module(unet.Downsample(c, 0, None), (n, size, size, c), device, None),
    "upsample": lambda device, n, size, c: _module(unet.Upsample(c, None), (n, size, size, c), device, None),
    "norm": _make_norm,
    "norm_silu": _make_norm_silu,
    "attention": lambda device, n, length, d: _function(ops.attention, (n, length, d), device, [], count=3),
    "linear": lambda device, rows, d, m: _module(nn.Linear(d, m), (rows, d), device),
    "adam": _make_adam,
    "resblock": lambda device, n, size, c: _module(
        make_resblock(c), (n, size, size, c), device, Tensor(_normal((n, 4 * c), device))
    ),
    "step": _make_step,
}
