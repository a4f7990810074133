"""Figures and tables of `recurrent_stacking.py`."""

import numpy as np

from ensjax.experiment.claims import MIN_SEEDS
from ensjax.experiment.fields import load_beside
from ensjax.plot import image_grid, metric_dots
from ensjax.plot.style import MARKERS, PALETTE, finish, new_figure

measures = load_beside(__file__, "recurrent_stacking_scores")
verdicts = load_beside(__file__, "recurrent_stacking_claims")

# In letters: a chart of skips at equal frames, and at equal duration.
_KINDS = {"frames": "equal number of frames", "duration": "equal duration"}


def add_tables(run_dir, config, results):
    """HTER and AUROC by system and left-out domain; the skip curve."""
    domains = range(results["num_domains"])
    columns = ["system", *(f"domain {d}" for d in domains), "mean", "AUROC"]
    rows = []
    for name in measures.systems(config):
        values = [verdicts.by_seed(results, "hter", name, d).mean() for d in domains]
        auroc = verdicts.over_domains(results, "auroc", name).mean()
        rows.append([name, *values, np.mean(values), auroc])
    run_dir.add_table(
        "systems",
        columns,
        rows,
        "HTER (0-1) on the domain left out, thresholds from the other domains'"
        " development clips; means over seeds. AUROC is the mean over domains. The"
        " paper's numbers, on other data, are 12.23 % (OULU-NPU), 11.19 %"
        " (Replay-Attack) and 3.12 % (MSU-MFSD).",
    )
    if len(config.skips) > 1:
        curve = verdicts.skip_curve(config, results)
        rows = [
            [
                skip,
                results["main_frames"],
                curve["frames"][skip].mean(),
                results["num_frames"] // skip,
                curve["duration"][skip].mean(),
            ]
            for skip in config.skips
        ]
        columns = ["skip", "frames", "HTER", "frames, equal duration", "HTER there"]
        run_dir.add_table(
            "skips",
            columns,
            rows,
            "HTER of the stack on the last domain, means over seeds, at equal number of"
            " frames and at equal duration.",
        )


def add_figures(run_dir, config, clips, results):
    """Systems on the unseen domains, domain by domain, skips, and clips."""
    seeds = f"{config.num_seeds} seeds"
    if config.num_seeds >= MIN_SEEDS:
        seeds += " with 95 % intervals"
        seeds += " (seeds share digits)" if config.data.name == "simulated" else ""
    every = measures.systems(config)
    run_dir.add_figure(
        "systems",
        metric_dots(
            {
                f"{label} (better {better})": {
                    name: _interval(
                        config,
                        verdicts.over_domains(results, metric, name),
                        results["num_domains"],
                    )
                    for name in every
                }
                for metric, label, better in (
                    ("hter", "HTER", "lower"),
                    ("auroc", "AUROC", "higher"),
                )
            },
            title="Unseen domains, mean over domains",
        ),
        "HTER at a threshold fixed on development clips, and AUROC, on the domains left"
        f" out: means over {seeds}.",
    )
    run_dir.add_figure(
        "domains",
        _domains(config, results),
        f"HTER on each left-out domain: means over {seeds}.",
    )
    if len(config.skips) > 1:
        run_dir.add_figure(
            "skips",
            _skips(config, results),
            "HTER of the stack on the last domain against the frames that it processes:"
            f" means over {seeds}. Numbers are skips.",
        )
    if config.data.name == "simulated":
        run_dir.add_figure(
            "clips",
            _clips(config, clips),
            "Frames in time of clips of the first and the last domain of seed 0: an"
            " attack (first row of each pair) is carried about, a live one (second)"
            " bends.",
        )


def _interval(config, values, num_domains=1):
    """The mean with its interval; of fewer than five seeds, which say little, alone."""
    if len(values) < MIN_SEEDS:
        return float(values.mean())
    return (values.mean(), *verdicts.interval_of(config, values, num_domains))


def _domains(config, results):
    fig = new_figure()
    ax = fig.subplots()
    names = (*config.architectures, measures.VOTE, measures.STACK)
    domains = np.arange(results["num_domains"])
    for i, name in enumerate(names):
        values = [verdicts.by_seed(results, "hter", name, d) for d in domains]
        _points(config, ax, domains + 0.1 * (i - (len(names) - 1) / 2), values, i, name)
    noise = config.data.noise_sd if config.data.name == "simulated" else ()
    labels = [
        f"{d}\nnoise {n:g},\ncontrast {c:g}"
        for d, n, c in zip(domains, noise, config.data.contrast)
    ] or [str(d) for d in domains]
    ax.set_xticks(domains, labels)
    ax.set_ylim(bottom=0)
    finish(ax, x="Domain left out", y="HTER", legend=True)
    ax.grid(False, axis="x")
    return fig


def _skips(config, results):
    fig = new_figure()
    ax = fig.subplots()
    curve = verdicts.skip_curve(config, results)
    for i, (kind, label) in enumerate(_KINDS.items()):
        by_skip = curve[kind]
        frames = [
            results["num_frames"] / skip
            if kind == "duration"
            else results["main_frames"] * 1.06 ** (place - (len(by_skip) - 1) / 2)
            for place, skip in enumerate(by_skip)
        ]
        _points(config, ax, frames, list(by_skip.values()), i, label)
        for x, (skip, values) in zip(frames, by_skip.items()):
            top = _interval(config, values)
            top = top[2] if isinstance(top, tuple) else top
            ax.annotate(
                str(skip),
                (x, top),
                xytext=(0, 4),
                textcoords="offset points",
                ha="center",
                fontsize=9,
                color=PALETTE[i],
            )
    ax.set_xscale("log")
    ticks = sorted(
        {results["num_frames"] // s for s in config.skips} | {results["main_frames"]}
    )
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ax.minorticks_off()
    ax.margins(y=0.15)
    ax.set_ylim(bottom=0)
    words = f"log scale; all at {results['main_frames']} are drawn side by side"
    finish(ax, x=f"Frames processed in each clip ({words})", y="HTER", legend=True)
    return fig


def _points(config, ax, x, values, number, name):
    means = [v.mean() for v in values]
    color = PALETTE[number]
    ax.plot(x, means, MARKERS[number], color=color, ms=6, label=name)
    for place, value in zip(x, values):
        interval = _interval(config, value)
        if isinstance(interval, tuple):
            ax.vlines(place, *interval[1:], color=color, lw=1.5, alpha=0.6)


def _clips(config, clips):
    rows = []
    for domain in (0, len(config.data.noise_sd) - 1):
        own = np.flatnonzero(clips.domain == domain)
        rows += [own[0], own[1]]  # attack, live
    chosen = clips.x[0][rows]
    chosen = chosen[:, :: max(chosen.shape[1] // 8, 1)][:, :8]
    side = int(np.sqrt(chosen.shape[-1]))
    images = chosen.reshape(-1, side, side, 1)
    return image_grid(np.clip(images, 0, 1), columns=chosen.shape[1])
