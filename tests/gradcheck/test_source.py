"""tinydiff/gradcheck/source.py: whose code is whose."""

import ast
import importlib.util
import json
import linecache

import numpy as np

import tinydiff
from tinydiff.gradcheck.source import changed_by, is_users, names_in, raised_at, source_of


def loaded(file, text):
    file.parent.mkdir(parents=True)
    file.write_text(text)
    spec = importlib.util.spec_from_file_location("sheet", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_project_below_a_folder_called_site_packages_is_the_users(tmp_path):
    file = tmp_path / "site-packages" / "sheet.py"
    sheet = loaded(file, "import json\n\n\ndef backward(g, x):\n    return json.loads('{')\n")
    assert is_users(str(file))
    assert not is_users(np.__file__) and not is_users(json.__file__) and not is_users(tinydiff.__file__)
    try:
        sheet.backward(1, 2)
    except ValueError as error:
        assert raised_at(error) == f"{file}:5"


def test_cells_of_a_notebook_are_the_users():
    name, text = "<ipython-input-1-abc>", "def f(x):\n    return x\n"
    assert not is_users(name) and not is_users("<frozen importlib._bootstrap>")
    linecache.cache[name] = (len(text), None, text.splitlines(True), name)
    try:
        assert is_users(name)
    finally:
        del linecache.cache[name]


def test_of_two_lambdas_in_a_line_the_right_one():
    pair = (lambda x: x + 1, lambda x: x + 2)
    assert [ast.unparse(source_of(f).node.body) for f in pair] == ["x + 1", "x + 2"]


def test_what_a_statement_changes():
    def changed(text):
        return changed_by(ast.parse(text).body[0])

    assert changed("a, (b[0], *c) = f(d)") == {"a", "b", "c"}
    assert changed("np.add.at(d, i, g)") == {"d"} and changed("d[i] += g") == {"d"} and changed("print(d)") == set()
    assert list(names_in(ast.parse("x.y").body[0].value)) == []
