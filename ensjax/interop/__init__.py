"""Weights from elsewhere: folders of other frameworks, in and out.

Files are read and written tensor by tensor; nothing here needs the code of the models
that the weights belong to.
"""

from ensjax.interop.stacks import read_stacked, write_members, write_weights
from ensjax.interop.tensor_types import TensorSpec, WeightsError
from ensjax.interop.weight_folders import WeightFolder, open_weights

__all__ = [
    "TensorSpec",
    "WeightFolder",
    "WeightsError",
    "open_weights",
    "read_stacked",
    "write_members",
    "write_weights",
]
