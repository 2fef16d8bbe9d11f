"""What is written to terminals that lack characters, and where there is none."""

import io
import subprocess
import sys

import pytest

from tinydiff.machine import terminal


class Ascii(io.StringIO):
    encoding = "ascii"


@pytest.mark.parametrize(
    "path", ["plain/x", "a b", "/tmp/o\x07", "it's \\ \x1b[31m\n", "caf\u00e9", "\udcff\u202e\u2603", '$HOME `x` "!"']
)
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_path_is_quoted_for_a_shell(path, encoding, monkeypatch):
    monkeypatch.setattr(sys, "stdout", type("Stream", (io.StringIO,), {"encoding": encoding})())
    quoted = terminal.quoted(path)
    assert quoted.isprintable() and (encoding == "utf-8" or quoted.isascii())
    said = subprocess.run(["bash", "-c", f"printf %s {quoted}"], capture_output=True, check=True).stdout
    assert said == path.encode(errors="surrogateescape")


def test_pictures_keep_their_columns_where_characters_are_lacking(monkeypatch, capsys):
    terminal.tell("|\u2588\u2592 \u2026|\n\u2603")
    assert capsys.readouterr().out == "|\u2588\u2592 \u2026|\n\u2603\n"
    monkeypatch.setattr(sys, "stdout", Ascii())
    terminal.tell("|\u2588\u2592 \u2026|")
    assert sys.stdout.getvalue() == "|#: ~|\n"


def test_without_stderr_nothing_is_shown(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    terminal.say("x")
    assert list(terminal.bar([1, 2], 2, "x")) == [1, 2] and not terminal.is_terminal()
    monkeypatch.setattr(sys, "stderr", object())
    terminal.say("x")
    assert not terminal.is_terminal()
