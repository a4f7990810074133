"""Lines with bands: learning curves, metrics against ensemble size, shift, coverage."""

import warnings
from collections.abc import Mapping

import jax
import numpy as np
from matplotlib.figure import Figure

from ensjax import scores
from ensjax.plot.style import (
    ALARM,
    GREY,
    MARKERS,
    PALETTE,
    finish,
    named,
    new_figure,
)


def learning_curves(
    steps: np.ndarray,
    values: np.ndarray,
    *,
    label: str = "Training loss (nats)",
    quantiles: tuple[float, float] = (0.1, 0.9),
    log_x: bool = False,
    log_y: bool = False,
    max_lines: int = 64,
    title: str | None = None,
) -> Figure:
    """A fan of all members against the step: median, quantile band, single members.

    Members with a value that is not finite are left out of median and band from there
    on; they are drawn dashed up to it and end in a cross.

    Args:
        steps: `[step]`.
        values: `[step, member]`, as logged.
        label: the y axis, with its unit.
        quantiles: ends of the band, over the members.
        log_x: logarithmic steps; step 0 is then left out.
        log_y: logarithmic values.
        max_lines: members drawn one by one, the first ones.

    Raises:
        ValueError: if a shape does not fit.
    """
    steps, values = np.asarray(steps), np.asarray(values, float)
    if values.ndim != 2 or steps.shape != values.shape[:1]:
        raise ValueError(
            "steps must be [step] and values [step, member]; got shapes"
            f" {steps.shape} and {values.shape}."
        )
    fig = new_figure()
    ax = fig.subplots()
    # Once a member is lost it stays lost, whatever is logged for it later.
    alive = np.logical_and.accumulate(np.isfinite(values), axis=0)
    shown = np.where(alive, values, np.nan)
    for member in range(min(values.shape[1], max_lines)):
        if alive[:, member].all():
            ax.plot(steps, values[:, member], color=PALETTE[0], alpha=0.25, lw=0.7)
    _draw_lost(ax, steps, shown, alive)
    if alive.any():
        low, middle, high = _quantiles(shown, (quantiles[0], 0.5, quantiles[1]), axis=1)
        span = f"{100 * quantiles[0]:g}-{100 * quantiles[1]:g} %"
        ax.fill_between(
            steps,
            low,
            high,
            color=PALETTE[0],
            alpha=0.25,
            lw=0,
            label=f"{span} of members",
        )
        ax.plot(
            steps, middle, color=PALETTE[0], lw=2, label=f"median of {values.shape[1]}"
        )
    if log_x:
        ax.set_xscale("log")
    if log_y:
        ax.set_yscale("log")
    x = "Step (log scale)" if log_x else "Step"
    y = f"{label}, log scale" if log_y else label
    finish(ax, x=x, y=y, title=title, legend=True)
    return fig


def metric_against_size(
    sizes: np.ndarray,
    values: np.ndarray,
    *,
    label: str = "NLL (nats)",
    mean_member: float | None = None,
    coverage: float = 0.95,
    title: str | None = None,
) -> Figure:
    """A metric of ensembles against their size, over several subsets of the members.

    Args:
        sizes: number of members M, `[size]`.
        values: the metric of each subset, `[size, subset]`; NaN where there are fewer
            subsets (there is one of all members).
        label: the y axis, with its unit.
        mean_member: the mean member's value, a dashed line.
        coverage: fraction of the subsets inside the band.

    Raises:
        ValueError: if a shape does not fit.
    """
    sizes, values = np.asarray(sizes), np.asarray(values, float)
    if values.ndim != 2 or sizes.shape != values.shape[:1]:
        raise ValueError(
            "sizes must be [size] and values [size, subset]; got shapes"
            f" {sizes.shape} and {values.shape}."
        )
    fig = new_figure()
    ax = fig.subplots()
    _band(
        ax,
        sizes,
        values.T,
        coverage,
        name="ensemble, mean over subsets",
        color=PALETTE[0],
    )
    if mean_member is not None:
        ax.axhline(
            mean_member, color=PALETTE[1], lw=1.5, ls="--", label="mean single member"
        )
    ax.set_xticks(_few(np.unique(sizes)))
    percent = f"band: {100 * coverage:g} % of subsets"
    finish(
        ax,
        x="Ensemble size M",
        y=label,
        title=title,
        legend=True,
        legend_title=percent,
    )
    return fig


def metric_under_shift(
    severity: np.ndarray,
    curves: Mapping[str, np.ndarray],
    *,
    shift_label: str = "Rotation (degrees)",
    label: str = "NLL (nats)",
    coverage: float = 0.95,
    band_label: str = "members",
    log_y: bool = False,
    title: str | None = None,
) -> Figure:
    """A metric against the severity of a shift, one line per system.

    Args:
        severity: `[severity]`, the unshifted data usually being 0.
        curves: name to values: `[severity]` is a line, `[repeat, severity]` its mean
            over repeats (members, seeds) in a band.
        shift_label: the x axis, with its unit.
        label: the y axis, with its unit.
        coverage: fraction of the repeats inside the band.
        band_label: what the repeats are.
        log_y: logarithmic values.

    Raises:
        ValueError: if a shape does not fit.
    """
    severity, curves = np.asarray(severity), named(curves, "ensemble")
    fig = new_figure()
    ax = fig.subplots()
    has_band = False
    for i, (name, values) in enumerate(curves.items()):
        if values.shape[-1:] != severity.shape or values.ndim > 2:
            raise ValueError(
                f"curves[{name!r}] must be [severity] = {severity.shape} or"
                f" [repeat, severity]; got shape {values.shape}."
            )
        values = np.atleast_2d(values).astype(float)
        has_band |= values.shape[0] > 1
        _band(
            ax,
            severity,
            values,
            coverage,
            name=name,
            color=PALETTE[i],
            marker=MARKERS[i],
        )
    if log_y:
        ax.set_yscale("log")
    finish(
        ax,
        x=shift_label,
        y=f"{label}, log scale" if log_y else label,
        title=title,
        legend=True,
        legend_title=f"band: {100 * coverage:g} % of {band_label}"
        if has_band
        else None,
    )
    return fig


@jax.jit
def _curve_and_area(log_probs, labels, confidence):
    curve = scores.risk_coverage(log_probs, labels, confidence=confidence)
    return curve, scores.aurc(log_probs, labels, confidence=confidence)


def risk_coverage(
    log_probs: np.ndarray | Mapping[str, np.ndarray],
    labels: np.ndarray,
    *,
    confidence: Mapping[str, np.ndarray] | None = None,
    title: str | None = None,
) -> Figure:
    """Error rate of the surest rows against the fraction kept, with the AURC.

    Args:
        log_probs: `[batch, class]`, or a dict of name to such arrays.
        labels: class indices `[batch]`.
        confidence: name to `[batch]`, larger is surer; the largest probability where a
            name is missing.

    Raises:
        ValueError: if a shape does not fit.
    """
    fig = new_figure()
    ax = fig.subplots()
    for i, (name, values) in enumerate(named(log_probs, "ensemble").items()):
        sure = (confidence or {}).get(name)
        curve, area = _curve_and_area(values, labels, sure)
        ax.plot(
            np.asarray(curve.coverage),
            np.asarray(curve.risk),
            color=PALETTE[i],
            lw=1.8,
            label=f"{name}, AURC {float(area):.3g}",
        )
    ax.set_xlim(0, 1)
    ax.set_ylim(bottom=0)
    finish(
        ax,
        x="Coverage (fraction of rows kept)",
        y="Error rate of kept rows",
        title=title,
        legend=True,
    )
    return fig


def _draw_lost(ax, steps, shown, alive):
    lost = np.flatnonzero(~alive[-1])
    label = f"{len(lost)} not finite, of {alive.shape[1]}"
    for member in lost:
        ax.plot(steps, shown[:, member], color=ALARM, lw=1, ls="--")
        last = max(int(alive[:, member].sum()) - 1, 0)
        if alive[last, member]:
            at = (steps[last], shown[last, member])
            ax.plot(*at, "x", color=ALARM, ms=8, mew=2, label=label)
        else:  # never finite: there is no value to mark, so mark the step
            ax.plot(
                steps[last],
                0.02,
                "x",
                color=ALARM,
                ms=8,
                mew=2,
                label=label,
                transform=ax.get_xaxis_transform(),
            )
        label = None


def _band(ax, x, values, coverage, *, name, color, marker="o"):
    """Mean of `values` `[repeat, x]` as a line, its middle `coverage` as a band."""
    tail = (1 - coverage) / 2
    low, high = _quantiles(values, (tail, 1 - tail), axis=0)
    if values.shape[0] > 1:
        ax.fill_between(x, low, high, color=color, alpha=0.2, lw=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a size without any subset
        mean = np.nanmean(values, axis=0)
    ax.plot(x, mean, color=color, lw=1.8, marker=marker, ms=5, label=name)
    if not np.isfinite(mean).all():
        ax.plot([], [], " ", color=GREY, label="gaps: not finite")


def _quantiles(values, at, axis):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all members lost
        return np.nanquantile(values, at, axis=axis)


def _few(ticks, most=16):
    return ticks if len(ticks) <= most else ticks[:: -(-len(ticks) // most)]
