"""Figures of `fourcastnet3.py`."""

import numpy as np

from ensjax.experiment.fields import load_beside
from ensjax.plot.style import GREY, MARKERS, PALETTE, finish, new_figure

base = load_beside(__file__, "spherical_noise_figures")
verdicts = load_beside(__file__, "fourcastnet3_claims")


def add_figures(run_dir, config, done) -> None:
    """All figures."""
    found = verdicts.scores_of(done)
    run_dir.add_figure(
        "leads",
        base._leads(config, found),
        "Fair CRPS in units of the climate's deviation, and the ratio of spread to"
        " error (of all degrees, and dashed of degrees 1 to 5), by days of forecast;"
        " mean over variables and seeds. A reliable ensemble has ratio 1.",
    )
    run_dir.add_figure(
        "spectra",
        _spectra(config, found["diffusion"]),
        "Power of members over the truth's by degree, after ever more daily steps; mean"
        " over members, cases and seeds. Grey: 0.5 to 2.",
    )
    run_dir.add_figure(
        "ranks",
        _ranks(config, found["diffusion"]),
        "Rank of the truth among members: area of each rank over that of a reliable"
        " ensemble (1); mean over seeds and variables. Neighbours are not independent.",
    )


def _spectra(config, scores):
    fig = new_figure(3.8, width=10.0)
    axes = fig.subplots(1, 2, sharey=True)
    degree = np.arange(1, config.last_degree + 1)
    kept = slice(1, config.last_degree + 1)
    leads = list(enumerate(config.test.lead_days))
    shown = [leads[0], leads[-1]] if len(leads) > 1 else leads
    for variable, ax in enumerate(axes):
        truth = scores["truth_power"][:, variable, kept]
        lines = {
            day: scores["power"][:, i, variable, kept] / truth for i, day in shown
        } | {
            day: scores["long_ratio"][:, i, variable, kept]
            for i, day in enumerate(config.test.long_days)
        }
        for number, (day, ratio) in enumerate(lines.items()):
            ax.plot(
                degree, ratio.mean(axis=0), ms=4, label=f"day {day}",
                color=PALETTE[number % len(PALETTE)],
                marker=MARKERS[number % len(MARKERS)],
            )  # fmt: skip
        ax.axhspan(0.5, 2, color=GREY, alpha=0.15, lw=0)
        ax.axhline(1, color=GREY, lw=1)
        ax.set_yscale("log")
        ax.set_title(base.VARIABLES[variable], fontsize=10, loc="left")
        ax.set_xticks(range(1, degree[-1] + 1, 4))
        finish(
            ax,
            x="degree of spherical harmonics",
            y="" if variable else "power, of the truth's",
            legend=variable == 0,
        )
    return fig


def _ranks(config, scores):
    fig = new_figure(3.6)
    ax = fig.subplots()
    for number, lead in enumerate((0, -1)):
        ranks = scores["ranks"][:, lead].mean(axis=0)
        ax.step(
            np.arange(len(ranks)), ranks, where="mid", color=PALETTE[number],
            ls=("-", "--")[number], label=f"day {config.test.lead_days[lead]}",
        )  # fmt: skip
    ax.set_xticks(range(0, len(ranks), max(1, len(ranks) // 8)))
    ax.axhline(1, color=GREY, lw=1)
    ax.set_ylim(bottom=0)
    finish(ax, x="rank of the truth", y="area, of a reliable one's", legend=True)
    return fig
