"""A tiny run on the stand-in for CuPy, a GPU for each rank: `mpiexec -n N python -m tests.ranks.gpus OUT BATCH ACCUMULATE FAULT`.

FAULT: "none"; "no nccl", which is missing; "one gpu" for all ranks; "no gpu" on rank 1; "nan" on rank 1 at step 4; "cut", where
NCCL cannot be captured.
"""

import os
import sys

import pytest

from tests import cupy_stand_in
from tests.cupy_stand_in import nccl
from tests.cupy_stand_in.signatures import COUNTS
from tests.runs.test_replays import trainer
from tinydiff import backend
from tinydiff.cuda import clock
from tinydiff.errors import InputError, RunFailed
from tinydiff.ranks import world
from tinydiff.runs import memory
from tinydiff.runs import trainer as training


def main(out, batch_size, accumulate, fault):
    rank = world().rank
    clock.MOST_AHEAD = training.READ_EVERY = 3
    training.Trainer._finish = lambda self: None
    training.compile_for, memory.require_gpu = lambda *_: 0, lambda *_: None
    training.Trainer.memory_of_step = lambda self: memory.Estimate(0, 0, 0, 0, 0)
    nccl.CAPTURABLE[0] = fault != "cut"
    if fault == "no nccl":
        sys.modules["cupy.cuda.nccl"].available = False
    if fault == "one gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = "0"
    if fault == "no gpu" and rank == 1:
        training.resolve_device = lambda device: "cpu"
    steps, settings = 7, {"save_every": 3}
    one = trainer(out, batch_size=int(batch_size), accumulate=int(accumulate), steps=steps, **settings)
    if fault == "nan" and rank == 1:
        steps = one.train_steps

        def broken(numbers, *rest):
            if numbers.start == 4:
                one.parameters[3].data[...] = float("nan")
            return steps(numbers, *rest)

        one.train_steps = broken
    one.run()
    if rank == 0:
        print(f"{COUNTS['launches of graphs']} replays, {COUNTS['launches of NCCL']} launches of NCCL", flush=True)


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch, cupy_stand_in.put_in_place(patch):
        try:
            assert backend.resolve_device("cuda") == "cuda"
            main(*sys.argv[1:])
        except (InputError, RunFailed) as error:
            if world().rank == 0:
                print(error, file=sys.stderr)
            sys.exit(2 if isinstance(error, InputError) else 1)
