"""The path through examples/: each script checks what it claims and draws its picture, which is kept current; as a notebook
it does so, too."""

import os
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
PATH = sorted(EXAMPLES.glob("[0-9]*.py"))
QUICK = {"02": 50, "05": 50, "06": 20, "14": 20, "15": 2}  # --steps where training takes long
LONG = ("07", "08", "09", "15")  # seconds each; left to the slow tests

scripts = pytest.mark.parametrize("script", PATH, ids=lambda script: script.stem)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """A function that runs a script in this process, in an empty folder, and returns the path of its picture."""
    pytest.importorskip("matplotlib", reason="the extra `plot` draws the pictures")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def run(script, *flags):
        monkeypatch.setattr(sys, "argv", [str(script), *flags])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            runpy.run_path(str(script), run_name="__main__")
        return tmp_path / f"{script.stem}.png"

    return run


def test_the_path_is_numbered_and_listed_in_reading_order():
    assert [script.name[:2] for script in PATH] == [f"{i:02}" for i in range(1, len(PATH) + 1)] and len(PATH) == 15
    listed = re.findall(r"\]\((\d\d_\w+\.py)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8"))
    assert listed == [script.name for script in PATH]


@pytest.mark.parametrize("text", [EXAMPLES / "README.md", *PATH], ids=lambda path: path.stem)
def test_links_lead_somewhere(text):
    for link in re.findall(r"\]\((?!https:)([^)#]+)", text.read_text(encoding="utf-8")):
        assert (text.parent / link).exists(), link


@scripts
def test_a_script_is_a_notebook_with_a_title(script):
    lines = script.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# %% [markdown]" and lines[1].startswith(f"# # {int(script.name[:2])}. ")
    cells = [i for i, line in enumerate(lines) if line.startswith("# %%")]
    assert len(cells) >= 4 and all(re.fullmatch(r"# %%( \[markdown\])?", lines[i]) for i in cells)
    for i, end in zip(cells, [*cells[1:], len(lines)], strict=True):
        if lines[i].endswith("[markdown]"):
            assert all(not line or line.startswith("#") for line in lines[i:end])


@scripts
def test_a_picture_was_drawn_by_the_script_as_it_is(script):
    """python -m tests.examples draws all of them anew."""
    fingerprint = runpy.run_path(str(EXAMPLES / "picture.py"))["fingerprint"]
    with Image.open(EXAMPLES / "pictures" / f"{script.stem}.png") as image:
        assert image.info.get("tinydiff example") == fingerprint(script), "python -m tests.examples draws it anew"


@pytest.mark.parametrize("script", [p for p in PATH if p.name[:2] not in LONG], ids=lambda script: script.stem)
def test_a_script_runs_and_draws_its_picture(script, run, capsys):
    steps = QUICK.get(script.name[:2])
    picture = run(script, *(["--steps", str(steps)] if steps else []))
    assert capsys.readouterr().out.endswith(f"wrote {picture.name}\n")
    assert list(picture.parent.iterdir()) == [picture]


@pytest.mark.parametrize("out", [".", "none/a.png"])
def test_a_picture_that_cannot_be_written_is_refused_before_the_work(out, run, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        run(PATH[0], "--out", out)
    assert f"--out must name a file in a folder that is there, not {out}\n" in capsys.readouterr().err


def small(path):
    """A picture in grey, reduced so that letters are blurred."""
    with Image.open(path) as image:
        return np.asarray(image.convert("L").reduce(8), dtype=float)


@pytest.mark.slow
@scripts
def test_pictures_show_what_the_scripts_draw_today(script, run):
    """To the eye: versions of matplotlib and of fonts differ in pixels."""
    now, kept = small(run(script)), small(EXAMPLES / "pictures" / f"{script.stem}.png")
    assert now.shape == kept.shape
    assert np.abs(now - kept).mean() < 2, "python -m tests.examples draws it anew"


@pytest.mark.slow
@scripts
def test_a_script_runs_as_a_notebook(script, monkeypatch):
    """In a real kernel, cell by cell; what it draws is an output of its last cell."""
    jupytext, nbclient = (pytest.importorskip(name, reason="the extra `notebook`") for name in ("jupytext", "nbclient"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = jupytext.read(script)
    if steps := QUICK.get(script.name[:2]):
        for cell in notebook.cells:
            cell.source = re.sub(r"steps=\d+\)", f"steps={steps})", cell.source)
    folder = {"metadata": {"path": str(EXAMPLES)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=folder).execute()
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[-1].cell_type == "code"
    assert any("image/png" in output.get("data", {}) for output in notebook.cells[-1].outputs)


def test_out_names_the_picture(run, tmp_path):
    run(PATH[0], "--out", "other.png")
    assert [path.name for path in tmp_path.iterdir()] == ["other.png"]


def test_without_matplotlib_the_numbers_come_and_one_line_says_what_to_install(tmp_path):
    (tmp_path / "matplotlib").mkdir()
    (tmp_path / "matplotlib" / "__init__.py").write_text("raise ImportError('not installed')")
    paths = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, PATH[0]], cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "L_a = " in done.stdout
    assert done.stderr == "no picture drawn: it needs matplotlib, pip install 'tinydiff[plot]'\n"
