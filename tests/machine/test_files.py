"""Files that anybody may have written."""

import os

import pytest

from tinydiff.errors import InputError, RunFailed, at_work, before_work, shown
from tinydiff.machine import files


@pytest.mark.parametrize("read", [files.read_bytes, files.read_json, files.check_regular])
def test_only_regular_files_are_read(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    for path, reason in (
        (tmp_path / "pipe", "it is a pipe or a device"), (tmp_path, "it is a folder"), (tmp_path / "no", "No such file"),
        (tmp_path / ("x" * 300), "File name too long"), (f"{tmp_path}/a\0b", "its name holds a zero byte"),
        ("/dev/zero", "a pipe or a device"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"cannot be read: {reason}|cannot be read: .*{reason}"):
            read(path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[" * 100_000, "nested too deeply"), ('{"a":' * 40 + "1" + "}" * 40, "nested too deeply"), ("[]", "a JSON object"),
        ('{"a": ' + "9" * 5000 + "}", "is not a JSON file"), ("\ufeff{}", "is not a JSON file"), ("", "is not a JSON file"),
    ],
    ids=["deep list", "deep object", "list", "digits", "mark", "empty"],
)  # fmt: skip
def test_json_that_is_not_meant_well(tmp_path, text, sentence):
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=sentence):
        files.read_json(tmp_path / "x.json")


def test_too_large_and_odd_numbers(tmp_path):
    (tmp_path / "x.json").write_bytes(b" " * 17_000_000)
    with pytest.raises(InputError, match="has 17,000,000 bytes, and such a file has at most"):
        files.read_json(tmp_path / "x.json")
    for value in (float("nan"), float("inf"), -float("inf"), 10**400, -(2**64)):
        with pytest.raises(InputError, match="numbers must be finite"):
            files.check_numbers({"a": [1, {"b": value}]}, "x")
    files.check_numbers({"a": [1, 2**64, -1.5, True, None, "x"]}, "x")


def test_text_for_the_terminal():
    assert shown("a\x1b[31m\x07\u202eb\udcff\nc\u00e9") == "a\\x1b[31m\\x07\\u202eb\\xff c\u00e9"
    assert len(str(InputError("x" * 5000))) == 300 and str(InputError("x" * 300)) == "x" * 300
    assert str(InputError("start " + "x" * 5000 + " end")).startswith("start x") and "... x" in str(
        RunFailed("x" * 999)
    )


def test_what_the_disk_does_before_and_at_work():
    for error in (OSError(28, "full", "a"), RunFailed("a: full")):
        with pytest.raises(InputError, match=r"^a: full$"), before_work():
            raise error
    for error in (OSError(28, "full", "a"), InputError("a: full")):
        with pytest.raises(RunFailed, match=r"^a: full$"), at_work():
            raise error
