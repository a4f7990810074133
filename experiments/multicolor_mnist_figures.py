"""Figures and tables of `multicolor_mnist.py`."""

import numpy as np

from ensjax.experiment.fields import load_beside
from ensjax.plot.style import GREY, MARKERS, PALETTE, finish, new_figure

tasks = load_beside(__file__, "multicolor_tasks")
theory = load_beside(__file__, "multicolor_mnist_theory")
verdicts = load_beside(__file__, "multicolor_mnist_claims")


def _errorbar(ax, x, values, *, color, label, marker, **options):
    """Mean and standard deviation over seeds, `[x, seed]`."""
    ax.errorbar(
        x,
        values.mean(axis=1),
        yerr=values.std(axis=1),
        color=color,
        marker=marker,
        markersize=5,
        capsize=3,
        label=label,
        **options,
    )


def _gain(config, results):
    fig = new_figure()
    ax = fig.subplots()
    curves = zip(results.items(), PALETTE, MARKERS)
    for (name, own), color, marker in curves:
        gain = verdicts.gains(own).mean(axis=-1)
        control = verdicts.gains(own, "control_").mean(axis=-1)
        _errorbar(ax, config.p, gain, color=color, label=name, marker=marker)
        _errorbar(
            ax,
            config.p,
            control,
            color=color,
            label=f"{name}, one colour",
            marker=marker,
            linestyle=":",
            markerfacecolor="white",
        )
    paper = np.subtract(verdicts.PAPER_PAIR, verdicts.PAPER_SINGLE)
    label = "paper, MNIST of 50,000 (recalled)"
    ax.plot(
        verdicts.PAPER_P, paper, color=GREY, marker="X", linestyle="--", label=label
    )
    ax.axhline(0, color=GREY, linewidth=0.8)
    ax.set_ylim(top=ax.get_ylim()[1] * 1.35)
    ax.set_xticks(config.p)
    finish(
        ax,
        x="p: chance that a patch's colour is drawn anew in the test set",
        y="accuracy of pair minus single (points)",
        title=f"mean and sd over {config.num_seeds} seeds",
        legend=True,
        starts_at_zero=False,
    )
    return fig


def _accuracy(config, results):
    fig = new_figure(4.4, width=max(6.4, 4.6 * len(results)))
    axes = np.atleast_1d(fig.subplots(1, len(results), sharey=True))
    for ax, (name, own) in zip(axes, results.items()):
        sizes = 2 ** np.arange(own["by_size"].shape[2])
        for place, (size, color) in enumerate(zip(sizes, PALETTE)):
            values = 100 * own["by_size"][:, :, place]
            members = "one model" if size == 1 else f"{size} models"
            marker = MARKERS[place]
            _errorbar(ax, config.p, values, color=color, label=members, marker=marker)
        for values, label, style in (
            (verdicts.PAPER_SINGLE, "paper, one model", "--"),
            (verdicts.PAPER_PAIR, "paper, 2 models", ":"),
        ):
            ax.plot(
                verdicts.PAPER_P,
                values,
                color=GREY,
                marker="X",
                linestyle=style,
                label=f"{label} (recalled)",
            )
        ax.set_ylim(0, 100)
        ax.set_xticks(config.p)
        first = ax is axes[0]
        finish(
            ax,
            x="p",
            y="test accuracy (%)" if first else "",
            title=f"{name}: mean and sd over seeds",
            legend=first,
        )
    return fig


def _cells(config, results):
    fig = new_figure(3.8, width=max(6.4, 4.2 * len(results)))
    axes = np.atleast_1d(fig.subplots(1, len(results), sharey=True))
    for ax, (name, own) in zip(axes, results.items()):
        x = np.arange(len(config.p))
        for shift, (key, label), color in (
            (-0.2, ("both_wrong", "both wrong, pair right"), PALETTE[2]),
            (0.2, ("both_right", "both right, pair wrong"), PALETTE[1]),
        ):
            values = 100 * own[key].mean(axis=-1)
            ax.bar(
                x + shift,
                values.mean(axis=1),
                0.38,
                yerr=values.std(axis=1),
                color=color,
                capsize=3,
                label=label,
            )
        ax.set_xticks(x, [f"{p:g}" for p in config.p])
        ax.set_ylim(0, ax.get_ylim()[1] * 1.25)
        first = ax is axes[0]
        finish(
            ax,
            x="p",
            y="share of test rows (%)" if first else "",
            title=name,
            legend=first,
        )
    return fig


def _images(config, results):
    """One digit of each of five classes: as in training, and at the largest p."""
    name = next(iter(results))
    centers = tasks.load_centers(config, name)
    table = tasks.permutations(config, 0)
    chosen = [int(np.flatnonzero(centers.y_test == c)[0]) for c in range(5)]
    fig = new_figure(3.2)
    axes = fig.subplots(2, 5)
    for row, (p, number) in enumerate(((0.0, 0), (max(config.p), 1))):
        images, _ = tasks.test_images(
            config, centers, table, 1 - p, seed=0, number=number
        )
        for ax, place in zip(axes[row], chosen):
            ax.imshow(np.asarray(images[place]).clip(0, 1))
            ax.set_xticks([])
            ax.set_yticks([])
        axes[row, 0].set_ylabel("p = 0" if row == 0 else f"p = {p:g}", fontsize=11)
    return fig


FIGURES = {
    "gain": (
        "How much better a pair of models is than one of them, by how often patches"
        " lose their colour; and where all patches are one feature.",
        _gain,
    ),
    "accuracy": (
        "Accuracy out of distribution of one model and of averaged outputs.",
        _accuracy,
    ),
    "cells": (
        "Rows that both models of a pair get wrong and the pair right, and the"
        " reverse; mean and sd over seeds.",
        _cells,
    ),
    "images": ("Test digits with the colours of training, and out of it.", _images),
}


def add_figures(run_dir, config, results):
    """Draws everything that the report shows."""
    for name, (caption, draw) in FIGURES.items():
        run_dir.add_figure(name, draw(config, results), caption)


def add_tables(run_dir, config, results, known):
    """The theory's numbers, and accuracies beside the paper's."""
    run_dir.add_table(
        "theory_enumerated",
        ("p", "single", "closed form", "pair", "closed form "),
        [
            (f"{p:g}", *row)
            for p, row in zip(
                known["p"],
                np.stack([known["enumerated"], known["closed"]], axis=-1)
                .reshape(-1, 4)
                .tolist(),
            )
        ],
        "Three classes: 2 invariant and 3 spurious features, and two such models"
        " without a common feature.",
    )
    rows = []
    for i, case in enumerate(theory.CASES):
        for j, space in enumerate(theory.LEADS):
            values = known["simulated"][i, j]
            error = np.sqrt((known["error"][i, j] ** 2).sum()) / len(values)
            rows.append((case, space, known["many"][i, j], values.mean(), error))
    run_dir.add_table(
        "theory_many_features",
        ("two models with", "averaged", "F_p(z)", "simulated", "standard error"),
        rows,
        f"{theory.MANY_CLASSES} classes, p = {theory.MANY_P}, 50 invariant and 200,000"
        " spurious features a model. Averaged weights are better than averaged outputs"
        " where invariant features are common, and worse where spurious ones are.",
    )
    for name, own in results.items():
        rows = []
        for i, p in enumerate(config.p):
            near = np.isclose(verdicts.PAPER_P, p)
            place = int(near.argmax()) if near.any() else None
            rows.append(
                (
                    f"{p:g}",
                    100 * own["single"][i].mean(),
                    100 * own["pair"][i].mean(),
                    verdicts.gains(own)[i].mean(),
                    verdicts.PAPER_SINGLE[place] if near.any() else "",
                    verdicts.PAPER_PAIR[place] if near.any() else "",
                    100 * own["control_single"][i].mean(),
                    100 * own["control_pair"][i].mean(),
                )
            )
        columns = ("p", "single", "pair", "gain", "paper's single", "paper's pair")
        run_dir.add_table(
            f"accuracy_{name}",
            (*columns, "one colour, single", "one colour, pair"),
            rows,
            f"Accuracy (%) out of distribution, {name}. The paper's numbers are"
            " recalled, of 50,000 digits at 42 x 42.",
        )
