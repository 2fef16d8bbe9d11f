"""What follows from the figures of `scale.py`: a model fitted to them, predictions for many GPUs, and a page of text."""

import math

import numpy as np

GAIN = 0.05  # a layout counts as faster where it gains more than this

# On paper, no measurement: a GPU's speed in training steps, FLOP/s, and its network: seconds for a message, bytes/s.
GPU_SPEED = 20e12
NETWORKS_OF_GPUS = {8: ("NVLink in one machine", 5e-6, 200e9), 64: ("400 Gbit/s a GPU", 10e-6, 40e9)}
NETWORKS_OF_GPUS[1024] = NETWORKS_OF_GPUS[64]
IMAGES_PER_GPU = (1, 8, 64)


def fit(sums):
    """Latency and bandwidth of seconds = latency + bytes / bandwidth, with the least relative errors squared."""
    size, seconds = (np.array([row[name] for row in sums], float) for name in ("bytes", "seconds"))
    columns = np.stack([1 / seconds, size / seconds], 1)
    latency, per_byte = np.linalg.lstsq(columns, np.ones(len(sums)), rcond=None)[0]
    predicted = latency + per_byte * size
    return {
        "latency": float(latency), "bandwidth": float(1 / per_byte),
        "worst_error": float(np.abs(predicted / seconds - 1).max()),
    }  # fmt: skip


def ring(n, size, latency, bandwidth):
    """Seconds of a sum of `size` bytes over n ranks on a ring: 2 (n - 1) messages of size / n, one after another."""
    return 2 * (n - 1) * (latency + size / n / bandwidth)


def predictions(found):
    """The efficiency of training on many GPUs, for each network, with all of the sum hidden behind the backward pass, which is
    two thirds of a step, and with none of it."""
    rows = []
    for name, network in found["networks"].items():
        for gpus, (link, latency, bandwidth) in NETWORKS_OF_GPUS.items():
            for images in IMAGES_PER_GPU:
                compute = 3 * network["flops"] * images / GPU_SPEED
                summed = ring(gpus, network["gradient_bytes"], latency, bandwidth)
                hidden = max(0.0, summed - compute * 2 / 3)
                rows.append(
                    {
                        "network": name, "gpus": gpus, "link": link, "images_per_gpu": images, "compute": compute,
                        "sum": summed, "efficiency": compute / (compute + summed),
                        "efficiency_with_overlap": compute / (compute + hidden),
                    }
                )  # fmt: skip
    return rows


def half_speed(found):
    """(network, GPUs, images for each of them at which the sum takes as long as the computing)."""
    return [
        (p["network"], p["gpus"], math.ceil(p["sum"] / p["compute"]))
        for p in found["predicted"]
        if p["images_per_gpu"] == 1
    ]


def gains(found, network="W1"):
    """(batch, gain of 2x1 over 1x2) for each batch that both were measured at; 0.1 is ten percent more images per second."""
    by = {(row["layout"], row["batch"]): row["seconds"] for row in found["steps"] if row["network"] == network}
    return [(batch, by["1x2", batch] / by["2x1", batch] - 1) for layout, batch in sorted(by) if layout == "1x2"]


def largest_gaining_batch(found):
    """The largest batch up to which two processes gain at every batch measured; 0 for none."""
    largest = 0
    for batch, gain in sorted(gains(found)):
        if gain <= GAIN:
            break
        largest = batch
    return largest


def hidden_share(row, name):
    """The share of the exchange that hid behind the computing."""
    return (row["compute"] + row["exchange"] - row[name]) / min(row["compute"], row["exchange"])


def table(head, rows):
    widths = [max(len(str(row[i])) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "| " + " | ".join(str(c).rjust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in [head, *rows]
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|", *lines[1:]])


def page(found):
    """The page, as Markdown."""
    by = {(row["network"], row["layout"], row["batch"]): row for row in found["steps"]}
    rows = []
    for (name, layout, batch), row in by.items():
        ranks, threads = map(int, layout.split("x"))
        one = f"1x{threads}"
        strong = by.get((name, one, batch)) if ranks > 1 else None
        weak = by.get((name, one, batch // ranks)) if ranks > 1 else None
        rows.append(
            [
                name, layout, batch, f"{1e3 * row['seconds']:.1f}", f"{batch / row['seconds']:.1f}",
                f"{strong['seconds'] / row['seconds'] / ranks:.0%}" if strong else "",
                f"{weak['seconds'] / row['seconds']:.0%}" if weak else "",
                f"{1e3 * row['wait']:.1f}" if ranks > 1 else "", f"{1e3 * row['sum']:.1f}" if ranks > 1 else "",
            ]
        )  # fmt: skip
    head = ["", "layout", "batch", "ms a step", "images/s", "strong", "weak", "ms waiting", "ms summing"]
    fitted, machine = found["fitted"], found["machine"]
    sums = [[f"{row['bytes']:,}", f"{1e3 * row['seconds']:.3f}"] for row in found["sums"]]
    overlaps = [
        [f"{row['bytes']:,}", *(f"{1e3 * row[n]:.1f}" for n in ("compute", "exchange", "both", "asked")),
         f"{hidden_share(row, 'both'):.0%}", f"{hidden_share(row, 'asked'):.0%}"]
        for row in found["overlap"]
    ]  # fmt: skip
    best = max(hidden_share(row, n) for row in found["overlap"] for n in ("both", "asked"))
    layouts = [[batch, f"{gain:+.0%}"] for batch, gain in sorted(gains(found))]
    largest = largest_gaining_batch(found)
    small = (
        f"Two processes gain more than {GAIN:.0%} for batches of up to {largest} images."
        if largest
        else f"Two processes gain more than {GAIN:.0%} at no small batch."
    )
    bytes_a_step = "; ".join(
        f"{name}: {n['gradient_bytes'] / 1e6:.1f} MB of gradients" for name, n in found["networks"].items()
    )
    predicted = [
        [p["network"], f"{p['gpus']:,}", p["images_per_gpu"], f"{1e3 * p['compute']:.2f}", f"{1e3 * p['sum']:.2f}",
         f"{p['efficiency']:.0%}", f"{p['efficiency_with_overlap']:.0%}"]
        for p in found["predicted"]
    ]  # fmt: skip
    halves = [[name, f"{gpus:,}", f"{images:,}"] for name, gpus, images in half_speed(found)]
    links = "; ".join(
        f"{n:,} GPUs: {link}, {1e6 * a:.0f} microseconds a message, {b / 1e9:.0f} GB/s"
        for n, (link, a, b) in NETWORKS_OF_GPUS.items()
    )
    message = NETWORKS_OF_GPUS[1024][1]
    alone = 2 * 1023 * message
    share = max(row["sum"] / row["seconds"] for row in found["steps"] if row["layout"] == "2x1")
    return f"""# Where training on several processes stops scaling

Measured by `python -m tests.benchmarks.scale` on {machine["processors"]} processors ({machine["processor"]}). A layout 2x1 is two
processes of one thread each. Efficiency is the images per second of N ranks over N times those of one rank with as many threads:
strong, with the same batch for all together; weak, with the same batch for each.

{table(head, rows)}

## Small batches: two threads or two processes?

{small} The table has the gain of 2x1 over 1x2 in images per second, for W1.

{table(["batch", "gain"], layouts)}

## What a sum costs

Each rank sends 2 (N - 1) / N of the gradients' bytes in a step ({bytes_a_step}).

{table(["bytes", "ms for two ranks"], sums)}

Fitted: {1e6 * fitted["latency"]:.0f} microseconds and {fitted["bandwidth"] / 1e9:.2f} GB/s, at worst {fitted["worst_error"]:.0%}
off.

## Can it hide behind the backward pass?

An exchange was begun, matrices were multiplied, and the exchange was waited for ("both"); "asked" is with a question to MPI after
each product, so that it makes progress. Milliseconds, and the share of the shorter that was hidden:

{table(["bytes", "computing", "exchange", "both", "asked", "hidden", "hidden, asked"], overlaps)}

At best {best:.0%} is hidden. tinydiff adds up after the backward pass: of the steps in the first table the sum takes {share:.1%} at
most, and no more than that could be gained.

## Many GPUs, on paper

**Predicted, not measured**: {GPU_SPEED / 1e12:.0f} TFLOP/s a GPU in training steps; sums on a ring ({links}).
Milliseconds of computing and of the sum; efficiency without and with the sum hidden behind the backward pass.

{table(["", "GPUs", "images a GPU", "computing", "sum", "efficiency", "with overlap"], predicted)}

Half of the speed is left, without overlap, where the sum takes as long as the computing. So many images each GPU needs for that:

{table(["", "GPUs", "images a GPU"], halves)}

The sum has two parts: the bytes, which hardly grow with the number of GPUs, and 2 (N - 1) messages one after another, which
do: with {1e6 * message:.0f} microseconds each they alone take {1e3 * alone:.1f} ms on 1,024 GPUs. More images for each GPU
help, and so does a sum by trees (NCCL_ALGO=Tree), whose messages grow with the logarithm.
"""
