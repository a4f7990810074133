"""What happened to every member while it was trained."""

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from ensjax.plot.style import ALARM, LABEL_SIZE, PALE, TICK_SIZE, new_figure

_EVENTS = {
    "recovered": ("^", "white"),
    "frozen": ("X", ALARM),
    "stopped": ("s", "black"),
}


def member_history(
    steps: np.ndarray,
    values: np.ndarray,
    *,
    frozen_steps: np.ndarray | None = None,
    stopped_steps: np.ndarray | None = None,
    recovery_steps: np.ndarray | None = None,
    names: Sequence | None = None,
    label: str = "Loss",
    title: str | None = None,
) -> Figure:
    """A row for each member: its metric along training as colours, and its events.

    Grey is where no step of a member counted. Colours run from the 1st to the 99th
    percentile; on a logarithmic scale where these are positive and a factor of ten
    apart.

    Args:
        steps: `[report]`, steps done at each report.
        values: `[report, member]`, as in `TrainingLog.metrics`.
        frozen_steps, stopped_steps: `[member]`, as in `TrainingLog`; negative: never.
        recovery_steps: `[member, recovery]`, likewise.
        names: one per member; numbers if None.
        label: what the colours mean, with the unit.

    Raises:
        ValueError: if there is no report, or shapes do not fit.
    """
    steps, values = np.asarray(steps, float), np.asarray(values, float)
    if values.ndim != 2 or len(steps) != len(values) or not len(steps):
        raise ValueError(
            "values must be [report, member] with as many reports as steps, at least"
            f" one; got shapes {values.shape} and {steps.shape}."
        )
    num_members = values.shape[1]
    if names is not None and len(names) != num_members:
        raise ValueError(f"names must hold {num_members} members; got {len(names)}.")
    events = {
        "recovered": _points(recovery_steps, num_members, "recovery_steps"),
        "frozen": _points(frozen_steps, num_members, "frozen_steps"),
        "stopped": _points(stopped_steps, num_members, "stopped_steps"),
    }
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, [1, 99]) if finite.size else (0.0, 1.0)
    high = high if high > low else low + 1.0

    fig = new_figure(1.6 + min(4.2, 0.16 * num_members + 0.6))
    ax = fig.subplots()
    ax.set_facecolor(PALE)
    ends = np.concatenate([[0.0], steps])
    edges = np.arange(num_members + 1) - 0.5
    scale = LogNorm if low > 0 and high > 10 * low else Normalize
    picture = ax.pcolormesh(
        ends,
        edges,
        np.ma.masked_invalid(values.T),
        cmap="cividis",
        norm=scale(low, high, clip=True),
    )
    bar = fig.colorbar(picture, ax=ax)
    bar.set_label(label, fontsize=LABEL_SIZE)
    bar.ax.tick_params(labelsize=TICK_SIZE)
    for name, (marker, colour) in _EVENTS.items():
        x, y = events[name]
        if len(x):
            ax.scatter(
                x,
                y,
                marker=marker,
                c=colour,
                s=26,
                edgecolors="black",
                linewidths=0.6,
                label=name,
                clip_on=False,
                zorder=3,
            )
    ax.set_ylim(num_members - 0.5, -0.5)
    ax.set_xlim(0, steps[-1])
    apart = -(-num_members // 16)
    ticks = np.arange(0, num_members, apart)
    ax.set_yticks(ticks, ticks if names is None else [names[i] for i in ticks])
    ax.tick_params(labelsize=TICK_SIZE)
    ax.set_xlabel("Optimizer steps", fontsize=LABEL_SIZE)
    ax.set_ylabel("Member", fontsize=LABEL_SIZE)
    if any(len(x) for x, _ in events.values()):
        ax.legend(
            fontsize=TICK_SIZE,
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=3,
            frameon=False,
        )
    if title:
        fig.suptitle(title, fontsize=LABEL_SIZE, x=0.01, ha="left")
    return fig


def _points(steps, num_members, name):
    """Steps and rows of the events that happened."""
    if steps is None:
        return np.zeros(0), np.zeros(0)
    steps = np.asarray(steps)
    if steps.shape[:1] != (num_members,):
        raise ValueError(
            f"{name} must hold {num_members} members; got shape {steps.shape}."
        )
    table = steps.reshape(num_members, -1)
    rows, columns = np.nonzero(table >= 0)
    return table[rows, columns], rows
