"""How our figures look: colours, sizes, axes, and writing them to a file.

Figures are made without pyplot, so they may be made in any thread, and nothing stays
open. They are drawn 6.4 inches wide with text of 9 points and more: legible on a phone.
"""

import io
import pathlib
from collections.abc import Mapping, Sequence

import matplotlib.figure
import numpy as np

# Okabe and Ito 2008: distinct also for colour-blind readers; yellow, too pale for lines
# on white, is left out.
PALETTE = (
    "#0072B2",  # blue
    "#D55E00",  # vermillion
    "#009E73",  # green
    "#CC79A7",  # purple
    "#E69F00",  # orange
    "#56B4E9",  # sky
    "#000000",  # black
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY, PALE = "#666666", "#DDDDDD"
ALARM = "#D55E00"
LABEL_SIZE, TICK_SIZE, NOTE_SIZE = 11, 10, 9


class Figure(matplotlib.figure.Figure):
    """A matplotlib figure that a notebook shows, without pyplot."""

    def _repr_png_(self):
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()


def new_figure(height: float = 4.2, *, width: float = 6.4) -> Figure:
    """An empty figure of our size (inches) whose parts do not overlap."""
    return Figure(figsize=(width, height), layout="constrained")


def save(fig: matplotlib.figure.Figure, path: str | pathlib.Path, *, dpi: int = 150):
    """Writes the figure; the suffix of `path` says how (`.png`, `.svg`, `.pdf`).

    PNG files of equal figures are equal: they hold no date and no version.
    """
    path = pathlib.Path(path)
    metadata = {"Software": None} if path.suffix == ".png" else None
    fig.savefig(path, dpi=dpi, metadata=metadata, facecolor="white")


def finish(
    ax,
    *,
    x: str,
    y: str,
    title: str | None = None,
    legend: bool = False,
    legend_title: str | None = None,
    legend_above: bool = False,
    starts_at_zero: bool = True,
):
    """Labels, light grid and legend of one pair of axes.

    A linear y axis of positive values that does not start at 0 says where it starts,
    unless `starts_at_zero` is False (where 0 has no meaning).
    """
    ax.set_xlabel(x, fontsize=LABEL_SIZE)
    ax.set_ylabel(y, fontsize=LABEL_SIZE)
    if title:
        ax.set_title(title, fontsize=LABEL_SIZE, loc="left")
    ax.tick_params(labelsize=TICK_SIZE, colors="#333333", which="both")
    ax.grid(True, color=PALE, linewidth=0.7)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(GREY)
    bottom = ax.get_ylim()[0]
    start = None
    if starts_at_zero and ax.get_yscale() == "linear" and bottom > 0:
        start = f"y axis starts at {bottom:.3g}"
    if legend:
        # In the legend, which would lie on a note in a corner.
        titles = [text for text in (legend_title, start) if text]
        above = {"loc": "lower left", "bbox_to_anchor": (0, 1.0)}
        ax.legend(
            fontsize=TICK_SIZE,
            title="\n".join(titles) or None,
            title_fontsize=NOTE_SIZE,
            frameon=True,
            framealpha=0.85,
            edgecolor="none",
            alignment="left",
            **(above if legend_above else {}),
        )
    elif start:
        note(ax, start)


def note(ax, text: str):
    """A small remark in the lower left corner of the axes."""
    ax.text(
        0.01,
        0.015,
        text,
        transform=ax.transAxes,
        fontsize=NOTE_SIZE,
        color=GREY,
        va="bottom",
        bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1},
    )


def named(values, name: str) -> dict[str, np.ndarray]:
    """A dict of arrays as it is, or one array under `name`.

    Raises:
        ValueError: if the dict is empty or has more curves than there are colours.
    """
    values = values if isinstance(values, Mapping) else {name: values}
    if not 1 <= len(values) <= len(PALETTE):
        raise ValueError(
            f"Between 1 and {len(PALETTE)} curves fit in one figure; got {len(values)}."
        )
    return {str(k): np.asarray(v) for k, v in values.items()}


def as_interval(value: float | Sequence[float]) -> tuple[float, float, float]:
    """`(estimate, low, high)` of a number, or of such a triple.

    Raises:
        ValueError: if there are neither one nor three numbers.
    """
    numbers = np.asarray(value, float).reshape(-1)
    if numbers.size == 1:
        return numbers[0], np.nan, np.nan
    if numbers.size != 3:
        raise ValueError(
            f"A value is a number or (estimate, low, high); got {numbers.size} numbers."
        )
    return tuple(numbers)
