"""Figures of `huge_ensembles.py`."""

import numpy as np

from ensjax.experiment.fields import load_beside
from ensjax.plot.style import GREY, MARKERS, PALETTE, finish, new_figure

scores = load_beside(__file__, "huge_ensembles_scores")
verdicts = load_beside(__file__, "huge_ensembles_claims")

_NAMES = ("checkpoints", "bred", "both", "random", "physics")
_COLORS = dict(zip(("checkpoints", "bred", "both", "random"), PALETTE))
_COLORS["physics"] = "#000000"
_MARKERS = dict(zip(_NAMES, MARKERS))
_LEAD = "lead (time units)"
_SD = "deviations of the climate"


def add_figures(run_dir, config, done):
    """Calibration by lead, spectra, reliability, EFI, ranks, and a plume."""
    found = done["scores"]
    seeds = f"mean over {config.num_seeds} seeds"
    run_dir.add_figure(
        "calibration",
        _calibration(config, found),
        "Spread over error, error of the mean, and fair CRPS by lead, in deviations of"
        f" the climate; {config.num_checkpoints} members each, and in grey all"
        f" {verdicts.sizes(config, done)['both_all']} of checkpoints x bred vectors."
        f" {seeds.capitalize()}, and thin lines for each. Dashed: calibrated. All"
        " members are in groups of one checkpoint, which fair CRPS does not know.",
    )
    lead = config.spectral_lead / 10
    run_dir.add_figure(
        "spectra",
        _spectra(config, found),
        f"Solid: power of members over the truth's; dotted: power of the ensemble"
        f" mean of {config.num_checkpoints} members over the truth's. Left: by"
        f" wavenumber at lead {lead:g}. Right: in the upper half of the wavenumbers, by"
        f" lead. Shaded: 0.9 to 1.1; {seeds}.",
    )
    last = config.judged_leads[-1] / 10
    run_dir.add_figure(
        "reliability",
        _reliability(config, found),
        f"How often a site was above the climate's {100 * config.event_quantile:g} %"
        f" quantile where that was forecast with a probability, lead {last:g}, in ten"
        f" bins; below, the share of forecasts in each. {config.num_checkpoints}"
        f" members each; {seeds}.",
    )
    run_dir.add_figure(
        "efi",
        _efi(config, found),
        "Extreme forecast index of emulators (bred vectors x checkpoints) against the"
        " two-scale simulator's, each in its own climate, sites and starts of the first"
        " seed.",
    )
    run_dir.add_figure(
        "ranks",
        _ranks(config, done),
        f"Rank of the truth among {config.num_checkpoints} members at lead {last:g},"
        f" share over that of a reliable ensemble (dashed); {seeds}.",
    )
    run_dir.add_figure(
        "plume",
        _plume(config, done),
        "A site of the start whose spread is the median, first seed: members of"
        " checkpoints x bred vectors, their mean, and the truth.",
    )


def _units(leads):
    return np.asarray(leads) / 10


def _calibration(config, found):
    fig = new_figure(4.0, width=10.5)
    axes = fig.subplots(1, 3)
    titles = {
        "ssr": "spread / error",
        "rmse": "error of the mean (deviations)",
        "fair": "fair CRPS (deviations)",
    }
    leads = _units(config.leads)[1:]
    for ax, (score, title) in zip(axes, titles.items()):
        whole = found[f"both_all_{score}"][:, 1:].mean(axis=0)
        label = verdicts.NAMES["both_all"]
        ax.plot(leads, whole, color=GREY, lw=1.4, ls="-.", label=label)
        for name in _NAMES:
            values = found[f"{name}_{score}"][:, 1:]
            style = dict(color=_COLORS[name])
            for one in values:
                ax.plot(leads, one, lw=0.5, alpha=0.5, **style)
            ax.plot(
                leads,
                values.mean(axis=0),
                lw=1.6,
                marker=_MARKERS[name],
                ms=4,
                label=verdicts.NAMES[name],
                **style,
            )
        if score == "ssr":
            ax.axhline(1, color=GREY, lw=1, ls="--")
        ax.set_ylim(bottom=0)
        finish(ax, x=_LEAD, y=title)
    axes[1].legend(fontsize=7, frameon=False, loc="lower right")
    return fig


def _spectra(config, found):
    fig = new_figure(4.2, width=9.6)
    left, right = fig.subplots(1, 2, sharey=True)
    place = list(config.leads).index(config.spectral_lead)
    for ax in (left, right):
        ax.axhspan(0.9, 1.1, color=GREY, alpha=0.2, lw=0)
        ax.axhline(1, color=GREY, lw=1, ls="--")
    for name in _NAMES:
        style = dict(color=_COLORS[name], lw=1.4)
        members = found[f"{name}_spectrum"][:, place].mean(axis=0)
        mean = found[f"{name}_mean_spectrum"][:, place].mean(axis=0)
        wave = np.arange(len(members))
        left.plot(wave[1:], members[1:], **style)
        left.plot(wave[1:], mean[1:], ls=":", **style)
        leads = _units(config.leads)[1:]
        power = found[f"{name}_power"].mean(axis=0)[1:]
        right.plot(leads, power, label=verdicts.NAMES[name], **style)
        right.plot(leads, found[f"{name}_mean_power"].mean(axis=0)[1:], ls=":", **style)
    for label, line in (("members", "-"), ("ensemble mean", ":")):
        left.plot([], [], color=GREY, lw=1.4, ls=line, label=label)
    left.legend(fontsize=9, frameon=False, loc="lower left")
    left.set_ylim(bottom=0)
    left.xaxis.get_major_locator().set_params(integer=True)
    finish(left, x="wavenumber", y="power / truth's")
    finish(right, x=_LEAD, y="")
    right.legend(fontsize=9, frameon=False, loc="lower left")
    return fig


def _reliability(config, found):
    fig = new_figure(5.4)
    ax, below = fig.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1]})
    ax.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--")
    place = list(config.leads).index(config.judged_leads[-1])
    for name in ("checkpoints", "both", "random", "physics"):
        bins = scores.pooled(found[f"{name}_reliability"][:, place])
        probability, frequency, weight = bins[:, bins[2] > 0]
        style = dict(color=_COLORS[name], marker=_MARKERS[name], ms=5, lw=1.3)
        ax.plot(probability, frequency, label=verdicts.NAMES[name], **style)
        below.plot(probability, weight / weight.sum(), **style)
    below.set_yscale("log")
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.02, 1.02)
    finish(ax, x="", y="frequency", legend=True, starts_at_zero=False)
    finish(below, x="forecast probability", y="share", starts_at_zero=False)
    return fig


def _efi(config, found):
    emulator, system = found["efi_pair"][0]
    leads = list(config.efi.judged_leads)
    fig = new_figure(3.6, width=3.4 * len(leads))
    axes = fig.subplots(1, len(leads), sharex=True, sharey=True, squeeze=False)[0]
    for ax, lead in zip(axes, leads):
        place = list(config.efi.leads).index(lead)
        ax.plot([-1, 1], [-1, 1], color=GREY, lw=1, ls="--")
        x, y = system[:, place].ravel(), emulator[:, place].ravel()
        ax.plot(x, y, ".", ms=2, alpha=0.5, color=_COLORS["both"])
        correlation = found["efi_emulator"][0, place]
        title = f"lead {lead / 10:g}, r = {correlation:.3f}"
        finish(ax, x="simulator's EFI", y="", title=title, starts_at_zero=False)
    axes[0].set_ylabel("emulator's EFI")
    return fig


def _ranks(config, done):
    found = done["scores"]
    place = list(config.leads).index(config.judged_leads[-1])
    fig = new_figure(4.8, width=8.4)
    names = ("checkpoints", "bred", "both", "random")
    for ax, name in zip(fig.subplots(2, 2, sharex=True, sharey=True).flat, names):
        counts = found[f"{name}_ranks"][:, place].mean(axis=0)
        ax.bar(
            np.arange(len(counts)),
            counts / counts.mean(),
            color=_COLORS[name],
            width=0.9,
        )
        ax.axhline(1, color=GREY, lw=1, ls="--")
        ax.xaxis.get_major_locator().set_params(integer=True)
        finish(ax, x="rank", y="share / expected", title=verdicts.NAMES[name])
    return fig


def _plume(config, done):
    members = done["forecast"]["plume"]  # [member, lead, site]
    case, before = int(done["forecast"]["plume_start"]), config.archive.num_before
    leads = _units(range(members.shape[1]))
    truth = done["simulate"]["truth"][0, case, before : before + len(leads)]
    fig = new_figure(3.6, width=8.0)
    ax = fig.subplots()
    for number, one in enumerate(members[:, :, 0]):
        label = "members" if number == 0 else None
        ax.plot(leads, one, color=_COLORS["both"], lw=0.7, alpha=0.6, label=label)
    mean = members[:, :, 0].mean(axis=0)
    ax.plot(leads, mean, color=PALETTE[1], lw=2, label="mean")
    ax.plot(leads, truth[:, 0], "k--", lw=1.6, label="truth")
    finish(ax, x=_LEAD, y=f"x ({_SD})", legend=True, starts_at_zero=False)
    return fig
