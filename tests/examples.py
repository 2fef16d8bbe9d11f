"""Draws the pictures in examples/pictures anew: `python -m tests.examples`, or some of them by their numbers."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

if __name__ == "__main__":
    folder = ROOT / "examples" / "pictures"
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for script in sorted((ROOT / "examples").glob("[0-9]*.py")):
        if len(sys.argv) < 2 or script.name[:2] in sys.argv[1:]:
            picture = folder / f"{script.stem}.png"
            subprocess.run([sys.executable, script, "--out", picture], env=environment, check=True)
