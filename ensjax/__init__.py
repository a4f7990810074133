"""Model ensembles as one sharded JAX program: train, combine and score many networks.

Members of an ensemble are stacked along a leading axis of every array. The axis is
mapped inside and split over devices outside; each job is one compiled program.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ensjax import (
        checkpoint,
        combine,
        data,
        emulate,
        experiment,
        interop,
        mapping,
        members,
        mesh,
        nn,
        ntk,
        ops,
        planning,
        plot,
        prediction_files,
        predictions,
        reduce,
        scores,
        sources,
        train,
        verification,
        weight_space,
    )
    from ensjax.combine import Temperature, calibrate
    from ensjax.ensemble import Ensemble
    from ensjax.group import Group, predict
    from ensjax.mapping import map_members
    from ensjax.mesh import make_mesh
    from ensjax.train import EarlyStopping, Health, Joint, TrainingLog, fit, losses

__version__ = "0.1.0"

__all__ = [
    "EarlyStopping",
    "Ensemble",
    "Group",
    "Health",
    "Joint",
    "Temperature",
    "TrainingLog",
    "calibrate",
    "checkpoint",
    "combine",
    "data",
    "emulate",
    "experiment",
    "fit",
    "interop",
    "losses",
    "make_mesh",
    "map_members",
    "mapping",
    "members",
    "mesh",
    "nn",
    "ntk",
    "ops",
    "planning",
    "plot",
    "predict",
    "prediction_files",
    "predictions",
    "reduce",
    "scores",
    "sources",
    "train",
    "verification",
    "weight_space",
]

# Every name is loaded when it is first used, so that the import costs next to nothing
# (`ensjax --help` loads no JAX) and touches no device.
_HOMES = {
    "EarlyStopping": "train",
    "Ensemble": "ensemble",
    "Group": "group",
    "Health": "train",
    "Joint": "train",
    "Temperature": "combine",
    "TrainingLog": "train",
    "calibrate": "combine",
    "fit": "train",
    "losses": "train",
    "make_mesh": "mesh",
    "map_members": "mapping",
    "predict": "group",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"ensjax.{_HOMES[name]}"), name)
    elif name in __all__:
        value = importlib.import_module(f"ensjax.{name}")
    else:
        raise AttributeError(f"module 'ensjax' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
