"""Networks: modules that hold their weights, and layers.

module.py      Module and Parameter: the tree of layers, its names, its weights
layers.py      Linear, Conv2d, GroupNorm, LayerNorm, Embedding, Dropout, Attention, Sequential
"""

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
