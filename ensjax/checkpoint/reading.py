"""Reading files that may be damaged, in one process or as one in several."""

import contextlib
import gc
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from ensjax.checkpoint.seals import DamagedCheckpoint

T = TypeVar("T")

_MESSAGE_BYTES = 1024


def read_or_damaged(read: Callable[[], T]) -> T:
    """What `read()` returns; where it fails on one process, it has failed on all.

    Collective. `read` must not wait for other processes: they may have given up.

    Raises:
        DamagedCheckpoint: on every process with the same words.
        MemoryError, PermissionError, JaxRuntimeError: as they come, since they say
            nothing of the files.
    """
    value, failure = None, ""
    with _without_last_words():
        try:
            value = read()
        except (MemoryError, PermissionError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:  # what is torn is called by many names
            failure = _reason(error)
        if failure:
            gc.collect()
    failure = _first_failure(failure)
    if failure:
        raise DamagedCheckpoint(failure)
    return value


def _first_failure(text: str) -> str:
    """The text of the first process that has one; empty if none has."""
    if jax.process_count() == 1:
        return text
    own = np.zeros(_MESSAGE_BYTES, np.uint8)
    data = np.frombuffer(text.encode()[:_MESSAGE_BYTES], np.uint8)
    own[: len(data)] = data
    for row in np.asarray(multihost_utils.process_allgather(own)):
        if row.any():
            return row.tobytes().rstrip(b"\0").decode(errors="replace")
    return ""


def _reason(error: BaseException) -> str:
    """Why a file could not be read, as one short line."""
    while error.__cause__ is not None:  # Orbax tells what it was about, not why
        error = error.__cause__
    text, *_ = re.split(r" \[(?:tensorstore_spec|source locations)=", str(error))
    text = " ".join(text.split())
    if not isinstance(error, (DamagedCheckpoint, OSError)):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= 240 else f"{text[:237]}..."


@contextlib.contextmanager
def _without_last_words() -> Iterator[None]:
    """Drops what Orbax's other reads print when they end because one of them failed."""
    hook, log = sys.unraisablehook, logging.getLogger("asyncio")
    sys.unraisablehook, log.disabled = lambda _: None, True
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "coroutine .* was never awaited")
            yield
    finally:
        sys.unraisablehook, log.disabled = hook, False
