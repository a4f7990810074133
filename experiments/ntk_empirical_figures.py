"""Figures and tables of `ntk_empirical.py`."""

import numpy as np

from ensjax.experiment.fields import load_beside
from ensjax.ntk.published import MEMBERS_FOR_90_PERCENT
from ensjax.plot.style import GREY, MARKERS, PALETTE, finish, new_figure

permutations = load_beside(__file__, "ntk_empirical_permutations")
verdicts = load_beside(__file__, "ntk_empirical_claims")


def _between(own):
    """Centred alignment of each member with the others, `[snapshot, member]`."""
    members = own["between_centred"].shape[-1]
    return (own["between_centred"].sum(axis=-1) - 1) / (members - 1)


PANELS = (
    ("change, |K - K0| / |K0|", lambda own: own["change"]),
    ("centred alignment with the labels", lambda own: own["labels_centred"]),
    ("centred alignment of two members", _between),
    ("test accuracy (%)", lambda own: 100 * own["accuracy"]),
)


def _training(config, done):
    fig = new_figure(7.0, width=9.0)
    steps = np.array([0, *config.cnn.snapshots])
    for ax, (label, values_of) in zip(fig.subplots(2, 2).flat, PANELS):
        curves = zip(verdicts.widths(config, done).items(), PALETTE, MARKERS)
        for (width, own), color, marker in curves:
            values = values_of(own)
            ax.plot(
                steps,
                values.mean(axis=1),
                color=color,
                marker=marker,
                markersize=5,
                label=f"{width} channels",
            )
            low, high = values.min(axis=1), values.max(axis=1)
            ax.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
        ax.set_xscale("symlog", linthresh=config.cnn.snapshots[0])
        ticks = steps if len(steps) < 7 else steps[::2]
        ax.set_xticks(ticks, [f"{step:,}" for step in ticks])
        ax.minorticks_off()
        if ax is fig.axes[0]:  # kernels grow by factors
            ax.set_yscale("symlog", linthresh=0.1)
            ax.yaxis.set_major_formatter("{x:g}")
        ax.set_ylim(bottom=0)
        finish(ax, x="steps of SGD", y=label, legend=ax is fig.axes[0])
    return fig


def _matrices(config, done):
    """Of member 0 of the widest nets, rows sorted by class, each scaled alike."""
    own = verdicts.widths(config, done)[config.cnn.widths[-1]]
    fig = new_figure(4.4, width=9.0)
    last = config.cnn.snapshots[-1]
    classes = own["classes"]
    edges = np.flatnonzero(np.diff(classes)) + 0.5
    middles = [np.flatnonzero(classes == c).mean() for c in np.unique(classes)]
    for ax, kernel, when in zip(
        fig.subplots(1, 2), own["kernels"], ("before training", f"after {last:,} steps")
    ):
        scale = np.sqrt(np.outer(np.diag(kernel), np.diag(kernel)))
        image = ax.imshow(kernel / scale, cmap="viridis", vmin=0, vmax=1)
        for edge in edges:
            ax.axhline(edge, color="white", linewidth=0.4)
            ax.axvline(edge, color="white", linewidth=0.4)
        ax.set_title(when, fontsize=11, loc="left")
        ax.set_xticks(middles, [str(c) for c in np.unique(classes)])
        ax.set_yticks(middles, [str(c) for c in np.unique(classes)])
        ax.set_xlabel("digit")
        ax.set_ylabel("digit")
    bar = fig.colorbar(image, ax=fig.axes, shrink=0.9)
    bar.set_label("K(x, x') / sqrt(K(x, x) K(x', x'))")
    return fig


def _accuracy(config, done):
    """Row accuracy against the number of members, hardest and all unseen inputs."""
    every = permutations.cases(config)
    fig = new_figure(3.2 * len(every), width=9.0)
    axes = np.atleast_2d(fig.subplots(len(every), 2))
    for row, case in zip(axes, every):
        own = done[case.name]
        for ax, name, label in (
            (row[0], "hard", f"two ones ({own['num_hard']} inputs)"),
            (row[1], "rows", f"all unseen ({own['num_rows']} inputs)"),
        ):
            size = np.arange(1, case.num_members + 1)
            low, middle, high = np.percentile(
                100 * own[f"oracle_{name}"], [5, 50, 95], axis=0
            )
            ax.fill_between(
                size,
                low,
                high,
                color=GREY,
                alpha=0.25,
                linewidth=0,
                label="oracle, 5 to 95 %",
            )
            ax.plot(size, middle, color=GREY, linestyle="--", label="oracle, median")
            for number, curve in enumerate(100 * own[name]):
                ax.plot(
                    size,
                    curve,
                    color=PALETTE[0],
                    linewidth=0.9,
                    alpha=0.8,
                    label="trained, each seed" if not number else None,
                )
            ax.set_xscale("log")
            ax.xaxis.set_major_formatter("{x:,.0f}")
            ax.set_ylim(0, 103)
            if name == "hard":
                target = 100 * config.permutations.target
                ax.axhline(target, color=PALETTE[1], linewidth=0.8, linestyle=":")
            finish(
                ax,
                x="members N",
                y="inputs that are right (%)",
                title=f"{case.law}, k = {case.num_bits}: {label}",
                legend=ax is axes[0, 0],
            )
    return fig


FIGURES = {
    "training": (
        "Tangent kernels of convolutional nets while they train: mean and range over"
        " members.",
        _training,
    ),
    "kernels": (
        "Tangent kernel of one member, traced over outputs, before and after training;"
        " training digits sorted by class.",
        _matrices,
    ),
    "accuracy": (
        "Inputs never seen in training that the rounded mean of the first N networks"
        " gets right. Dotted: the accuracy whose number of members is compared.",
        _accuracy,
    ),
}


def add_figures(run_dir, config, done):
    """Draws everything that the report shows."""
    for name, (caption, draw) in FIGURES.items():
        run_dir.add_figure(name, draw(config, done), caption)


def _members(curves, target):
    first, stays = verdicts.first_and_stays(curves, target).T
    middle, stays = (verdicts.median_of(values) for values in (first, stays))
    return f"{middle:g} ({first.min():g} to {first.max():g})", stays


def add_tables(run_dir, config, done):
    """Members needed beside the oracle and the published code; means and variances."""
    target = config.permutations.target
    rows, moments = [], []
    for case in permutations.cases(config):
        own = done[case.name]
        trained, stays = _members(own["hard"], target)
        oracle, oracle_stays = _members(own["oracle_hard"], target)
        published = MEMBERS_FOR_90_PERCENT.get(case.num_bits, "")
        is_published = case.law == "readout" and target == 0.9
        name = f"{case.law}, k = {case.num_bits}"
        rows.append(
            (
                name,
                trained,
                oracle,
                f"{stays:g}",
                f"{oracle_stays:g}",
                published if is_published else "",
            )
        )
        f0, f1 = own["f"].T
        error = [values.std(ddof=1) / np.sqrt(len(values)) for values in (f0, f1)]
        moments.append(
            (
                name,
                f"{f0.mean():.4f} +- {error[0]:.4f}",
                f"{own['law'][0]:.4f}",
                f"{f1.mean():.4f} +- {error[1]:.4f}",
                f"{own['law'][1]:.4f}",
                f"{own['variance'].mean() / own['law'][2]:.3f}",
            )
        )
    run_dir.add_table(
        "members",
        (
            "networks",
            "trained: median (range)",
            "oracle: median (range)",
            "trained, from where it stays",
            "oracle, from where it stays",
            "published, one trial",
        ),
        rows,
        f"Members that bring {100 * target:g} % of inputs with two ones right: first"
        " passage. A share of few inputs jumps, so that a first passage is early.",
    )
    run_dir.add_table(
        "moments",
        ("networks", "f0", "law's f0", "f1", "law's f1", "variance over the law's"),
        moments,
        "What zeros (f0) and ones (f1) get at inputs with two ones, mean over all"
        " members of a seed (+- standard error over seeds), and the infinite width's.",
    )
    run_dir.add_table(
        "kernels",
        (
            "channels",
            "step",
            "change",
            "1 - cosine",
            "alignment with labels, centred",
            "of two members, centred",
            "spread over members",
            "test accuracy (%)",
        ),
        [
            (
                width,
                f"{step:,}",
                *(
                    f"{own[name][i].mean():.3f}"
                    for name in ("change", "distance", "labels_centred")
                ),
                f"{verdicts.off_diagonal(own['between_centred'])[i]:.3f}",
                f"{own['spread'][i]:.3f}",
                f"{100 * own['accuracy'][i].mean():.1f}",
            )
            for width, own in verdicts.widths(config, done).items()
            for i, step in enumerate([0, *config.cnn.snapshots])
        ],
        "Tangent kernels while convolutional nets train, means over members; the spread"
        " is the standard deviation over members relative to the mean kernel.",
    )
