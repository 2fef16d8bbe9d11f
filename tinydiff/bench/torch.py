"""The same operations in PyTorch, if it is installed. The rest of the package does not need it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tinydiff.bench.cases import GLYPHS, GROUPS, Case
from tinydiff.bench.timing import Work


def load(device: str, threads: int) -> Any:
    """The torch module, limited to a number of threads; None if it is not installed or has no such device."""
    try:
        import torch
    except ImportError:
        return None
    if device == "cuda" and not torch.cuda.is_available():
        return None
    torch.set_num_threads(threads)
    return torch


def competitors(torch: Any, case: Case, device: str) -> dict[str, Work]:
    """The case in PyTorch, one for each memory layout; empty where a package it needs is not installed."""
    layouts = {"channels first": torch.contiguous_format}
    if case.kind not in ("attention", "linear", "adam"):
        layouts["channels last"] = torch.channels_last
    if case.kind == "step" and diffusers_unet(GLYPHS) is None:
        return {}
    return {name: MAKERS[case.kind](torch, device, layout, **case.sizes) for name, layout in layouts.items()}


def diffusers_unet(settings: dict[str, Any]) -> Any:
    """diffusers' UNet2DModel with the settings of a `tinydiff.UNet`; None if diffusers is not installed."""
    try:
        from diffusers import UNet2DModel
    except ImportError:
        return None
    size, channels = settings["image_size"], settings["channels"]
    attended = [size >> i in settings["attention_resolutions"] for i in range(len(settings["channel_mults"]))]
    return UNet2DModel(
        sample_size=size,
        in_channels=settings["in_channels"],
        out_channels=settings["in_channels"],
        layers_per_block=settings["blocks_per_level"],
        block_out_channels=tuple(channels * m for m in settings["channel_mults"]),
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attended),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attended)),
        norm_eps=1e-6,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        attention_head_dim=None,
        norm_num_groups=GROUPS,
    )


def _pair(torch: Any, function: Callable[..., Any], xs: list[Any], parameters: list[Any]) -> Work:
    L_Y: list[Any] = []

    def backward(y: Any) -> None:
        if not L_Y:
            L_Y.append(torch.randn_like(y))
        for leaf in (*xs, *parameters):
            leaf.grad = None
        y.backward(L_Y[0])

    return Work(lambda: function(*xs), backward)


def _module(torch: Any, device: str, layout: Any, module: Any, shape: tuple[int, ...]) -> Work:
    module = module.to(device=device, memory_format=layout)
    x = torch.randn(shape, device=device).contiguous(memory_format=layout).requires_grad_()
    return _pair(torch, module, [x], list(module.parameters()))


def _conv(torch: Any, device: str, layout: Any, n: int, size: int, c: int, k: int, kernel: int) -> Work:
    return _module(torch, device, layout, torch.nn.Conv2d(c, k, kernel, padding=kernel // 2), (n, c, size, size))


def _downsample(torch: Any, device: str, layout: Any, n: int, size: int, c: int) -> Work:
    module = torch.nn.Sequential(torch.nn.ZeroPad2d((0, 1, 0, 1)), torch.nn.Conv2d(c, c, 3, stride=2))
    return _module(torch, device, layout, module, (n, c, size, size))


def _upsample(torch: Any, device: str, layout: Any, n: int, size: int, c: int) -> Work:
    module = torch.nn.Sequential(torch.nn.Upsample(scale_factor=2), torch.nn.Conv2d(c, c, 3, padding=1))
    return _module(torch, device, layout, module, (n, c, size, size))


def _norm(torch: Any, device: str, layout: Any, n: int, size: int, c: int, silu: bool = False) -> Work:
    norm = torch.nn.GroupNorm(GROUPS, c, 1e-6)
    module = torch.nn.Sequential(norm, torch.nn.SiLU()) if silu else norm
    return _module(torch, device, layout, module, (n, c, size, size))


def _attention(torch: Any, device: str, layout: Any, n: int, length: int, d: int) -> Work:
    xs = [torch.randn(n, 1, length, d, device=device).requires_grad_() for _ in range(3)]
    return _pair(torch, torch.nn.functional.scaled_dot_product_attention, xs, [])


def _linear(torch: Any, device: str, layout: Any, rows: int, d: int, m: int) -> Work:
    module = torch.nn.Linear(d, m).to(device)
    x = torch.randn(rows, d, device=device).requires_grad_()
    return _pair(torch, module, [x], list(module.parameters()))


def _adam(torch: Any, device: str, layout: Any, count: int) -> Work:
    parts = [torch.randn(count // 8, device=device).requires_grad_() for _ in range(8)]
    for p in parts:
        p.grad = torch.randn_like(p)
    return Work(torch.optim.Adam(parts, 1e-3).step)


def _resblock(torch: Any, device: str, layout: Any, n: int, size: int, c: int) -> Work:
    nn, silu = torch.nn, torch.nn.functional.silu
    parts = nn.ModuleDict({
        "norm1": nn.GroupNorm(GROUPS, c, 1e-6), "conv1": nn.Conv2d(c, c, 3, padding=1),
        "norm2": nn.GroupNorm(GROUPS, c, 1e-6), "conv2": nn.Conv2d(c, c, 3, padding=1),
        "time": nn.Linear(4 * c, c),
    }).to(device=device, memory_format=layout)  # fmt: skip
    time = torch.randn(n, 4 * c, device=device)

    def forward(x: Any) -> Any:
        h = parts["conv1"](silu(parts["norm1"](x))) + parts["time"](time)[:, :, None, None]
        return x + parts["conv2"](silu(parts["norm2"](h)))

    x = torch.randn(n, c, size, size, device=device).contiguous(memory_format=layout).requires_grad_()
    return _pair(torch, forward, [x], list(parts.parameters()))


def _step(torch: Any, device: str, layout: Any, n: int) -> Work:
    network = diffusers_unet(GLYPHS).to(device=device, memory_format=layout)
    optimizer = torch.optim.Adam(network.parameters(), 1e-4)
    x0 = torch.randn(n, 1, 28, 28, device=device).contiguous(memory_format=layout)
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, device=device), 0)

    def step() -> None:
        optimizer.zero_grad()
        t, eps = torch.randint(0, 1000, (n,), device=device), torch.randn_like(x0)
        a = alpha_bar[t][:, None, None, None]
        ((network(a.sqrt() * x0 + (1 - a).sqrt() * eps, t).sample - eps) ** 2).mean().backward()
        optimizer.step()

    return Work(step)


MAKERS: dict[str, Callable[..., Work]] = {
    "conv": _conv,
    "downsample": _downsample,
    "upsample": _upsample,
    "norm": _norm,
    "norm_silu": partial(_norm, silu=True),
    "attention": _attention,
    "linear": _linear,
    "adam": _adam,
    "resblock": _resblock,
    "step": _step,
}
