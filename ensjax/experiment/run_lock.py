"""Creating a run directory whole, and keeping it to one process."""

import contextlib
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from etils import epath

from ensjax.experiment.exit_codes import ConfigError
from ensjax.experiment.json_files import (
    OBJECT_STORE_FOLDERS,
    sync_folder,
    write_bytes,
)

_LOCK = ".lock"
_LOCK_PATIENCE_SECONDS = 2.0  # a killed process needs a moment to let go


def create_locked(path: Path, texts: Mapping[str, str]) -> int | None:
    """Makes the folder with these files, whole and locked, or leaves nothing behind.

    It is built beside its place and renamed.

    Returns:
        The lock (a file descriptor), or None if another process was faster.

    Raises:
        OSError: if the place cannot be written.
    """
    missing = missing_folders(path.absolute().parent)
    new = path.parent / f".{path.name}.{os.getpid()}.new"
    lock = None
    undo: list[Callable[[], None]] = []
    try:
        for parent in reversed(missing):
            parent.mkdir(exist_ok=True)
            undo.insert(0, parent.rmdir)
        new.mkdir()
        undo.insert(0, lambda: shutil.rmtree(new))
        lock = _lock(new)
        for name, text in texts.items():
            write_bytes(epath.Path(new / name), text.encode())
        os.rename(new, path)  # onto nothing, or onto an empty folder
    except BaseException as error:
        if lock is not None:
            os.close(lock)
        for step in undo:
            with contextlib.suppress(OSError):  # a parent that others use by now
                step()
        codes = (errno.ENOTEMPTY, errno.EEXIST)
        if isinstance(error, OSError) and error.errno in codes:
            return None
        raise
    sync_folder(path.parent)
    return lock


def missing_folders(path: str | os.PathLike) -> list[Path]:
    """The folder and those that it is to be made in, as far as they are not there."""
    path = Path(path).absolute()
    return [folder for folder in (path, *path.parents) if not folder.exists()]


def remove_created(path: Path, missing: Sequence[Path]) -> None:
    """Empties a run's folder, and removes those of `missing` that are empty then.

    Called by the process that holds the run's lock.
    """
    for entry in path.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    for folder in missing:
        with contextlib.suppress(OSError):  # a parent that others use by now
            folder.rmdir()


def _lock(path: Path) -> int | None:
    """The open lock of the folder, or None if another process holds it.

    The operating system lets go of it when the process ends, however it ends.
    """
    descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        os.close(descriptor)
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise
        raise ConfigError(
            f"the file system of {path} has no locks ({error.strerror}); name it, or a"
            f" folder above, in the environment variable {OBJECT_STORE_FOLDERS}, and"
            " the run takes a lease instead."
        ) from error
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def lock_or_refuse(path: Path) -> int:
    """The lock of a folder; raises `ConfigError` while another process holds it."""
    end = time.monotonic() + _LOCK_PATIENCE_SECONDS
    while (lock := _lock(path)) is None:
        if time.monotonic() > end:
            raise ConfigError(
                f"{path} is in use by another process; wait for it, or choose another"
                " --workdir."
            )
        time.sleep(0.1)
    return lock
