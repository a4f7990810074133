"""Stacked trees on disk: whole or not at all, and checked when they are read."""

from ensjax.checkpoint.seals import DamagedCheckpoint
from ensjax.checkpoint.steps import Checkpoints
from ensjax.checkpoint.trees import (
    from_plain,
    hush_orbax,
    leaf_names,
    load_tree,
    save_tree,
    stored_shapes,
    written_whole,
)

__all__ = [
    "Checkpoints",
    "DamagedCheckpoint",
    "from_plain",
    "hush_orbax",
    "leaf_names",
    "load_tree",
    "save_tree",
    "stored_shapes",
    "written_whole",
]
