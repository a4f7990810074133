"""Figures of `bootstrap_regression.py`."""

import numpy as np

from ensjax.experiment.fields import load_beside
from ensjax.plot.style import GREY, MARKERS, PALETTE, finish, new_figure

peers = load_beside(__file__, "bootstrap_regression_peers")
measures = load_beside(__file__, "bootstrap_regression_scores")


def _band(ax, x, values, *, color, label, linestyle="-"):
    """Mean over seeds, and from the lowest seed to the highest."""
    ax.plot(x, values.mean(axis=0), color=color, label=label, linestyle=linestyle)
    if len(values) > 1:
        ax.fill_between(
            x,
            values.min(axis=0),
            values.max(axis=0),
            color=color,
            alpha=0.15,
            linewidth=0,
        )


def _confidence(config, results):
    curves = results["curves"]
    fig = new_figure()
    ax = fig.subplots()
    kept = curves["kept"][0]
    for (name, label), color in zip(
        (
            ("by_sigma", "dropped by standard deviation"),
            ("by_distance", "dropped by distance to training rows"),
            ("oracle", "dropped by error (oracle)"),
        ),
        PALETTE,
    ):
        _band(ax, kept, curves[name], color=color, label=label)
    ax.axhline(1, color=GREY, linestyle="--", label="dropped at random")
    ax.set_xlim(0.05, 1)
    ax.set_ylim(0, 1.6)
    finish(
        ax,
        x="share of test rows kept",
        y="MAE of those kept / MAE of all",
        title=f"{config.sets[0]}: mean and range of {config.num_seeds} seeds",
        legend=True,
    )
    return fig


def _calibration(config, results):
    curves = results["curves"]
    fig = new_figure(4.6)
    ax = fig.subplots()
    for (name, label), color in zip(
        (("raw", "standard deviation as it is"), ("scaled", "out-of-bag scaled")),
        PALETTE,
    ):
        observed = curves[f"{name}_observed"]
        _band(ax, curves["levels"], observed, color=color, label=label)
    ax.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="calibrated")
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    finish(
        ax,
        x="nominal coverage of central intervals",
        y="share of test targets inside",
        title=f"{config.sets[0]}: mean and range of {config.num_seeds} seeds",
        legend=True,
    )
    return fig


def _coverage(config, results):
    curves = results["curves"]
    fig = new_figure()
    axes = fig.subplots(1, 2, sharey=True)
    place = np.arange(measures.NUM_BINS) + 1
    for ax, by, label in zip(
        axes, ("sigma", "distance"), ("standard deviation", "distance")
    ):
        for name, color, marker in zip(("raw", "scaled"), PALETTE, MARKERS):
            values = curves[f"{name}_coverage_by_{by}"]
            ax.errorbar(
                place,
                np.nanmean(values, axis=0),
                yerr=np.nanstd(values, axis=0),
                color=color,
                marker=marker,
                capsize=3,
                label=name,
            )
        ax.axhline(0.9545, color=GREY, linestyle="--", label="nominal")
        ax.set_xticks(place)
        ax.set_ylim(0, 1.05)
        finish(
            ax,
            x=f"fifth of rows, by {label}",
            y="2-sigma coverage" if by == "sigma" else "",
            title="mean and sd over seeds" if by == "sigma" else None,
            legend=by == "sigma",
        )
    return fig


def _small_data(config, results):
    sets = results["sets"]
    fig = new_figure(3.6 if len(sets) > 1 else 4.2, width=max(6.4, 3.2 * len(sets)))
    axes = np.atleast_1d(fig.subplots(1, len(sets)))
    for ax, (name, own) in zip(axes, sets.items()):
        curves = {"bootstrap networks": own["mae"]}
        curves |= dict(zip(peers.PEERS, own["peer_mae"]))
        for (label, values), color, marker in zip(curves.items(), PALETTE, MARKERS):
            ax.errorbar(
                own["sizes"],
                values.mean(axis=1),
                yerr=values.std(axis=1),
                color=color,
                marker=marker,
                markersize=5,
                capsize=3,
                label=label,
            )
        ax.set_xscale("log")
        ax.set_xticks(own["sizes"], [str(size) for size in own["sizes"]])
        ax.minorticks_off()
        ax.set_ylim(bottom=0)
        first = ax is axes[0]
        finish(
            ax,
            x="training rows",
            y="test MAE (mean and sd over seeds)" if first else "",
            title=name,
            legend=first,
        )
    return fig


def _shift(config, results):
    shift = results["shift"]
    fig = new_figure()
    axes = fig.subplots(1, 2)
    for ax, kind, label in zip(axes, ("mae", "sigma"), ("MAE", "mean sd (not scaled)")):
        pair = np.stack([shift[f"inside_{kind}"], shift[f"shifted_{kind}"]])
        ax.plot([0, 1], pair, color=GREY, marker="o", alpha=0.6)
        ax.plot([0, 1], pair.mean(axis=1), color=PALETTE[1], marker="s", linewidth=2.5)
        ax.set_xlim(-0.3, 1.3)
        ax.set_ylim(bottom=0)
        ax.set_xticks([0, 1], ["hold-out\nat home", "beyond\nthe end"])
        finish(
            ax,
            x="test rows",
            y=f"{label}, target units",
            title="each seed, and the mean" if kind == "mae" else None,
        )
    return fig


def _imbalance(config, results):
    imbalance = results["imbalance"]
    fig = new_figure()
    ax = fig.subplots()
    place = np.arange(measures.NUM_DECILES) + 1
    for (name, label), color, marker in zip(
        (
            ("whole", "all training rows"),
            (
                "thinned",
                f"upper {config.shift.share:.0%} of the target thinned to"
                f" {config.shift.keep:.0%}",
            ),
        ),
        PALETTE,
        MARKERS,
    ):
        values = imbalance[f"{name}_by_decile"]
        ax.errorbar(
            place,
            np.nanmean(values, axis=0),
            yerr=np.nanstd(values, axis=0),
            color=color,
            marker=marker,
            capsize=3,
            label=label,
        )
    ax.set_xticks(place)
    ax.set_ylim(bottom=0)
    finish(
        ax,
        x="decile of the target (of all training rows)",
        y="test MAE, target units",
        title=f"{config.sets[0]}: mean and sd over seeds",
        legend=True,
    )
    return fig


def _rankings(config, results):
    ranks = results["rankings"]["ranks"].mean(axis=-1) + 1  # [metric, model]
    fig = new_figure(3.8)
    ax = fig.subplots()
    image = ax.imshow(ranks, cmap="viridis_r", vmin=1, vmax=len(results["models"]))
    for i, row in enumerate(ranks):
        for j, value in enumerate(row):
            dark = value > (1 + len(results["models"])) / 2
            ax.text(
                j,
                i,
                f"{value:.1f}",
                ha="center",
                va="center",
                color="white" if dark else "black",
            )
    names = [name.replace("_", " ") for name in measures.METRICS]
    ax.set_yticks(np.arange(len(names)), names)
    ax.set_xticks(
        np.arange(len(results["models"])), results["models"], rotation=25, ha="right"
    )
    ax.set_title(
        f"{config.sets[0]}: mean rank over seeds, 1 is best", loc="left", fontsize=11
    )
    fig.colorbar(image, ax=ax, label="mean rank")
    return fig


FIGURES = {
    "confidence_curve": (
        "The error that is left when test rows are dropped, the least certain first.",
        _confidence,
    ),
    "calibration": (
        "Coverage of central intervals of a normal distribution with the members' mean"
        " and standard deviation, before and after out-of-bag scaling.",
        _calibration,
    ),
    "coverage_by_bin": (
        "Where intervals of two standard deviations cover, by their width and by the"
        " distance to the training rows.",
        _coverage,
    ),
    "small_data": (
        "Test error against training rows; networks and peers see the same rows.",
        _small_data,
    ),
    "shift": (
        "Trained on the lower part of a feature: error and spread on held-out rows from"
        " there, and on the rows beyond.",
        _shift,
    ),
    "imbalance": (
        "Test error by decile of the target, with few training rows at its upper end.",
        _imbalance,
    ),
    "rankings": ("How five metrics rank six models.", _rankings),
}


def add_figures(run_dir, config, results):
    """Draws everything that the report shows."""
    for name, (caption, draw) in FIGURES.items():
        run_dir.add_figure(name, draw(config, results), caption)
