"""Weights from elsewhere: folders of other frameworks, in and out.

Files are read and written tensor by tensor; nothing here needs the code of the models
that the weights belong to. `from_checkpoints` makes an ensemble of our own modules of
published checkpoints.
"""

from ensjax.interop.checkpoints import from_checkpoints, to_checkpoint
from ensjax.interop.kinds import KINDS
from ensjax.interop.stacks import read_stacked, write_members, write_weights
from ensjax.interop.tensor_types import TensorSpec, WeightsError
from ensjax.interop.weight_folders import WeightFolder, open_weights
from ensjax.interop.zero_shot import zero_shot_classifiers

__all__ = [
    "KINDS",
    "TensorSpec",
    "WeightFolder",
    "WeightsError",
    "from_checkpoints",
    "open_weights",
    "read_stacked",
    "to_checkpoint",
    "write_members",
    "write_weights",
    "zero_shot_classifiers",
]
