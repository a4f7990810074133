"""What `huge_ensembles.py` concludes: scalars, claims and our own checks."""

import numpy as np

from ensjax.experiment import check_at_least, check_at_most, claim
from ensjax.experiment.claims import Part, claim_of_all, interval_text

PAPER = "Mahesh et al. 2024, arXiv:2408.03100"
NAMES = {
    "checkpoints": "checkpoints",
    "bred": "bred vectors of one",
    "both": "checkpoints x bred vectors",
    "random": "checkpoints x random",
    "lagged": "lagged starts of one",
    "physics": "imperfect simulator",
    "early_checkpoints": "checkpoints, early",
    "early_both": "checkpoints x bred vectors, early",
}
# RMSE and SSR at two leads of a pilot of the same setting with one seed.
PILOT = {
    "checkpoints": (0.181, 0.49, 0.469, 0.65),
    "bred": (0.198, 0.44, 0.474, 0.56),
    "both": (0.179, 0.65, 0.450, 0.74),
    "random": (0.178, 0.72, 0.443, 0.80),
}


def judged(config, found, name, score) -> np.ndarray:
    """A score at `judged_leads`, `[seed, lead]`."""
    values = found[f"{name}_{score}"]
    if name == "lagged":
        return values
    return values[:, [list(config.leads).index(lead) for lead in config.judged_leads]]


def at_spectral_lead(config, found, name) -> np.ndarray:
    """`[seed]` of an array by lead."""
    return found[name][:, list(config.leads).index(config.spectral_lead)]


def efi_at(config, found, name) -> np.ndarray:
    """At the EFI's judged leads, `[seed, lead]`."""
    leads = list(config.efi.leads)
    return found[name][:, [leads.index(lead) for lead in config.efi.judged_leads]]


def growth_ratio(found) -> np.ndarray:
    """Log growth of bred vectors over that of random ones, `[seed]`."""
    return found["both_growth"] / found["random_growth"]


def cost_ratio(done) -> np.ndarray:
    """Trajectories of the emulator for one of the two-scale system, `[seed]`."""
    times = done["forecast"]
    return times["rate_emulator"] / times["rate_system"]


def _units(leads):
    return [f"{lead / 10:g}" for lead in leads]


def make_claims(config, done) -> list[dict]:
    """1.a to 1.f at the scale of this system."""
    found = done["scores"]
    about = dict(paper=PAPER, source="abstract", certainty="read", scale=config.scale)
    both = np.abs(1 - judged(config, found, "both", "ssr"))
    nearer = []
    for name in ("checkpoints", "bred"):
        gaps = np.abs(1 - judged(config, found, name, "ssr")) - both
        for lead, gap in zip(_units(config.judged_leads), gaps.T):
            text = f"nearer to 1 than {NAMES[name]} at lead {lead}"
            nearer.append(Part(text, gap, 0.0))
    power = found["both_power"][:, 1:]  # the perturbed analysis is no forecast
    falls = np.diff(found["both_mean_power"][:, 1:], axis=1).max(axis=1)
    at = _units(config.efi.judged_leads)
    lags = efi_at(config, found, "efi_emulator") - efi_at(config, found, "efi_half")
    last = len(config.judged_leads) - 1
    slope = judged(config, found, "both", "slope")[:, last]
    area = judged(config, found, "both", "roc")[:, last]
    return [
        claim_of_all(
            "1.a: spread over error is nearer to 1 with both sources than with either",
            expected="calibrated",
            parts=nearer,
            **about,
        ),
        claim_of_all(
            "1.b: members keep their power, the mean loses it (upper half of the"
            " wavenumbers, over the truth's)",
            expected="constant; falling",
            parts=[
                Part("least of a member at any lead", power.min(axis=1), 0.9),
                Part("most of a member at any lead", power.max(axis=1), 1.1, "<"),
                Part("largest change of the mean's from lead to lead", falls, 0.0, "<"),
            ],
            **about,
        ),
        claim_of_all(
            "1.c: the emulator's EFI correlates with the simulator's as its halves do",
            expected="similar",
            parts=[
                Part(f"minus that of the halves at lead {lead}", lag, -0.05)
                for lead, lag in zip(at, lags.T)
            ],
            **about,
        ),
        claim_of_all(
            "1.d: forecasts of extremes are reliable and tell events from others",
            expected="reliable and discriminating",
            parts=[
                Part("slope of reliability", slope, 0.8),
                Part("slope of reliability", slope, 1.2, "<"),
                Part("area under the ROC curve", area, 0.5),
            ],
            **about,
        ),
        claim(
            "1.e: growth of bred over that of random perturbations (logs, of a step)",
            expected="more than 1",
            values_by_seed=growth_ratio(found),
            bound=1.0,
            **about | {"source": "section 3"},
        ),
        claim(
            "1.f: trajectories a second, emulator over the two-scale simulator",
            expected="more than 10",
            values_by_seed=cost_ratio(done),
            bound=10.0,
            **about,
        ),
    ]


def make_checks(config, done) -> list[dict]:
    """The card's acceptance: means over seeds."""
    found = done["scores"]
    mean = {
        name: values.mean(axis=0)
        for name, values in found.items()
        if not name.startswith("efi_pair")
    }
    checks = [
        check_at_least(
            "(a) growth of bred over random", float(growth_ratio(found).mean()), 2.0
        )
    ]
    both = judged(config, found, "both", "ssr").mean(axis=0)
    for name in ("checkpoints", "bred"):
        alone = judged(config, found, name, "ssr").mean(axis=0)
        for lead, gain in zip(_units(config.judged_leads), both - alone):
            text = f"(b) SSR of both less that of {NAMES[name]}, lead {lead}"
            checks.append(check_at_least(text, float(gain), 0.08))
    rmse = [
        judged(config, found, name, "rmse").mean(axis=0)[0] for name in ("both", "bred")
    ]
    power = float(at_spectral_lead(config, found, "both_power").mean())
    mean_power = float(at_spectral_lead(config, found, "both_mean_power").mean())
    frozen = int((done["forecast"]["frozen_steps"] >= 0).sum())
    last = len(config.judged_leads) - 1
    slopes = [
        float(judged(config, found, name, "slope").mean(axis=0)[last])
        for name in ("both", "checkpoints")
    ]
    checks += [
        check_at_most(
            "(c) RMSE of both over that of bred alone, first lead",
            float(rmse[0] / rmse[1]),
            0.95,
        ),
        check_at_least("(d) power of members, low", power, 0.9),
        check_at_most("(d) power of members, high", power, 1.1),
        check_at_most("(d) power of the mean", mean_power, 0.75),
        check_at_most(
            "(e) stacked less alone, after some steps",
            float(done["forecast"]["alone_difference"]),
            1e-5,
        ),
        check_at_least(
            "extremes: slope of checkpoints is farther from 1 than that of both, by",
            abs(1 - slopes[1]) - abs(1 - slopes[0]),
            0.0,
        ),
    ]
    leads = list(config.efi.leads)
    middle = leads.index(config.efi.judged_leads[len(config.efi.judged_leads) // 2])
    area = float(mean["efi_emulator_auc"][middle])
    checks.append(check_at_least("EFI: area under its ROC curve", area, 0.7))
    bounds = [0.95] * (len(config.efi.judged_leads) - 1) + [0.9]
    for name in ("emulator", "emulator_random"):
        kind = "bred" if name == "emulator" else "random"
        values = efi_at(config, found, f"efi_{name}").mean(axis=0)
        sds = efi_at(config, found, f"efi_{name}_sd").mean(axis=0)
        for lead, value, bound in zip(_units(config.efi.judged_leads), values, bounds):
            text = f"EFI, {kind}: correlation with the simulator's, lead {lead}"
            checks.append(check_at_least(text, float(value), bound))
        checks.append(
            check_at_most(
                f"EFI, {kind}: deviation over the simulator's, away from 1",
                float(np.abs(sds - 1).max()),
                0.1,
            )
        )
    checks.append(check_at_most("networks not finite", frozen, 0))
    return checks


def summarise(config, done) -> dict[str, float]:
    """Flat scalars without times: means over seeds."""
    found = done["scores"]
    scalars = {}
    for name in NAMES:
        for score in ("rmse", "ssr", "fair", "crps", "slope", "roc"):
            values = judged(config, found, name, score).mean(axis=0)
            for lead, value in zip(config.judged_leads, values):
                scalars[f"{name}_{score}_{lead}"] = float(value)
    for name in ("both", "random"):
        scalars[f"{name}_growth"] = float(found[f"{name}_growth"].mean())
        for part in ("power", "mean_power"):
            values = at_spectral_lead(config, found, f"{name}_{part}")
            scalars[f"{name}_{part}"] = float(values.mean())
    for name in ("emulator", "emulator_random", "half"):
        values = efi_at(config, found, f"efi_{name}").mean(axis=0)
        for lead, value in zip(config.efi.judged_leads, values):
            scalars[f"efi_{name}_{lead}"] = float(value)
    frozen = int((done["forecast"]["frozen_steps"] >= 0).sum())
    return scalars | {
        "amplitude": float(done["forecast"]["amplitude"].mean()),
        "num_networks_not_finite": frozen,
    }


def add_tables(run_dir, config, done) -> None:
    """Ensembles beside the pilot, EFI, and cost."""
    found, rows = done["scores"], []
    leads = _units(config.judged_leads)
    for name, label in NAMES.items():
        texts = []
        for place in range(len(leads)):
            for score in ("rmse", "ssr", "fair"):
                values = judged(config, found, name, score)[:, place]
                texts.append(interval_text(values))
        pilot = " / ".join(f"{x:g}" for x in PILOT.get(name, ())) or "-"
        rows.append([label, str(sizes(done)[name]), *texts, pilot])
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
        " M. RMSE and standard scores of 6 and 24 members do not compare fairly."
        " The fair one takes members for independent, which those of one checkpoint are"
        " not. The simulator's members are perturbed at random. Early: after"
        f" {config.training.early_steps} of {config.training.total_steps} steps, where"
        " checkpoints differ more and err more.",
    )
    at = _units(config.efi.judged_leads)
    labels = {
        "half": "simulator's halves",
        "emulator": "emulator, bred",
        "emulator_random": "emulator, random",
    }
    rows = [
        [label, *(interval_text(v) for v in efi_at(config, found, f"efi_{name}").T)]
        for name, label in labels.items()
    ]
    run_dir.add_table(
        "efi",
        ["correlation with the simulator's EFI", *(f"lead {lead}" for lead in at)],
        rows,
        f"Each in its own climate; members start {config.efi.noise:g} deviations from"
        " the truth.",
    )
    times = done["forecast"]
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
        f"{config.cost.num_members:,} at once to lead"
        f" {config.cost.num_leads / 10:g}, compiled, on this machine.",
    )


def sizes(done) -> dict[str, int]:
    """Members of each ensemble."""
    return {name: done["forecast"][name].shape[1] for name in NAMES}


def describe(config, done) -> str:
    """The summary: what was done, what came out, what it does not show."""
    found = done["scores"]
    ssr = {n: judged(config, found, n, "ssr").mean(axis=0) for n in NAMES}
    leads = _units(config.judged_leads)
    at = f"at leads {leads[0]} and {leads[-1]}"

    def pair(name):
        return f"{ssr[name][0]:.2f} and {ssr[name][-1]:.2f}"

    return (
        f"{config.num_seeds} seeds of two-scale Lorenz-96, each with an archive and"
        f" {config.num_checkpoints} checkpoints of its own, all trained as one stack."
        f" Spread over error {at}: checkpoints {pair('checkpoints')}, bred vectors of"
        f" one {pair('bred')}, both {pair('both')}, checkpoints with random"
        f" perturbations of equal norm {pair('random')}. In a step bred vectors grow by"
        f" {found['both_growth'].mean():.3f} (log), random ones by"
        f" {found['random_growth'].mean():.3f}. A two-scale trajectory costs"
        f" {cost_ratio(done).mean():.2g} emulated ones; this simulator is a toy, and"
        " the claim of cost is about one that is not."
    )
