"""log.csv stops nothing, whatever is in it."""

import os

import pytest

from tinydiff.runs.log import COLUMNS, Log, read_log

HEADER = ",".join(COLUMNS) + "\n"


@pytest.mark.parametrize(
    "middle",
    [
        b"x,1,1,1,1\n",
        b"2,nan,1,1,1\n",
        b"2,1,1\n",
        b"\xff\xfe\x00\n",
        b'2,"1,1\n',
        b"2,1,1,1,1,1\n",
        b"9" * 5000 + b",1,1,1,1\n",
    ],
)
def test_rows_that_are_none_are_left_out_and_kept_aside(tmp_path, middle, capsys):
    path = tmp_path / "log.csv"
    content = HEADER.encode() + b"1,0.5,1,0.1,9.0\n" + middle + b"3,0.25,1,0.1,9.0\n4,0."
    path.write_bytes(content)
    assert [row["step"] for row in read_log(path)] == ["1", "3"]
    log = Log(path)
    log.open(3)
    log.add(4, 0.125, 1, 0.1, 8)
    log.close()
    assert [row["loss"] for row in read_log(path)] == ["0.5", "0.25", "0.125"]
    assert (tmp_path / "log.csv.damaged").read_bytes() == content
    assert "kept as log.csv.damaged" in capsys.readouterr().err


def test_a_row_that_was_cut_short_is_no_damage(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(HEADER + "1,0.5,1,0.1,9.0\n2,0.")
    Log(path).open(1)
    assert path.read_text() == HEADER + "1,0.5,1,0.1,9.0\n" and os.listdir(tmp_path) == ["log.csv"]


def test_what_is_no_file(tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe", "nothing/log.csv"):
        assert read_log(tmp_path / name) == []
        log = Log(tmp_path / name)
        log.open(0)
        log.add(1, 1, 1, 1, 1)
        log.close()
        assert capsys.readouterr().err.count("the run goes on without it") == 1
