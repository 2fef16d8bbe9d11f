"""A wheel, built without the network and installed elsewhere: it holds the kernels' sources, and trains and samples."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TINY = [
    "--image-size", "8", "--channels", "8", "--mults", "1", "--groups", "4", "--timesteps", "4", "--batch-size", "2",
    "--threads", "1", "--device", "cpu",
]  # fmt: skip


def run(*command, cwd, **environment):
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with a copy of what is shipped, and the wheel and the source distribution that were built from it."""
    pytest.importorskip("setuptools", "70.1", reason="needs setuptools 70.1, part of the extra `test`")
    place = tmp_path_factory.mktemp("built")
    for folder in ("tinydiff", "kernels"):
        shutil.copytree(ROOT / folder, place / "copy" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, place / "copy")
    code = "from setuptools import build_meta; build_meta.build_wheel('..'); build_meta.build_sdist('..')"
    run(sys.executable, "-c", code, cwd=place / "copy")
    return place


@pytest.fixture(scope="module")
def installed(built):
    """The folder that pip installed the wheel into."""
    pytest.importorskip("pip")
    (wheel,), target = built.glob("*.whl"), built / "installed"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--no-index"]
    run(*pip, "--target", str(target), str(wheel), cwd=built)
    return target


def test_both_hold_the_kernels_sources(built, installed):
    (sdist,) = built.glob("*.tar.gz")
    shutil.unpack_archive(sdist, built / "sdist")
    (unpacked,) = (built / "sdist").iterdir()
    files = {p.relative_to(ROOT / "kernels") for p in (ROOT / "kernels").rglob("*") if p.is_file()}
    files = {p for p in files if "__pycache__" not in p.parts}
    for place in (unpacked / "kernels", installed / "tinydiff" / "kernels_src"):
        found = {p.relative_to(place) for p in place.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
        assert found == files
    assert not (installed / "kernels").exists()
    for file in ("study/page.js", "study/keys.js", "study/page.css", "cuda/occupancy.json"):
        assert (installed / "tinydiff" / file).read_bytes() == (ROOT / "tinydiff" / file).read_bytes()
    code = "from tinydiff.cuda import source; print(source.folder()); print(len(source.load('tinydiff.cuh')) > 1000)"
    for place, folder in ((installed, installed / "tinydiff/kernels_src"), (built / "copy", built / "copy/kernels")):
        assert run(sys.executable, "-c", code, cwd=place).split() == [str(folder), "True"]


def test_the_extras_bring_the_libraries_of_cuda(installed):
    """CuPy's wheels bring none unless asked for its toolkit."""
    (metadata,) = installed.glob("*.dist-info/METADATA")
    for version in (12, 13):
        needed = f'Requires-Dist: cupy-cuda{version}x[ctk]>=14; extra == "cuda{version}"'
        assert needed in metadata.read_text(encoding="utf-8")


@pytest.mark.slow
def test_an_installed_wheel_trains_and_samples(installed, tmp_path):
    def python(*words):
        return run(sys.executable, *words, cwd=tmp_path, PYTHONPATH=str(installed))

    assert python("-c", "import tinydiff; print(tinydiff.__file__)").strip() == str(installed / "tinydiff/__init__.py")
    python("-m", "tinydiff", "train", "--data", "glyphs", "--out", "run", "--steps", "2", "--preview-every", "0", *TINY)
    assert len((tmp_path / "run/log.csv").read_text().splitlines()) == 3 and (tmp_path / "run/samples.png").exists()
    python("-m", "tinydiff", "sample", "run", "--n", "1", "--steps", "2", "--out", "one.png")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    if os.name == "posix":
        assert python(str(installed / "bin/tinydiff"), "--version").startswith("tinydiff ")
