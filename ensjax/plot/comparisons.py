"""Systems side by side: histograms, bars and dots with their intervals."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from ensjax.plot.style import (
    NOTE_SIZE,
    PALETTE,
    TICK_SIZE,
    as_interval,
    finish,
    named,
    new_figure,
)


def histograms(
    values: Mapping[str, np.ndarray],
    *,
    label: str = "Predictive entropy (nats)",
    num_bins: int = 30,
    log_y: bool = False,
    title: str | None = None,
) -> Figure:
    """Histograms on common bins, as fractions of each kind of rows.

    Args:
        values: name to numbers, for instance entropies in and out of distribution;
            numbers that are not finite are left out, and the legend counts them.
        label: the x axis, with its unit.
        num_bins: number of bins over the range of all numbers.
        log_y: logarithmic fractions, to see tails.

    Raises:
        ValueError: if there is no finite number.
    """
    values = {k: v.reshape(-1).astype(float) for k, v in named(values, "all").items()}
    finite = {k: v[np.isfinite(v)] for k, v in values.items()}
    everything = np.concatenate(list(finite.values()))
    if everything.size == 0:
        raise ValueError("histograms got no finite number.")
    edges = np.histogram_bin_edges(everything, bins=num_bins)
    fig = new_figure()
    ax = fig.subplots()
    for i, (name, kept) in enumerate(finite.items()):
        share = np.histogram(kept, bins=edges)[0] / max(kept.size, 1)
        lost = values[name].size - kept.size
        text = f"{name} ({kept.size:,})" + (f", {lost} not finite" if lost else "")
        ax.stairs(share, edges, color=PALETTE[i], alpha=0.25, fill=True)
        ax.stairs(share, edges, color=PALETTE[i], lw=1.8, label=text)
    if log_y:
        ax.set_yscale("log")
    y = "Fraction of rows, log scale" if log_y else "Fraction of rows"
    finish(ax, x=label, y=y, title=title, legend=True)
    return fig


def bars(
    values: Mapping[str, float | Sequence[float]],
    *,
    label: str,
    title: str | None = None,
) -> Figure:
    """One horizontal bar per system, from 0, with its interval where there is one.

    Args:
        values: name to a number or `(estimate, low, high)`.
        label: the x axis, with its unit.

    Raises:
        ValueError: if there is nothing to draw, or a value has another form.
    """
    if not values:
        raise ValueError("bars needs at least one value.")
    fig = new_figure(0.9 + 0.45 * len(values))
    ax = fig.subplots()
    names, triples = list(values), [as_interval(v) for v in values.values()]
    ax.barh(range(len(names)), [t[0] for t in triples], color=PALETTE[0], height=0.6)
    for row, (estimate, low, high) in enumerate(triples):
        ax.hlines(row, low, high, color="black", lw=2)
        ax.annotate(
            f"{estimate:.3g}",
            (np.nanmax([estimate, high, 0.0]), row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=TICK_SIZE,
        )
    ax.axvline(0, color="black", lw=0.8)
    ax.margins(x=0.12)
    finish(ax, x=label, y="", title=title, starts_at_zero=False)
    _name_rows(ax, names)
    return fig


def metric_dots(
    metrics: Mapping[str, Mapping[str, float | Sequence[float]]],
    *,
    columns: int = 2,
    title: str | None = None,
) -> Figure:
    """A table of metrics as dots with intervals: one panel a metric, one row a system.

    Axes do not start at 0, as the position of a dot says what a bar's length would.

    Args:
        metrics: metric (with its unit, and better "lower" or "higher") to system to a
            number or `(estimate, low, high)`.
        columns: panels side by side.

    Raises:
        ValueError: if there is nothing to draw, or a value has another form.
    """
    if not metrics:
        raise ValueError("metric_dots needs at least one metric.")
    systems = list(dict.fromkeys(s for values in metrics.values() for s in values))
    columns = min(columns, len(metrics))
    rows = -(-len(metrics) // columns)
    fig = new_figure(rows * (0.85 + 0.34 * len(systems)))
    axes = fig.subplots(rows, columns, sharey=True, squeeze=False)
    for ax in axes.flat[len(metrics) :]:
        ax.set_visible(False)
    for ax, (metric, values) in zip(axes.flat, metrics.items()):
        for row, system in enumerate(systems):
            if system not in values:
                continue
            estimate, low, high = as_interval(values[system])
            color = PALETTE[row % len(PALETTE)]
            ax.hlines(row, low, high, color=color, lw=2.5, alpha=0.6)
            ax.plot(estimate, row, "o", color=color, ms=7)
            ax.annotate(
                f"{estimate:.3g}",
                (estimate, row),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=NOTE_SIZE,
            )
        ax.margins(x=0.15)
        finish(ax, x=metric, y="", starts_at_zero=False)
        ax.locator_params(axis="x", nbins=3)
    _name_rows(axes[0, 0], systems, margin=0.7)
    if title:
        fig.suptitle(title, fontsize=11, x=0.01, ha="left")
    return fig


def _name_rows(ax, names, margin=0.6):
    ax.set_yticks(range(len(names)), names, fontsize=TICK_SIZE)
    ax.set_ylim(len(names) - 1 + margin, -margin)  # the first row on top
    ax.grid(False, axis="y")
