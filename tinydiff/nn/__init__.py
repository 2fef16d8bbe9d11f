"""Networks: modules that hold their weights, and layers.

module.py      Module and Parameter: the tree of layers, its names, its weights
hooks.py       what hooks on modules see
layers.py      Linear, Conv2d, GroupNorm, LayerNorm, Embedding, Dropout, Attention, Sequential
"""

from typing import Any

from tinydiff.nn.layers import (
    Attention,
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
from tinydiff.nn.module import Module, Parameter

__all__ = [
    "Attention",
    "Conv2d",
    "Dropout",
    "Embedding",
    "GroupNorm",
    "LayerNorm",
    "Linear",
    "Module",
    "Parameter",
    "Sequential",
    "computes_by",
    "manual_seed",
    "project",
    "xavier_uniform",
]


def __getattr__(name: str) -> Any:
    instead = {
        "ReLU": "td.ops.relu", "SiLU": "td.ops.silu", "GELU": "td.ops.gelu", "Tanh": "td.ops.tanh", "functional": "td.ops",
        "Sigmoid": "td.ops.sigmoid", "Softplus": "td.ops.softplus", "Softmax": "td.ops.softmax",
        "Flatten": "lambda x: td.ops.flatten(x, 1)", "Identity": "lambda x: x", "ModuleList": "a plain list",
        "MSELoss": "td.ops.mse_loss", "CrossEntropyLoss": "td.ops.cross_entropy",
        "MaxPool2d": "lambda x: td.ops.max_pool2d(x, 2)", "AvgPool2d": "lambda x: td.ops.avg_pool2d(x, 2)",
    }.get(name)  # fmt: skip
    written = f": write {instead}; nn.Sequential takes functions" if instead else ""
    raise AttributeError(f"module 'tinydiff.nn' has no attribute {name!r}{written}")
