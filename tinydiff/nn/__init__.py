"""Networks: modules that hold their weights, and layers.

module.py      Module, Parameter and Buffer: the tree of layers, its names, its weights
hooks.py       what hooks on modules see
layers.py      Linear, Conv2d, GroupNorm, LayerNorm, BatchNorm, Embedding, Dropout, Attention, Sequential
activations.py ReLU, SiLU and the others, pooling and shapes, as modules
"""

from typing import Any

from tinydiff.nn.activations import (
    GELU,
    AvgPool2d,
    Flatten,
    Identity,
    LogSoftmax,
    MaxPool2d,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from tinydiff.nn.layers import (
    Attention,
    BatchNorm,
    Conv2d,
    Dropout,
    Embedding,
    GroupNorm,
    LayerNorm,
    Linear,
    Sequential,
    computes_by,
    manual_seed,
    project,
    xavier_uniform,
)
from tinydiff.nn.module import Buffer, Module, Parameter

__all__ = [
    "GELU",
    "Attention",
    "AvgPool2d",
    "BatchNorm",
    "Buffer",
    "Conv2d",
    "Dropout",
    "Embedding",
    "Flatten",
    "GroupNorm",
    "Identity",
    "LayerNorm",
    "Linear",
    "LogSoftmax",
    "MaxPool2d",
    "Module",
    "Parameter",
    "ReLU",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Tanh",
    "computes_by",
    "manual_seed",
    "project",
    "xavier_uniform",
]


def __getattr__(name: str) -> Any:
    instead = {
        "functional": "td.ops", "ModuleList": "a plain list", "LeakyReLU": "lambda x: td.ops.maximum(x, 0.01 * x)",
        "MSELoss": "td.ops.mse_loss", "CrossEntropyLoss": "td.ops.cross_entropy", "init": "td.nn.xavier_uniform",
        "BatchNorm1d": "td.nn.BatchNorm", "BatchNorm2d": "td.nn.BatchNorm",
        "Upsample": "lambda x: td.ops.upsample_nearest2d(x, 2)",
    }.get(name)  # fmt: skip
    functions = "; nn.Sequential takes functions" if instead and instead.startswith("lambda") else ""
    written = f": write {instead}{functions}" if instead else ""
    raise AttributeError(f"module 'tinydiff.nn' has no attribute {name!r}{written}")
