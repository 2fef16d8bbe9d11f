"""tinydiff/gradcheck/target.py: MODULE:FUNCTION on the command line."""

import sys

import pytest

from tinydiff.errors import InputError
from tinydiff.gradcheck.target import check_target

HOMEWORK = """
import operator
import numpy as np
import tinydiff as td
from tinydiff import ops

def affine(x, w, b):
    return x @ w + b

def affine_backward(dout, x, w, b):
    return dout @ w.T, x.T @ dout, dout.sum(0)

def wrong_backward(dout, x, w, b):
    return dout @ w.T, x.T @ dout, dout.mean(0)

def cached(x):
    return np.maximum(x, 0), x

def cached_backward(dout, x):
    return dout * (x > 0)

def silu(x):
    return ops.silu(x)

class Cube(td.Function):
    def forward(self, X):
        self.save(X)
        return X ** 3
    def backward(self, L):
        return 3 * self.saved[0] ** 2 * L

def split(x):
    return x[:1], x[1:]

def join(L_1, L_2):
    return np.concatenate([L_1, L_2])

def cached_affine(x, w, b):
    return x @ w + b, (x, w)

def cached_affine_backward(dout, cache):
    x, w = cache
    return dout @ w.T, x.T @ dout, dout.sum(0)

class Layer:
    factor = 2
    def forward(self, x):
        self.y = np.tanh(x)
        return self.factor * self.y
    def backward(self, dout):
        return dout * 2 * (1 - self.y ** 2)

class Sized(Layer):
    def __init__(self, factor):
        self.factor = factor

class Called:
    def __call__(self, x):
        self.x = x
        return x ** 2
    def backward(self, g):
        return 2 * self.x * g

layer, triple = Layer(), Sized(3)

def raises(x):
    raise RuntimeError("from inside")

def raises_as_case():
    raise RuntimeError("from inside")

def case():
    return affine, [np.ones((2, 3)), np.ones((3, 4)), np.ones(4)], {"backward": affine_backward}

def test_of_ones_own():
    td.gradcheck(*case()[:2], backward=wrong_backward)

def no_case():
    return 3

def table(w, i):
    return ops.embedding(i, w)

def picky(x):
    if x.shape != (11, 13):
        raise ValueError("only (11, 13)")
    return x * 2.0

def any_number(*xs):
    return sum(x * x for x in xs)

unsigned = operator.methodcaller("__mul__", 2.0)

number = 3
"""


@pytest.fixture
def homework(tmp_path, monkeypatch):
    (tmp_path / "homework_sheet.py").write_text(HOMEWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "homework_sheet"
    sys.modules.pop("homework_sheet", None)


@pytest.mark.parametrize("module", ["homework_sheet", "homework_sheet.py"])
def test_a_pair_in_a_module_or_a_file(homework, module):
    report = check_target(f"{module}:affine,affine_backward")
    assert report.ok and report.name == "affine,affine_backward"
    assert [v.shape for v in report.verdicts] == [(5, 4), (4, 3), (3,)]


def test_a_wrong_gradient_is_reported_not_raised(homework, tmp_path):
    report = check_target(f"{homework}:affine,wrong_backward", seed=4, png=tmp_path / "e.png")
    assert not report.ok and report.diagnosis == "ratio" and report.seed == 4
    assert (tmp_path / "e.png").exists()


def test_a_backward_pass_beside_the_function_is_pointed_out(homework):
    (note,) = check_target(f"{homework}:affine").notes
    assert note.endswith(f"which {homework} has as well: tinydiff gradcheck {homework}:affine,affine_backward")
    pair = check_target(f"{homework}:affine,affine_backward").notes
    assert not check_target(f"{homework}:silu").notes and not [note for note in pair if "has as well" in note]
    with pytest.raises(
        InputError, match=r"there is no backward pass to check.* homework_sheet:cached,cached_backward$"
    ):
        check_target(f"{homework}:cached")


def test_other_kinds_of_targets(homework):
    assert check_target(f"{homework}:silu").ok
    assert check_target(f"{homework}:Cube").ok
    assert check_target(f"{homework}:case").verdicts[1].shape == (3, 4)
    assert check_target(f"{homework}:cached,cached_backward").ok
    assert check_target(f"{homework}:cached_affine,cached_affine_backward").ok
    assert check_target(f"{homework}:cached_affine,cached_affine_backward", shapes=["5,4", "4,2", "2"]).ok
    assert check_target(f"{homework}:split,join").ok
    assert check_target(f"{homework}:test_of_ones_own").diagnosis == "ratio"
    assert check_target(f"{homework}:Layer").ok and check_target(f"{homework}:layer").ok
    assert check_target(f"{homework}:Called").ok
    assert check_target(f"{homework}:triple").diagnosis == "ratio"
    assert check_target(f"{homework}:layer.forward,layer.backward").ok
    assert check_target("tinydiff.ops:conv2d", shapes=["2,5,6,3", "3x3x3x2"]).ok
    assert check_target("tinydiff.ops:linear").ok
    assert len(check_target(f"{homework}:any_number").verdicts) == 1
    assert len(check_target(f"{homework}:unsigned").verdicts) == 1
    assert check_target(f"{homework}:table", shapes=["4,3", "5 int"]).verdicts[0].shape == (4, 3)
    assert check_target("tinydiff.ops:exp", shapes=["scalar"]).verdicts[0].shape == ()


@pytest.mark.parametrize(
    "target, options, sentence",
    [
        ("silu", {}, "must be MODULE:FUNCTION"),
        ("no_such_module_at_all:f", {}, "cannot import no_such_module_at_all"),
        ("nothing.py:f", {}, "no file nothing.py"),
        ("homework_sheet:sillu", {}, "has no function 'sillu'; it has .*silu"),
        ("homework_sheet:number", {}, "has no function 'number'"),
        ("homework_sheet:affine,affine_backward,silu", {}, "names 3 functions"),
        ("homework_sheet:no_case", {}, "must return"),
        (
            "homework_sheet:picky",
            {},
            r"with \(4, 5\), ValueError: only \(11, 13\) \(homework_sheet.py:\d+\). Give a shape for each of its 1 arguments "
            r"\(x\), such as shapes=.4,3., or for integers like labels shapes=.4 int.",
        ),
        ("homework_sheet:picky", {"shapes": ["2,2"]}, r"does not take inputs of shapes \(2, 2\)"),
        ("homework_sheet:silu", {"shapes": ["2,a"]}, "must be like 4,3"),
        ("homework_sheet:silu", {"shapes": ["x"]}, "must be like 4,3"),
        ("homework_sheet:silu", {"seed": -1}, "seed must be an integer of at least 0, not -1"),
        ("homework_sheet:silu", {"png": "/no/folder/e.png"}, "png: there is no folder /no/folder"),
        ("homework_sheet:Sized", {}, "Sized cannot be made without arguments .*: name an object of this class"),
        (
            "homework_sheet:raises",
            {"shapes": ["3"]},
            r"raises raised RuntimeError: from inside \(homework_sheet.py:\d+\)",
        ),
        ("homework_sheet:raises_as_case", {}, r"raised RuntimeError: from inside \(homework_sheet.py:\d+\)"),
        ("homework_sheet:silu", {"shapes": ["2", "3"]}, "was given 2 inputs"),
    ],
)
def test_what_is_wrong_is_said(homework, target, options, sentence):
    with pytest.raises(InputError, match=sentence):
        check_target(target, **options)
