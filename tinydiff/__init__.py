"""tinydiff: automatic differentiation by hand on NumPy and CuPy, and small diffusion models on top of it.

    import tinydiff as td

    td.Tensor, td.Function, td.ops, td.no_grad, td.recompute      automatic differentiation
    td.nn, td.optim, td.UNet                                      networks and optimisers
    td.diffusion, td.data, td.Trainer, td.TrainConfig, td.load    diffusion models
    td.images, td.checkpoint                                      pictures and saved models, see `tinydiff.runs`
    td.gradcheck                                                  is a gradient right?
    td.check_finite, td.Profile                                   where the first NaN comes from; where the time goes
    td.numerical_gradient, td.numerical_jacobian, td.jacobian     derivatives as arrays
    td.trace                                                      see a backward pass: every operation, gradient, cost
    td.cuda.graph                                                 a step of your own loop as one CUDA graph
    td.by_definition                                              compute everything by the formulas in `tinydiff.ops`
    td.set_threads                                                how many CPU threads operations spread over
    td.random, td.backend, td.errors                              random numbers, NumPy or CuPy, what is raised

`python -m pdoc tinydiff` shows these pages in a browser (extra `docs`).
"""

from __future__ import annotations

from tinydiff.machine import starting  # noqa: F401  # first, see there

# isort: split
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tinydiff import backend, errors, nn, ops, optim, random
from tinydiff.autograd.function import Function
from tinydiff.autograd.profile import Profile
from tinydiff.autograd.recompute import recompute
from tinydiff.autograd.tape import check_finite, no_grad
from tinydiff.autograd.tensor import Tensor, from_dlpack
from tinydiff.dispatch import by_definition
from tinydiff.gradcheck import GradientError, gradcheck
from tinydiff.machine.threads import set_threads
from tinydiff.version import __version__

if TYPE_CHECKING:
    from tinydiff import cuda, data, diffusion, runs
    from tinydiff.gradcheck.tools import jacobian, numerical_gradient, numerical_jacobian
    from tinydiff.runs import checkpoint
    from tinydiff.runs.checkpoint import load
    from tinydiff.runs.config import TrainConfig
    from tinydiff.runs.trainer import Trainer
    from tinydiff.study import trace
    from tinydiff.unet import UNet

__all__ = [
    "Function",
    "GradientError",
    "Profile",
    "Tensor",
    "TrainConfig",
    "Trainer",
    "UNet",
    "__version__",
    "backend",
    "by_definition",
    "check_finite",
    "checkpoint",
    "cuda",
    "data",
    "diffusion",
    "errors",
    "from_dlpack",
    "gradcheck",
    "images",
    "jacobian",
    "load",
    "nn",
    "no_grad",
    "numerical_gradient",
    "numerical_jacobian",
    "ops",
    "optim",
    "random",
    "recompute",
    "runs",
    "set_threads",
    "trace",
]

# Where names come from that are loaded when first used, so that `import tinydiff` stays quick.
_LATER = {
    "checkpoint": "tinydiff.runs.checkpoint",
    "cuda": "tinydiff.cuda",
    "data": "tinydiff.data",
    "diffusion": "tinydiff.diffusion",
    "images": "tinydiff.runs.pictures",
    "jacobian": "tinydiff.gradcheck.tools:jacobian",
    "load": "tinydiff.runs.checkpoint:load",
    "numerical_gradient": "tinydiff.gradcheck.tools:numerical_gradient",
    "numerical_jacobian": "tinydiff.gradcheck.tools:numerical_jacobian",
    "runs": "tinydiff.runs",
    "trace": "tinydiff.study:trace",
    "Trainer": "tinydiff.runs.trainer:Trainer",
    "TrainConfig": "tinydiff.runs.config:TrainConfig",
    "UNet": "tinydiff.unet:UNet",
}


# What is written here in place of other libraries' names.
_INSTEAD = {
    "grad": "loss.backward() and x.grad; derivatives are of first order only",
    "tensor": "td.Tensor(data)", "as_tensor": "td.Tensor(data)", "from_numpy": "td.Tensor(array)",
    "zeros": "td.Tensor(np.zeros(shape))", "ones": "td.Tensor(np.ones(shape))",
    "randn": "td.Tensor(td.random.Generator(seed).normal(shape))", "cat": "td.ops.concatenate", "numpy": "numpy itself",
    "manual_seed": "td.nn.manual_seed(seed)", "enable_grad": "the code outside td.no_grad()", "save": "model.state_dict()",
    "hessian": "td.numerical_jacobian of a gradient; derivatives are of first order only",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        instead = f"td.ops.{name}" if name in ops.__all__ else _INSTEAD.get(name)
        written = f": write {instead}" if instead else ""
        raise AttributeError(f"module 'tinydiff' has no attribute {name!r}{written}")
    module, _, attribute = _LATER[name].partition(":")
    value = import_module(module)
    value = getattr(value, attribute) if attribute else value
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
