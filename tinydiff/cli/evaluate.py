"""`tinydiff evaluate`: its flags."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from tinydiff.cli.numbers import whole_number
from tinydiff.ranks import world


def add_command(commands: Any) -> None:
    """Adds `evaluate` to the subcommands of an argument parser; the parsed arguments' `run` runs it."""
    parser = commands.add_parser(
        "evaluate",
        help="measure a trained model",
        description="Measures a trained model: bits per dimension of held-out images, distance of samples to the "
        "training images, memorisation, samplers. Text on stdout; report, tables and pictures in RUN/evaluation/.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("path", metavar="RUN")
    add = parser.add_argument
    add("--only", type=_names, metavar="PARTS", help="of bits,frechet,neighbours,samplers [all]")
    add("--data", metavar="PATH", help="images to evaluate instead of the run's held-out ones")
    add("--training-images", action="store_true", help="the run's training images instead, which flatter the model")
    add("--images", type=whole_number, metavar="N", help="images for bits/dim, chosen at random [200]")
    terms = parser.add_mutually_exclusive_group()
    terms.add_argument("--terms", type=whole_number, metavar="N", help="steps t to evaluate, stratified, at most [50]")
    terms.add_argument("--all-terms", action="store_const", dest="terms", const=None, help="every t: exact, and slow")
    add("--raw", action="store_true", help="the raw weights instead of the averaged (EMA) ones")
    add("--clip", action=argparse.BooleanOptionalAction, help="limit predicted x0 to [-1, 1] [as the checkpoint says]")
    add("--samples", type=whole_number, metavar="N", help="samples for distance, neighbours, PNG files [256]")
    add("--sampler", help="for these: ddpm, ddim or dpm++ [ddim]")
    add("--steps", type=whole_number, metavar="N", help="and their steps [50]")
    add("--each", type=whole_number, metavar="N", help="samples for each way of sampling that is compared [64]")
    add("--step-counts", type=_whole_numbers, metavar="N,N,...", help="and their steps [10,25,50]")
    add("--png-folder", metavar="DIR", help="write the samples as PNG files as well, for other tools")
    add("--out", metavar="DIR", help="where to put the results [RUN/evaluation]")
    add("--force", action="store_true", help="overwrite the results of an evaluation in the folder that --out names")
    add("--seed", type=whole_number, help="seed of images, steps and noise [0]")
    add("--device", help="auto, cpu or cuda [auto]")
    add("--threads", type=whole_number, metavar="N", help="CPU threads [all]")
    add("--precision", help="on a GPU: float32, tf32, fp16, bf16 or auto [float32]")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from tinydiff.evaluation.evaluate import Settings, evaluate

    names = {field.name for field in dataclasses.fields(Settings)}
    with world().together():
        settings = Settings(**{n: v for n, v in vars(arguments).items() if n in names})
    evaluate(arguments.path, settings)
    return 0


def _whole_numbers(text: str) -> tuple[int, ...]:
    return tuple(map(whole_number, text.split(",")))


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))
