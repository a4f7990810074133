"""Figures of `forecast_assessment.py`."""

import numpy as np

from ensjax import plot
from ensjax.experiment.fields import load_beside
from ensjax.plot.style import GREY, MARKERS, PALETTE, finish, new_figure

scores = load_beside(__file__, "forecast_assessment_scores")
tables = load_beside(__file__, "forecast_assessment_tables")

LABELS = tables.LABELS
_LEAD = "Lead (time units)"
_SD = "deviations of the climate"
_STYLES = {
    "simulator": (6, "o", "-"),
    "emulator": (0, "s", "-"),
    "multistep": (1, "^", "-"),
    "crps_mean": (2, "D", "-"),
    "crps_members": (3, "v", "--"),
    "physical_mean": (4, "P", ":"),
}


def add_figures(run_dir, config, done):
    """Skill, spectra, extremes, members, drift, indices of extremes, and the cards."""
    found = done["scores"]
    seeds = f"mean over {config.num_seeds} seeds, shaded: range of the seeds"
    run_dir.add_figure(
        "skill",
        _skill(config, found),
        "Error, error at equal activity, correlation and activity by lead, against"
        f" analyses; {seeds}. A forecast that is smoothed gains in the first panel and"
        " not in the second.",
    )
    run_dir.add_figure(
        "spectra",
        _spectra(config, found),
        "Power over that of the analyses by wavenumber at some leads, and of the upper"
        " half of the wavenumbers by lead (dashed: as much as the analyses; dotted: one"
        f" half, where the effective resolution is read); {seeds}.",
    )
    run_dir.add_figure(
        "sedi",
        _sedi(config, found),
        "SEDI of events beyond percentiles of the climate, against analyses and against"
        f" simulated stations; {seeds.split(',')[0]}, bars: their range.",
    )
    run_dir.add_figure(
        "roc_by_members",
        _roc(config, found),
        "Area under the ROC curve of both ensembles against the number of members, at"
        f" the last lead of the extremes, {seeds.split(',')[0]}.",
    )
    run_dir.add_figure(
        "bias_drift",
        _drift(config, found),
        "Left: absolute bias of sectors by lead. Right: signed bias over the error, of"
        " the emulator as it is and with a drift planted; the drift alarm rings beyond"
        " the dotted lines at the last lead.",
    )
    run_dir.add_figure(
        "bias_maps",
        _maps(config, found),
        "Bias by site and lead, first seed. Without a drift there is sampling alone,"
        " which grows with the error.",
    )
    run_dir.add_figure(
        "efi",
        _efi(found),
        "Extreme forecast index of both ensembles, each against the climate of its own"
        " model; some starts and sites, all seeds. Correlation"
        f" {found['efi_correlation'].mean():.2f}.",
    )
    for kind, what in (("single", "single forecasts"), ("ensemble", "ensembles")):
        card = tables.make_card(config, done, kind)
        run_dir.add_figure(
            f"scorecard_{kind}",
            plot.scorecard(card),
            f"Scorecard of {what}: {' '.join(card.notes)}",
        )


def _lines(ax, x, values, style, label):
    """Mean of `[seed, lead]`, and the range of the seeds."""
    color, marker, line = PALETTE[style[0]], *style[1:]
    mean, low, high = values.mean(axis=0), values.min(axis=0), values.max(axis=0)
    ax.plot(x, mean, marker=marker, ms=4, color=color, ls=line, lw=1.6, label=label)
    ax.fill_between(x, low, high, color=color, alpha=0.15, lw=0)


def _skill(config, found):
    fig = new_figure(7.4, width=9.6)
    axes = fig.subplots(2, 2, sharex=True)
    leads = scores.lead_times(config)
    panels = {
        "rmse": f"RMSE ({_SD})",
        "equal_activity_rmse": "RMSE at equal activity",
        "acc": "Anomaly correlation",
        "activity_ratio": "Activity over the analyses'",
    }
    for ax, (part, label) in zip(axes.flat, panels.items(), strict=True):
        for name, style in _STYLES.items():
            _lines(ax, leads, found[f"{name}_{part}"], style, LABELS[name])
        if part == "activity_ratio":
            ax.axhline(1, color=GREY, lw=1)
        if part in ("rmse", "equal_activity_rmse"):
            ax.set_ylim(0, 1.6)
        finish(ax, x="", y=label, starts_at_zero=False)
    for ax in axes[1]:
        ax.set_xlabel(_LEAD)
    _legend(fig, axes[0, 0], 3)
    return fig


def _legend(fig, ax, columns):
    handles, labels = ax.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False)


def _spectra(config, found):
    leads = scores.lead_times(config)
    shown = sorted({tables.lead_at(config, t) for t in (1, 3, 5)})
    rows = -(-(len(shown) + 1) // 2)
    fig = new_figure(0.8 + 3.3 * rows, width=9.6)
    axes = fig.subplots(rows, 2, squeeze=False)
    names = ("simulator", "emulator", "multistep", "crps_mean", "crps_members")
    for ax, i in zip(axes.flat, shown, strict=False):
        for name in names:
            power = found[f"{name}_power"][:, i, 1:]
            number = np.arange(1, power.shape[1] + 1)
            _lines(ax, number, power, _STYLES[name], LABELS[name])
        ax.axhline(1, color=GREY, lw=1, ls="--")
        ax.axhline(0.5, color=GREY, lw=1, ls=":")
        ax.set_ylim(0, 1.6)
        ax.set_xticks(range(0, power.shape[1] + 1, 3))
        title = f"Lead {leads[i]:g}"
        finish(ax, x="Wavenumber", y="Power ratio", title=title)
    ax = axes.flat[-1]
    for name in names:
        _lines(ax, leads, found[f"{name}_small"], _STYLES[name], LABELS[name])
    ax.axhline(1, color=GREY, lw=1, ls="--")
    ax.set_ylim(0, 1.6)
    finish(ax, x=_LEAD, y="Power ratio", title="Upper half of the wavenumbers")
    for ax in axes.flat[len(shown) : -1]:
        ax.set_visible(False)
    _legend(fig, axes[0, 0], 3)
    return fig


def _sedi(config, found):
    at, leads = scores.extreme_leads(config), scores.lead_times(config)
    fig = new_figure(3.9, width=9.6)
    axes = fig.subplots(1, len(at), sharey=True, squeeze=False)[0]
    percents = [f"{p:g} %" for p in config.extremes.percents]
    place = np.arange(len(percents))
    for ax, (k, i) in zip(axes, enumerate(at), strict=True):
        for j, (name, truth) in enumerate(
            (n, t) for t in scores.TRUTHS for n in ("simulator", "emulator")
        ):
            values = found[f"{name}_sedi_{truth}"][:, k]
            mean, low, high = (f(values, axis=0) for f in (np.mean, np.min, np.max))
            color = PALETTE[_STYLES[name][0]]
            filled = color if truth == "analysis" else "white"
            x = place + 0.16 * (j - 1.5)
            ax.vlines(x, low, high, color=color, lw=1.2)
            label = f"{name}, {'analyses' if truth == 'analysis' else truth}"
            ax.plot(
                x, mean, _STYLES[name][1], color=color, mfc=filled, ms=6, label=label
            )
        ax.set_xticks(place, percents)
        title = f"Lead {leads[i]:g}"
        finish(
            ax,
            x="Percentile of the climate",
            y="",
            title=title,
            starts_at_zero=False,
        )
    axes[0].set_ylabel("SEDI")
    axes[0].set_ylim(min(0, axes[0].get_ylim()[0]), 1)
    _legend(fig, axes[0], 4)
    return fig


def _roc(config, found):
    fig = new_figure(4.2, width=9.6)
    axes = fig.subplots(1, 2, sharey=True)
    counts = config.extremes.member_counts
    for ax, truth in zip(axes, scores.TRUTHS, strict=True):
        for name, line in (("crps", "-"), ("physical", ":")):
            label = {"crps": "CRPS", "physical": "simulator"}[name]
            for t, percent in enumerate(config.extremes.percents):
                values = found[f"{name}_roc_{truth}"][:, :, -1, t]
                _lines(
                    ax, counts, values, (t, MARKERS[t], line), f"{label}, {percent:g} %"
                )
        ax.set_xticks(counts)
        title = {"analysis": "Against analyses", "stations": "Against stations"}[truth]
        finish(ax, x="Members", y="", title=title, starts_at_zero=False)
    axes[0].set_ylabel("Area under the ROC curve")
    _legend(fig, axes[0], 4)
    return fig


def _drift(config, found):
    fig = new_figure(4.2, width=9.6)
    left, right = fig.subplots(1, 2)
    leads = scores.lead_times(config)
    for name in ("simulator", "emulator", "multistep", "crps_mean"):
        _lines(left, leads, found[f"{name}_zonal_bias"], _STYLES[name], LABELS[name])
    finish(left, x=_LEAD, y=f"Absolute bias of sectors\n({_SD})")
    error = found["emulator_rmse"]
    own = found["emulator_bias"] / error
    planted = found["planted_bias"]
    # The error with the drift: variances of errors and squares of biases add up.
    with_drift = np.sqrt(error**2 - found["emulator_bias"] ** 2 + planted**2)
    _lines(right, leads, own, _STYLES["emulator"], "as it is")
    label = "with a drift planted"
    _lines(right, leads, planted / with_drift, (5, "X", "--"), label)
    for level in (-0.25, 0.25):
        right.axhline(level, color=GREY, lw=1, ls=":")
    right.axhline(0, color=GREY, lw=1)
    right.set_ylim(-0.4, 0.9)
    finish(right, x=_LEAD, y="Bias over RMSE, emulator", legend=True)
    _legend(fig, left, 4)
    return fig


def _maps(config, found):
    fig = new_figure(3.6, width=9.6)
    axes = fig.subplots(1, 2, sharey=True)
    names = ("simulator", "emulator")
    values = [found[f"{name}_map"][0] for name in names]
    limit = max(np.abs(x).max() for x in values)
    leads = scores.lead_times(config)
    shown = range(0, len(leads), -(-len(leads) // 6))
    for ax, name, map_ in zip(axes, names, values, strict=True):
        # Leads are not evenly spaced: a row each.
        picture = ax.imshow(
            map_, cmap="PuOr", vmin=-limit, vmax=limit, origin="lower", aspect="auto"
        )
        ax.set_yticks(shown, [f"{leads[i]:g}" for i in shown])
        finish(ax, x="Site", y="", title=LABELS[name], starts_at_zero=False)
        ax.grid(False)
    axes[0].set_ylabel(_LEAD)
    bar = fig.colorbar(picture, ax=axes)
    bar.set_label(f"Bias ({_SD})")
    return fig


def _efi(found):
    fig = new_figure(4.6, width=4.8)
    ax = fig.subplots()
    crps, physical = np.concatenate(found["efi_pairs"], axis=-1)
    ax.plot(physical, crps, ".", color=PALETTE[0], ms=3, alpha=0.4)
    ax.plot([-1, 1], [-1, 1], color=GREY, lw=1, ls="--")
    ax.set_aspect("equal")
    ax.set_xticks([-1, -0.5, 0, 0.5, 1])
    finish(
        ax,
        x="EFI of the simulator's ensemble",
        y="EFI of CRPS members",
        starts_at_zero=False,
    )
    return fig
