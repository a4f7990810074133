"""Tables and summary of `huge_ensembles_7424.py`."""

from ensjax.experiment.claims import interval_text
from ensjax.experiment.fields import load_beside
from ensjax.verification import expected_outliers

verdicts = load_beside(__file__, "huge_ensembles_7424_claims")


def add_tables(run_dir, config, done) -> None:
    """Statistics by number of members, and what the run takes."""
    found, rows = done["members"], []
    for kind, label in verdicts.KINDS.items():
        for place, size in enumerate(config.sizes):
            texts = [
                interval_text(found[f"{kind}_{name}"][:, place])
                for name in verdicts.BY_SIZE
            ]
            rows.append([label, f"{size:,}", f"{expected_outliers(size):.2g}", *texts])
    ssr = {kind: found[f"{kind}_ssr"].mean() for kind in verdicts.KINDS}
    run_dir.add_table(
        "sizes",
        ["members", "n", "2 / (n + 1)", "outside", "bracketed", "median gain",
         "best member", "width of P", "by checkpoint"],
        rows,
        f"Lead {config.judged_lead / 10:g} time units; {config.num_seeds} seeds,"
        f" {config.archive.num_starts} starts. Spread over error of all members:"
        f" {ssr['bred']:.2f} (bred), {ssr['random']:.2f} (random). Subsets without"
        f" replacement, {config.num_resamples} of each size, so that what is outside"
        " and the best member's error fall by construction. Bracketed: cells whose"
        " truth is inside more than 95 % of the subsets. Intervals of P(x > its"
        f" {100 * config.extreme_quantile:g} % quantile) with it, over members and over"
        " whole checkpoints: over members they shrink as n^-1/2 whatever these are."
        " Errors in deviations of the climate.",
    )  # fmt: skip
    names = ("brier", "fair_brier", "owcrps", "fair_owcrps")
    rows = [
        [label, f"{size:,}", *(
            interval_text(found[f"{kind}_{name}"][:, place], form=".5f")
            for name in names
        )]
        for kind, label in verdicts.KINDS.items()
        for place, size in enumerate(config.sizes)
    ]  # fmt: skip
    run_dir.add_table(
        "scores",
        ["members", "n", "Brier", "fair Brier", "owCRPS", "fair owCRPS"],
        rows,
        "Standard scores fall with n by what few members add to them; the fair Brier"
        " score is that of the distribution that members are drawn from. The fair"
        " owCRPS falls, too: without a member above, the error of the largest takes its"
        " place, and events with one member above are left out, others at each size.",
    )
    members, sites = config.sizes[-1], config.archive.num_sites
    seconds = done["cost"]["seconds_emulator"].mean()
    steps = config.leads[-1]
    rows = [
        ["seconds a start, streamed", f"{seconds:.3g}"],
        ["member-steps a second", f"{members * steps / seconds:,.0f}"],
        [
            "GiB if all were kept",
            f"{members * len(config.leads) * sites * 4 / 2**30:.4f}",
        ],
    ]
    run_dir.add_table(
        "cost",
        ["what", "of this machine"],
        rows,
        f"{members:,} members, {steps} steps, bred vectors, and states of all"
        f" statistics at {len(config.leads)} leads; compiled before.",
    )
    memory = done["memory"]
    rows = [
        [words, f"{int(memory['members'][place]):,}",
         *(f"{x / 2**20:.3f}" for x in memory[name][place]),
         f"{memory['id_bytes'][place] / 2**20:.3f}",
         f"{int(memory['summary_numbers'][place]):,}" if name == "bytes" else "none"]
        for name, words in (("bytes", "all"), ("unordered_bytes", "without the CRPS"))
        for place in range(2)
    ]  # fmt: skip
    run_dir.add_table(
        "memory",
        ["statistics", "members", "temporary MiB", "arguments", "results",
         "of arguments, ids", "CRPS's summary"],
        rows,
        "Of the program of one start on a device, as compiled, with states made for its"
        " own number of members. What does not need their order takes as much for any"
        " number; ids of members, which are arguments, grow with it, and the summary of"
        " the CRPS (numbers at a site) with what its error of rank, 0.5 %, needs.",
    )  # fmt: skip
    rows = [
        [
            label,
            f"{done['cost'][f'seconds_{name}'].mean():.3g}",
            interval_text(verdicts.cost_ratio(done, name)),
            interval_text(found[f"{name}_fair"]),
            interval_text(verdicts.fair_ratio(done, name)),
        ]
        for name, label in verdicts.SIMULATORS.items()
    ]
    run_dir.add_table(
        "simulators",
        ["simulator", "seconds a start", "over the emulators'", "fair CRPS",
         "emulators' over it"],
        rows,
        f"{members:,} members of one start to the same {len(config.leads)} leads,"
        f" {config.block} at once. Fair CRPS of {config.crps_size} members from the"
        " analyses with independent noise of the emulators' norm. The two-scale"
        " simulator, which made the truth, knows its fast variables, too; the imperfect"
        " one has a line and red noise in their place.",
    )  # fmt: skip


def describe(config, done) -> str:
    """The summary: what was done, what came out, what it does not show."""
    found = done["members"]
    mean = {name: values.mean(axis=0) for name, values in found.items()
            if name.startswith(tuple(verdicts.KINDS))}  # fmt: skip
    least, most = config.sizes[0], config.sizes[-1]

    def slope(name):
        return float(verdicts.slopes(config, found, "bred", name).mean())

    again = "is" if found["stream_again"].min() == 1 else "is not always"
    return (
        f"{most:,} members of {config.archive.num_starts} starts and"
        f" {config.num_seeds} seeds, lead {config.judged_lead / 10:g}; spread over"
        f" error {mean['bred_ssr']:.2f} (bred) and {mean['random_ssr']:.2f} (random)."
        f" From {least} to {most:,} members the truth is outside in"
        f" {mean['bred_outliers'][0]:.3f} to {mean['bred_outliers'][-1]:.4f} of cells"
        f" (random: {mean['random_outliers'][0]:.3f} to"
        f" {mean['random_outliers'][-1]:.4f}), the median gain rises from"
        f" {mean['bred_gain'][0]:.2f} to {mean['bred_gain'][-1]:.2f}, and the best"
        f" member's error falls from {mean['bred_best'][0]:.3f} to"
        f" {mean['bred_best'][-1]:.3f}; cells bracketed rise from"
        f" {mean['bred_bracketed'][0]:.2f} to {mean['bred_bracketed'][-1]:.2f}. The"
        " interval of the extreme's probability shrinks with a power of n of"
        f" {slope('width'):.2f} over members and {slope('cluster_width'):.2f} over"
        " checkpoints. Fair"
        f" CRPS: {mean['bred_small_fair']:.4f} of"
        f" {config.crps_size}, {mean['bred_fair']:.4f} of all. The highest member, made"
        f" again alone, {again} equal bit for bit. An ensemble with too little spread"
        " keeps outliers whatever its size. For the same members the two-scale"
        f" simulator takes {verdicts.cost_ratio(done, 'system').mean():.2g} times as"
        " long as the emulators, and the imperfect one"
        f" {verdicts.cost_ratio(done, 'closure').mean():.2g} times."
    )
