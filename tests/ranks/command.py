"""A command of tinydiff in which something goes wrong: `mpiexec -n N python -m tests.ranks.command FAULT RANK WORDS ...`.

The fault strikes one rank when it draws its first samples; "none" is none, and "slow" strikes all. "seed": the rank is given
another last word.
"""

import os
import signal
import sys
import time

from tinydiff.cli.entry import main
from tinydiff.evaluation import features
from tinydiff.evaluation.subject import Subject
from tinydiff.ranks import announced

DRAW = Subject._draw


def go_wrong(fault, subject):
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "memory":
        raise MemoryError
    if fault == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
    if fault == "nan":
        for p in subject.unet.parameters():
            p.data[...] = float("nan")
    if fault == "slow":
        time.sleep(20)


if __name__ == "__main__":
    fault, rank, *words = sys.argv[1:]
    if fault == "seed" and announced()[0] == int(rank):
        words[-1] += "1"

    def draw(self, *arguments):
        go_wrong(fault if fault == "slow" or announced()[0] == int(rank) else "none", self)
        return DRAW(self, *arguments)

    Subject._draw, features.STEPS = draw, 3
    sys.exit(main(words))
