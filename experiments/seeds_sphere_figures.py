"""Figures of `seeds_sphere.py`; maps and stamps are of the first seed."""

import numpy as np

from ensjax.experiment.fields import load_beside
from ensjax.plot.style import GREY, MARKERS, PALETTE, finish, new_figure

training = load_beside(__file__, "seeds_sphere_training")
scores = load_beside(__file__, "seeds_sphere_scores")
verdicts = load_beside(__file__, "seeds_sphere_claims")

VARIABLES = ("temperature of the lowest layer", "surface pressure")
UNITS = ("K", "hPa")
# One colour for an ensemble in all figures.
COLORS = dict(zip(("full", "generated", "seeds", "gaussian", "few"), PALETTE))


def add_figures(run_dir, config, done, ensembles) -> None:
    """All figures; `ensembles` are those of the first seed, standardised."""
    archives, found = done["simulate"], done["scores"]
    day = archives["lead_days"][-1]
    for number, name in enumerate(("temperature", "pressure")):
        run_dir.add_figure(
            f"maps_{name}",
            _maps(archives, ensembles, number),
            f"{VARIABLES[number].capitalize()} of the first test case at day {day}, in"
            f" {UNITS[number]}: what came true, means of the ensembles, and their"
            " spread (standard deviation, ddof 1). First seed.",
        )
        run_dir.add_figure(
            f"members_{name}",
            _stamps(archives, ensembles, number),
            f"{VARIABLES[number].capitalize()} less the climate's mean of the latitude,"
            f" in {UNITS[number]}, first test case at day {day}: the two members that"
            " are given, others of the simulator, and generated ones. First seed.",
        )
    run_dir.add_figure(
        "spectra",
        _spectra(config, found),
        "Power of members by degree of spherical harmonics, mean over members, cases"
        " and seeds; below, over that of the other members of the simulator, with all"
        f" degrees beyond {config.last_degree} as one: the simulator's filter leaves"
        " little there. Grey: 0.7 to 1.3.",
    )
    run_dir.add_figure(
        "ranks",
        _ranks(found),
        "Rank of the truth among members: area of each rank over that of a reliable"
        " ensemble (dashed); mean over seeds. Neighbours are not independent.",
    )
    run_dir.add_figure(
        "spread_skill",
        _spread_skill(found),
        "Error of the ensemble mean in bins of spread, by area, that hold 1 % of it or"
        " more; mean over seeds. A"
        " reliable ensemble of many members is on the dashed line.",
    )
    run_dir.add_figure(
        "crps_by_size",
        _by_size(config, found),
        "CRPS against the number of members, over all subsets; mean over seeds and"
        " variables.",
    )
    run_dir.add_figure(
        "growth",
        _growth(archives),
        "Spread of the test members and error of their mean, over the climate's"
        " deviation, by days of forecast.",
    )


def _draw_map(ax, archives, field, **options):
    lat, lon = archives["lat"], archives["lon"]
    half = (lon[1] - lon[0]) / 2
    lower = lat[0] - (lat[1] - lat[0]) / 2
    drawn = ax.imshow(
        field,
        origin="lower",
        extent=(lon[0] - half, lon[-1] + half, lower, -lower),
        aspect="equal",
        interpolation="nearest",
        **options,
    )
    ax.set_xticks([0, 90, 180, 270])
    ax.set_yticks([-60, -30, 0, 30, 60])
    ax.tick_params(labelsize=8)
    return drawn


def _maps(archives, ensembles, variable):
    standard = training.climate(archives)

    def restored(fields):
        return np.asarray(standard.restore(fields))[..., 0, variable, :, :]

    sd = np.asarray(standard.sd)[0, variable]
    means = {
        "truth": archives["truth"][0, variable],
        "mean, the other members": restored(ensembles["full"].mean(axis=0)),
        "mean, generated": restored(ensembles["generated"].mean(axis=0)),
    }
    spreads = {
        f"spread, {verdicts.NAMES[name]}": ensembles[name].std(axis=0, ddof=1)[
            0, variable
        ]
        * sd
        for name in ("seeds", "full", "generated")
    }
    fig = new_figure(4.4, width=11.0)
    axes = fig.subplots(2, 3)
    every = np.stack(list(means.values()))
    top = np.quantile(np.stack(list(spreads.values())), 0.99)
    for row, fields, options in (
        (axes[0], means, dict(cmap="RdYlBu_r", vmin=every.min(), vmax=every.max())),
        (axes[1], spreads, dict(cmap="magma_r", vmin=0, vmax=top)),
    ):
        for ax, (title, field) in zip(row, fields.items()):
            drawn = _draw_map(ax, archives, field, **options)
            ax.set_title(title, fontsize=10, loc="left")
        extend = "max" if options["vmin"] == 0 else "neither"
        fig.colorbar(drawn, ax=row, label=UNITS[variable], shrink=0.85, extend=extend)
    fig.supxlabel("longitude, degrees east", fontsize=10)
    fig.supylabel("latitude, degrees north", fontsize=10)
    return fig


def _stamps(archives, ensembles, variable):
    sd = np.asarray(training.climate(archives).sd)[0, variable]
    columns = 4
    rows = {
        "given": ensembles["seeds"],
        "other": ensembles["full"],
        "generated": ensembles["generated"],
    }
    fields = [x[:columns, 0, variable] * sd for x in rows.values()]
    top = np.quantile(np.abs(np.concatenate(fields)), 0.995)
    fig = new_figure(4.9, width=11.0)
    axes = fig.subplots(3, columns)
    for ax in axes.flat:
        ax.axis("off")
    for row, (name, fields) in zip(axes, rows.items()):
        for number, ax in enumerate(row[: len(fields)]):
            ax.axis("on")
            field = fields[number, 0, variable] * sd
            drawn = _draw_map(ax, archives, field, cmap="RdBu_r", vmin=-top, vmax=top)
            ax.set_title(f"{name} {number + 1}", fontsize=10, loc="left")
    fig.colorbar(
        drawn, ax=axes, label=f"off the climate's mean, {UNITS[variable]}", shrink=0.7,
        extend="both",
    )  # fmt: skip
    fig.supxlabel("longitude, degrees east", fontsize=10)
    fig.supylabel("latitude, degrees north", fontsize=10)
    return fig


def _spectra(config, found):
    fig = new_figure(6.0, width=10.0)
    axes = fig.subplots(2, 2, sharex=True, gridspec_kw={"height_ratios": [3, 2]})
    last = config.last_degree
    for column, (variable, unit) in enumerate(zip(VARIABLES, UNITS)):
        above, below = axes[:, column]
        for name, color in COLORS.items():
            own = found[f"{name}_power"].mean(axis=0)[column]
            ratio = verdicts.compared_power(config, found, name)
            ratio = ratio.mean(axis=0)[column]
            degree = np.arange(1, len(own) + 1)
            above.plot(degree, own, color=color, label=verdicts.NAMES[name], lw=1.6)
            below.plot(degree[:last], ratio[:-1], color=color, lw=1.6)
            beyond = [last + 1, len(own)]
            below.plot(beyond, [ratio[-1]] * 2, color=color, lw=1.6)
        below.axhspan(0.7, 1.3, color=GREY, alpha=0.15, lw=0)
        for ax in (above, below):
            ax.axvline(last + 0.5, color=GREY, lw=1, ls=":")
            ax.set_yscale("log")
        top = found["full_power"].mean(axis=0)[column].max()
        above.set_ylim(1e-4 * top, 3 * top)
        unit = f"power, {unit}$^2$"
        finish(above, x="", y=unit, title=variable, legend=column == 0)
        finish(below, x="degree of spherical harmonics", y="over the other members'")
    return fig


def _ranks(found):
    shown = ("full", "generated", "few", "seeds")
    fig = new_figure(5.2, width=8.0)
    axes = fig.subplots(2, 2, sharey=True)
    for ax, name in zip(axes.flat, shown):
        ranks = found[f"{name}_ranks"].mean(axis=0)
        ax.bar(np.arange(len(ranks)), ranks, color=COLORS[name], width=0.9)
        ax.axhline(1, color=GREY, lw=1, ls="--")
        ax.xaxis.get_major_locator().set_params(integer=True)
        title = f"{verdicts.NAMES[name]} (of {len(ranks) - 1} members)"
        finish(ax, x="rank of the truth", y="area / expected", title=title)
    return fig


def _spread_skill(found):
    fig = new_figure(4.6)
    ax = fig.subplots()
    top = 0.0
    for marker, (name, color) in zip(MARKERS, COLORS.items()):
        binned = np.ma.masked_invalid(found[f"{name}_binned"])
        spread, skill = binned.mean(axis=0).filled(np.nan)
        style = dict(color=color, marker=marker, ms=5, lw=1.2)
        ax.plot(spread, skill, label=verdicts.NAMES[name], **style)
        top = max(top, np.nanmax(spread), np.nanmax(skill))
    ax.plot([0, top], [0, top], color=GREY, lw=1, ls="--")
    ax.set_xlim(0, 1.05 * top)
    ax.set_ylim(0, 1.05 * top)
    finish(
        ax,
        x="spread, climate deviations",
        y="error of the mean, climate deviations",
        legend=True,
    )
    return fig


def _by_size(config, found):
    fig = new_figure(4.2)
    ax = fig.subplots()
    sizes = np.array(scores.SIZES)
    for marker, name in zip(MARKERS, ("full", "generated", "few", "seeds")):
        values = found[f"{name}_by_size"].mean(axis=0)
        known = ~np.isnan(values)
        style = dict(color=COLORS[name], marker=marker, ms=6, lw=1.2)
        ax.plot(sizes[known], values[known], label=verdicts.NAMES[name], **style)
    ax.set_xscale("log", base=2)
    ticks = [size for size in (2, 4, 8, 16, 32, 64) if size <= config.num_samples]
    ax.set_xticks(ticks, [str(size) for size in ticks])
    finish(ax, x="members", y="CRPS, climate deviations", legend=True)
    return fig


def _growth(archives):
    fig = new_figure(4.0)
    ax = fig.subplots()
    days = archives["lead_days"]
    for number, (variable, marker) in enumerate(zip(VARIABLES, MARKERS)):
        climate = archives["climate_sd"][:, number]
        style = dict(color=PALETTE[number], marker=marker, ms=5)
        spread = archives["spread_by_lead"][:, number] / climate
        error = archives["error_by_lead"][:, number] / climate
        ax.plot(days, spread, label=f"spread, {variable}", **style)
        ax.plot(days, error, ls="--", label=f"error of the mean, {variable}", **style)
    ax.set_ylim(bottom=0)
    ax.axhline(1, color=GREY, lw=1, ls=":")
    finish(ax, x="days of forecast", y="over the climate's deviation", legend=True)
    return fig
