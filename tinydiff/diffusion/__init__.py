"""Diffusion: noise schedule, process and reverse process, training loss and bound, sampling and its uses."""

from tinydiff.diffusion import gaussian
from tinydiff.diffusion.bound import Bound
from tinydiff.diffusion.diffusion import Diffusion
from tinydiff.diffusion.editing import ddim_invert, inpaint, interpolate, slerp
from tinydiff.diffusion.sampler import Step, sample, sample_steps
from tinydiff.diffusion.schedule import Schedule

__all__ = [
    "Bound",
    "Diffusion",
    "Schedule",
    "Step",
    "ddim_invert",
    "gaussian",
    "inpaint",
    "interpolate",
    "sample",
    "sample_steps",
    "slerp",
]
