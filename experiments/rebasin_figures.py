"""Figures and tables of `rebasin.py`."""

import numpy as np

from ensjax.experiment.fields import load_beside
from ensjax.plot.style import GREY, MARKERS, PALETTE, finish, new_figure

verdicts = load_beside(__file__, "rebasin_claims")
measures = load_beside(__file__, "rebasin_measures")


def _curves(config, done):
    """Loss and error along the path; the widest, with momentum and without."""
    fig = new_figure(7.0, width=9.0)
    width, line = config.mlp.widths[-1], measures.alphas(config)
    axes = fig.subplots(2, 2)
    for row, prefix in enumerate(("", "plain_")):
        for ax, score in zip(axes[row], ("nll", "accuracy")):
            for way, color, marker in zip(measures.WAYS, PALETTE, MARKERS):
                values = verdicts.path(done, width, way, score=score, prefix=prefix)
                if score == "accuracy":
                    values = 100 * (1 - values)
                ax.plot(
                    line,
                    values.mean(axis=0),
                    color=color,
                    marker=marker,
                    markersize=4,
                    label=verdicts.NAMES[way],
                )
                low, high = values.min(axis=0), values.max(axis=0)
                ax.fill_between(line, low, high, color=color, alpha=0.15, linewidth=0)
            has_legend = not row and score == "nll"
            ax.set_ylim(0, ax.get_ylim()[1] * (1.5 if has_legend else 1))
            with_momentum = "no momentum" if prefix else "momentum"
            finish(
                ax,
                x="alpha: 0 one network, 1 the other",
                y="test NLL (nats)" if score == "nll" else "test error (%)",
                title=f"width {width}, SGD, {with_momentum}",
                legend=has_legend,
            )
    return fig


def _widths(config, done):
    fig = new_figure(width=9.0)
    left, right = fig.subplots(1, 2)
    widths = config.mlp.widths
    for way, color, marker in zip(measures.WAYS, PALETTE, MARKERS):
        for ax, score, unit in ((left, "nll", 1), (right, "accuracy", 100)):
            values = [
                unit * verdicts.barriers(done, width, way, score=score)
                for width in widths
            ]
            ax.errorbar(
                widths,
                [v.mean() for v in values],
                yerr=[v.std() for v in values],
                color=color,
                marker=marker,
                capsize=3,
                label=verdicts.NAMES[way],
            )
    for ax, label in (
        (left, "test-loss barrier (nats)"),
        (right, "test-error barrier (points)"),
    ):
        ax.set_xscale("log", base=2)
        ax.set_xticks(widths, [str(width) for width in widths])
        ax.minorticks_off()
        ax.set_ylim(bottom=0)
        finish(ax, x="width of hidden layers", y=label, legend=ax is right)
    return fig


def _matrices(config, done):
    """Of the first set of each kind, before and after, one scale for both."""
    fig = new_figure(7.4, width=9.0)
    rows = fig.subplots(2, 2)
    kinds = {
        "mlp": f"MLPs of width {config.mlp.widths[-1]}",
        "resnet": f"ResNet-{config.resnet.depth}",
    }
    for axes, (name, joint) in zip(rows, verdicts.parts(config, done).items()):
        both = joint["joint_matrix"][0]
        count = both.shape[-1]
        for ax, matrix, when in zip(axes, both, ("as trained", "aligned jointly")):
            image = ax.imshow(matrix, cmap="viridis", vmin=0, vmax=both.max())
            mean = matrix[np.triu_indices(count, 1)].mean()
            ax.set_title(
                f"{count} {kinds[name]}, {when}: mean {mean:.3f}",
                fontsize=10,
                loc="left",
            )
            ax.set_xlabel("member")
            ax.set_ylabel("member")
            ticks = np.arange(0, count, max(1, count // 8))
            ax.set_xticks(ticks)
            ax.set_yticks(ticks)
        bar = fig.colorbar(image, ax=axes, shrink=0.9)
        bar.set_label(f"test-loss {verdicts.rise(config)} (nats)")
    return fig


def _soups(config, done):
    fig = new_figure(width=9.0)
    axes = fig.subplots(1, 2)
    for ax, (name, joint) in zip(axes, verdicts.parts(config, done).items()):
        soups = 100 * verdicts.soup_accuracy(joint)
        bars = {
            "mean of weights,\nas trained": soups[:, 0],
            "mean of weights,\naligned": soups[:, 1],
        }
        if soups.shape[1] > 2:
            bars["mean of weights,\naligned, REPAIR"] = soups[:, 2]
        bars["one member"] = 100 * verdicts.member_accuracy(joint)
        bars["mean of\nprobabilities"] = 100 * joint["joint_ensemble"][:, 1, 1]
        y = np.arange(len(bars))[::-1]
        means = [values.mean() for values in bars.values()]
        spread = [values.std() for values in bars.values()]
        colors = [GREY if "mean of w" not in name else PALETTE[0] for name in bars]
        has_spread = config.num_sets > 1
        ax.barh(y, means, xerr=spread if has_spread else None, color=colors, capsize=3)
        for place, mean in zip(y, means):
            inside = mean > 15
            ax.text(
                1.5 if inside else mean + 1.5,
                place,
                f"{mean:.1f}",
                va="center",
                color="white" if inside else "#333333",
                fontsize=10,
            )
        ax.set_yticks(y, list(bars))
        ax.set_xlim(0, 100)
        kind = "MLPs" if name == "mlp" else f"ResNet-{config.resnet.depth}"
        finish(
            ax,
            x="test accuracy (%)",
            y="",
            title=f"{config[name].num_members} {kind}",
            starts_at_zero=False,
        )
    return fig


FIGURES = {
    "paths": (
        "Test loss and error between two networks, mean and range over pairs; both ends"
        " of every path are the networks themselves.",
        _curves,
    ),
    "widths": (
        "Barriers of pairs against the width; mean and sd over pairs.",
        _widths,
    ),
    "matrices": (
        "Barriers between all members of the first set (on three points of a path: the"
        " rise at its midpoint), before and after joint alignment, on one colour scale"
        " a row.",
        _matrices,
    ),
    "soups": (
        "The mean of all members' weights before and after joint alignment, beside the"
        " members and their ensemble; mean and sd over sets.",
        _soups,
    ),
}


def add_figures(run_dir, config, done):
    """Draws everything that the report shows."""
    for name, (caption, draw) in FIGURES.items():
        run_dir.add_figure(name, draw(config, done), caption)


def add_tables(run_dir, config, done):
    """Barriers of all widths and ways, and the sets."""
    rows = []
    for width in config.mlp.widths:
        for prefix in ("", "plain_") if width == config.mlp.widths[-1] else ("",):
            for way in measures.WAYS:
                of = dict(prefix=prefix)
                own = [
                    verdicts.barriers(done, width, way, test=test, score=score, **of)
                    for score in measures.SCORES
                    for test in measures.SETS
                ]
                rows.append(
                    (
                        f"{width}{', no momentum' if prefix else ''}",
                        verdicts.NAMES[way],
                        *(f"{values.mean():.4f}" for values in own[:2]),
                        *(f"{100 * values.mean():.2f}" for values in own[2:]),
                        f"{100 * verdicts.middle(done, width, way, **of).mean():.2f}",
                    )
                )
    run_dir.add_table(
        "pairs",
        (
            "width",
            "second network",
            "training-loss barrier",
            "test-loss barrier",
            "training-error barrier",
            "test-error barrier",
            "test accuracy of the midpoint",
        ),
        rows,
        f"Mean over {config.mlp.num_pairs} pairs; loss in nats, error and accuracy in"
        " per cent.",
    )
    rows = []
    for name, joint in verdicts.parts(config, done).items():
        before, after = verdicts.set_barriers(joint).mean(axis=0)
        agreement = joint["joint_agreement"].mean(axis=0)
        soups = 100 * verdicts.soup_accuracy(joint).mean(axis=0)
        rows.append(
            (
                f"{config[name].num_members} {name}",
                f"{before:.4f}",
                f"{after:.4f}",
                f"{agreement[0]:.1f}",
                f"{agreement[1]:.1f}",
                f"{soups[0]:.2f}",
                f"{soups[1]:.2f}",
                f"{soups[2]:.2f}" if len(soups) > 2 else "",
                f"{joint['joint_sweeps'].mean():.1f}",
            )
        )
    run_dir.add_table(
        "sets",
        (
            "members",
            f"mean {verdicts.rise(config)}",
            "after",
            "agreement",
            "after",
            "soup (%)",
            "aligned",
            "REPAIR",
            "rounds",
        ),
        rows,
        f"Joint alignment: mean test-loss {verdicts.rise(config)} (nats) of two"
        " members, inner product"
        " of a member's weights and the others' mean, test accuracy of the mean of all"
        " weights.",
    )
