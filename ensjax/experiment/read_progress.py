"""How far a command has read, and how long that still takes."""

import time
from typing import Any

_SECONDS_BETWEEN_LINES = 30.0


class ReadProgress:
    """A bar with the time left on a terminal; a line now and then elsewhere."""

    def __init__(self, place: str):
        """`place` is what is written, or what is done, as lines call it."""
        self._place, self._start = place, time.monotonic()
        self._said = self._start
        self._bar: Any = None
        self._task: Any = None

    def report(self, done: int, total: int) -> None:
        """Bytes read, and to be read."""
        if self._bar is None and done < total:
            self._open(total)
        if self._task is not None:
            self._bar.update(self._task, completed=done)
            return
        now = time.monotonic()
        if now - self._said >= _SECONDS_BETWEEN_LINES and 0 < done < total:
            from ensjax.interop.tensor_types import bytes_text
            from ensjax.train.progress import duration

            self._said = now
            left = (now - self._start) / done * (total - done)
            print(
                f"{self._place}: {bytes_text(done)} of {bytes_text(total)} read |"
                f" {duration(left)} left",
                flush=True,
            )

    def _open(self, total):
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        console = Console(soft_wrap=True)
        self._bar = False
        if console.is_terminal or console.is_jupyter:
            self._bar = Progress(
                TextColumn("reading"),
                BarColumn(),
                DownloadColumn(),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task("", total=total)
            self._bar.start()

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar:
            self._bar.stop()
