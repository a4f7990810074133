"""A folder that is there whole or not at all, and written by one process at a time."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ensjax.interop.tensor_types import WeightsError

LINEAGE = "lineage.json"


def check_output(
    path: str | os.PathLike, *, overwrite: bool, marks: tuple[str, ...] = (LINEAGE,)
) -> None:
    """Raises `WeightsError` if a folder cannot be written there.

    What is there is replaced only if asked for, and only if it holds one of `marks`, by
    default a lineage record, so that nothing but an output of that kind is deleted.
    """
    place = Path(path)
    if not place.exists() and not place.is_symlink():
        return
    if not overwrite:
        raise WeightsError(
            f"{path} is there already; choose another place, or overwrite it."
        )
    is_ours = place.is_dir() and any((place / mark).is_file() for mark in marks)
    if not is_ours or place.is_symlink():
        raise WeightsError(
            f"{path} is not overwritten: it holds no {' or '.join(marks)}, so something"
            " else wrote it. Remove it yourself."
        )


@contextlib.contextmanager
def output_folder(
    path: str | os.PathLike, *, overwrite: bool, marks: tuple[str, ...] = (LINEAGE,)
) -> Iterator[Path]:
    """A folder beside `path` to write to, renamed to it when all went well.

    Whatever ends the process before that leaves nothing at `path`, or what was there
    before; what was half written is removed by the next call.

    Raises:
        WeightsError: if the place is taken, or another process writes it.
        OSError: if it cannot be written.
    """
    place = Path(os.path.abspath(path))
    check_output(path, overwrite=overwrite, marks=marks)
    missing = [p for p in (place.parent, *place.parent.parents) if not p.exists()]
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = place.parent / f".{place.name}.lock"
    partial, old = (
        place.parent / f".{place.name}.{what}" for what in ("partial", "old")
    )
    descriptor = _lock(lock, path)
    try:
        # It may have come in the meantime.
        check_output(path, overwrite=overwrite, marks=marks)
        if old.exists() and not place.exists():  # killed between the two renames
            os.rename(old, place)
            check_output(path, overwrite=overwrite, marks=marks)
        for left in (partial, old):
            if left.exists():
                shutil.rmtree(left)
        partial.mkdir()
        try:
            yield partial
            _sync_folder(partial)
            if place.exists():
                os.rename(place, old)
            os.rename(partial, place)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        _sync_folder(place.parent)
        shutil.rmtree(old, ignore_errors=True)
        missing = []
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(lock)
        os.close(descriptor)
        for parent in missing:  # made for nothing
            with contextlib.suppress(OSError):
                parent.rmdir()


def _lock(lock, path):
    try:
        import fcntl
    except ImportError:  # there is none on Windows
        return os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise WeightsError(
                f"{path} is being written by another process; wait for it, or choose"
                " another place."
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
                os.close(descriptor)
                raise
            return descriptor  # a file system without locks
        # Whoever had it before may have removed the file just now.
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == os.stat(lock).st_ino:
                return descriptor
        os.close(descriptor)


def _sync_folder(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
