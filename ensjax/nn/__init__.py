"""Flax NNX architectures that are used as members."""

from ensjax.nn.cnn import (
    CNN,
)
from ensjax.nn.mlp import (
    MLP,
)
from ensjax.nn.neighbors import (
    NearestNeighbors,
    nearest_rows,
)
from ensjax.nn.recurrent import (
    Recurrent,
)
from ensjax.nn.resnet import (
    ResNet,
    WideResNet,
    wide_resnet,
)
from ensjax.nn.vit import (
    ViT,
)

__all__ = [
    "CNN",
    "MLP",
    "NearestNeighbors",
    "Recurrent",
    "ResNet",
    "ViT",
    "WideResNet",
    "nearest_rows",
    "wide_resnet",
]
