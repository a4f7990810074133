"""Figures of `seeds.py`."""

import numpy as np

from ensjax.experiment.fields import load_beside
from ensjax.plot.style import GREY, MARKERS, PALETTE, finish, new_figure

verdicts = load_beside(__file__, "seeds_claims")
training = load_beside(__file__, "seeds_training")
measures = load_beside(__file__, "seeds_scores")

K = training.K
_COLORS = dict(zip(("seeds", "gaussian", "generated", "few", "full"), PALETTE))
_COLORS["full"] = "#000000"
_MARKERS = dict(zip(_COLORS, MARKERS))
_VALUE = "x (units of Lorenz-96)"
_SD = "deviations of the climate"


def add_figures(run_dir, config, done):
    """Stamps, plume, ranks, reliability, spectra, spread and skill, CRPS by size."""
    archives, drawn, found = done["simulate"], done["emulate"], done["scores"]
    case = chosen_case(archives)
    seeds = f"mean over {config.num_seeds} seeds"
    full = config.archive.num_test_members - K
    run_dir.add_figure(
        "stamps",
        _stamps(archives, drawn, case),
        f"Members of test case {case} of the first seed, by site: the two seeds, six"
        " generated ones, six others of the simulator, and six of a Gaussian at each"
        " site. The truth is dashed.",
    )
    run_dir.add_figure(
        "plume",
        _plume(archives, drawn, case),
        f"The same case: median, and 25 to 75 and 5 to 95 % of {config.num_samples}"
        f" generated members and of the {full} others of the simulator, with the two"
        " seeds and the truth.",
    )
    run_dir.add_figure(
        "ranks",
        _ranks(found),
        "Rank of the truth among members, share over that of a reliable ensemble"
        f" (dashed); {seeds}. Of {full} members, but of two for the seeds.",
    )
    run_dir.add_figure(
        "reliability",
        _reliability(config, found),
        f"How often a site was above the climate's mean by {config.event_sds:g}"
        " deviations where that was forecast with a probability, in ten bins; below,"
        f" how many sites and cases each bin has. {seeds.capitalize()}.",
    )
    run_dir.add_figure(
        "spectra",
        _spectra(found),
        "Power of members by wavenumber over that of the simulator's others (dashed):"
        f" a point for each seed, lines for the {seeds}. Shaded: 0.7 to 1.3.",
    )
    run_dir.add_figure(
        "spread_skill",
        _spread_skill(found),
        "Error of the ensemble mean in bins of the spread (root mean squares), as it"
        f" should be on the diagonal; {seeds}. An area of a marker is the number of"
        " sites and cases.",
    )
    run_dir.add_figure(
        "crps_by_size",
        _crps_by_size(training_sizes(config), found),
        f"Standard CRPS against the number of members, over all subsets; {seeds}, and"
        " a thin line for each seed.",
    )


def training_sizes(config) -> list[int]:
    """Numbers of members of the curve; see `seeds.curve_sizes`."""
    return measures.curve_sizes(config.archive.num_test_members - K, config.num_samples)


def chosen_case(archives) -> int:
    """The case of the first seed whose simulated spread is the median."""
    spread = archives["test"][0][:, K:].std(axis=1, ddof=1).mean(axis=-1)
    return int(np.argsort(spread)[len(spread) // 2])


def _stamps(archives, drawn, case):
    members = archives["test"][0][case]
    truth = archives["truth"][0][case]
    number = 6
    gaussian = measures.gaussian(members[:K, None], number, 0)[:, 0]
    rows = {
        "seeds": members[:K],
        "generated": drawn["generated"][0][:number, case],
        "full": members[K : K + number],
        "gaussian": gaussian,
    }
    fig = new_figure(6.4, width=9.6)
    axes = fig.subplots(len(rows), number, sharex=True, sharey=True)
    low = min(values.min() for values in (*rows.values(), truth))
    high = max(values.max() for values in (*rows.values(), truth))
    for row, (name, fields) in zip(axes, rows.items()):
        for place, ax in enumerate(row):
            if place >= len(fields):
                ax.axis("off")
                continue
            ax.plot(truth, color=GREY, lw=0.9, ls="--")
            ax.plot(fields[place], color=_COLORS[name], lw=1.3)
            ax.set_ylim(low - 0.5, high + 0.5)
            label = verdicts.NAMES[name] if place == 0 else ""
            finish(ax, x="", y="", title=label, starts_at_zero=False)
            ax.tick_params(labelsize=8)
    fig.supxlabel("site", fontsize=10)
    fig.supylabel(_VALUE, fontsize=10)
    return fig


def _plume(archives, drawn, case):
    members = archives["test"][0][case]
    fig = new_figure(5.6, width=9.6)
    axes = fig.subplots(2, 1, sharex=True, sharey=True)
    site = np.arange(members.shape[-1])
    shown = {"generated": drawn["generated"][0][:, case], "full": members[K:]}
    for ax, (name, fields) in zip(axes, shown.items()):
        color = _COLORS[name]
        for share, alpha in ((0.05, 0.15), (0.25, 0.3)):
            low, high = np.quantile(fields, (share, 1 - share), axis=0)
            ax.fill_between(site, low, high, color=color, alpha=alpha, lw=0)
        label = f"median, {verdicts.NAMES[name]}"
        ax.plot(site, np.median(fields, axis=0), color=color, lw=1.5, label=label)
        dots = dict(color=_COLORS["seeds"], ms=6)
        ax.plot(site, members[0], ".", label="seeds", **dots)
        ax.plot(site, members[1], ".", **dots)
        truth = archives["truth"][0][case]
        ax.plot(site, truth, "x", color=PALETTE[1], ms=6, label="truth")
        finish(ax, x="", y=_VALUE, starts_at_zero=False)
        above = dict(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
        ax.legend(fontsize=10, **above)
    axes[-1].set_xlabel("site")
    return fig


def _ranks(found):
    fig = new_figure(5.2, width=8.0)
    axes = fig.subplots(2, 2)
    for ax, name in zip(axes.flat, ("seeds", "gaussian", "generated", "full")):
        counts = found[f"{name}_counts"].mean(axis=0)
        ranks = np.arange(len(counts))
        ax.bar(ranks, counts / counts.mean(), color=_COLORS[name], width=0.9)
        if len(counts) < 5:
            ax.set_xticks(ranks)
        ax.axhline(1, color=GREY, lw=1, ls="--")
        finish(ax, x="rank", y="share / expected", title=verdicts.NAMES[name])
        if ax not in axes[:, 0]:
            ax.set_ylabel("")
    return fig


def _reliability(config, found):
    fig = new_figure(5.6)
    ax, below = fig.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1]})
    ax.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--")
    for name, label in verdicts.NAMES.items():
        probability, frequency, weight = pooled(found[f"{name}_reliability"])
        style = dict(color=_COLORS[name], marker=_MARKERS[name], ms=5, lw=1.3)
        ax.plot(probability, frequency, label=label, **style)
        below.plot(probability, weight, **style)
    below.set_yscale("log")
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.02, 1.02)
    finish(ax, x="", y="frequency", legend=True, starts_at_zero=False)
    finish(below, x="forecast probability", y="sites and cases")
    return fig


def pooled(parts) -> np.ndarray:
    """Means over seeds `[3, bin]` of `[seed, 3, bin]` by weight; bins that are full.

    The last of the three is the weight, which is the sum over seeds.
    """
    weight = parts[:, 2]
    total = weight.sum(axis=0)
    values = np.where(weight[:, None] > 0, parts[:, :2], 0.0)
    means = (values * weight[:, None]).sum(axis=0) / np.maximum(total, 1e-9)
    return np.concatenate([means, total[None]])[:, total > 0]


def _spectra(found):
    fig = new_figure(4.4)
    ax = fig.subplots()
    ax.axhspan(0.7, 1.3, color=GREY, alpha=0.15, lw=0)
    ax.axhline(1, color=GREY, lw=1, ls="--")
    for name in ("gaussian", "seeds", "few", "generated"):
        power = found[f"{name}_power"]
        wave = np.arange(1, power.shape[-1] + 1)
        for values in power:
            ax.plot(wave, values, _MARKERS[name], color=_COLORS[name], ms=3, alpha=0.5)
        label = verdicts.NAMES[name]
        ax.plot(wave, power.mean(axis=0), color=_COLORS[name], lw=1.5, label=label)
    ax.set_ylim(bottom=0)
    ax.set_xticks([1, 5, 10, 15, 20])
    finish(ax, x="wavenumber", y="power / simulator's", legend=True)
    return fig


def _spread_skill(found):
    fig = new_figure(4.8)
    ax = fig.subplots()
    top = 0.0
    for name, label in verdicts.NAMES.items():
        spread, skill, weight = pooled(found[f"{name}_binned"])
        top = max(top, spread.max(), skill.max())
        style = dict(color=_COLORS[name], lw=1.2)
        ax.plot(spread, skill, label=label, marker=_MARKERS[name], ms=3, **style)
        areas = 220 * weight / weight.sum()
        ax.scatter(spread, skill, s=areas, color=_COLORS[name], alpha=0.35, lw=0)
    ax.plot([0, top], [0, top], color=GREY, lw=1, ls="--")
    finish(ax, x=f"spread ({_SD})", y=f"error of the mean ({_SD})", legend=True)
    return fig


def _crps_by_size(sizes, found):
    fig = new_figure(4.4)
    ax = fig.subplots()
    for name in ("seeds", "gaussian", "generated", "few", "full"):
        curves = found[f"{name}_curve"]
        style = dict(color=_COLORS[name])
        for values in curves:
            ax.plot(sizes, values, lw=0.6, alpha=0.5, **style)
        label = verdicts.NAMES[name]
        marker = dict(marker=_MARKERS[name], ms=4)
        ax.plot(sizes, curves.mean(axis=0), lw=1.6, label=label, **marker, **style)
    ax.set_xscale("log", base=2)
    ticks = [1, 2, 4, 8, 16, 32, 64]
    ticks = [tick for tick in ticks if tick <= sizes[-1]]
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    finish(ax, x="members (logarithmic)", y=f"CRPS ({_SD})", legend=True)
    return fig
