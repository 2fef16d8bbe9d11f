"""examples/diffusers_round_trip.py: what it promises, in a few steps."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("diffusers")

pytestmark = pytest.mark.parity

ROOT = Path(__file__).resolve().parents[2]


def test_the_example_goes_there_and_back(tmp_path):
    command = [sys.executable, ROOT / "examples" / "diffusers_round_trip.py", "--steps", "24", "--out", "trip"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    start, end, again = map(float, re.findall(r"(\d+\.\d+) at", done.stdout.partition("mean loss")[2]))
    assert again < (start + end) / 2, "the second training did not go on from the weights of the first"
    index = json.loads((tmp_path / "trip/diffusers/model_index.json").read_text())
    assert index["_class_name"] == "DDPMPipeline"
    assert not (tmp_path / "trip/diffusers/tinydiff.json").exists(), "the folder is diffusers' own"
    for name in ("diffusers.png", "tinydiff.png"):
        with Image.open(tmp_path / "trip" / name) as image:
            assert len(image.convert("L").getcolors()) > 50
