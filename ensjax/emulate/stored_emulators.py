"""`SeedsEmulators` on disk: the networks, and what their samples are conditioned on."""

import dataclasses
import json
import os

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from ensjax.checkpoint import written_whole
from ensjax.emulate.diffusion.denoisers import EDM, VE
from ensjax.emulate.seeds import DrawSeeds, SeedsEmulators
from ensjax.ensemble import Ensemble

_ABOUT, _NETWORKS = "emulators.json", "networks"
# Of the file: readers refuse what they do not know.
_VERSION = 1
_PARAMETRISATIONS = {"EDM": EDM, "VE": VE}


def save_emulators(path: str | os.PathLike, emulators: SeedsEmulators) -> None:
    """Writes emulators to a new directory, whole or not at all.

    Raises:
        ValueError: if `path` exists, or the parametrisation is one of your own.
    """
    kind = type(emulators.parametrisation).__name__
    if _PARAMETRISATIONS.get(kind) is not type(emulators.parametrisation):
        raise ValueError(
            f"emulators are saved with {' or '.join(_PARAMETRISATIONS)}; got {kind}."
        )
    about = {
        "version": _VERSION,
        "tasks": np.asarray(emulators.tasks).tolist(),
        "draw": dataclasses.asdict(emulators.draw),
        "parametrisation": [kind, dataclasses.asdict(emulators.parametrisation)],
    }
    epath.Path(path).parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as partial:
        emulators.ensemble.save(partial / _NETWORKS)
        if jax.process_index() == 0:
            (partial / _ABOUT).write_text(json.dumps(about))


def load_emulators(
    path: str | os.PathLike, *, mesh: Mesh | None = None
) -> SeedsEmulators:
    """The emulators that `save_emulators` wrote.

    Their architecture is unpickled, which runs code: load only what you trust.

    Args:
        path: the directory.
        mesh: from `make_mesh`; by default all devices on the member axis.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: if it is damaged, or of another version.
    """
    path = epath.Path(path)
    if not (path / _ABOUT).exists():
        raise FileNotFoundError(f"{path} holds no emulators.")
    try:
        about = json.loads((path / _ABOUT).read_text())
        if about["version"] != _VERSION:
            raise ValueError(f"it is of version {about['version']}")
        kind, fields = about["parametrisation"]
        parametrisation = _PARAMETRISATIONS[kind](**fields)
        draw, tasks = DrawSeeds(**about["draw"]), np.asarray(about["tasks"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}/{_ABOUT} cannot be read as version {_VERSION} ({error})."
        ) from error
    ensemble = Ensemble.load(path / _NETWORKS, mesh=mesh)
    return SeedsEmulators(ensemble, tasks, draw, parametrisation)
