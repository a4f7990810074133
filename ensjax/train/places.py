"""Where a run is saved, taken over from and logged, checked before any work is done."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def check_places(
    checkpoint_dir: Any, members_from: Any, logger: Any
) -> tuple[str | os.PathLike, ...]:
    """`members_from` as a tuple of paths, of which it may be one.

    Raises:
        TypeError: for what is no path, or a logger that cannot write.
        ValueError: if a place is a file, or lies below one.
    """
    if logger is not None and not callable(getattr(logger, "write", None)):
        raise TypeError(
            "logger must have a method write(step, metrics), as"
            f" ensjax.experiment's have; got {logger!r}."
        )
    is_one = isinstance(members_from, (str, os.PathLike))
    if not is_one and not isinstance(members_from, Iterable):
        raise TypeError(
            f"members_from must be a path or a sequence of paths; got {members_from!r}."
        )
    members_from = (members_from,) if is_one else tuple(members_from)
    places = [("members_from", path) for path in members_from]
    if checkpoint_dir is not None:
        places.append(("checkpoint_dir", checkpoint_dir))
    for name, path in places:
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"{name} must be a path; got {path!r}.")
        if "://" not in str(path):  # an object store has no folders
            _check_folder(name, Path(path))
    return members_from


def _check_folder(name, path):
    first = next(place for place in (path, *path.parents) if place.exists())
    if not first.is_dir():
        raise ValueError(
            f"{name}={str(path)!r} must be a folder, or a place for one; {first} is a"
            " file."
        )
