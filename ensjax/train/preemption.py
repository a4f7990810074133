"""Ending at the next step that can be saved, when the machine is to be taken away.

`ensjax run` owns the signals and asks here; `fit` looks between two calls of its
program, saves, and raises `Preempted`. A call of `fit` outside `ensjax run` never looks
and touches no signal.

In a job of several processes all must save the same step, also if one of them alone was
told. There `jax.distributed` owns SIGTERM: it passes the notice on, and its service
names the first call that no process has reached yet.
"""

import itertools

import jax
from jax.experimental import multihost_utils


class Preempted(KeyboardInterrupt):
    """Training was told to end.

    Attributes:
        step: the steps done; the state after them is saved.
    """

    def __init__(self, step: int):
        super().__init__(f"told to end; step {step} is saved")
        self.step = step


class _Notice:
    """What this process was told; one for the process, as signals are."""

    def __init__(self):
        self.is_enabled = False
        self.is_watched = False
        self.has_come = False
        # Of all calls of programs in this process, so that a second `fit` counts on.
        self.calls = itertools.count()


_notice = _Notice()


def enable() -> None:
    """Makes `fit` look for a request from now on; for the owner of the signals."""
    _notice.is_enabled = True


def request() -> bool:
    """Asks the `fit` that is running to save and end; from a signal handler.

    Returns:
        False if none is running that can: the caller ends the process as it sees fit.
    """
    if _notice.is_watched:
        _notice.has_come = True
    return _notice.is_watched


class Watch:
    """Stands in `fit` while it trains: `with Watch(saves=True) as watch`.

    Args:
        saves: whether there is a checkpoint directory; otherwise a request is refused.
    """

    def __init__(self, *, saves: bool):
        self._looks = saves and _notice.is_enabled
        self._step = 0

    def __enter__(self) -> "Watch":
        _notice.is_watched, _notice.has_come = self._looks, False
        return self

    def __exit__(self, kind, *_) -> None:
        _notice.is_watched = False
        if kind is None and _notice.has_come:  # after the last look: all is done
            raise Preempted(self._step)

    def is_told_to_end(self, step: int) -> bool:
        """Whether to save now, after `step` steps, and end; the same on all processes.

        To be asked once after every call of the program, by all of them. It waits for
        no device and costs a microsecond.
        """
        self._step = step
        if not self._looks:
            return False
        if jax.process_count() == 1:
            return _notice.has_come
        return multihost_utils.reached_preemption_sync_point(next(_notice.calls))
