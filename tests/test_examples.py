"""The studies in examples/ run from any folder, check what they claim, and draw their picture."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STUDIES = sorted((ROOT / "examples").glob("[0-9]_*.py"))
QUICK = {"6_score_of_points": ["--steps", "20"], "1_fully_connected_backward": ["--steps", "50"]}


def run(study, folder, *flags, path=()):
    paths = os.pathsep.join([*map(str, path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, study, *QUICK.get(study.stem, []), *flags]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8")


def test_the_studies_are_numbered_in_reading_order():
    assert [study.name[0] for study in STUDIES] == [str(i + 1) for i in range(len(STUDIES))] and STUDIES


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.stem)
def test_a_study_runs_and_draws_its_picture(study, tmp_path):
    pytest.importorskip("matplotlib", reason="the extra `plot` draws the pictures")
    done = run(study, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    picture = tmp_path / f"{study.stem}.png"
    assert done.stdout.endswith(f"wrote {picture.name}\n")
    assert [p.name for p in tmp_path.iterdir()] == [picture.name]
    from PIL import Image

    with Image.open(picture) as image:
        assert min(image.size) > 300 and len(image.convert("L").getcolors()) > 50


def test_out_names_the_picture(tmp_path):
    pytest.importorskip("matplotlib", reason="the extra `plot` draws the pictures")
    done = run(STUDIES[1], tmp_path, "--out", "other.png")
    assert done.returncode == 0 and (tmp_path / "other.png").exists()


def test_without_matplotlib_the_numbers_come_and_one_line_says_what_to_install(tmp_path):
    (tmp_path / "matplotlib").mkdir()
    (tmp_path / "matplotlib" / "__init__.py").write_text("raise ImportError('not installed')")
    done = run(STUDIES[3], tmp_path, path=[tmp_path])
    assert done.returncode == 1
    assert "closed form" in done.stdout
    assert done.stderr == "no picture drawn: it needs matplotlib, pip install 'tinydiff[plot]'\n"
