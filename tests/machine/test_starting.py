"""Ctrl-C before main runs: an import that interrupts itself stands in for NumPy."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = "import sys; sys.path.insert(0, {root!r}); from tinydiff.cli import main; sys.exit(main())"


@pytest.mark.skipif(os.name == "nt", reason="there a process cannot send itself SIGINT")
@pytest.mark.parametrize("name", ["-m", "tinydiff", "other"])
def test_imports_that_are_interrupted(tmp_path, name):
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy" / "__init__.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    (tmp_path / name).write_text(SCRIPT.format(root=str(ROOT)))
    command = [sys.executable, *(("-m", "tinydiff") if name == "-m" else (str(tmp_path / name),)), "info", "x"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    start = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}  # the tests may ignore it
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, **start)
    assert done.returncode == -signal.SIGINT
    assert ("KeyboardInterrupt" in done.stderr) == (name == "other") and (name == "other" or not done.stderr)
