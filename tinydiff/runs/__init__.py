"""Training, and what it leaves on the disk.

trainer.py     the training loop                         config.py      every setting, its default and bounds
building.py    settings -> data, network, diffusion      folder.py      the folder of a run
state.py       what training goes on from                resuming.py    with which settings it goes on
results.py     the pictures of a run                     log.py         log.csv
checkpoint.py  saving and loading models                 diffusers.py   diffusers' configurations
lock.py        one process at a time                     limits.py      how large settings may be
tensorfile.py  safetensors files                         sheets.py      sheets of samples
atomic.py      files that are there whole or not at all   interrupts.py  signals that ask a run to stop
pictures.py    PNG and GIF files, the loss curve         progress.py    lines that say how far it is
memory.py      how much memory a step needs              formats.py     the number of the format of saved files
others.py      what others save                          fingerprint.py how a run knows its data again
inputs.py      what a step is computed from              ahead.py       the same, prepared on a GPU
replays.py     steps as replays of a CUDA graph          sums.py        gradients of several passes, added on a GPU
not_finite.py  where a NaN began                      arithmetic.py  the precision of a run, by device
"""

__all__ = ["checkpoint", "pictures"]
