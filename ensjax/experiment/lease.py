"""Keeping a run to one process where no lock exists: on an object store.

The holder writes a small object, `lease.json`, and writes it again every 20 seconds.
Who wants it looks: a lease that was given back is free at once, one that is renewed
while being watched is held, and one of a holder that died is taken over as soon as it
is two minutes old.

What is guaranteed: a holder that renews in time keeps the lease, however wrong the
clocks are, because a lease that looks old is watched for longer than the holder needs
to renew it. What is not: object stores, as far as all of them agree, know no "write
only if nobody else has". So of two that take a lease at the same moment each reads it
again after a pause, and the one that wrote first gives way; and if a write takes longer
than that pause, or a holder was stopped for two minutes and wakes up, both believe that
they hold it until the one that lost it renews next, and stops: 20 seconds at most.
Checkpoints written meanwhile are whole, and metrics of each go to a segment of its own.
"""

import contextlib
import os
import platform
import sys
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from etils import epath

from ensjax.experiment import exit_codes
from ensjax.experiment.exit_codes import ConfigError
from ensjax.experiment.json_files import read_json, write_json

NAME = "lease.json"
RENEW_SECONDS = 20.0
DEAD_SECONDS = 120.0
# Longer than the holder needs to renew, so that a clock that is wrong robs nobody.
WATCH_SECONDS = 30.0
_LOOK_SECONDS = 2.0
_SETTLE_SECONDS = 3.0


class Lease:
    """The right to write to a run directory; made by `take_lease`.

    Args:
        path: of the run directory.
        clock: has `time`, `monotonic` and `sleep`, as the module `time` does.
        on_lost: called with one line, once, when another process has taken the lease.
    """

    def __init__(self, path: epath.Path, *, clock: Any, on_lost: Callable[[str], None]):
        self._file = epath.Path(path) / NAME
        self._clock = clock
        self._on_lost = on_lost
        self._owner = uuid.uuid4().hex
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def write(self, *, is_released: bool = False) -> None:
        """Writes this process as the holder, now."""
        lease = {
            "owner": self._owner,
            "host": platform.node(),
            "process": os.getpid(),
            "renewed": self._clock.time(),
            "is_released": is_released,
        }
        write_json(self._file, lease)

    def is_ours(self) -> bool:
        """Whether the store says that this process is the holder."""
        lease = read_lease(self._file)
        return lease is not None and lease.get("owner") == self._owner

    def renew(self) -> bool:
        """Renews the lease, unless another process has it: then False, for ever."""
        if self._ended.is_set():
            return False
        lease = read_lease(self._file)
        if lease is not None and lease.get("owner") not in (None, self._owner):
            self._ended.set()
            self._on_lost(
                f"{self._file.parent} was taken over by {_holder(lease)}, because this"
                " process did not renew its lease for two minutes; it stops."
            )
            return False
        self.write()
        return True

    def start(self) -> None:
        """Renews from now on, in a thread."""
        self._thread.start()

    def release(self) -> None:
        """Gives the lease back: the next process need not wait."""
        if self._ended.is_set():
            return
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        with contextlib.suppress(OSError):  # out of reach: it will grow old
            if self.is_ours():
                self.write(is_released=True)

    def _keep(self):
        while not self._ended.wait(RENEW_SECONDS):
            # The store may be out of reach for a while, and says so in many ways;
            # others see that the lease is old.
            with contextlib.suppress(Exception):
                self.renew()


def read_lease(file: epath.Path) -> dict[str, Any] | None:
    """The lease in the file; None if there is none. What is torn is nobody's yet."""
    if not file.exists():
        return None
    try:
        return read_json(file)
    except ConfigError:  # half-written, where a store is a mounted folder
        return {"owner": None, "renewed": None}


def take_lease(
    path: epath.Path,
    *,
    say: Callable[[str], None],
    clock: Any = time,
    on_lost: Callable[[str], None] | None = None,
) -> Lease:
    """The lease of a run directory, once it is free or its holder is dead.

    Args:
        path: of the run directory, which exists.
        say: is given a line if there is something to wait for.
        clock: see `Lease`.
        on_lost: see `Lease`; by default it ends the process with code 75.

    Raises:
        ConfigError: if a live process holds it, or another one was faster.
    """
    lease = Lease(path, clock=clock, on_lost=on_lost or _stop_process)
    _wait_until_free(epath.Path(path) / NAME, say, clock)
    lease.write()
    clock.sleep(_SETTLE_SECONDS)
    if not lease.is_ours():
        raise ConfigError(
            f"{path} is in use by another process, which was faster; wait for it, or"
            " choose another --workdir."
        )
    lease.start()
    return lease


def _wait_until_free(file, say, clock):
    lease = read_lease(file)
    begin = clock.monotonic()
    while lease is not None and not lease.get("is_released"):
        watched = clock.monotonic() - begin
        looks_old = _age(lease, clock) > DEAD_SECONDS
        if watched > (WATCH_SECONDS if looks_old else DEAD_SECONDS):
            return
        if watched == 0:
            say(f"waiting for {_holder(lease)}, which may be at work in {file.parent}")
        clock.sleep(_LOOK_SECONDS)
        before, lease = lease, read_lease(file)
        if lease is not None and lease != before and not lease.get("is_released"):
            raise ConfigError(
                f"{file.parent} is in use by {_holder(lease)}; wait for it, or choose"
                " another --workdir."
            )


def _age(lease, clock):
    renewed = lease.get("renewed")
    return clock.time() - renewed if isinstance(renewed, (int, float)) else 0.0


def _holder(lease):
    return f"process {lease.get('process')} on {lease.get('host')}"


def _stop_process(line):
    """At once, since whatever is saved now would come between the other's files."""
    print(f"ensjax: {line}", file=sys.stderr, flush=True)
    os._exit(exit_codes.INTERRUPTED)
