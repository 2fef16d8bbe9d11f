"""`tinydiff gradcheck` of homework and of the kernels; what it finds is tested in tests/gradcheck."""

import pytest

from tests.cli.commands import HOMEWORK, fails
from tinydiff.cli import main
from tinydiff.cuda import host, nvrtc
from tinydiff.gradcheck import backends


def test_gradcheck_of_homework(tmp_path, capsys):
    for name, mistake, status in (("right", "", 0), ("wrong", " / len(X)", 1)):
        (tmp_path / f"{name}.py").write_text(HOMEWORK.format(mistake=mistake))
        target = f"{tmp_path / name}.py:forward,backward"
        assert main(["gradcheck", target, "--shape", "5,4", "--shape", "4,3"]) == status
        assert ("WRONG" in capsys.readouterr().out) == bool(status)


def test_gradcheck_of_a_forward_pass_that_has_a_backward_pass_beside_it(tmp_path, capsys):
    (tmp_path / "wrong.py").write_text(HOMEWORK.format(mistake=" / len(X)"))
    target = f"{tmp_path / 'wrong'}.py:forward"
    assert main(["gradcheck", target]) == 0
    said = capsys.readouterr().out
    assert "this is forward's gradient by the tape; to check it with backward" in said
    assert f"tinydiff gradcheck {target},backward" in said


def test_gradcheck_of_the_kernels(capsys, monkeypatch):
    if host.missing():
        pytest.skip(host.missing())
    monkeypatch.setattr(backends, "BY_SOURCE", {name: backends.BY_SOURCE[name] for name in ("doubling", "resampling")})
    assert main(["gradcheck", "--kernels", "--seed", "34"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 17 and not [line for line in lines if "WRONG" in line]
    assert "7 kernels in 9 variants agree with float64" in lines[-1]
    assert "takes no function" in fails(capsys, ["gradcheck", "--kernels", "a:b"])


@pytest.mark.slow
def test_gradcheck_of_the_kernels_in_every_variant(capsys):
    if host.missing():
        pytest.skip(host.missing())
    assert main(["gradcheck", "--kernels"]) == 0
    lines = capsys.readouterr().out.splitlines()
    every = list(nvrtc.variants())
    assert sum(line.startswith("    ") for line in lines) == len(every) and not [x for x in lines if "WRONG" in x]
    assert f"kernels in {len(every)} variants agree with float64" in lines[-1]


def test_gradcheck_of_nothing(capsys):
    assert "MODULE:FUNCTION" in fails(capsys, ["gradcheck"])
    assert "MODULE:FUNCTION" in fails(capsys, ["gradcheck", "nothing"])
    assert "no_such_module" in fails(capsys, ["gradcheck", "no_such_module:f"])
