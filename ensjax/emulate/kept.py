"""Archives that are costly to make: kept in the user's cache, under a hash of how."""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from ensjax.emulate.archive import Archive

# Part of every hash: raise it when the same settings begin to mean something else.
_RECIPE = 1


def archive_folder() -> pathlib.Path:
    """`$XDG_CACHE_HOME/ensjax/archives`, or `~/.cache/ensjax/archives`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification has relative paths ignored.
    root = pathlib.Path(base) if os.path.isabs(base) else pathlib.Path.home() / ".cache"
    return root / "ensjax" / "archives"


def kept_path(name: str, settings: Mapping[str, Any]) -> pathlib.Path:
    """Where the archive of these settings is kept; equal settings, equal path."""
    words = json.dumps([_RECIPE, dict(settings)], sort_keys=True, default=list)
    digest = hashlib.sha256(words.encode()).hexdigest()[:16]
    return archive_folder() / f"{name}-{digest}.npz"


def kept_archive(
    name: str,
    settings: Mapping[str, Any],
    make: Callable[[], Archive],
    *,
    say: Callable[[str], None] | None = print,
) -> Archive:
    """The archive that `make` makes, from the user's cache if it was made before.

    A file appears whole or not at all; one that is damaged is made again. Two processes
    that make the same archive at once write the same file, one after the other.

    Args:
        name: begins the file's name.
        settings: numbers and words that the archive is a function of.
        make: makes it; called only where there is none.
        say: is told what is read or written; None: nobody.
    """
    path = kept_path(name, settings)
    say = say or (lambda line: None)
    if path.exists():
        try:
            archive = Archive.load(path)
        except ValueError as error:
            say(f"{error} It is made again now.")
        else:
            say(f"read {path}")
            return archive
    archive = make()
    archive.save(path)
    say(f"kept {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return archive
