"""Tables and summary of `huge_ensembles.py`."""

from ensjax.experiment.claims import interval_text
from ensjax.experiment.fields import load_beside

verdicts = load_beside(__file__, "huge_ensembles_claims")


def add_tables(run_dir, config, done) -> None:
    """Ensembles beside the pilot, EFI, and cost."""
    found, rows = done["scores"], []
    leads = verdicts.units(config.judged_leads)
    for name, label in verdicts.NAMES.items():
        texts = []
        for place in range(len(leads)):
            for score in ("rmse", "ssr", "fair"):
                values = verdicts.judged(config, found, name, score)[:, place]
                texts.append(interval_text(values))
        pilot = " / ".join(f"{x:g}" for x in verdicts.PILOT.get(name, ())) or "-"
        rows.append([label, str(verdicts.sizes(config, done)[name]), *texts, pilot])
    head = [
        f"{what}, {lead}" for lead in leads for what in ("RMSE", "SSR", "fair CRPS")
    ]
    run_dir.add_table(
        "ensembles",
        ["ensemble", "members", *head, "pilot: RMSE / SSR, both leads"],
        rows,
        f"In deviations of the climate, at leads of {' and '.join(leads)} time units;"
        f" {config.num_seeds} seeds (mean and 95 % interval),"
        f" {config.archive.num_starts} starts. SSR: spread over error, with (M + 1) /"
        f" M. Ensembles of {config.num_checkpoints} have one member of each checkpoint;"
        " scores are means over disjoint draws, which hold all members together. Those"
        " of all members stand below: they compare among themselves alone, since SSR"
        " and fair CRPS take members for independent, which those of one checkpoint"
        " are not. The simulator's members are perturbed at random. Early: after"
        f" {config.training.early_steps:,} of {config.training.total_steps:,} steps,"
        " where checkpoints differ more and err more. Of lagged starts two of the five"
        " members begin at analyses after the others', which no forecast has.",
    )
    at = verdicts.units(config.efi.judged_leads)
    labels = {
        "half": "simulator's halves",
        "emulator_half": "halves of both, bred",
        "emulator": "emulator, bred",
        "emulator_random": "emulator, random",
    }
    rows = [
        [
            label,
            *(
                interval_text(v)
                for v in verdicts.efi_at(config, found, f"efi_{name}").T
            ),
        ]
        for name, label in labels.items()
    ]
    run_dir.add_table(
        "efi",
        ["correlation with the simulator's EFI", *(f"lead {lead}" for lead in at)],
        rows,
        f"Each in its own climate; members start {config.efi.noise:g} deviations from"
        f" the truth. The simulator has {config.efi.num_members} members, the emulators"
        f" {2 * config.efi.num_pairs * config.num_checkpoints}; a half of one is"
        " compared with a half of the other.",
    )
    found = done["forecast"]
    run_dir.add_table(
        "alone",
        ["trained alone less stacked, at most", "checkpoints", "weights", "forecasts"],
        [
            [
                f"after {steps:,} steps",
                str(number),
                f"{found[f'{name}_weights']:.1e}",
                f"{found[f'{name}_forecasts']:.1e}",
            ]
            for name, number, steps in (
                (
                    "alone",
                    min(config.training.num_alone, config.num_checkpoints),
                    config.training.alone_steps,
                ),
                ("whole", 1, config.training.total_steps),
            )
        ],
        "The same seeds and data in another program: sums round differently, and"
        " training amplifies it. Forecasts are of one step, in deviations.",
    )
    times = done["cost"]
    rows = [
        [label, f"{times[f'rate_{name}'].mean():,.0f}"]
        for name, label in (
            ("emulator", "emulators, stacked"),
            ("system", "two-scale simulator"),
            ("closure", "imperfect simulator"),
        )
    ]
    run_dir.add_table(
        "cost",
        ["made by", "trajectories/s"],
        rows,
        f"{config.cost.num_members:,} to lead {config.cost.num_leads / 10:g},"
        f" {config.cost.block} at once in each, compiled, on this machine.",
    )


def describe(config, done) -> str:
    """The summary: what was done, what came out, what it does not show."""
    found = done["scores"]
    ssr = {
        n: verdicts.judged(config, found, n, "ssr").mean(axis=0) for n in verdicts.NAMES
    }
    leads = verdicts.units(config.judged_leads)
    at = f"at leads {leads[0]} and {leads[-1]}"

    def pair(name):
        return f"{ssr[name][0]:.2f} and {ssr[name][-1]:.2f}"

    number = config.num_checkpoints
    count = verdicts.sizes(config, done)["both_all"]
    pilot = verdicts.PILOT["checkpoints"]
    return (
        f"{config.num_seeds} seeds of two-scale Lorenz-96, each with an archive and"
        f" {config.num_checkpoints} checkpoints of its own, all trained as one stack."
        f" Spread over error of {number} members {at}: checkpoints"
        f" {pair('checkpoints')}, bred vectors of one {pair('bred')}, both"
        f" {pair('both')}, checkpoints with random"
        f" perturbations of equal norm {pair('random')}; all {count} members of both"
        f" {pair('both_all')}. Checkpoints of a pilot had {pilot[1]:g} and"
        f" {pilot[3]:g}: where networks differ more by their training alone, there is"
        " less left for perturbations to add. In a step bred vectors grow by"
        f" {found['both_growth'].mean():.3f} (log), random ones by"
        f" {found['random_growth'].mean():.3f}. A two-scale trajectory costs"
        f" {verdicts.cost_ratio(done).mean():.2g} emulated ones; this simulator is a"
        " toy, and the claim of cost is about one that is not."
    )
