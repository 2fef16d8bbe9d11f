"""tinydiff/exercises: every model solution is right, and typical mistakes are refused."""

import pytest

from tinydiff.errors import InputError
from tinydiff.exercises import PUZZLES, grade, puzzle, task, tasks
from tinydiff.gradcheck import diagnosis

NAMES = [t.name for t in tasks()]

# What learners write in the place of a piece of the model solution.
WRONG = {
    "chain_rule": [
        ("L_y * 2 * v", "L_y * v"), ("np.cos(u)", "np.sin(u)"), ("L_b = L_u * a", "L_b = L_u * b"),
    ],
    "fully_connected": [
        ("X.T @ L_Y", "X.T @ L_Y / len(X)"), ("L_Y @ W.T", "np.ones_like(L_Y) @ W.T"),
        (".sum(axis=0)", ".sum(axis=0, keepdims=True)"),
    ],
    "broadcasting": [
        ("(s + 2 * c * X)", "(s + c * X)"), ("(L_Y * X).sum(axis=0)", "(L_Y * X).mean(axis=0)"), (", keepdims=True", ""),
    ],
    "relu": [
        ("s * L_y)", "0 * L_y)"), ("(positive, 0, L_y * x).sum()", "(positive, 0, L_y * x).mean()"),
        ("np.where(positive, 0, L_y * x)", "L_y * x"),
    ],
    "embedding": [
        ("np.add.at(L_W, i, L_y)", "L_W[i] = L_y"), ("np.zeros_like(W)", "np.ones_like(W)"),
        ("np.add.at(L_W, i, L_y)", "np.add.at(L_W, i, L_y / len(i))"),
    ],
    "softmax_cross_entropy": [
        ("L * P / len(X)", "L * P"), ("L * P / len(X)", "P / len(X)"), ("labels] -= 1", "labels] += 1"),
    ],
    "layer_norm": [
        ("L_Z - L_Z.mean(axis=1, keepdims=True) - ", "L_Z - "), ("L_Z = L_Y * w", "L_Z = L_Y"),
        ("dims=True)) / s", "dims=True)) * s"),
    ],
    "batch_norm": [
        ("L_Z = L_Y * w", "L_Z = L_Y / w"), (" - Z * (L_Z * Z).mean(axis=0)", ""),
        ("L_Z.mean(axis=0)", "L_Z.mean(axis=1, keepdims=True)"),
    ],
    "max_pool": [
        ("L_Y * (", "L_Y / 4 * ("), ("(X[:, i::2, j::2] == Y)", "1"), ("== Y)", "== Y.max(axis=3, keepdims=True))"),
    ],
    "convolution": [
        ("W[r, s].T", "W[R - 1 - r, S - 1 - s].T"), ("axis=(0, 1, 2)", "axis=(0, 1)"), ("L_W[r, s] =", "L_W[r, s] = L_W[0, 0] +"),
    ],
    "attention": [
        ("L_K = L_S.T @ Q * scale", "L_K = L_S.T @ Q"), ("P * (L_P - (P * L_P).sum(axis=1, keepdims=True))", "P * L_P"),
        ("L_V = P.T @ L_Y", "L_V = (Q @ K.T).T @ L_Y"),
    ],
    "recurrent": [
        ("L_W += X", "L_W = X"), ("(1 - H[t] ** 2)", "(1 - H[t]) ** 2"), ("return L_X, L_h,", "return L_X, L_H[0],"),
    ],
    "reparameterisation": [
        ("L_z + L_kl * m", "L_z"), ("np.exp(v / 2) / 2", "np.exp(v / 2)"), ("L_m = L_z", "L_m = L_z * e"),
    ],
    "diffusion_loss": [
        ("L * 2 * (p - e) / p.size", "L * 2 * (p - e)"), ("L_W = x_t.T", "L_W = x0.T"), ("(p - e)", "(e - p)"),
    ],
}  # fmt: skip


@pytest.fixture
def checked(tmp_path):
    """A function that grades a text as the file of an exercise, with all help from the first attempt on."""

    def check(t, text, help_after=1):
        path = tmp_path / f"{t.name}.py"
        path.write_text(text, encoding="utf-8")
        return grade(t, path, t.hints, help_after)

    return check


def changed(text, right, wrong):
    _, _, body = text.partition("def backward")
    assert body.count(right) == 1, f"{right} occurs {body.count(right)} times"
    return text.replace("def backward" + body, "def backward" + body.replace(right, wrong))


def filled(t):
    """The learner's file with the model solution in it."""
    text = t.file()
    stub = text[text.index("def backward") : text.index("\n\n\ndef test_backward")]
    return text.replace(stub, t.solution())


@pytest.fixture
def unexplained(monkeypatch):
    """Gradient checks that do not look for the line that is wrong, which takes a second or so."""
    monkeypatch.setattr(diagnosis, "explain", lambda check: None)


@pytest.mark.usefixtures("unexplained")
@pytest.mark.parametrize("name", NAMES)
def test_model_solutions_and_mistakes(name, checked):
    t = task(name)
    empty = checked(t, t.file())
    assert not empty.ok and empty.text.startswith("backward is to be written: fill in its body")
    text = filled(t)
    for right, wrong in WRONG[name]:
        result = checked(t, changed(text, right, wrong))
        assert not result.ok, (right, wrong)
    assert any(f": {hint}" in result.text for hint in t.hints)
    result = checked(t, text)
    assert result.ok, result.text
    assert result.text.startswith("right, at attempt 4. Checked were L_")


def test_every_exercise_has_three_mistakes_and_three_hints():
    assert len(NAMES) >= 12 and WRONG.keys() == set(NAMES)
    assert all(len(wrong) == 3 for wrong in WRONG.values()) and all(len(t.hints) == 3 for t in tasks())


@pytest.mark.usefixtures("unexplained")
@pytest.mark.parametrize("number", range(1, len(PUZZLES) + 1))
def test_puzzles(number, checked):
    p = puzzle(str(number))
    text = p.file()
    assert p.task.solution().count(p.right) == 1 and p.right not in text.partition("def backward")[2]
    assert not checked(p.task, text).ok
    mended = changed(text, p.wrong, p.right)
    assert checked(p.task, mended).ok
    others = [pair for pair in WRONG[p.name] if pair[0] in mended.partition("def backward")[2]]
    assert len(others) == 3
    for right, wrong in others:
        assert not checked(p.task, changed(mended, right, wrong)).ok


def test_puzzles_tell_more_with_each_attempt(checked):
    p = puzzle("8")
    texts = [checked(p.task, p.file(), help_after=4).text for _ in range(4)]
    assert texts[0] == "L_X is wrong; right: L_w, L_b. The next attempt tells more."
    assert "It looks like: what reaches the output through X.mean(axis=0)" in texts[1] and "Hint" not in texts[1]
    assert (
        "The line: " in texts[2]
        and "batch_norm.py:" in texts[2]
        and "Hint 2 of 3" in texts[2]
        and "this line is wrong" not in texts[2]
    )
    assert "this line is wrong" in texts[3]


def test_a_hint_speaks_of_what_is_wrong_and_the_right_line_comes_late(checked):
    t = task("convolution")
    assert "Hint 1 of 3" in checked(t, changed(filled(t), "axis=(0, 1, 2)", "axis=(0, 1)")).text  # L_b
    wrong = changed(filled(t), "] += L_Y @", "] = L_Y @")  # L_X: neither the hint of L_b nor that of L_W
    for attempt in (2, 3, 4):
        text = checked(t, wrong).text
        assert "L_X[:, r:r + H, s:s + V] = L_Y @ W[r, s].T\n      this line is wrong" in text
        assert "Hint 3 of 3" in text and "probes" not in text and "tolerance: " not in text
        assert ("all gradients are right with" in text) == (attempt > 2)
        assert ("solution=True prints" in text) == (attempt > 3)


def test_hints_leave_out_what_is_right(checked):
    chain = task("chain_rule")
    one_way = checked(
        chain, changed(filled(chain), "L_u * b + L_y", "L_u * b")
    ).text  # neither the hint of L_v nor that of L_u
    assert (
        "L_v, L_u before it are right" in one_way
        and "Hint 3 of 3" in one_way
        and "differences with step" not in one_way
    )
    unweighted = checked(chain, changed(filled(chain), "L_y * 2 * v", "2 * v")).text
    assert "does not multiply by L_y, the gradient that comes in" in unweighted and "L_Y" not in unweighted


@pytest.mark.usefixtures("unexplained")
@pytest.mark.parametrize(
    "name, right, wrong, hints",
    [
        ("convolution", "axis=(0, 1, 2)", "axis=0", (1, 1)),  # of a wrong shape: the others are not looked at
        ("fully_connected", "X.T @ L_Y", "2 * X.T @ L_Y", (2, 2)),
        ("broadcasting", ", keepdims=True", "", (1, 3)),
        ("relu", "L_y * x).sum()", "L_y * x)", (2, 3)),
    ],
)
def test_hints_are_of_the_gradient_that_is_wrong(name, right, wrong, hints, checked):
    t = task(name)
    for number in hints:
        assert f"Hint {number} of 3" in checked(t, changed(filled(t), right, wrong)).text


def test_code_that_raises_is_no_attempt(checked, tmp_path):
    t = task("chain_rule")
    for right, wrong, error in [
        ("L_v * np.cos(u)", "L_V * np.cos(u)", "NameError: name 'L_V' is not defined"),
        ("L_u = L_v", "L_u = L_v[:, None] @ L_v[:, None]", "ValueError: matmul"),
    ]:
        text = checked(t, changed(filled(t), right, wrong)).text
        assert (
            text.startswith(f"backward raised {error}") and "\nThis is not counted as an attempt. For a hint," in text
        )
        assert "chain_rule.py:35: L_u = " in text and "Hint" not in text
        assert "\n  there: " in text and " (5,)\n" in text
    assert "first attempt" in checked(t, filled(t)).text
    with pytest.raises(InputError, match="backward returned None, not the gradients of a, b: is its return missing"):
        checked(t, filled(t).replace("return L_a, L_b", "L_a, L_b"))


def test_files_hold_nothing_of_the_solution():
    for t in tasks():
        head, _, body = t.file().partition("def backward")
        assert head.count('"""\n\nimport numpy as np\n\nimport tinydiff as td\n\n\n') == 1
        assert "HINTS" not in head and "WRITE" not in head and head.startswith(f'"""Exercise {t.number}: {t.title}')
        assert not any(line in body for line in t.solution().split("\n")[1:] if line.strip())


@pytest.mark.parametrize("name", ["diffusion_loss", "fully_connected"])
def test_a_learners_file_is_a_test(name):
    t = task(name)
    for text, error in ((filled(t), None), (t.file(), AssertionError)):
        space = {"__name__": "learner"}
        exec(compile(text, "learner.py", "exec"), space)
        if error is None:
            space["test_backward"]()
        else:
            with pytest.raises(error):
                space["test_backward"]()


def test_names():
    assert task("10").name == task("conv").name == task("Convolution").name == "convolution"
    for name, message in {
        "re": "'re' can be relu or recurrent or reparameterisation",
        "atention": "there is no exercise 'atention'; is attention meant?",
        "99": "there is no exercise '99'; tinydiff exercise lists them",
    }.items():
        with pytest.raises(InputError, match=message):
            task(name)
    for number in ("0", "17", "-1", "one", "9" * 5000, "²"):
        with pytest.raises(InputError, match="they are numbered 1 to"):
            puzzle(number)


def test_files_that_cannot_be_graded(tmp_path):
    t = task("relu")
    for name, text, message in [
        ("a.txt", "", "is not a Python file"),
        ("b.py", "x = 1\n", "has no function backward"),
        ("c.py", "def backward(:\n", "cannot import"),
        ("d.py", "backward = 3\n", "has no function backward"),
    ]:
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=message):
            grade(t, tmp_path / name, t.hints, 1)
    with pytest.raises(InputError, match="there is no file"):
        grade(t, tmp_path / "none.py", t.hints, 1)


def test_attempts_are_kept_beside_the_file_and_nonsense_there_does_no_harm(checked, tmp_path):
    t = task("relu")
    for before, after in (("nonsense", "attempt"), ("-5", "first"), ("7", "attempt 8")):
        (tmp_path / "relu.attempts").write_text(before, encoding="ascii")
        assert after in checked(t, filled(t)).text
    (tmp_path / "relu.attempts").unlink()
    (tmp_path / "relu.attempts").mkdir()
    assert "first attempt" in checked(t, filled(t)).text
