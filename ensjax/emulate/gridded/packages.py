"""The packages that gridded files need; none is imported before it is used."""

import importlib
from types import ModuleType


def optional_package(name: str) -> ModuleType:
    """The package, imported now.

    Raises:
        ImportError: if it is not installed; says which extra brings it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"gridded files need the package {name!r}, which cannot be imported"
            f" ({error}). Run: pip install 'ensjax[weather]'"
        ) from error
