"""README's script for Slurm, with a stand-in for srun: MPICH's mpiexec, and the variables that Slurm sets."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tinydiff.runs.log import read_log

pytestmark = [pytest.mark.mpi, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
VARIABLES = (
    "export SLURM_PROCID={rank} SLURM_LOCALID={rank} SLURM_NODEID=0 SLURM_NTASKS=2 SLURM_NPROCS=2 SLURM_STEP_NUM_TASKS=2 "
    'SLURM_STEP_ID=0 SLURM_CPUS_PER_TASK=8 SLURM_STEP_TASKS_PER_NODE=2; exec "$@"'
)
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do echo "$1" >>"$FLAGS"; shift; done
exec {launcher} bash -c '{variables}' srun "$@"
"""
SMALL = "--image-size 8 --channels 8 --mults 1 --blocks 1 --timesteps 10 --steps 2 --preview-every 0 --device cpu"


@pytest.fixture
def script(tmp_path, monkeypatch):
    """README's script as a file, for a tiny run in a temporary folder. srun and tinydiff are those of the tests."""
    (text,) = re.findall(r"```\n(#!/bin/bash\n#SBATCH.*?)```", (ROOT / "README.md").read_text(), re.S)
    text = text.replace("/shared/pictures", "glyphs").replace("/shared", str(tmp_path)).replace("512", "4")
    assert text.startswith("#!/bin/bash\n#SBATCH --nodes=2")
    (tmp_path / "bin").mkdir()
    tinydiff = f'#!/bin/bash\ncd {ROOT} && exec {sys.executable} -m tinydiff "$@" {SMALL}\n'
    for name, content in (("job", text), ("bin/tinydiff", tinydiff)):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FLAGS", str(tmp_path / "flags"))
    return tmp_path / "job"


def run(script, launcher, rank):
    srun = script.parent / "bin/srun"
    srun.write_text(SRUN.format(launcher=launcher, variables=VARIABLES.format(rank=rank)))
    srun.chmod(0o755)
    return subprocess.run(["bash", str(script)], capture_output=True, text=True, timeout=200)


def test_the_script_trains_on_all_ranks(script):
    done = run(script, "mpiexec -n 2", "$PMI_RANK")
    assert done.returncode == 0, done.stderr
    rows = read_log(script.parent / "runs/first/log.csv")
    assert [row["ranks"] for row in rows] == ["2", "2"]
    flags = (script.parent / "flags").read_text().splitlines()
    assert set(flags) == {"--mpi=pmi2", "--kill-on-bad-exit=1"}


def test_an_srun_that_knows_no_mpi_is_told(script):
    done = run(script, "env -u PMI_RANK -u PMI_SIZE", "0")
    assert done.returncode == 2
    assert "the launcher has started 2 processes, and mpi4py finds 1" in done.stderr
    assert not (script.parent / "runs/first").exists()
