"""What the studies share: where the picture goes, and one line if there is nothing to draw it with."""

import argparse
import inspect
import sys
from pathlib import Path


def arguments(doc, **numbers):
    """The command line of a study: --out, by default its own name in the current folder, and the given integers."""
    name = Path(inspect.stack()[1].filename).with_suffix(".png").name
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--out", default=name, help=f"the picture (default: {name})")
    for option, value in numbers.items():
        parser.add_argument(f"--{option}", type=int, default=value, help=f"(default: {value})")
    return parser.parse_args()


def panels(rows, columns, width=4.0, height=3.8):
    """A figure and its axes, (rows, columns)."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        sys.exit("no picture drawn: it needs matplotlib, pip install 'tinydiff[plot]'")
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def save(figure, path):
    figure.savefig(path, dpi=110)
    print(f"\nwrote {path}")
