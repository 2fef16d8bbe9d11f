"""What the program that started this process says of it. `mpiexec` and `srun` tell each process its rank, and how many there
are, in environment variables."""

from __future__ import annotations

import json
import os

TEAM = "_TINYDIFF_TEAM"  # what a process of a team is told by the one that started it (`team.start`)
# (rank, number of ranks): Open MPI, MPICH and what descends from it, MVAPICH, and a step of Slurm
_VARIABLES = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)


def choose_gpu(local_rank: int, local_size: int) -> None:
    """Leaves each rank of a machine the GPU of its number, before CUDA looks for GPUs. Where CUDA_VISIBLE_DEVICES names fewer
    than there are ranks, as when the launcher has chosen one for each, it stays as it is."""
    if local_size == 1:
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(local_rank)
    elif len(names := [name for name in visible.split(",") if name]) >= local_size:
        os.environ["CUDA_VISIBLE_DEVICES"] = names[local_rank]


def announced() -> tuple[int, int]:
    """(rank, number of ranks) as the launcher says; (0, 1) without one, and where TINYDIFF_RANKS is 0: then each process is
    for itself. A process that `tinydiff` itself has started is told so by that one."""
    if of_team():
        rank, size, *_ = json.loads(os.environ[TEAM])
        return rank, size
    if os.environ.get("TINYDIFF_RANKS") == "0":
        return 0, 1
    for rank, size in _VARIABLES:
        found = os.environ.get(rank, ""), os.environ.get(size, "")
        if all(text.isascii() and text.isdecimal() for text in found) and int(found[0]) < int(found[1]):
            return int(found[0]), int(found[1])
    return 0, 1


def of_team() -> bool:
    """Whether another process of tinydiff on this machine has started this one, to share its work."""
    return TEAM in os.environ
