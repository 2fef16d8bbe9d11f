"""tinydiff exercise and tinydiff puzzle, as a learner types them."""

import pytest

from tinydiff.cli import main
from tinydiff.exercises import puzzle, task


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_from_the_list_to_a_right_answer(capsys, tmp_path):
    assert main(["exercise"]) == 0
    assert " 10  convolution" in capsys.readouterr().out
    assert main(["exercise", "conv"]) == 0
    assert "tinydiff exercise convolution --check convolution.py" in capsys.readouterr().out
    path = tmp_path / "convolution.py"
    assert main(["exercise", "conv", "--check", "convolution.py"]) == 1
    assert "backward is to be written" in capsys.readouterr().out
    assert main(["exercise", "conv", "--solution"]) == 0
    solution = capsys.readouterr().out
    stub = 'def backward(L_Y, X, W, b):\n    raise NotImplementedError("backward is to be written")\n'
    path.write_text(path.read_text().replace(stub, solution.replace("axis=(0, 1, 2)", "axis=(0, 1)")))
    assert main(["exercise", "conv", "--check", "convolution.py"]) == 1
    out = capsys.readouterr().out
    assert "Hint 1 of 3" in out and "L_b" in out
    path.write_text(path.read_text().replace("axis=(0, 1)", "axis=(0, 1, 2)"))
    assert main(["exercise", "conv", "--check", "convolution.py"]) == 0
    out = capsys.readouterr().out
    assert "right, at attempt 2" in out and "The next one: tinydiff exercise attention" in out


def test_a_puzzle(capsys, tmp_path):
    assert main(["puzzle"]) == 0
    assert main(["puzzle", "2", "--out", "mine.py"]) == 0
    assert main(["puzzle", "2", "--check", "mine.py"]) == 1
    assert "puzzle 2: L_b is wrong; right: L_X, L_W" in capsys.readouterr().out
    (tmp_path / "mine.py").write_text((tmp_path / "mine.py").read_text().replace("L_Y.mean(axis=0)", "L_Y.sum(axis=0)"))
    assert main(["puzzle", "2", "--check", "mine.py"]) == 0
    told = capsys.readouterr().out
    assert "puzzle 2: right, at attempt 2" in told and told.endswith("\nThe next one: tinydiff puzzle 3\n")


def test_nothing_is_overwritten(capsys, tmp_path):
    (tmp_path / "relu.py").write_text("mine")
    assert main(["exercise", "relu"]) == 2
    assert "relu.py is there already" in capsys.readouterr().err and (tmp_path / "relu.py").read_text() == "mine"
    assert main(["exercise", "relu", "--force"]) == 0
    assert (tmp_path / "relu.py").read_text() == task("relu").file()
    assert main(["puzzle", "1", "--out", "p.py"]) == 0 and (tmp_path / "p.py").read_text() == puzzle("1").file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["exercise", "--check", "a.py"], "--check needs to know which exercise: see tinydiff exercise"),
        (["exercise", "none"], "there is no exercise 'none'"),
        (["exercise", "relu", "--check", "a.py", "--force"], "--check writes nothing, so --force has no meaning"),
        (["exercise", "relu", "--solution", "--out", "a.py"], "--solution writes nothing, so --out has no meaning"),
        (["exercise", "relu", "--out", "a.txt"], "--out must name a Python file"),
        (["exercise", "relu", "--out", "no/a.py"], "no"),
        (["exercise", "relu", "--check", "none.py"], "there is no file none.py"),
        (["puzzle", "99"], "there is no puzzle '99'"),
    ],
)
def test_mistakes_get_a_sentence(arguments, message, capsys):
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
