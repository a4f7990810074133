"""Figures of `ntk_permutations.py`."""

import numpy as np

from ensjax.experiment.fields import load_beside
from ensjax.ntk import published, two_layer
from ensjax.plot.style import (
    GREY,
    LABEL_SIZE,
    MARKERS,
    PALETTE,
    TICK_SIZE,
    finish,
    new_figure,
)

draws = load_beside(__file__, "ntk_permutations_draws")
theory = load_beside(__file__, "ntk_permutations_theory")
verdicts = load_beside(__file__, "ntk_permutations_claims")

NAMES = {"ntk": "NTK (all weights learn)", "readout": "readout (last layer learns)"}
COLORS = {"ntk": PALETTE[0], "readout": PALETTE[1], "mup": PALETTE[2]}
WIDTH_NAMES = {"ntk": "NTK", "standard": "standard", "mup": "mu-P (features learn)"}
WIDTH_COLORS = {"ntk": PALETTE[0], "standard": PALETTE[4], "mup": PALETTE[2]}


def _bits_axis(ax, sizes):
    """A log axis of k with ticks at the k themselves."""
    ax.set_xscale("log")
    ax.set_xticks(sizes, [str(k) for k in sizes])
    ax.minorticks_off()


def _members(config, found):
    """N for 90 % of the inputs with two ones, theirs and ours, and bounds."""
    fig = new_figure(5.4, width=7.2)
    ax = fig.subplots()
    sizes, exact = np.array(config.curve.num_bits), found["theory"]
    bits = exact["bound_bits"]
    for i, kind in enumerate(config.kinds):
        values = found["curve"]["first"][i, 0]  # [repetition, k]
        middle = np.median(values, axis=0)
        low, high = np.quantile(values, [0.1, 0.9], axis=0)
        color = COLORS[kind]
        ax.errorbar(
            sizes,
            middle,
            yerr=(middle - low, high - middle),
            color=color,
            marker=MARKERS[i],
            capsize=3,
            linestyle="none",
            label=f"{NAMES[kind]}: median, 10 to 90 % of"
            f" {config.curve.num_repetitions}",
        )
        expected = found["curve"]["exact"][i, 0]
        ax.plot(sizes, expected, color=color, linewidth=1, label="one input, exact law")
        ax.plot(
            bits[3:],
            exact["one_textbook"][i, 3:],
            color=color,
            linewidth=1,
            linestyle=":",
            label="one input, union bound",
        )
    table = published.MEMBERS_FOR_90_PERCENT
    inside = [k for k in table if k not in published.ABOVE_CRITICAL_RATE]
    ax.plot(
        inside,
        [table[k] for k in inside],
        color="black",
        marker="x",
        linestyle="none",
        label="published, one trial for each k",
    )
    curve = np.linspace(5, 30, 50)
    ax.plot(
        curve,
        published.bound(curve),
        color=GREY,
        linestyle="--",
        label="published bound (ends read off a figure)",
    )
    ax.set_yscale("log")
    ax.set_ylim(5, 1e5)
    _bits_axis(ax, (4, 5, 7, 10, 15, 20, 30))
    finish(
        ax,
        x="k (bits)",
        y="N (networks) for 90 % of inputs right",
        title="inputs with two ones, sign rule",
    )
    ax.legend(fontsize=8, ncols=2, loc="upper left", framealpha=0.85, edgecolor="none")
    return fig


def _growth(config, found):
    """N50 on the cube against k, and what the three laws predict from small k."""
    fig = new_figure(4.6, width=9.6)
    axes = fig.subplots(1, 2, sharey=True)
    last = config.cube.fitted_up_to
    laws = {"k": ":", "k log k": "-", "k^2": "--"}
    for ax, kind in zip(axes, config.kinds):
        row = verdicts.cube_row(found, kind)
        place = config.kinds.index(kind)
        pooled = found["needed"][..., place, 0].reshape(len(row.num_bits), -1)
        low, high = np.quantile(pooled, [0.1, 0.9], axis=1)
        ax.errorbar(
            row.num_bits,
            row.numbers,
            yerr=(row.numbers - low, high - row.numbers),
            color=COLORS[kind],
            marker="o",
            capsize=3,
            linestyle="none",
            label=f"N50, 10 to 90 % of {pooled.shape[1]} draws",
        )
        k = row.num_bits.astype(float)
        curves = {"k": k, "k log k": k * np.log(k), "k^2": k**2}
        for name, style in laws.items():
            inside = k <= last
            factor = np.exp(np.log(row.numbers / curves[name])[inside].mean())
            ax.plot(
                k,
                factor * curves[name],
                color=GREY,
                linestyle=style,
                label=f"{name}, fitted to k <= {last}: error {row.errors[name]:.2f}",
            )
        short = verdicts.cube_row(found, kind, rule="midpoint")
        ax.plot(
            short.num_bits,
            short.numbers,
            color=PALETTE[3],
            marker="s",
            linestyle="none",
            label="N50 of the midpoint rule (ours)",
        )
        ax.set_yscale("log")
        _bits_axis(ax, [k for k in (4, 6, 8, 10, 12, 16) if k <= max(row.num_bits)])
        fit = row.fit
        finish(
            ax,
            x="k (bits)",
            y="N (networks), all inputs right" if ax is axes[0] else "",
            title=f"{NAMES[kind]}\n"
            f"b = {fit.slope:.2f} ({fit.low:.2f} to {fit.high:.2f})",
        )
        ax.legend(fontsize=8, framealpha=0.85, edgecolor="none", loc="upper left")
    axes[0].set_ylim(1, axes[0].get_ylim()[1] * 8)
    return fig


def _predicted(config, found):
    """Means and variance of trained networks beside the law."""
    k = verdicts.shown_bits(config)
    own = found["networks"][k]
    fig = new_figure(3.9, width=10.2)
    axes = fig.subplots(1, 3)
    ones = np.array(config.networks.ones)
    grid = np.arange(2, k + 1)
    for i, kind in enumerate(config.kinds):
        law = two_layer.law(k, grid, kind=kind)
        color, shift = COLORS[kind], (i - 0.5) * 0.08
        for ax, bit, values in ((axes[0], 1, law.on_one), (axes[1], 0, law.on_zero)):
            kept = slice(None) if bit else slice(0, -1)  # at m = k there is no zero
            ax.plot(grid[kept], values[kept], color=color, label=f"{kind}, law")
            mean = own["mean"][i, ..., bit].mean(axis=0)
            error = own["error"][i, ..., bit]
            error = np.sqrt((error**2).mean(axis=0) / len(error))
            ax.errorbar(
                ones + shift,
                mean,
                yerr=1.96 * error,
                color=color,
                marker=MARKERS[i],
                linestyle="none",
                capsize=3,
                label=f"{kind}, networks",
            )
        axes[2].plot(grid, law.variance, color=color, label=f"{kind}, law")
        variance = own["variance"][i]
        spread = variance.std(axis=0, ddof=1) if len(variance) > 1 else 0 * variance[0]
        axes[2].errorbar(
            ones + shift,
            variance.mean(axis=0),
            yerr=1.96 * spread / np.sqrt(len(variance)),
            color=color,
            marker=MARKERS[i],
            linestyle="none",
            capsize=3,
            label=f"{kind}, networks",
        )
    names = ("f1: mean where the bit is 1", "f0: mean where the bit is 0", "variance")
    axes[2].set_ylim(bottom=0)
    for ax, name in zip(axes, names):
        ax.set_xticks(grid)
        finish(
            ax, x="m (ones of the input)", y="output", title=name, legend=ax is axes[2]
        )
    axes[1].axhline(0, color=GREY, linewidth=0.8)
    return fig


def _accuracy(config, found):
    """Accuracy on the cube against N: finite networks, a stream of infinite ones."""
    fig = new_figure(4.4, width=10.2)
    axes = fig.subplots(1, 2)
    k = verdicts.shown_bits(config)
    own = found["networks"][k]
    number = np.arange(1, own["rows"].shape[-1] + 1)
    for i, kind in enumerate(config.kinds):
        rows = 100 * own["rows"][i]
        color = COLORS[kind]
        axes[0].plot(
            number, rows.mean(axis=0), color=color, label=f"{kind}, networks (mean)"
        )
        axes[0].fill_between(
            number, rows.min(axis=0), rows.max(axis=0), color=color, alpha=0.2
        )
        axes[0].plot(
            number,
            100 * own["oracle"][i].mean(axis=0),
            color=color,
            linestyle="--",
            label=f"{kind}, expected of the law",
        )
    width = config.networks.width
    axes[0].set_xscale("log")
    inputs = "the cube" if k <= config.networks.cube_bits else "inputs with two ones"
    finish(
        axes[0],
        x="N (networks)",
        y=f"rows of {inputs} right (%)",
        title=f"k = {k}, width {width:,}; band: range of {config.num_seeds} seeds",
        legend=True,
        starts_at_zero=False,
    )
    axes[0].set_ylim(0, 102)
    stream, bits = found["stream"], config.stream.num_bits
    for rule, color in zip(draws.RULES, (COLORS[config.kinds[0]], PALETTE[3])):
        rows = 100 * stream[f"{rule}_rows"]
        axes[1].plot(
            stream["grid"][: len(rows)], rows, color=color, label=f"{rule} rule"
        )
        stays = stream[f"{rule}_first"][1]
        if np.isfinite(stays):
            axes[1].axvline(
                stays,
                color=color,
                linestyle=":",
                label=f"all 2^{bits} - 1 right from {stays:.0f} on",
            )
    axes[1].set_xscale("log")
    finish(
        axes[1],
        x="N (infinite networks)",
        y="rows of the cube right (%)",
        title=f"k = {bits}, {config.kinds[0]}: a stream of"
        f" {config.stream.num_members:,}",
        legend=True,
        starts_at_zero=False,
    )
    axes[1].set_ylim(0, 102)
    return fig


def _matrix(config, found):
    """The tangent kernel of all inputs: in closed form, of networks, the difference."""
    own, widths = found["widths"], config.widths
    fig = new_figure(3.9, width=10.6)
    axes = fig.subplots(1, 3)
    exact, mean = own["theory"], own["empirical"]
    top = max(exact.max(), mean.max())
    away = mean - exact
    limit = np.abs(away).max()
    panels = (
        ("closed form", exact, dict(vmin=0, vmax=top, cmap="viridis")),
        (
            f"{widths.matrix_members} networks, width {widths.matrix_width:,}",
            mean,
            dict(vmin=0, vmax=top, cmap="viridis"),
        ),
        (
            "networks minus closed form",
            away,
            dict(vmin=-limit, vmax=limit, cmap="RdBu"),
        ),
    )
    starts = np.flatnonzero(np.diff(own["matrix_ones"], prepend=0))
    ends = np.append(starts[1:], len(exact))
    middles = (starts + ends - 1) / 2
    for ax, (title, values, options) in zip(axes, panels):
        image = ax.imshow(values, **options)
        bar = fig.colorbar(image, ax=ax, shrink=0.8)
        bar.ax.tick_params(labelsize=9)
        for start in starts[1:]:
            for line in (ax.axhline, ax.axvline):
                line(start - 0.5, color="white" if values is not away else GREY, lw=0.5)
        labels = [str(m) for m in own["matrix_ones"][starts]]
        ax.set_xticks(middles, labels)
        ax.set_yticks(middles, labels)
        ax.tick_params(labelsize=TICK_SIZE, length=0)
        ax.set_title(title, fontsize=LABEL_SIZE, loc="left")
        ax.set_xlabel("m of the second input", fontsize=LABEL_SIZE)
    axes[0].set_ylabel("m of the first input", fontsize=LABEL_SIZE)
    return fig


def _drift(config, found):
    """How far kernels move in training, and what width does to f0."""
    own, sizes = found["widths"], np.array(config.widths.sizes)
    fig = new_figure(4.2, width=10.2)
    axes = fig.subplots(1, 2)
    for i, name in enumerate(config.widths.parameterisations):
        drift = own["drift"][i]
        axes[0].errorbar(
            sizes * 1.03 ** (i - 1),
            drift.mean(axis=1),
            yerr=drift.std(axis=1, ddof=1),
            color=WIDTH_COLORS[name],
            marker=MARKERS[i],
            capsize=3,
            label=WIDTH_NAMES[name],
        )
    for i, power, style in ((0, 0.5, "--"), (1, 2.0, ":")):
        if i < len(own["drift"]):
            start = own["drift"][i].mean(axis=1)[0]
            label = "1 / sqrt(width)" if i == 0 else "1 / width^2"
            axes[0].plot(
                sizes,
                start * (sizes[0] / sizes) ** power,
                color=GREY,
                linestyle=style,
                label=label,
            )
    axes[0].set_xscale("log", base=2)
    axes[0].set_yscale("log")
    k = config.widths.num_bits
    finish(
        axes[0],
        x="width",
        y="|K - K_0| / |K_0|",
        title=f"k = {k}: mean and sd of {config.widths.num_drift_members} networks",
        legend=True,
    )
    law = two_layer.ntk_law(k, 2)
    mean, error = own["mean"][:, 0], own["error"][:, 0]
    axes[1].errorbar(
        sizes,
        mean,
        yerr=1.96 * error,
        color=COLORS["ntk"],
        marker="o",
        capsize=3,
        linestyle="none",
        label=f"{config.widths.num_members} networks, 95 %",
    )
    axes[1].axhline(
        float(law.on_zero), color=GREY, linestyle="--", label="infinite width"
    )
    axes[1].set_xscale("log", base=2)
    finish(
        axes[1],
        x="width",
        y="f0 at two ones",
        title="NTK: mean where the bit is 0",
        legend=True,
        starts_at_zero=False,
    )
    for ax in axes:
        ax.set_xticks(sizes, [str(width) for width in sizes])
        ax.minorticks_off()
    return fig


FIGURES = {
    "members": (
        "Networks until the rounded mean is right on 90 % of the inputs with two ones.",
        _members,
    ),
    "growth": (
        "Networks until the rounded mean is right on every input, in half of the draws;"
        " laws fitted to small k and continued.",
        _growth,
    ),
    "predicted": (
        "Means and variance of trained networks beside the law of infinite width;"
        " intervals of 95 %.",
        _predicted,
    ),
    "accuracy": (
        "Share of inputs with all bits right against the number of networks.",
        _accuracy,
    ),
    "kernel": (
        "Tangent kernel between all nonzero inputs, in order of their number of ones.",
        _matrix,
    ),
    "drift": (
        "How far the tangent kernel of the training rows moves while networks train,"
        " and how the mean depends on the width.",
        _drift,
    ),
}


def add_figures(run_dir, config, found):
    """Draws everything that the report shows."""
    for name, (caption, draw) in FIGURES.items():
        run_dir.add_figure(name, draw(config, found), caption)
