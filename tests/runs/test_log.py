"""log.csv stops nothing, whatever is in it."""

import os
import time

import pytest

from tinydiff.runs.folder import RunFolder
from tinydiff.runs.log import COLUMNS, HOLDOUT, RANKS, Log, read_log

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


def test_an_old_log_gets_the_new_column_and_keeps_it(tmp_path):
    """Written without held-out losses, resumed with them, resumed without."""
    path = tmp_path / "log.csv"
    path.write_text(HEADER + "1,0.5,1,0.1,9.0\n2,0.4,1,0.1,9.0\n")
    log = Log(path, (*COLUMNS, HOLDOUT))
    log.open(1)
    log.add(2, 0.25, 1, 0.1, 8, holdout_loss=0.75)
    log.add(3, 0.25, 1, 0.1, 8, holdout_loss=float("nan"))
    log.close()
    log = Log(path)
    log.open(3)
    log.add(4, 0.125, 1, 0.1, 8)
    log.close()
    assert path.read_text() == (
        "step,loss,grad_norm,lr,images_per_second,holdout_loss\n"
        "1,0.5,1,0.1,9.0,\n2,0.25,1,0.1,8.0,0.75\n3,0.25,1,0.1,8.0,\n4,0.125,1,0.1,8.0,\n"
    )
    assert [row.get(HOLDOUT) for row in read_log(path)] == [None, "0.75", None, None]


def test_a_log_says_how_many_ranks_there_were_once_there_were_several(tmp_path):
    """Written by one process, by two ranks with held-out losses, by one process again."""
    folder = RunFolder(tmp_path)
    for step, ranks, held in ((1, 1, None), (2, 2, 0.75), (3, 1, None)):
        folder.open_log(step - 1, holdout=held is not None, ranks=ranks)
        folder.log(step, 0.5, 1, 0.1, 8, held)
        folder.close()
        if step == 1:
            assert folder.log_file.read_text() == HEADER + "1,0.5,1,0.1,8.0\n"
    assert folder.log_file.read_text() == (
        "step,loss,grad_norm,lr,images_per_second,ranks,holdout_loss\n"
        "1,0.5,1,0.1,8.0,,\n2,0.5,1,0.1,8.0,2,0.75\n3,0.5,1,0.1,8.0,1,\n"
    )
    rows = read_log(folder.log_file)
    assert [row.get(RANKS) for row in rows] == [None, "2", "1"] and [row.get(HOLDOUT) for row in rows][1] == "0.75"
    assert not (tmp_path / "log.csv.damaged").exists()


def test_a_log_can_be_read_while_it_is_written(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    log = Log(tmp_path / "log.csv")
    log.open(0)
    log.add(1, 0.5, 1, 0.1, 8)
    assert read_log(log.path) == []
    now[0] = 5.0
    log.add(2, 0.5, 1, 0.1, 8)
    assert len(read_log(log.path)) == 2
    with open(log.path, "a") as file:
        file.write("3,0.5,1,0.1,8")  # the rest of this row is on its way
    assert len(read_log(log.path)) == 2
    log.close()
