"""What a person sees while members train: one line per report, with time left."""

import dataclasses
import time
from typing import Any

import numpy as np


@dataclasses.dataclass
class Pace:
    """Steps per second without compilation, and the time left."""

    total_steps: int
    first_step: int
    compile_seconds: float = 0.0
    is_running: bool = False
    has_evaluated: bool = False

    def __post_init__(self):
        self.start = time.perf_counter()

    def begin(self, first_step: int, *, compile_seconds: float) -> None:
        """Begins to count now that the program is compiled."""
        self.first_step = first_step
        self.compile_seconds += compile_seconds
        self.is_running = True
        self.start = time.perf_counter()

    def pause(self, seconds: float) -> None:
        """Takes out time that was spent on compiling something else."""
        self.compile_seconds += seconds
        self.start += seconds

    def restart(self, step: int) -> None:
        """Begins again before a program of another size, which compiles first."""
        self.first_step, self.is_running, self.has_evaluated = step, False, False

    def steps_per_second(self, step: int) -> float:
        """Mean pace since the program was compiled; NaN before a step was made."""
        seconds = time.perf_counter() - self.start
        made = step - self.first_step
        return made / seconds if made > 0 and seconds > 0 else float("nan")

    def seconds_left(self, step: int) -> float:
        """At the mean pace; NaN while that is unknown."""
        return (self.total_steps - step) / self.steps_per_second(step)


def duration(seconds: float) -> str:
    """`3 h 05 min`, `4 min 10 s`, `12 s`."""
    if not np.isfinite(seconds):
        return "?"
    seconds = round(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    if seconds >= 60:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds} s"


def report_line(
    step: int,
    pace: Pace,
    metrics: dict[str, Any],
    frozen: Any,
    recoveries: Any = None,
    member_ids: Any = None,
) -> str:
    """One line: step, pace, time left, mean and spread over members, broken members.

    Args:
        step: steps done.
        pace: of this call.
        metrics: `[member]` each; NaN for members that made no step.
        frozen: `[member]`, True for members that are not finite.
        recoveries: `[member]`, how often a member has recovered; None: never.
        member_ids: `[member]`, by which members are named; None: by their places.
    """
    parts = [f"step {step}/{pace.total_steps}"]
    pace_now = pace.steps_per_second(step)
    if np.isfinite(pace_now):
        parts.append(f"{pace_now:.3g} steps/s")
    if step < pace.total_steps:
        parts.append(f"{duration(pace.seconds_left(step))} left")
    for name, values in metrics.items():
        parts.append(f"{name} {spread(values)}")
    ids = np.arange(len(frozen)) if member_ids is None else np.asarray(member_ids)
    bad = ids[np.flatnonzero(frozen)]
    if len(bad):
        parts.append(f"NOT FINITE: {len(bad)} of {len(frozen)} members ({some(bad)})")
    if recoveries is not None and recoveries.any():
        which = ids[np.flatnonzero(recoveries)]
        parts.append(f"recovered: {len(which)} of {len(frozen)} ({some(which)})")
    return " | ".join(parts)


def some(members: Any) -> str:
    """The first eight of them: `0, 1, 2, 3, 4, 5, 6, 7, ...`."""
    members = list(members)
    return ", ".join(map(str, members[:8])) + ", ..." * (len(members) > 8)


def spread(values: Any) -> str:
    """Mean and standard deviation over the members that have a value."""
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return "nan"
    if len(values) == 1:
        return f"{values[0]:.4g}"
    return f"{values.mean():.4g} (sd {values.std(ddof=1):.2g})"


class Progress:
    """Prints report lines, with a moving bar where there is a terminal or notebook."""

    def __init__(self, total_steps: int, first_step: int, *, show: bool):
        self._bar = None
        self._show = show
        if not show:
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._console = Console(soft_wrap=True)
        if self._console.is_terminal or self._console.is_jupyter:
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task("", total=total_steps, completed=first_step)
            self._bar.start()

    def advance(self, step: int) -> None:
        """Moves the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        if self._show:
            self._console.print(line, markup=False, highlight=False)

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
