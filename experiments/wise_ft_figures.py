"""Figures and tables of `wise_ft.py`."""

import numpy as np

from ensjax.experiment.fields import load_beside
from ensjax.plot.style import GREY, PALETTE, finish, new_figure

verdicts = load_beside(__file__, "wise_ft_claims")

PART_NAMES = {
    "false_false_true": "both ends wrong, mixture right",
    "followed": "only the worse end right, and the mixture",
    "misled": "only the better end right, mixture wrong",
    "true_true_false": "both ends right, mixture wrong",
}


def panels(config):
    """A figure with one pair of axes for each recipe."""
    count = len(config.recipes)
    fig = new_figure(4.8, width=max(6.4, 4.4 * count))
    return fig, np.atleast_1d(fig.subplots(1, count, sharey=True))


def legend_below(fig, ax, *, columns: int = 2):
    """One legend for all panels, below them, of what the first holds."""
    handles, labels = ax.get_legend_handles_labels()
    fig.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False
    )


def band(ax, x, values, *, color, label, linestyle="-", marker=None):
    """Mean over seeds and one standard deviation around it, values `[seed, x]`."""
    mean, sd = values.mean(axis=0), values.std(axis=0)
    ax.plot(
        x,
        mean,
        color=color,
        label=label,
        linestyle=linestyle,
        marker=marker,
        markersize=4,
    )
    ax.fill_between(x, mean - sd, mean + sd, color=color, alpha=0.15, linewidth=0)


def _alphas(config, results):
    fig, axes = panels(config)
    for ax, recipe in zip(axes, config.recipes):
        for test, label, color in (
            ("id", "in distribution", PALETTE[0]),
            ("pretraining", "as in pre-training", PALETTE[5]),
            ("ood", "out of distribution", PALETTE[1]),
        ):
            values = verdicts.curve(config, results, recipe, test=test)
            band(ax, config.alphas, values, color=color, label=label, marker="o")
        values = verdicts.curve(config, results, recipe, space="predictive")
        band(
            ax,
            config.alphas,
            values,
            color=PALETTE[2],
            label="out of distribution, averaged probabilities",
            linestyle="--",
        )
        ends = verdicts.curve(config, results, recipe).mean(axis=0)[[0, -1]]
        ax.axhline(ends.max(), color=GREY, linestyle=":", label="better end")
        ax.set_ylim(0, 105)
        first = ax is axes[0]
        finish(
            ax,
            x="alpha: 0 pre-trained, 1 fine-tuned",
            y="test accuracy (%)" if first else "",
            title=verdicts.NAMES[recipe],
        )
    legend_below(fig, axes[0])
    return fig


def _frontier(config, results):
    fig, axes = panels(config)
    lowest = min(verdicts.curve(config, results, r).min() for r in config.recipes)
    for ax, recipe in zip(axes, config.recipes):
        ax.set_ylim(max(0, lowest - 8), 100)
        for space, label, color in (
            ("weights", "averaged weights", PALETTE[1]),
            ("predictive", "averaged probabilities", PALETTE[2]),
        ):
            known = verdicts.curve(config, results, recipe, space=space, test="id")
            other = verdicts.curve(config, results, recipe, space=space)
            x, y = known.mean(axis=0), other.mean(axis=0)
            ax.plot(x, y, color=color, marker="o", markersize=4, label=label)
            for place, name in ((0, "alpha 0"), (-1, "alpha 1")):
                if space == "weights":
                    ax.annotate(
                        name,
                        (x[place], y[place]),
                        xytext=(6 if place == 0 else -6, -12),
                        textcoords="offset points",
                        fontsize=9,
                        ha="left" if place == 0 else "right",
                    )
        first = ax is axes[0]
        finish(
            ax,
            x="accuracy in distribution (%)",
            y="accuracy out of distribution (%)" if first else "",
            title=verdicts.NAMES[recipe],
            legend=first,
        )
    return fig


def _parts(config, results):
    fig, axes = panels(config)
    for ax, recipe in zip(axes, config.recipes):
        own = verdicts.parts(config, results, recipe)
        for (name, label), color in zip(PART_NAMES.items(), PALETTE):
            band(ax, config.alphas, getattr(own, name), color=color, label=label)
        band(
            ax,
            config.alphas,
            own.gain,
            color=GREY,
            label="gain over the better end",
            linestyle="--",
        )
        ax.axhline(0, color=GREY, linewidth=0.8)
        first = ax is axes[0]
        finish(
            ax,
            x="alpha",
            y="share of test rows (%)" if first else "",
            title=verdicts.NAMES[recipe],
            starts_at_zero=False,
        )
    legend_below(fig, axes[0])
    return fig


def _cells(config, results):
    fig = new_figure()
    ax = fig.subplots()
    x, middle = np.arange(len(config.recipes)), verdicts.half(config)
    spaces = (("weights", "weights"), ("predictive", "probabilities"))
    colors = iter((PALETTE[2], PALETTE[1], "#7FCDB5", "#F0B088"))
    for number, (space, label) in enumerate(spaces):
        owns = [verdicts.parts(config, results, r, space=space) for r in config.recipes]
        for place, (name, short) in enumerate(
            (
                ("false_false_true", "both wrong, {} right"),
                ("true_true_false", "both right, {} wrong"),
            )
        ):
            values = np.stack([getattr(own, name)[:, middle] for own in owns])
            ax.bar(
                x + 0.2 * (2 * number + place - 1.5),
                values.mean(axis=1),
                0.19,
                yerr=values.std(axis=1),
                capsize=3,
                color=next(colors),
                label=short.format(f"averaged {label}"),
            )
    ax.set_xticks(x, [verdicts.NAMES[r] for r in config.recipes])
    ax.set_ylim(0, ax.get_ylim()[1] * 1.3)
    finish(
        ax,
        x="fine-tuning",
        y="share of test rows (%)",
        title=f"alpha = .5, out of distribution; mean and sd over"
        f" {config.num_seeds} seeds",
        legend=True,
    )
    return fig


FIGURES = {
    "alphas": (
        "Accuracy along the line from the pre-trained to the fine-tuned weights, and of"
        " the ends' outputs combined with the same alpha; mean and sd over seeds.",
        _alphas,
    ),
    "frontier": (
        "The same, out of distribution against in distribution (of fine-tuning).",
        _frontier,
    ),
    "parts": (
        "What the gain over the better end is made of: first curve plus second minus"
        " third minus fourth is the dashed one.",
        _parts,
    ),
    "cells": (
        "Rows on which both ends are wrong and their mixture right, and the reverse.",
        _cells,
    ),
}


def add_figures(run_dir, config, results):
    """Draws everything that the report shows."""
    for name, (caption, draw) in FIGURES.items():
        run_dir.add_figure(name, draw(config, results), caption)


def add_tables(run_dir, config, results, intervals):
    """The eight cells, and what the gain is made of."""
    middle, rows = verdicts.half(config), []
    for space in verdicts.SPACES:
        for number, recipe in enumerate(config.recipes):
            own = verdicts.parts(config, results, recipe, space=space)
            values = [getattr(own, name)[:, middle].mean() for name in PART_NAMES]
            share = intervals[number] if space == "weights" else None
            shown = "" if share is None else "{:.2f} ({:.2f} to {:.2f})".format(*share)
            gain = own.gain[:, middle].mean()
            rows.append((space, verdicts.NAMES[recipe], gain, *values, shown))
    run_dir.add_table(
        "gain",
        ("averaged", "fine-tuning", "gain", *PART_NAMES.values(), "share"),
        rows,
        "Gain over the better end at alpha .5, out of distribution, and its parts"
        " (points). The share is that of the first part minus the last, with a 95 %"
        " bootstrap interval over digits.",
    )
    rows = []
    table = results["table"][0, verdicts.training.TESTS.index("ood")]
    for number, recipe in enumerate(config.recipes):
        cells = table[:, :, number, middle].mean(axis=(0, 1)).reshape(-1)
        rows.append((verdicts.NAMES[recipe], *(100 * cells).tolist()))
    letters = [f"{a}{b}{c}" for a in "FT" for b in "FT" for c in "FT"]
    run_dir.add_table(
        "cells",
        ("fine-tuning", *letters),
        rows,
        "Shares of test rows (%) by whether the pre-trained model, the fine-tuned one"
        " and the mean of their weights are right (T) or wrong (F).",
    )
