"""Figures of `fourcastnet3.py`."""

import numpy as np

from ensjax.experiment.fields import load_beside
from ensjax.plot.style import GREY, MARKERS, PALETTE, finish, new_figure

base = load_beside(__file__, "spherical_noise_figures")
verdicts = load_beside(__file__, "fourcastnet3_claims")
systems = verdicts.systems


def add_figures(run_dir, config, done) -> None:
    """All figures."""
    found = verdicts.scores_of(done)
    run_dir.add_figure(
        "systems",
        _systems(config, found["diffusion"], done),
        "The network with noise inside, samplers of a diffusion model of its trunk, and"
        " an imperfect simulator with starts by regression; dotted: one with the"
        " truth's equations. Left: fair CRPS by days of forecast"
        " (samplers on day 1 only). Middle: fair CRPS of day 1 against speed on this"
        " device. Right: power of members on day 1 over the truth's; grey: 0.5 to 2."
        " Mean over seeds, and left and middle over variables.",
    )
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
        " ensemble (1), to the last day of forecast; mean over seeds and variables."
        " Neighbours are not independent.",
    )


def _systems(config, scores, done):
    fig = new_figure(3.8, width=11.5)
    leads, speed, spectra = fig.subplots(1, 3)
    found, simulated = done["sample"], done["imperfect"]
    samplers = systems.sampler.sampler_names(config)
    best = systems.compare(config, found).best
    net, other, grey = PALETTE[0], PALETTE[1], PALETTE[2]
    days = config.test.lead_days
    leads.plot(
        days, scores["crps"].mean(axis=(0, 2)), color=net, marker=MARKERS[0],
        label="CRPS network",
    )  # fmt: skip
    leads.plot(
        days, simulated["crps"].mean(axis=1), color=grey, marker=MARKERS[2],
        ls="--", label="imperfect simulator",
    )  # fmt: skip
    leads.plot(
        days, done["ensemble"]["crps"].mean(axis=1), color=grey, ls=":",
        label="the truth's equations",
    )  # fmt: skip
    leads.plot(
        [1], [found[f"fair_{best}"].mean()], color=other, marker=MARKERS[1], ls="",
        label="best sampler",
    )  # fmt: skip
    leads.set_ylim(bottom=0)
    finish(leads, x="days of forecast", y="fair CRPS, of the climate's sd", legend=True)
    rows = [(systems.NET, net, 0), *((name, other, 1) for name in samplers)]
    for name, color, mark in rows:
        rate, fair = found[f"rate_{name}"].mean(), found[f"fair_{name}"].mean()
        speed.plot([rate], [fair], color=color, marker=MARKERS[mark], ls="")
        word = "network" if name == systems.NET else name.removeprefix("levels_")
        speed.annotate(
            word, (rate, fair), xytext=(0, 6), textcoords="offset points",
            ha="center", fontsize=8,
        )  # fmt: skip
    rate, fair = float(simulated["rate"]), simulated["crps"][0].mean()
    speed.plot([rate], [fair], color=grey, marker=MARKERS[2], ls="")
    speed.annotate(
        "imperfect simulator", (rate, fair), xytext=(0, 6), textcoords="offset points",
        ha="center", fontsize=8,
    )  # fmt: skip
    speed.set_xscale("log")
    speed.margins(x=0.25, y=0.2)
    speed.set_ylim(bottom=0)
    finish(speed, x="days of a member a second", y="fair CRPS, day 1")
    degree = np.arange(1, config.last_degree + 1)
    lines = {
        "CRPS network": (found[f"power_{systems.NET}"].mean(axis=0), net, 0),
        "best sampler": (found[f"power_{best}"].mean(axis=0), other, 1),
        "imperfect sim.": (systems.sampler.power_ratio(simulated)[0], grey, 2),
    }
    for label, (ratio, color, mark) in lines.items():
        for variable, style in enumerate(("-", "--")):
            spectra.plot(
                degree, systems.kept_power(config, ratio)[variable], color=color,
                marker=MARKERS[mark], ms=3, ls=style,
                label=f"{label}, {('temperature', 'pressure')[variable]}",
            )  # fmt: skip
    spectra.axhspan(0.5, 2, color=GREY, alpha=0.15, lw=0)
    spectra.axhline(1, color=GREY, lw=1)
    base.power_axis(spectra)
    # Names above, where no line is: colours are systems, dashes the pressure.
    finish(spectra, x="degree of spherical harmonics", y="power, of the truth's")
    spectra.legend(
        fontsize=7, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0),
        frameon=False,
    )  # fmt: skip
    return fig


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
        base.power_axis(ax)
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
    fig = new_figure(4.0)
    ax = fig.subplots()
    days, far = config.test.lead_days, config.test.long_days
    shown = [(f"day {days[i]}", scores["ranks"][:, i]) for i in (0, -1)]
    shown += [
        (f"day {day}", scores["long_ranks"][:, i])
        for i, day in enumerate(far)
        if i == len(far) - 1 or day >= 100
    ]
    for number, (word, ranks) in enumerate(shown):
        ranks = ranks.mean(axis=0)
        places = np.arange(len(ranks)) / (len(ranks) - 1)
        ax.plot(
            places, ranks, color=PALETTE[number % len(PALETTE)], ms=4,
            marker=MARKERS[number % len(MARKERS)],
            label=f"{word}, {len(ranks) - 1} members",
        )  # fmt: skip
    ax.axhline(1, color=GREY, lw=1)
    ax.set_ylim(bottom=0)
    finish(
        ax,
        x="share of members below the truth",
        y="area, of a reliable ensemble's",
        legend=True,
    )
    return fig
