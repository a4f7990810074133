"""Figures and tables of `crps_forecast.py`."""

import numpy as np

from ensjax.experiment.claims import interval_text
from ensjax.experiment.fields import load_beside
from ensjax.plot.style import GREY, MARKERS, PALETTE, finish, new_figure

verdicts = load_beside(__file__, "crps_forecast_claims")
theory = load_beside(__file__, "crps_forecast_theory")

NAMES, STEP = verdicts.NAMES, verdicts.STEP
_COLORS = dict(zip(NAMES, (PALETTE[6], PALETTE[4], PALETTE[0], PALETTE[2], PALETTE[1])))
_STYLES = dict(zip(NAMES, (":", "-", "-", "--", "-.")))
_SD = "deviations of the climate"
_TIME = "lead, time units"


def add_tables(run_dir, config, done):
    """Scores by loss beside the pilot's, sizes of ensembles, and rain."""
    found = done["scores"]
    middle, late = verdicts.middle_lead(config), verdicts.late_lead(config)
    leads = ((("ssr", 1), ("ssr", middle), ("ssr", late)), (("fair", middle),))
    columns = [*leads[0], *leads[1], ("fair", late), ("rmse", late)]
    rows = []
    for name, label in NAMES.items():
        texts = [
            interval_text(found[f"{name}_{score}"][:, lead - 1])
            for score, lead in columns
        ]
        pilot = verdicts.PILOT.get(name)
        beside = "-" if pilot is None else " / ".join(f"{x:.3g}" for x in pilot)
        every = done["first_step"].get(f"{name}_ssr")
        texts.insert(0, "-" if every is None else interval_text(every))
        rows.append([label, *texts, beside])
    words = {"ssr": "SSR", "fair": "fair CRPS", "rmse": "RMSE of the mean"}
    run_dir.add_table(
        "losses",
        ["trained with", f"SSR at {STEP:g}, all starts"]
        + [f"{words[score]} at {lead * STEP:g}" for score, lead in columns]
        + ["pilot (leads 0.1, 2, 5)"],
        rows,
        f"Leads in time units; {config.num_test} starts, {config.num_members} members,"
        f" {config.num_seeds} seeds (mean and 95 % interval); the first column is of"
        f" all {config.archive.num_starts} starts, since few tell little of one step."
        f" In {_SD}. SSR: spread over error, 1 if calibrated. One forecast has its"
        " absolute error.",
    )
    _add_sizes(run_dir, config, found)
    _add_drifts(run_dir, config, found)
    rain = done["rain"]
    raw, usual, emos = rain["references"]
    rows = [
        ["network with noise", interval_text(rain["crps"]), interval_text(rain["ssr"])],
        ["raw ensemble, 11 members", f"{raw:.3f}", "-"],
        ["climatology", f"{usual:.3f}", "-"],
        ["EMOS of 11 members", f"{emos:.3f}", "-"],
    ]
    run_dir.add_table(
        "rain",
        ["rain by", "CRPS, mm", "SSR"],
        rows,
        f"Innsbruck, 2009 to 2013. {config.rain.num_seeds} seeds,"
        f" {config.rain.num_samples} members made, {config.rain.num_members} in"
        " training.",
    )


def _add_sizes(run_dir, config, found):
    rows = []
    for number, size in enumerate(config.sizes):
        pairs = (
            "; ".join(
                f"{d:+.4f} ({a:+.4f} to {b:+.4f})"
                for d, a, b in found[f"sizes_{name}"][:, number]
            )
            for name in ("difference", "ssr_difference")
        )
        ratios = (
            " / ".join(
                f"{found[f'sizes_{name}'][:, number, lead - 1].mean():.3f}"
                for lead in config.rank_leads
            )
            for name in ("ssr", "unbiased_ssr")
        )
        fair = interval_text(found["sizes_fair"][:, number, 0], form=".4f")
        rows.append([str(size), fair, *ratios, *pairs])
    leads = ", ".join(f"{lead * STEP:g}" for lead in config.rank_leads)
    most = config.sizes[-1]
    run_dir.add_table(
        "sizes",
        [
            "members",
            "fair CRPS",
            "SSR",
            "unbiased SSR",
            f"fair CRPS less that of {most}",
            f"unbiased SSR less that of {most}",
        ],
        rows,
        "Of the network of the almost fair CRPS, trained with"
        f" {config.stages.num_members[-1]} members. SSR at leads {leads}, means over"
        " seeds: that of few members off 1 is another than that of many; the unbiased"
        " one, which takes what few members add to the error off it, is not. The rest"
        " are means over leads. Differences of each seed in pairs, with bootstrap"
        " intervals over starts.",
    )


def _add_drifts(run_dir, config, found):
    leads = [f"{lead * STEP:g}" for lead in config.mean_leads]
    rows = []
    for number, size in enumerate(config.drifts):
        texts = [
            " / ".join(f"{x:.3f}" for x in found[key][:, kind, number].mean(axis=0))
            for key in verdicts.DRIFTS
            for kind in (0, 1)
        ]
        drift = found["pushed_drifts"][:, number].mean(axis=0)
        push = interval_text(found["pushes"][:, number], form=".1f")
        reached = " / ".join(f"{x:.2f}" for x in drift)
        rows.append([f"{size:g}", *texts, push, reached])
    run_dir.add_table(
        "drifts",
        [
            "drift",
            "added: raw",
            "added: anomalies",
            "of the equations: raw",
            "of the equations: anomalies",
            "its forcing",
            "its drift",
        ],
        rows,
        "Fair CRPS of the network over that of the simulator, means over seeds at leads"
        f" {' / '.join(leads)}. A drift that is added to forecasts is in their"
        " hindcasts, too, so that anomalies do not have it: that their ratio stays is"
        " algebra. Of the equations: a forcing by place (in units of the tendency) with"
        " which the mean drifts as far late; it changes the errors as well. Its drift:"
        f" amplitude of the wave of three over the ring, in {_SD}.",
    )


def add_figures(run_dir, config, done):
    """Scores by lead, ranks, ratios, ensemble sizes, cells, and a plume."""
    found = done["scores"]
    seeds = f"{config.num_seeds} seeds: lines are means, bands the range"
    run_dir.add_figure(
        "by_lead",
        _by_lead(config, found),
        "Spread over error (1: calibrated; shaded 0.8 to 1.1; crosses at step 1:"
        f" what each loss asks for), and fair CRPS, by lead, from {config.num_test}"
        f" starts (of step 1 from all of them: see the table). {seeds}. One forecast of"
        " the squared error has no spread, and its absolute error as score.",
    )
    run_dir.add_figure(
        "ranks",
        _ranks(config, found),
        "Rank of the truth among members, share over that of a calibrated ensemble"
        " (dashed), by lead in time units; all seeds. One scale for all panels.",
    )
    run_dir.add_figure(
        "ratios",
        _ratios(config, found),
        f"Fair CRPS of the network over that of the simulator, on means of"
        f" {config.mean_outputs} outputs that end at the lead: raw, and (dotted,"
        " crosses) as anomalies from each one's own hindcasts by lead and place. Above"
        " the drift is added to what the simulator gives, so that anomalies are the"
        " same at any drift; below a forcing by place makes it. Colours: the drift, in"
        f" {_SD} (below: late, as the forcing was fitted). {seeds}.",
    )
    run_dir.add_figure(
        "cells",
        _cells(config, found),
        "Fair CRPS of the network less that of the simulator, of the simulator's, by"
        f" variable and lead; below 0 the network is better. {seeds}.",
    )
    run_dir.add_figure(
        "plume",
        _plume(config, found),
        "One site of the first start of the first seed: members of the almost fair"
        " network and of the imperfect simulator, and the truth.",
    )


def _lead_axis(config):
    return STEP * (1 + np.arange(config.archive.num_leads))


def _band(ax, x, values, name, **style):
    """The mean over seeds of `[seed, x]`, and their range."""
    color = _COLORS.get(name, GREY)
    style = dict(color=color, ls=_STYLES.get(name, "-"), lw=1.5) | style
    ax.plot(x, values.mean(axis=0), **style)
    if len(values) > 1:
        low, high = values.min(axis=0), values.max(axis=0)
        ax.fill_between(x, low, high, color=style["color"], alpha=0.2, lw=0)


def _by_lead(config, found):
    fig = new_figure(6.4)
    above, below = fig.subplots(2, 1, sharex=True)
    time = _lead_axis(config)
    above.axhspan(0.8, 1.1, color=GREY, alpha=0.15, lw=0)
    above.axhline(1, color=GREY, lw=1, ls="--")
    asked = dict(standard=0.0, almost_fair=config.training.alpha, fair=1.0)
    for name, label in NAMES.items():
        if name != "error":
            _band(above, time, found[f"{name}_ssr"], name)
        if name in asked:
            size = config.stages.num_members[-1]
            best = theory.optimal_spread(size, asked[name])
            above.plot(STEP, best, "x", color=_COLORS[name], ms=9, mew=2)
        _band(below, time, found[f"{name}_fair"], name, label=label)
    above.set_ylim(bottom=0)
    below.set_ylim(bottom=0)
    finish(above, x="", y="spread / error")
    finish(below, x=_TIME, y=f"fair CRPS ({_SD})", legend=True)
    return fig


def _ranks(config, found):
    names = ("standard", "almost_fair", "fair", "simulator")
    leads = config.rank_leads
    fig = new_figure(1.8 * len(leads) + 0.6, width=9.0)
    axes = fig.subplots(len(leads), len(names), sharex=True, sharey=True, squeeze=False)
    for row, lead in enumerate(leads):
        for ax, name in zip(axes[row], names):
            counts = found[f"{name}_counts"][:, row].sum(axis=0)
            ranks = np.arange(len(counts))
            ax.bar(ranks, counts / counts.mean(), color=_COLORS[name], width=0.9)
            ax.axhline(1, color=GREY, lw=1, ls="--")
            title = NAMES[name] if row == 0 else None
            y = f"lead {lead * STEP:g}" if name == names[0] else ""
            x = "rank" if row == len(leads) - 1 else ""
            finish(ax, x=x, y=y, title=title)
    fig.supylabel("share / expected", fontsize=11)
    return fig


def _ratios(config, found):
    fig = new_figure(6.4)
    axes = fig.subplots(2, 1, sharex=True, sharey=True)
    time = STEP * np.asarray(config.mean_leads)
    for ax, (key, text) in zip(axes, verdicts.DRIFTS.items(), strict=True):
        ax.axhline(1, color=GREY, lw=1, ls="--")
        raw, anomaly = np.moveaxis(found[key], 1, 0)  # [seed, drift, lead]
        for number, size in enumerate(config.drifts):
            color, label = PALETTE[number], f"drift {size:g}"
            style = dict(color=color, ls="-", marker=MARKERS[number], ms=5)
            _band(ax, time, raw[:, number], "", label=label, **style)
            style = dict(color=color, ls=":", marker="x", ms=7)
            _band(ax, time, anomaly[:, number], "", **style)
        ax.set_ylim(bottom=0)
        ax.set_xticks(time)
        is_first = ax is axes[0]
        finish(
            ax,
            x="" if is_first else _TIME,
            y="fair CRPS,\nnetwork / simulator",
            title=f"drift {text}",
            legend=is_first,
        )
    return fig


def _cells(config, found):
    fig = new_figure(4.2)
    ax = fig.subplots()
    ax.axhline(0, color=GREY, lw=1, ls="--")
    first, second = found["cells_first"], found["cells_second"]
    for number, name in enumerate(("x", "difference of neighbours", "mean of 9 sites")):
        values = first[:, number] / second[:, number] - 1
        style = dict(color=PALETTE[number], label=name)
        _band(ax, _lead_axis(config), values, "", **style)
    finish(ax, x=_TIME, y="relative difference of fair CRPS", legend=True)
    return fig


def _plume(config, found):
    fig = new_figure(5.0)
    axes = fig.subplots(2, 1, sharex=True, sharey=True)
    time = _lead_axis(config)
    for ax, members, name in zip(axes, found["plume"][0], ("almost_fair", "simulator")):
        ax.plot(time, members.T, color=_COLORS[name], lw=0.6, alpha=0.6)
        ax.plot([], [], color=_COLORS[name], lw=1.2, label="members")
        ax.plot(time, found["plume_truth"][0], color="#000000", lw=1.5, label="truth")
        finish(
            ax,
            x="",
            y=f"x ({_SD})" if ax is axes[0] else "",
            title=NAMES[name],
            legend=ax is axes[0],
            starts_at_zero=False,
        )
    axes[-1].set_xlabel(_TIME, fontsize=11)
    return fig
