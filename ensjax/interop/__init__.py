"""Weights from elsewhere: folders of other frameworks, in and out.

Files are read and written tensor by tensor; nothing here needs the code of the models
that the weights belong to.
"""

from ensjax.interop.lineage import Verdict, read_lineage, verify_lineage
from ensjax.interop.merging import merge_folders
from ensjax.interop.stacks import read_stacked, write_members, write_weights
from ensjax.interop.tensor_types import TensorSpec, WeightsError
from ensjax.interop.weight_folders import WeightFolder, open_weights

__all__ = [
    "TensorSpec",
    "Verdict",
    "WeightFolder",
    "WeightsError",
    "merge_folders",
    "open_weights",
    "read_lineage",
    "read_stacked",
    "verify_lineage",
    "write_members",
    "write_weights",
]
