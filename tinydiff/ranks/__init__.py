"""Many processes that do one job: `mpiexec -n 4 tinydiff train ...`, or `srun`.

Each process, a rank, computes its share of every batch; the gradients are added up in the order of the ranks, so that all
hold the same weights. MPI carries what they exchange, through the package mpi4py; a process alone never imports it. Gradients on
GPUs are carried and added up by NCCL.

A step is a pure function of the weights and its number, so the number of ranks is no setting of a run: a run may be resumed
with another one.
"""

from tinydiff.ranks.launcher import announced
from tinydiff.ranks.sharing import even_parts, share_out
from tinydiff.ranks.world import World, stay_alone, world

__all__ = ["World", "announced", "even_parts", "share_out", "stay_alone", "world"]
