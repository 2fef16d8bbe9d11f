"""tinydiff's network and PyTorch's with the same weights and batches, and contests between them."""

import contextlib
import sys
import time

import numpy as np

import tinydiff as td
from tinydiff import ops, optim
from tinydiff.bench.timing import Work, race
from tinydiff.bench.torch import diffusers_unet

LAYOUTS = "channels first", "channels last"
TIMES_TOO_SLOW = (
    3  # bf16 has its first turn only where that takes so many times as long as float32's: there it is emulated
)


def progress(text):
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def tinydiff_network(settings):
    """A network whose every weight is drawn at random, so that none of the work is on zeros."""
    unet, rng = td.UNet(**settings), np.random.default_rng(0)
    for p in unet.parameters():
        p.data += (0.02 * rng.standard_normal(p.shape)).astype(np.float32)
    return unet


def torch_network(unet, settings):
    """diffusers' network with the same weights, from the file format that both share."""
    import torch

    network = diffusers_unet(settings)
    state = unet.torch_state_dict()
    network.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in state.items()})
    return network


def batch_of(settings, n):
    rng = np.random.default_rng(1)
    shape = (n, settings["image_size"], settings["image_size"], settings["in_channels"])
    x, eps = rng.standard_normal(shape, np.float32), rng.standard_normal(shape, np.float32)
    return x, eps, rng.integers(1, 1001, n)


def tinydiff_step(unet, settings, n):
    x, eps, t = batch_of(settings, n)
    optimizer = optim.Adam(list(unet.parameters()), 1e-4)
    unet.train()

    def step():
        optimizer.zero_grad()
        loss = ops.mse_loss(unet(x, t), eps)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def tinydiff_forward(unet, settings, n):
    x, _, t = batch_of(settings, n)

    def forward():
        with td.no_grad():
            return unet(x, t).data

    return forward


def torch_batch(settings, n, layout):
    import torch

    x, eps, t = batch_of(settings, n)
    x, eps = (torch.from_numpy(a).permute(0, 3, 1, 2).contiguous(memory_format=layout) for a in (x, eps))
    return x, eps, torch.from_numpy(t - 1)


def _autocast(bf16):
    import torch

    return torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext()


def torch_step(network, settings, n, layout, bf16=False):
    import torch

    x, eps, t = torch_batch(settings, n, layout)
    optimizer = torch.optim.Adam(network.parameters(), 1e-4)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with _autocast(bf16):
            loss = torch.nn.functional.mse_loss(network(x, t).sample, eps)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def torch_forward(network, settings, n, layout, bf16=False):
    import torch

    x, _, t = torch_batch(settings, n, layout)

    def forward():
        with torch.no_grad(), _autocast(bf16):
            return network(x, t).sample.permute(0, 2, 3, 1).float().numpy()

    return forward


def compare(name, settings, n, what, threads, rounds=5, compiled=False, bf16=False):
    """One contest as a row: medians in seconds, how far the first results are apart, how many times as fast.

    threads: None leaves both libraries as they are, as in a loop that says nothing about threads. bf16: PyTorch computes
    under torch.autocast in bfloat16 as well.
    """
    import torch

    unet = tinydiff_network(settings)
    ours, theirs = (tinydiff_step, torch_step) if what == "step" else (tinydiff_forward, torch_forward)
    contests = {"tinydiff": ours(unet, settings, n)}
    for prefix in ("", "bf16, ") if bf16 else ("",):
        for layout_name, layout in zip(LAYOUTS, (torch.contiguous_format, torch.channels_last), strict=True):
            network = torch_network(unet, settings).to(memory_format=layout)
            contests[prefix + layout_name] = theirs(network, settings, n, layout, bool(prefix))
    if compiled:
        network = torch.compile(torch_network(unet, settings))
        contests["torch.compile"] = theirs(network, settings, n, torch.contiguous_format)
    if threads is not None:
        td.set_threads(threads)
        torch.set_num_threads(threads)
    first, once = {}, {}
    for key, contest in list(contests.items()):
        start = time.perf_counter()
        try:
            first[key] = np.asarray(contest(), np.float64)
        except Exception as error:  # the compiler needs a C++ compiler and more
            if key != "torch.compile":
                raise
            progress(f"torch.compile does not work here: {str(error).splitlines()[0]}")
            del contests[key]
            continue
        once[key] = time.perf_counter() - start
        if key.startswith("bf16") and once[key] > TIMES_TOO_SLOW * min(once[layout] for layout in LAYOUTS):
            del contests[key]
    apart = float(np.abs(first["tinydiff"] - first["channels first"]).max() / np.abs(first["channels first"]).max())
    assert apart < 1e-3, f"{name}: the two compute different things, {apart:.1e} apart"
    times = race({key: Work(contest) for key, contest in contests.items()}, rounds, 1e9)
    seconds = {key: times[key].forward if key in times else once[key] for key in once}
    row = {
        "name": name,
        "batch": n,
        "threads": "as they are" if threads is None else threads,
        "seconds": seconds,
        "one turn only": sorted(set(once) - set(times)),
        "apart": apart,
        "times_torch": min(seconds[key] for key in LAYOUTS) / seconds["tinydiff"],
    }
    if bf16:
        row["times_bf16"] = min(seconds[f"bf16, {key}"] for key in LAYOUTS) / seconds["tinydiff"]
    shown = ", ".join(f"{key} {1e3 * value:.0f} ms" for key, value in seconds.items())
    progress(f"{name}: {shown}; {row['times_torch']:.2f} times PyTorch")
    return row
