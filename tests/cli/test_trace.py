"""`tinydiff trace` and `tinydiff info --cost`, as a user types them."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from tinydiff.cli import main

SOURCE = """
import numpy as np
import tinydiff as td

def loss():
    x = td.Tensor(np.ones((2, 3)), requires_grad=True)
    return td.ops.mean(td.ops.silu(x))
def itself():
    loss().backward()
def takes(x, w, b=0):
    return x
def nothing():
    pass
def number():
    return 3.0
def vector():
    return td.Tensor(np.ones(3), requires_grad=True) * 2
def constant():
    return td.Tensor(np.ones(3)).sum()
def draws():
    return td.ops.mean(td.Tensor(np.random.normal(size=3), requires_grad=True))
def drops():
    x = td.Tensor(np.ones(3), requires_grad=True)
    return td.ops.dropout(x, 0.5, td.random.Generator(0)).sum()
def breaks():
    raise ValueError("too bad")
def bad():
    return td.ops.log(td.Tensor(np.zeros(2), requires_grad=True)).sum()
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", ["", *sys.path])
    path = tmp_path / "study_me.py"
    path.write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("study_me", None)
    return "study_me.py"


@pytest.mark.parametrize("function", ["loss", "itself"])
def test_a_function_is_traced(file, function, capsys):
    assert main(["trace", f"{file}:{function}", "--cost"]) == 0
    out = capsys.readouterr().out
    assert "2 operations, 2 steps forward and 2 backward: 2 gradients\n" in out and "study_me.py:7" in out
    assert "Silu" in out and "a multiplication with an addition is two" in out and "note" not in out


@pytest.mark.parametrize(
    "target, sentence",
    [
        (":takes", "needs arguments (x, w); write a function without arguments"),
        (":nothing", "returned no loss; the function must return the loss"),
        (":number", "returned a float, no loss"),
        (":vector", "returned a tensor of shape (3,), no loss"),
        (":constant", "needs no gradient: none of what it was computed from has requires_grad=True"),
        (":breaks", "raised ValueError: too bad (study_me.py:"),
        (":absent", "has no function 'absent'"),
        ("", "there is no run"),
    ],
)
def test_what_cannot_be_traced_gets_one_sentence(file, target, sentence, capsys):
    assert main(["trace", file + target]) == 2
    out, err = capsys.readouterr()
    assert not out and sentence in err and err.count("\n") == 1


def test_costs_are_sorted_by_what_is_asked_for(file, capsys):
    assert main(["trace", f"{file}:drops", "--cost", "--sort", "saved"]) == 0
    rows = capsys.readouterr().out.splitlines()
    at = rows.index("single operations that save the most memory for backward")
    assert rows[at + 1].startswith("#0 Dropout ")
    assert main(["trace", f"{file}:loss", "--sort", "saved"]) == 2
    assert "--sort orders the rows of --cost" in capsys.readouterr().err


def test_random_numbers_and_bad_values_are_told(file, capsys):
    assert main(["trace", f"{file}:draws"]) == 0
    assert "np.random.seed(0) at its beginning repeats them" in capsys.readouterr().out
    assert main(["trace", f"{file}:drops"]) == 0
    assert "the same seed gives the same numbers again" in capsys.readouterr().out
    assert main(["trace", f"{file}:bad"]) == 0
    assert "first value that is not finite: the output of the forward pass of Log at" in capsys.readouterr().out


def test_files_are_not_overwritten(file, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="needs matplotlib, the extra `plot`")
    picture = tmp_path / "memory.png"
    picture.write_text("mine")
    assert main(["trace", f"{file}:loss", "--memory", "memory.png"]) == 2
    assert "is there already" in capsys.readouterr().err and picture.read_text() == "mine"
    assert main(["trace", f"{file}:loss", "--memory", "memory.png", "--force"]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["trace", f"{file}:loss", "--memory", "memory.jpg"]) == 2
    assert "must end in .png" in capsys.readouterr().err
    (tmp_path / "folder.html").mkdir()
    assert main(["trace", f"{file}:loss", "--html", "folder.html", "--force"]) == 2
    assert "Is a directory" in capsys.readouterr().err
    assert main(["trace", f"{file}:loss", "--graph", "absent/graph.svg"]) == 2
    assert "absent" in capsys.readouterr().err and not (tmp_path / "absent").exists()


def test_page_and_graph_are_written(tmp_path, monkeypatch, capsys):
    pytest.importorskip("igraph", reason="needs igraph, the extra `study`")
    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.setattr("sys.path", list(sys.path))
    page, graph = tmp_path / "trace.html", tmp_path / "graph.png"
    target = "examples/trace_three_layers.py:loss"
    assert main(["trace", target, "--html", str(page), "--graph", str(graph)]) == 0
    assert str(page) in capsys.readouterr().out and "<title>trace_three_layers.py:loss</title>" in page.read_text()
    assert graph.read_bytes().startswith(b"\x89PNG")


def test_without_the_libraries_one_sentence_says_what_to_install(file, monkeypatch, capsys):
    from tinydiff import study

    monkeypatch.setattr(study, "find_spec", lambda name: None)
    for flag, name, extra in (
        ("--html", "a.html", "study"),
        ("--graph", "a.svg", "study"),
        ("--memory", "a.png", "plot"),
    ):
        assert main(["trace", f"{file}:loss", flag, name]) == 2
        out, err = capsys.readouterr()
        assert f"pip install 'tinydiff[{extra}]'" in err and not out and not Path(name).exists()


def test_a_step_of_a_run_is_traced_and_the_run_stays_as_it_was(tmp_path, monkeypatch, capsys):
    shutil.copytree(Path(__file__).parents[1] / "fixtures/0.1.0/run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    before = {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["trace", "run"]) == 0
    out = capsys.readouterr().out
    assert "mid_block.resnets.0.conv1" in out and "sum for" in out and "unet/blocks.py:" in out
    assert "with its own batch and noise; the run is as it was" in out
    assert {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()} == before
    np.testing.assert_equal(main(["info", "run", "--cost"]), 0)
    assert "GFLOP in the forward pass of one image" in capsys.readouterr().out
