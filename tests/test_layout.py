"""The house: imports point only downwards, rooms stay small, nothing strays into the top level."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_imports_point_only_downwards():
    pytest.importorskip("importlinter", reason="needs import-linter, part of the extra `test`")
    code = "from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kept, 0 broken" in done.stdout


def imports():
    """{module: the modules of the package that it imports}, imports inside functions and for type checkers included."""
    modules = {}
    for file in (ROOT / "tinydiff").rglob("*.py"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(
            file.read_text(encoding="utf-8")
        )
    found = {}
    for module, tree in modules.items():
        names = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{module} has a relative import"
                full = {f"{node.module}.{alias.name}" for alias in node.names}
                names |= {name if name in modules else node.module for name in full}
        found[module] = names & set(modules) - {module}
    return found


def circle(arrows):
    """A list of nodes each of which has an arrow to the next, and the last to the first; empty if there is none."""
    done, path = set(), []

    def walk(node):
        if node in path:
            return path[path.index(node) :]
        if node in done:
            return []
        done.add(node)
        path.append(node)
        for other in sorted(arrows[node]):
            if found := walk(other):
                return found
        path.pop()
        return []

    return next((found for node in sorted(arrows) if (found := walk(node))), [])


def test_files_import_each_other_in_no_circle():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert not (found := circle(imports())), " -> ".join(found)


def test_files_hold_one_thing():
    long = {}
    for folder in ("tinydiff", "examples", "kernels"):
        for file in (ROOT / folder).rglob("*.*"):
            if file.suffix not in (".py", ".cu", ".cuh", ".h", ".cpp"):
                continue
            lines = file.read_text(encoding="utf-8").count("\n")
            if lines > 400:
                long[str(file.relative_to(ROOT))] = lines
    assert not long, f"files that may hold two things: {long}"


def test_arrays_are_not_forced_to_numpy_in_operations():
    """Operations take arrays of either module: NumPy's name may stand for dtypes, constants and shapes, not for arithmetic
    on arrays."""
    allowed = {
        "integer", "generic", "float32", "float64", "pi", "ndarray", "errstate", "broadcast_shapes", "shape", "cumsum",
        "arange", "asarray", "pad", "prod", "dtype", "result_type", "isfinite",
    }  # fmt: skip
    for file in [*(ROOT / "tinydiff/ops").glob("*.py"), *(ROOT / "tinydiff/unet").glob("*.py")]:
        used = set(re.findall(r"\bnp\.(\w+)", file.read_text(encoding="utf-8")))
        assert used <= allowed, f"{file.name} uses NumPy directly for {sorted(used - allowed)}"
