"""Wrong passes with labels written before the checker was run on them: all are found, most of their lines are named."""

import inspect
from collections import Counter

import pytest
from lines_named import ask
from wrong import WRONG

SOME = WRONG[::12]  # all of them: tests/benchmarks/gradcheck_lines.py


@pytest.fixture(scope="module")
def answers():
    return {wrong.name: ask(wrong, 0) for wrong in SOME}


def test_every_wrong_pass_is_found(answers):
    assert [name for name, answer in answers.items() if answer.line == "passed"] == []


def test_lines_and_kinds_are_named(answers):
    count = Counter(answer.line for answer in answers.values())
    assert count["named"] >= 0.7 * len(SOME), count
    assert sum(answer.said for answer in answers.values()) >= 0.9 * len(SOME)


def test_no_right_line_is_called_wrong(answers):
    assert {name: answer.text for name, answer in answers.items() if answer.line == "accused"} == {}


def test_labels_are_lines_of_their_pass():
    for wrong in WRONG:
        lines = [line.strip() for line in inspect.getsource(wrong.backward).splitlines()]
        assert all(lines.count(label) == 1 for label in (wrong.line, *wrong.alternatives)), wrong.name
