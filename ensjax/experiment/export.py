"""`ensjax export`: members of a run written on their own, read at their own cost."""

import contextlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from ensjax.experiment.exit_codes import ConfigError, is_no_space, one_line
from ensjax.experiment.past_run import of_other_code, open_past_run

FORMATS = ("nnx", "safetensors", "ensemble")


def export_members(
    path: str | os.PathLike,
    member_ids: Sequence[int],
    *,
    step: int | None = None,
    form: str = "nnx",
    out: str | os.PathLike | None = None,
) -> list[str]:
    """Writes members of a run; nothing but their own bytes is read.

    - "nnx": for each member one Orbax checkpoint of its nnx state as a pure dict, for
      `nnx.replace_by_pure_dict`.
    - "safetensors": for each member a file with its leaves by name.
    - "ensemble": all of them as one ensemble, for `Ensemble.load`.

    With early stopping these are the best weights.

    Args:
        path: of the run.
        member_ids: ids of the members.
        step: of a checkpoint; default: the last.
        form: one of `FORMATS`.
        out: the file or directory; default: in the folder `exports` of the run.

    Returns:
        What was written.

    Raises:
        ConfigError: if there is no such run, member or step, if the place is taken, or
            a package is missing.
    """
    if form not in FORMATS:
        raise ConfigError(f"--format is one of {', '.join(FORMATS)}; got {form!r}.")
    if len(set(member_ids)) < len(member_ids):
        raise ConfigError(f"--member names a member twice: {list(member_ids)}.")
    if out is not None and len(member_ids) > 1 and form != "ensemble":
        raise ConfigError("--out takes one member; without it each has a place.")
    if form == "safetensors":
        _require_safetensors()
    past = open_past_run(path)
    if past.is_same_file is False:
        print(f"ensjax: {of_other_code(past)}it describes what is written.", flush=True)
    from ensjax.train.stored import read_member

    if form == "ensemble":
        jobs = {id(_job_of(past.job, id_)) for id_ in member_ids}
        if len(jobs) > 1:
            raise ConfigError(
                f"members {', '.join(map(str, member_ids))} are of different"
                " architectures, and an ensemble has one; write each by itself."
            )
    try:
        members = [read_member(past.checkpoints, id_, step=step) for id_ in member_ids]
    except ValueError as error:
        raise ConfigError(one_line(error)) from error
    if form == "ensemble":
        number = "-".join(map(str, member_ids))
        place = _free(out or past.run.path / "exports" / f"members-{number}")
        with _room_for(place):
            job = _job_of(past.job, member_ids[0])
            _save_ensemble(job, member_ids, members, place)
        return [str(place)]
    places = []
    suffix = ".safetensors" if form == "safetensors" else ""
    for id_ in member_ids:
        places.append(_free(out or past.run.path / "exports" / f"member-{id_}{suffix}"))
    for id_, member, place in zip(member_ids, members, places, strict=True):
        with _room_for(place):
            if form == "safetensors":
                _save_safetensors(member, place)
            else:
                _save_nnx(_job_of(past.job, id_), member, place)
    return [str(place) for place in places]


def _job_of(job, member_id) -> Any:
    """The job of a member's stack, where a run trains several."""
    if not hasattr(job, "stack_of"):
        return job
    try:
        return job.stack_of(member_id)
    except ValueError as error:
        raise ConfigError(one_line(error)) from error


def _free(place) -> epath.Path:
    place = epath.Path(place)
    if place.exists():
        raise ConfigError(f"{place} is there already; choose another --out.")
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


@contextlib.contextmanager
def _room_for(place):
    """Turns a full disk into one line."""
    try:
        yield
    except Exception as error:
        if not is_no_space(error):
            raise
        raise ConfigError(f"no space left for {place}; it was not written.") from error


def _require_safetensors():
    try:
        import safetensors  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "--format safetensors needs a package: pip install 'ensjax[safetensors]'"
        ) from error


def _save_safetensors(member, place):
    from safetensors.numpy import save_file

    weights = {name: np.ascontiguousarray(x) for name, x in member.weights().items()}
    partial = place.parent / f".{place.name}.partial"
    try:
        metadata = {"format": "ensjax", "step": str(member.step)}
        save_file(weights, os.fspath(partial), metadata=metadata)
        partial.rename(place)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if type(error).__name__ == "SafetensorError":  # of the system, in its words
            raise OSError(one_line(error)) from error
        raise


def _state_of(job, members) -> Any:
    """The stacked state of some members, `{"params", "rest"}`."""
    import jax

    from ensjax.checkpoint import from_plain, leaf_names

    ensemble = job.abstract_ensemble(job.mesh())
    names = leaf_names(ensemble.state)
    weights = [member.weights() for member in members]
    for name in names:
        if name not in weights[0]:
            raise ConfigError(
                f"the checkpoint holds no leaf {name!r}; it was written for another"
                " model than the config builds now."
            )
    leaves = []
    for name, leaf in zip(names, jax.tree.leaves(ensemble.state), strict=True):
        stacked = np.stack([own[name] for own in weights])
        leaves.append(from_plain(stacked, leaf.dtype))
    return jax.tree.unflatten(jax.tree.structure(ensemble.state), leaves)


def _save_nnx(job, member, place):
    import jax
    import orbax.checkpoint as ocp
    from flax import nnx

    from ensjax.checkpoint import hush_orbax, written_whole

    state = jax.tree.map(lambda x: x[0], _state_of(job, [member]))
    state = nnx.to_pure_dict(nnx.merge_state(state["params"], state["rest"]))
    hush_orbax()
    # Not the asynchronous one: if it cannot write, its threads hold the process up.
    with written_whole(place) as partial, ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(partial.resolve(), state)


def _save_ensemble(job, member_ids, members, place):
    import dataclasses

    import jax.numpy as jnp

    from ensjax.mesh import make_mesh

    mesh = make_mesh(member=1)
    ensemble = job.abstract_ensemble(mesh)
    ids = jnp.asarray(member_ids, jnp.int32)
    state = _state_of(job, members)
    dataclasses.replace(ensemble, state=state, member_ids=ids).on_mesh(mesh).save(place)
