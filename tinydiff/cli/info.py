"""`tinydiff info`: what a run or a checkpoint is."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tinydiff.machine.terminal import tell


def add_command(commands: Any) -> None:
    """Adds `info` to the subcommands of an argument parser; the parsed arguments' `run` runs it."""
    info = commands.add_parser(
        "info", help="tell what a run or checkpoint is", description="Tells what a run or checkpoint is."
    )
    info.add_argument("path", metavar="RUN|CHECKPOINT")
    info.add_argument("--cost", action="store_true", help="the work of a forward pass of one image, by module as well")
    info.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    tell(describe(Path(arguments.path)))
    if arguments.cost:
        tell(cost(Path(arguments.path)))
    return 0


def describe(path: Path) -> str:
    """A few lines on data, network, diffusion, steps and losses. InputError where there is no run or checkpoint."""
    import numpy as np

    from tinydiff.runs import checkpoint, config, lock
    from tinydiff.runs.folder import RunFolder, read_log
    from tinydiff.runs.log import HOLDOUT, RANKS
    from tinydiff.runs.sheets import class_count

    running = lock.holder(path)
    if running and checkpoint.find(path) is None:
        return f"run:        {path}\nrunning:    {running[0]} has begun it, and there is no checkpoint yet"
    pipeline = checkpoint.load(path)
    unet, diffusion = pipeline.unet, pipeline.diffusion
    schedule = diffusion.schedule
    lines = []

    def line(name: str, text: str) -> None:
        lines.append(f"{name and name + ':':<12}{text}")

    folder = RunFolder(path)
    line("run" if folder.config_file.exists() else "checkpoint", str(path))
    settings = config.load(folder.config_file) if folder.config_file.exists() else {}
    if settings:
        line("data", str(settings.get("data", "given from Python")))
        for text in _fingerprint(path):
            line("", text)
    size, channels = unet.image_size, unet.in_channels
    known = class_count(unet)
    classes = "" if known is None else f", {known} classes"
    guided = ", can be guided" if unet.null_label is not None else ""
    line("images", f"{size}x{size}x{channels}{classes}{guided}")
    if pipeline.class_names:
        line("classes", ", ".join(pipeline.class_names))
    line("network", f"U-Net, {sum(p.size for p in unet.parameters()):,} parameters")
    for name in ("channels", "channel_mults", "blocks_per_level", "attention_resolutions", "groups", "dropout"):
        line("", f"{name} {_shown(unet.config[name])}")
    line("diffusion", f"T = {schedule.T}, predicts {diffusion.predict}, variance {diffusion.variance}")
    line(
        "noise",
        f"alpha_bar_T = {schedule.alpha_bar[-1]:.3g}: x_T keeps {schedule.alpha_bar[-1] ** 0.5:.2%} of the amplitude",
    )
    if settings:
        rows = read_log(folder.log_file)
        step = checkpoint.read_step(path)
        images = settings.get("batch_size", 1) * settings.get("accumulate", 1)
        saved = "an unknown number" if step is None else step
        planned = f" of {settings['steps']} planned" if "steps" in settings else ""
        minutes = f", {settings['minutes']:g} minutes a start" if "minutes" in settings else ""
        precision = settings.get("precision", "float32")
        computed = "" if precision == "float32" else f", in {precision}"
        line("steps", f"{saved} saved{planned}{minutes}, batches of {images}{computed}")
        if rows:
            losses = np.array([float(row["loss"]) for row in rows if "loss" in row] or [np.nan])
            last = losses[-100:]
            line("loss", f"{losses[0]:.4f} at first, {last.mean():.4f} over the last {len(last)} steps")
            if held := [row for row in rows if HOLDOUT in row]:
                line("", f"{float(held[-1][HOLDOUT]):.4f} on held-out images at step {held[-1]['step']}")
            speeds = np.array([float(row["images_per_second"]) for row in rows[1:] or rows])
            ranks = list(dict.fromkeys(row.get(RANKS, "1") for row in rows))
            by = f", by {' and then '.join(ranks)} ranks" if ranks != ["1"] else ""
            line("speed", f"{np.median(speeds):.0f} images/s{by}")
        if running:
            for text in _running(settings, rows, running, unet, diffusion):
                line("" if lines[-1].startswith("running:") else "running", text)
    return "\n".join(lines)


def _running(
    settings: dict[str, Any], rows: list[dict[str, str]], running: tuple[str, float], unet: Any, diffusion: Any
) -> list[str]:
    """What a run does now, by the rows of its log."""
    import time

    from tinydiff.runs.progress import duration, time_left
    from tinydiff.runs.sheets import work_of_sheet
    from tinydiff.runs.trainer import PREVIEW_STEPS

    who, since = running
    if not rows:
        return [f"{who}, before its first step"]
    last = rows[-1]
    images = settings.get("batch_size", 1) * settings.get("accumulate", 1)
    speeds = sorted(float(row["images_per_second"]) for row in rows[-50:])
    speed = max(speeds[len(speeds) // 2], 1e-9)
    steps = max(0, settings["steps"] - int(last["step"])) if "steps" in settings else None
    said = [f"{who}, at step {last['step']}, loss {float(last.get('loss', 'nan')):.4f}, {speed:.0f} images/s"]
    if steps is not None or "minutes" in settings:
        left = time_left(images / speed, steps, time.time() - since, settings.get("minutes"))
        samples = work_of_sheet(unet) * min(PREVIEW_STEPS, diffusion.schedule.T) / (3 * speed)
        said.append(f"about {duration(left + samples)} left, samples included")
    return said


def cost(path: Path) -> str:
    """FLOPs, bytes and time of the network's forward pass for one image, in all, by operation and by module. InputError as
    for `describe`."""
    import numpy as np

    from tinydiff.autograd.tape import no_grad
    from tinydiff.runs import checkpoint
    from tinydiff.study import trace

    unet = checkpoint.load(path).unet
    labels = None if unet.num_classes is None or unet.null_label is not None else 0
    size = unet.image_size
    with no_grad(), trace(values=0) as recorded:
        unet(np.zeros((1, size, size, unet.in_channels), np.float32), 1, labels)
    total = recorded.cost()
    return f"cost:       {total.total.flops[0] / 1e9:.2f} GFLOP in the forward pass of one image\n\n{total}"


def _fingerprint(path: Path) -> list[str]:
    """What the checkpoint of a run remembers of the data, and of changes to them."""
    from tinydiff.runs import checkpoint, fingerprint

    if checkpoint.read_step(path) is None:
        return []
    _, metadata = checkpoint.load_training_state(path, arrays=False)
    if fingerprint.NAME not in metadata:
        return []
    return [
        str(fingerprint.read(metadata[fingerprint.NAME], path)),
        *(f"changed {line}" for line in fingerprint.changes(metadata.get(fingerprint.CHANGES))),
    ]


def _shown(value: object) -> str:
    return (",".join(map(str, value)) or "none") if isinstance(value, tuple) else str(value)
