"""Model ensembles as one sharded JAX program: train, combine and score many networks.

Members of an ensemble are stacked along a leading axis of every array. The axis is mapped
inside and split over devices outside; each job is one compiled program.
"""

import importlib
from typing import Any

from ensjax import members, mesh, reduce
from ensjax.combine import Temperature, calibrate
from ensjax.ensemble import Ensemble, Group, predict
from ensjax.mapping import map_members
from ensjax.mesh import make_mesh
from ensjax.train import EarlyStopping, Joint, TrainingLog, fit, losses

__version__ = "0.1.0"

__all__ = [
    "EarlyStopping",
    "Ensemble",
    "Group",
    "Joint",
    "Temperature",
    "TrainingLog",
    "calibrate",
    "combine",
    "data",
    "experiment",
    "fit",
    "losses",
    "make_mesh",
    "map_members",
    "members",
    "mesh",
    "nn",
    "ops",
    "plot",
    "predict",
    "predictions",
    "reduce",
    "scores",
    "train",
]

# Rooms that a program may not need, loaded when first named.
_LAZY = (
    "combine",
    "data",
    "experiment",
    "nn",
    "ops",
    "plot",
    "predictions",
    "scores",
    "train",
)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"ensjax.{name}")
    raise AttributeError(f"module 'ensjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
