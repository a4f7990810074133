"""Figures and tables of `verify_glosea.py`."""

import numpy as np

from ensjax.plot.style import GREY, PALETTE, finish, new_figure

_UNIT = "K"


def month_names(archive):
    """Such as "Aug 2011", of each lead."""
    months = archive.valid_time[0].astype("datetime64[M]")
    return [month.item().strftime("%b %Y") for month in months]


def add_tables(run_dir, config, archive, found):
    """Numbers by month."""
    rows = [
        [
            name,
            found["area_means"][:, i].mean(),
            found["area_means"][:, i].std(ddof=1),
            found["area_spread"][i],
            found["nino"][:, i].mean(),
            found["nino"][:, i].std(ddof=1),
        ]
        for i, name in enumerate(month_names(archive))
    ]
    run_dir.add_table(
        "months",
        [
            "month",
            "area mean, K",
            "its sd, K",
            "area spread, K",
            "Nino 3.4, K",
            "sd, K",
        ],
        rows,
        "Surface temperature, means with the areas of cells. Area spread is the root of"
        " the area mean of the members' variance (ddof 1).",
    )


def add_figures(run_dir, config, archive, found):
    """Maps, members as stamps, curves of months, spectra."""
    names = month_names(archive)
    run_dir.add_figure(
        "maps",
        _maps(config, archive, found, names),
        "Mean of the members and their spread (standard deviation, ddof 1), surface"
        " temperature in K. Spread above the colour scale's end is clipped.",
    )
    run_dir.add_figure(
        "members",
        _stamps(config, archive, found, names),
        f"Each member less the ensemble mean, {names[config.map_months[-1]]}, in K."
        " Numbers are those of the members.",
    )
    run_dir.add_figure(
        "plumes",
        _plumes(archive, found, names),
        "Members (thin) and their mean (thick), by month: mean over the globe and over"
        " the box of Nino 3.4.",
    )
    run_dir.add_figure(
        "spectra",
        _spectra(config, found, names),
        "Power of the members (mean over them) and of the ensemble mean, by degree of"
        f" the spherical harmonics, and by zonal wavenumber at {config.band[0]:g} to"
        f" {config.band[1]:g} degrees north.",
    )


def _draw_map(ax, archive, field, **options):
    lat, lon = archive.space["lat"], archive.space["lon"]
    step = lon[1] - lon[0]
    # From the date line on, so that the Pacific is cut and no continent.
    shift = len(lon) // 2
    drawn = ax.imshow(
        np.roll(field, shift, axis=-1),
        origin="lower",
        extent=(-180 - step / 2, 180 - step / 2, lat[0], lat[-1]),
        aspect="equal",
        interpolation="nearest",
        **options,
    )
    ax.set_xlim(-180 - step / 2, 180 - step / 2)
    return drawn


def _maps(config, archive, found, names):
    months = config.map_months
    fig = new_figure(2.1 * len(months) + 0.6, width=9.6)
    axes = fig.subplots(len(months), 2, squeeze=False)
    top = float(np.quantile(found["spread"][list(months)], 0.99))
    for row, month in zip(axes, months):
        for ax, name, options in zip(
            row,
            ("mean", "spread"),
            (
                dict(cmap="RdYlBu_r", vmin=220, vmax=315),
                dict(cmap="magma_r", vmin=0, vmax=top),
            ),
        ):
            drawn = _draw_map(ax, archive, found[name][month], **options)
            fig.colorbar(drawn, ax=ax, label=_UNIT, shrink=0.85)
            ax.set_title(f"{name}, {names[month]}", fontsize=10, loc="left")
            ax.set_xticks([-120, -60, 0, 60, 120])
            ax.set_yticks([-60, -30, 0, 30, 60])
            ax.tick_params(labelsize=8)
            ax.set_xlabel("longitude, degrees east", fontsize=8)
            ax.set_ylabel("latitude, degrees", fontsize=8)
    return fig


def _stamps(config, archive, found, names):
    month = config.map_months[-1]
    fields = archive.values[0, :, month, 0] - found["mean"][month]
    columns = 5
    rows = -(-len(fields) // columns)
    fig = new_figure(1.35 * rows + 0.5, width=9.6)
    axes = fig.subplots(rows, columns, squeeze=False)
    top = float(np.quantile(np.abs(fields), 0.99))
    for ax, field, member in zip(axes.flat, fields, archive.member):
        drawn = _draw_map(ax, archive, field, cmap="RdBu_r", vmin=-top, vmax=top)
        ax.set_title(f"member {member}", fontsize=9, loc="left")
        ax.set_xticks([-120, 0, 120])
        ax.set_yticks([-45, 0, 45])
        ax.tick_params(labelsize=7)
    for ax in axes.flat[len(fields) :]:
        ax.axis("off")
    fig.colorbar(drawn, ax=axes, label=f"difference from the mean, {_UNIT}")
    fig.supxlabel("longitude, degrees east", fontsize=9)
    fig.supylabel("latitude, degrees", fontsize=9)
    return fig


def _plumes(archive, found, names):
    fig = new_figure(3.6, width=9.6)
    axes = fig.subplots(1, 2)
    titles = {"area_means": "Mean over the globe", "nino": "Nino 3.4"}
    for ax, (name, title) in zip(axes, titles.items()):
        x = np.arange(len(names))
        ax.plot(x, found[name].T, color=PALETTE[0], lw=0.7, alpha=0.6)
        ax.plot(x, found[name].mean(axis=0), color="black", lw=2)
        ax.set_xticks(x, [n.split()[0] for n in names])
        finish(
            ax, x="month", y=f"temperature, {_UNIT}", title=title, starts_at_zero=False
        )
    return fig


def _spectra(config, found, names):
    fig = new_figure(3.8, width=9.6)
    axes = fig.subplots(1, 2)
    chosen = config.map_months
    kinds = (
        ("spectrum", "mean_spectrum", "degree l"),
        ("zonal", "mean_zonal", "zonal wavenumber"),
    )
    for ax, (own, of_mean, label) in zip(axes, kinds):
        for color, month in zip(PALETTE, chosen):
            number = np.arange(1, found[own].shape[-1])
            ax.plot(number, found[own][month, 1:], color=color, label=names[month])
            ax.plot(number, found[of_mean][month, 1:], color=color, ls="--")
        ax.plot([], [], color=GREY, ls="--", label="of the ensemble mean")
        ax.set_xscale("log")
        ax.set_yscale("log")
        finish(ax, x=label, y="power, K^2", legend=True)
    return fig
