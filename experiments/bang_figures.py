"""Figures and tables of `bang.py`."""

import numpy as np

from ensjax.experiment.fields import load_beside
from ensjax.plot.style import GREY, MARKERS, PALETTE, finish, new_figure

verdicts = load_beside(__file__, "bang_claims")
wise = load_beside(__file__, "wise_ft_claims")
training = load_beside(__file__, "wise_ft_training")


def _errorbar(ax, x, values, **options):
    """Mean and standard deviation over seeds, `[seed, x]`."""
    ax.errorbar(
        x,
        values.mean(axis=0),
        yerr=values.std(axis=0),
        markersize=5,
        capsize=3,
        **options,
    )


def _lambda(config, done):
    fig = new_figure(width=9.0)
    left, right = fig.subplots(1, 2)
    pairs, tuned = done["pairs"], done["tune"]
    values = 100 * pairs["balance"].mean(axis=1)
    _errorbar(
        left,
        config.lambdas,
        values,
        color=PALETTE[0],
        marker="o",
        label="z1 + lambda z2",
    )
    single = 100 * pairs["single"].mean()
    left.axhline(single, color=GREY, linestyle="--", label="model 2 alone")
    for number, (recipe, color, marker) in enumerate(
        zip(config.recipes, PALETTE, MARKERS)
    ):
        values = 100 * tuned["balance"][:, :, number].mean(axis=1)
        _errorbar(
            right,
            config.lambdas,
            values,
            color=color,
            marker=marker,
            label=wise.NAMES[recipe],
        )
    for ax, title, label in (
        (left, f"two equal models, p = {config.pairs.p:g}", "lambda"),
        (right, "pre-trained + lambda fine-tuned", "lambda"),
    ):
        ax.set_xscale("log")
        ticks = [x for x in config.lambdas if x in (0.25, 1.0, 4.0, 100.0)]
        ax.set_xticks(ticks, [f"{x:g}" for x in ticks])
        ax.minorticks_off()
        low, high = ax.get_ylim()
        ax.set_ylim(low, high + 0.55 * (high - low))
        finish(
            ax,
            x=label,
            y="accuracy out of distribution (%)" if ax is left else "",
            title=title,
            legend=True,
        )
    return fig


def _alphas(config, done):
    fig = new_figure(width=9.0)
    axes = fig.subplots(1, 2)
    for ax, test, title in zip(
        axes, ("ood", "id"), ("out of distribution", "in distribution (fine-tuning)")
    ):
        for recipe, color, marker in zip(config.recipes, PALETTE, MARKERS):
            values = wise.curve(config, done["tune"], recipe, test=test)
            _errorbar(
                ax,
                config.alphas,
                values,
                color=color,
                marker=marker,
                label=wise.NAMES[recipe],
            )
        ax.set_ylim(0, 105)
        finish(
            ax,
            x="alpha: 0 pre-trained, 1 fine-tuned",
            y="test accuracy (%)" if ax is axes[0] else "",
            title=title,
            legend=ax is axes[1],
        )
    return fig


def _calibration(config, done):
    fig = new_figure(width=9.0)
    axes = fig.subplots(1, 2)
    ends = verdicts.ends_of(config)
    for ax, (name, label) in zip(
        axes,
        (
            ("overconfidence", "mean probability minus accuracy (points)"),
            ("ece", "expected calibration error (points)"),
        ),
    ):
        y = np.arange(len(ends))[::-1]
        for shift, test, title, color in (
            (0.2, "id", "in distribution (fine-tuning)", PALETTE[0]),
            (-0.2, "ood", "out of distribution", PALETTE[1]),
        ):
            values = done["tune"][name][training.TESTS.index(test)].mean(axis=1)
            values = 100 * values  # [seed, end]
            ax.barh(
                y + shift,
                values.mean(axis=0),
                0.38,
                xerr=values.std(axis=0),
                capsize=3,
                color=color,
                label=title,
            )
        ax.axvline(0, color=GREY, linewidth=0.8)
        names = [verdicts.ENDS[end] for end in ends]
        names = [n.replace(" and ", "\nand ") for n in names]
        ax.set_yticks(y, names if ax is axes[0] else [""] * len(ends))
        finish(
            ax,
            x=label,
            y="",
            title="mean and sd over seeds" if ax is axes[0] else None,
            legend=ax is axes[1],
            starts_at_zero=False,
        )
    return fig


FIGURES = {
    "lambda": (
        "Two models' outputs added out of balance; a large lambda leaves the second"
        " model alone. Mean and sd over seeds.",
        _lambda,
    ),
    "alphas": (
        "Accuracy of averaged weights for four recipes of fine-tuning; mean and sd over"
        " seeds.",
        _alphas,
    ),
    "calibration": (
        "How sure the pre-trained and the fine-tuned models are against how often they"
        " are right.",
        _calibration,
    ),
}


def add_figures(run_dir, config, done):
    """Draws everything that the report shows."""
    for name, (caption, draw) in FIGURES.items():
        run_dir.add_figure(name, draw(config, done), caption)


def add_tables(run_dir, config, done):
    """What each recipe does to the fine-tuned end and to the mixture."""
    tuned, middle = done["tune"], wise.half(config)
    ood, known = training.TESTS.index("ood"), training.TESTS.index("id")
    gains = verdicts.bang_gains(config, tuned)
    rows = []
    for number, recipe in enumerate(config.recipes, start=1):
        values = wise.curve(config, tuned, recipe)
        own = wise.parts(config, tuned, recipe)
        rows.append(
            (
                wise.NAMES[recipe],
                values[:, 0].mean(),
                values[:, -1].mean(),
                values[:, middle].mean(),
                gains[recipe].mean() if recipe in gains else "",
                own.gain[:, middle].mean(),
                own.false_false_true[:, middle].mean(),
                verdicts.even(config, tuned, recipe).mean(),
                verdicts.balanced(config, tuned, recipe).mean(),
                100 * tuned["overconfidence"][ood, ..., number].mean(),
                100 * tuned["ece"][known, ..., number].mean(),
                100 * tuned["ece"][ood, ..., number].mean(),
            )
        )
    run_dir.add_table(
        "recipes",
        (
            "fine-tuning",
            "before",
            "after",
            "alpha .5",
            "minus plain",
            "gain over the better end",
            "both wrong, mixture right",
            "outputs added",
            "outputs added, confidence balanced",
            "over-confidence of the fine-tuned end",
            "its ECE in distribution",
            "its ECE out of distribution",
        ),
        rows,
        "Accuracy out of distribution (%) and differences (points). A recipe changes"
        " the accuracy of the fine-tuned end as well as its confidence. Confidence is"
        " balanced by a temperature for each end, fitted out of distribution on the"
        " half of the digits that is not scored.",
    )
