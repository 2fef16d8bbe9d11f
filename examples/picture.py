"""What the examples share: their options, panels to draw in, and what becomes of the picture.

A script writes its picture to a file. A notebook shows it.
"""

import argparse
import hashlib
import inspect
import io
import sys
import tempfile
from pathlib import Path

SOURCE = "tinydiff example"  # in a picture's file: the fingerprint of the script that drew it


def in_notebook():
    return "ipykernel" in sys.modules


def options(name, **numbers):
    """The command line of the example `name`: --out, by default NAME.png in the current folder, and the given integers.
    In a notebook, the defaults."""
    parser = argparse.ArgumentParser(description=name)
    parser.add_argument("--out", default=f"{name}.png", help=f"the picture (default: {name}.png)")
    for option, value in numbers.items():
        parser.add_argument(f"--{option}", type=int, default=value, help=f"(default: {value})")
    args = parser.parse_args([] if in_notebook() else None)
    if Path(args.out).is_dir() or not Path(args.out).absolute().parent.is_dir():
        parser.error(f"--out must name a file in a folder that is there, not {args.out}")
    return args


def panels(rows, columns, width=4.0, height=3.8, **settings):
    """A figure and its axes, (rows, columns)."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        sys.exit("no picture drawn: it needs matplotlib, pip install 'tinydiff[plot]'")
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **settings)


def image(axis, values, title="", text=None, limit=None, cmap="RdBu_r"):
    """A matrix as coloured squares. text: the format of the numbers in them, such as ".2f". limit: the value of the darkest
    colour; without it, the largest."""
    limit = limit or abs(values).max()
    axis.imshow(values, cmap=cmap, vmin=-limit if cmap == "RdBu_r" else 0, vmax=limit)
    axis.set(title=title, xticks=[], yticks=[])
    if text:
        for (i, j), v in [((i, j), values[i, j]) for i in range(len(values)) for j in range(values.shape[1])]:
            shown = f"{v:{text}}" if v else "0"
            axis.text(
                j, i, shown, ha="center", va="center", fontsize=8, color="white" if abs(v) > 0.6 * limit else "black"
            )


def graph(axis, trace, title=""):
    """The graph of a `td.trace`."""
    from matplotlib.image import imread

    with tempfile.TemporaryDirectory() as folder:
        trace.graph(path := Path(folder) / "graph.png")
        axis.imshow(imread(path))
    axis.set(title=title)
    axis.axis("off")


def fingerprint(script):
    """A hash of a script without its comments."""
    lines = Path(script).read_text(encoding="utf-8").splitlines()
    return hashlib.sha256("\n".join(line for line in lines if not line.startswith("#")).encode()).hexdigest()[:16]


def save(figure, args):
    """Writes the figure to the file that `options` gave; in a notebook, shows it."""
    from PIL import Image, PngImagePlugin

    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=90)
    if in_notebook():
        from IPython.display import Image as Shown
        from IPython.display import display

        return display(Shown(drawn.getvalue()))
    about = PngImagePlugin.PngInfo()
    about.add_text(SOURCE, fingerprint(inspect.stack()[1].filename))
    Image.open(drawn).convert("RGB").quantize(128).save(args.out, format="png", optimize=True, pnginfo=about)
    print(f"\nwrote {args.out}")
