"""Many processes that do one job: `mpiexec -n 4 tinydiff train ...`, or `srun`.

Each process, a rank, computes its share of every batch; the gradients are added up in the order of the ranks, so that all
hold the same weights. MPI carries what they exchange, through the package mpi4py, which a process alone never imports. Gradients
on GPUs are carried and added up by NCCL. On the processors of one machine `tinydiff train` starts a team by itself.

A step is a pure function of the weights and its number, so the number of ranks is no setting of a run: a run may be resumed
with another one.
"""

from tinydiff.ranks.current import start_team, stay_alone, team_ended, world
from tinydiff.ranks.launcher import announced
from tinydiff.ranks.sharing import even_parts, share_out
from tinydiff.ranks.world import World

__all__ = ["World", "announced", "even_parts", "share_out", "start_team", "stay_alone", "team_ended", "world"]
