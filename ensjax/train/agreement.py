"""Whether what is stored is of the run that goes on from it, in settings and members.

Each difference is one line that names it, before anything is trained or written.
"""

import json
from collections.abc import Sequence
from typing import Any

from etils import epath

from ensjax.train import identity
from ensjax.train.operations import other_operations

_OPERATIONS = "operations"


class OtherRun(ValueError):
    """A checkpoint directory holds what this run cannot go on from."""


def check_same(stored: dict[str, Any], ours: dict[str, Any], directory: Any) -> None:
    """Raises `ValueError` if two runs differ; names the first difference.

    What their functions compute is left to `compare_operations`.
    """
    for name, value in as_json(ours).items():
        if name == _OPERATIONS:
            continue
        if json.dumps(stored.get(name)) != json.dumps(value):
            raise OtherRun(
                f"{directory} holds a run with {name}={_short(stored.get(name))}, but"
                f" this one has {name}={_short(value)}. Pass what it was started with,"
                " or another checkpoint_dir."
            )


def is_same(stored: dict[str, Any], ours: dict[str, Any]) -> bool:
    """Whether two runs are the same, also in their operations where that is known."""
    ours = as_json(ours)
    plain = [{k: v for k, v in x.items() if k != _OPERATIONS} for x in (stored, ours)]
    if plain[0] != plain[1]:
        return False
    return not other_operations(stored.get(_OPERATIONS), ours[_OPERATIONS])


def compare_operations(run: Any, parts: Sequence[Any], checkpoint_dir: Any) -> list:
    """Compares what members were trained with to what they go on with.

    A run may go on with functions whose code was edited. But members that others have
    trained, and those that new ones join, must be what this run would have made.

    Args:
        run: the whole run.
        parts: of its members, each an `elastic.Part`.
        checkpoint_dir: the run's own directory.

    Returns:
        A line for each difference that is allowed, and for each other run of which it
        cannot be told.

    Raises:
        OtherRun: for a difference that is not; names the functions.
    """
    notes = []
    for stored in filter(None, (part.stored for part in parts)):
        is_own = epath.Path(stored.root) == epath.Path(checkpoint_dir)
        theirs, ours = stored.run.get(_OPERATIONS), as_json(run.identity[_OPERATIONS])
        names = other_operations(theirs, ours)
        if names is None:
            if not is_own:
                made = "older versions" if theirs is None else theirs["made_with"]
                notes.append(
                    f"{stored.directory} was written with {made}: whether its members"
                    " were trained with the same functions is not compared"
                )
            continue
        if not names:
            continue
        which = f"another {' and another '.join(names)}"
        if is_own and len(parts) == 1:
            notes.append(
                f"{stored.directory} was trained with {which} until step {stored.step}"
                " (other code, or other settings that it holds); going on with this one"
            )
            continue
        raise OtherRun(
            f"{stored.directory} holds members that were trained with {which} than this"
            " run has, of the same name: its code, or a setting that it holds, differs."
            " Members of one run are trained alike; pass what these were trained with,"
            + (" or another checkpoint_dir." if is_own else " or leave them out.")
        )
    return notes


def check_members(
    stored: Any, columns: Sequence[int], facts: dict[str, list[Any]], places: Any
) -> None:
    """Raises `OtherRun` for a member with other hyperparameters or weights of its rows.

    Args:
        stored: an `elastic.Stored`.
        columns: of the members there.
        facts: of the whole run, as JSON holds them.
        places: of the members in the run.
    """
    for name, ours in facts.items():
        if name in ("ids", "stack", "initial_weights"):
            continue
        theirs = stored.facts.get(name)
        for column, place in zip(columns, places, strict=True):
            old = None if theirs is None else theirs[column]
            if json.dumps(old) != json.dumps(ours[place]):  # a NaN is a NaN
                raise OtherRun(
                    f"{stored.directory} holds a run with {name}={_short(old)} for"
                    f" member {facts['ids'][place]}, but this one has"
                    f" {_short(ours[place])}. Pass what it was started with, or another"
                    " checkpoint_dir."
                )


def check_intervals(run: Any, parts: Sequence[Any]) -> None:
    """Raises `OtherRun` unless members that stop early are looked at alike."""
    ours = run.schedule.evaluate_every_steps
    for part in parts:
        if part.stored is None:
            continue
        theirs = part.stored.meta.get("evaluate_every_steps", ours)
        if theirs != ours:
            raise OtherRun(
                f"{part.stored.directory} holds members that were evaluated every"
                f" {theirs} steps, but this run evaluates every {ours}: new members"
                f" would stop by another rule. Pass evaluate_every_steps={theirs}."
            )


def check_beginnings(part: Any, facts: dict[str, list[Any]]) -> None:
    """Raises `ValueError` for a member that began with other weights in its store."""
    theirs = part.stored.facts.get("initial_weights")
    for column, place in zip(part.columns, part.members, strict=True):
        old = [] if theirs is None else [theirs[column]]
        if not identity.began_alike(old, [facts["initial_weights"][place]]):
            raise OtherRun(
                f"{part.stored.directory} holds a run whose member"
                f" {facts['ids'][place]} began with other weights. Pass the ensemble"
                " that it was started with, or another checkpoint_dir."
            )


def as_json(tree: Any) -> Any:
    """What comes back when it is read from a checkpoint."""
    return json.loads(json.dumps(tree))


def _short(value):
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
