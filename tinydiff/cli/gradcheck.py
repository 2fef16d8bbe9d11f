"""`tinydiff gradcheck`."""

from __future__ import annotations

import argparse
import io
from typing import Any

from tinydiff.cli.numbers import whole_number
from tinydiff.cli.outputs import check_new
from tinydiff.errors import InputError, at_work, before_work
from tinydiff.machine.terminal import tell


def add_command(commands: Any) -> None:
    """Adds `gradcheck` to the subcommands of an argument parser; the parsed arguments' `run` runs it."""
    check = commands.add_parser(
        "gradcheck",
        help="check a gradient",
        description="Checks the gradient of a function of tensors, of a td.Function, or of a backward pass in plain NumPy. "
        "With --kernels, checks tinydiff's own CUDA kernels, run on the host. Exit status 0 if no error was found, 1 if one was.",
    )
    check.add_argument(
        "target", metavar="MODULE:FUNCTION", nargs="?", help="or MODULE:FORWARD,BACKWARD; MODULE may be a .py file"
    )
    check.add_argument("--kernels", action="store_true", help="check every CUDA kernel of tinydiff against float64")
    check.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="4,3",
        help='of each argument in turn; "2,4 int" for integers 0, 1 and 2, such as labels [guessed]',
    )
    check.add_argument("--seed", type=whole_number, default=0, help="of the random numbers [0]")
    check.add_argument("--png", metavar="FILE.png", help="a picture of where the error is")
    check.add_argument("--force", action="store_true", help="overwrite the file that --png names")
    check.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.kernels:
        if arguments.target is not None or arguments.shape or arguments.png:
            raise InputError(
                "gradcheck --kernels checks tinydiff's own kernels: it takes no function, --shape or --png"
            )
        from tinydiff.gradcheck.backends import check_kernels

        return 0 if check_kernels(arguments.seed) else 1
    if arguments.target is None:
        raise InputError("gradcheck needs MODULE:FUNCTION, what to check, or --kernels")
    check_new(arguments.png, arguments.force)
    from tinydiff.gradcheck.target import check_target
    from tinydiff.runs import pictures

    if arguments.png is not None:
        with before_work():
            pictures.check_place(arguments.png, ".png")
    report = check_target(arguments.target, shapes=arguments.shape, seed=arguments.seed)
    tell(report)
    picture = io.BytesIO()
    if arguments.png is not None and not report.ok and report.save_png(picture):
        with at_work():
            pictures.write_file(arguments.png, picture.getvalue())
    return 0 if report.ok else 1
