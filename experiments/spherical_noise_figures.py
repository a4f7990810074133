"""Figures of `spherical_noise.py`; maps are of the first seed and case."""

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ensjax.experiment.fields import load_beside
from ensjax.plot.style import GREY, MARKERS, PALETTE, finish, new_figure

training = load_beside(__file__, "spherical_noise_training")
verdicts = load_beside(__file__, "spherical_noise_claims")

VARIABLES, UNITS = training.data.VARIABLES, training.data.UNITS
COLORS = dict(zip(verdicts.NAMES, PALETTE))
MOST_POWER = 30_000.0  # of the truth's: members that run away leave the axis there


def add_figures(run_dir, config, done) -> None:
    """All figures."""
    noise = done["noise"]
    run_dir.add_figure(
        "noise",
        _noise(config, noise, done["simulate"]),
        "Noise of one member in every channel, and one step later. All have standard"
        " deviation 1 at every place.",
    )
    run_dir.add_figure(
        "noise_spectra",
        _noise_spectra(config, noise),
        "Power of the noise by degree: 2,000 draws (markers) and theory (lines).",
    )
    found, last = verdicts.scores_of(done), config.test.lead_days[-1]
    run_dir.add_figure(
        "spectra",
        _spectra(config, found),
        f"Power of members over the truth's by degree, after {last} daily steps"
        f" (left) and {config.test.long_days[-1]} (right); mean over members, cases and"
        f" seeds. Grey: 0.5 to 2. What is beyond {MOST_POWER:,.0f} is named, not"
        " drawn.",
    )
    run_dir.add_figure(
        "leads",
        _leads(config, found),
        "Fair CRPS in units of the climate's deviation, and the ratio of spread to"
        " error (of all degrees, and dashed of degrees 1 to 5), by days of forecast;"
        " mean over variables and seeds. A reliable ensemble has ratio 1.",
    )
    run_dir.add_figure(
        "members",
        _members(config, done),
        f"Temperature of the lowest layer less the climate's mean of the latitude, in"
        f" K, of the first case: the truth and one member after 1 and after {last}"
        " daily steps. First seed.",
    )


def _extent(archive):
    lat, lon = archive["lat"], archive["lon"]
    half = (lon[1] - lon[0]) / 2
    lower = lat[0] - (lat[1] - lat[0]) / 2
    return (lon[0] - half, lon[-1] + half, lower, -lower)


def _draw_map(ax, archive, field, limit):
    drawn = ax.imshow(
        field, origin="lower", extent=_extent(archive), aspect="equal",
        interpolation="nearest", cmap="RdBu_r", vmin=-limit, vmax=limit,
    )  # fmt: skip
    ax.set_xticks([0, 90, 180, 270])
    ax.set_yticks([-60, 0, 60])
    ax.tick_params(labelsize=8)
    return drawn


def _noise(config, noise, archive):
    lengths = config.noise.lengths_km
    shown = range(min(4, len(lengths)))
    fig = new_figure(3.2, width=11.0)
    axes = fig.subplots(2, len(shown), squeeze=False, sharex=True, sharey=True)
    for column in shown:
        for row in range(2):
            drawn = _draw_map(
                axes[row, column], archive, noise["fields"][row, column], 3
            )
        axes[0, column].set_title(f"{lengths[column]:g} km", fontsize=10, loc="left")
    axes[0, 0].set_ylabel("one step\nlatitude", fontsize=9)
    axes[1, 0].set_ylabel("the next\nlatitude", fontsize=9)
    for ax in axes[1]:
        ax.set_xlabel("longitude", fontsize=9)
    bar = fig.colorbar(drawn, ax=axes.ravel().tolist(), shrink=0.8)
    bar.set_label("standard deviations")
    return fig


def _noise_spectra(config, noise):
    fig = new_figure(4.0)
    ax = fig.subplots()
    degree = np.arange(1, noise["power"].shape[1])
    for number, length in enumerate(config.noise.lengths_km):
        # As many as published are one more than the palette has.
        colors, markers = (*PALETTE, GREY), (*MARKERS, "*")
        color = colors[number % len(colors)]
        ax.plot(degree, noise["power_expected"][number, 1:], color=color, lw=1)
        ax.plot(
            degree, noise["power"][number, 1:], ls="", color=color,
            marker=markers[number % len(markers)], ms=4, label=f"{length:g} km",
        )  # fmt: skip
    ax.set_yscale("log")
    ax.set_ylim(1e-6, 1)
    ax.set_xticks(range(1, degree[-1] + 1, 4))
    finish(ax, x="degree of spherical harmonics", y="power")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return fig


def _spectra(config, found):
    fig = new_figure(4.8, width=11.0)
    axes = fig.subplots(len(VARIABLES), 2, sharex=True, sharey=True)
    degree = np.arange(1, config.last_degree + 1)
    beyond = [([], []) for _ in VARIABLES]
    for variable, row in enumerate(axes):
        for name, scores in found.items():
            truth = scores["truth_power"][:, variable]
            after = scores["power"][:, -1, variable] / np.where(truth > 0, truth, 1)
            late = scores["long_ratio"][:, -1, variable]
            for ax, ratio, words in zip(row, (after, late), beyond[variable]):
                power = ratio.mean(axis=0)[1 : len(degree) + 1]
                ax.plot(
                    degree, power, ms=4, color=COLORS[name],
                    marker=MARKERS[list(found).index(name)],
                    label=verdicts.NAMES[name],
                )  # fmt: skip
                if not (power <= MOST_POWER).all():
                    words.append(verdicts.NAMES[name])
        for ax, words in zip(row, beyond[variable]):
            if words:
                text = f"beyond {MOST_POWER:,.0f}: " + "; ".join(words)
                ax.text(0.98, 0.96, text, ha="right", va="top", fontsize=8,
                        transform=ax.transAxes)  # fmt: skip
            ax.set_xticks(range(1, degree[-1] + 1, 4))
            ax.axhspan(0.5, 2, color=GREY, alpha=0.15, lw=0)
            ax.axhline(1, color=GREY, lw=1)
            power_axis(ax)
    if any(words for row in beyond for words in row):
        axes[0, 0].set_ylim(top=MOST_POWER)
    steps = (config.test.lead_days[-1], config.test.long_days[-1])
    for ax, step in zip(axes[0], steps):
        ax.set_title(f"day {step}: {VARIABLES[0]}", fontsize=10, loc="left")
    for ax, step in zip(axes[1], steps):
        ax.set_title(f"day {step}: {VARIABLES[1]}", fontsize=10, loc="left")
    for place, ax in enumerate(axes.ravel()):
        finish(
            ax,
            x="degree" if place > 1 else "",
            y="" if place % 2 else "power, of the truth's",
            legend=False,
        )
    lines, words = axes[0, 0].get_legend_handles_labels()
    fig.legend(lines, words, loc="outside upper center", ncols=3, frameon=False)
    return fig


def _leads(config, found):
    fig = new_figure(3.8, width=10.0)
    left, right = fig.subplots(1, 2)
    days = config.test.lead_days
    for name, scores in found.items():
        style = dict(color=COLORS[name], ms=5, marker=MARKERS[list(found).index(name)])
        mean = {key: scores[key].mean(axis=(0, 2)) for key in
                ("crps", "ssr", "large_ssr")}  # fmt: skip
        left.plot(days, mean["crps"], label=verdicts.NAMES[name], **style)
        right.plot(days, mean["ssr"], **style)
        right.plot(days, mean["large_ssr"], ls="--", **style)
    right.axhline(1, color=GREY, lw=1)
    for style, words in (("-", "all degrees"), ("--", "degrees 1 to 5")):
        right.plot([], [], color=GREY, ls=style, label=words)
    for ax in (left, right):
        ax.set_xticks(days)
    left.set_ylim(bottom=0)
    right.set_ylim(bottom=0)
    finish(left, x="days of forecast", y="fair CRPS", legend=True)
    finish(right, x="days of forecast", y="spread over error", legend=True)
    return fig


def power_axis(ax) -> None:
    """A logarithmic y axis of power over the truth's, marked at powers of two.

    Beyond a factor of 64 at powers of ten.
    """
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    base = 2 if max(high, 1 / low) < 64 else 10
    ax.yaxis.set_major_locator(LogLocator(base=base))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))


def _members(config, done):
    archive = done["simulate"]
    _, truth = training.data.test_starts(config, archive)
    sd = archive["sd"][0]
    fields = {"truth": truth[0, ..., 0] * sd}
    for name, scores in verdicts.scores_of(done).items():
        fields[verdicts.NAMES[name]] = scores["example"][0, ..., 0] * sd
    fig = new_figure(3.1, width=12.0)
    axes = fig.subplots(2, len(fields), squeeze=False, sharex=True, sharey=True)
    limit = np.quantile(np.abs(fields["truth"]), 0.995)
    for column, (name, field) in enumerate(fields.items()):
        for row, lead in enumerate((0, -1)):
            drawn = _draw_map(axes[row, column], archive, field[lead], limit)
        axes[0, column].set_title(name, fontsize=9, loc="left")
    for row, lead in enumerate((0, -1)):
        day = config.test.lead_days[lead]
        axes[row, 0].set_ylabel(f"day {day}\nlatitude", fontsize=9)
    for ax in axes[1]:
        ax.set_xlabel("longitude", fontsize=9)
    bar = fig.colorbar(drawn, ax=axes.ravel().tolist(), shrink=0.8, extend="both")
    bar.set_label("K")
    return fig
