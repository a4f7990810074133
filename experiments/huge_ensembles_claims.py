"""What `huge_ensembles.py` concludes: scalars, claims and our own checks."""

import numpy as np

from ensjax.experiment import check_at_least, check_at_most, claim
from ensjax.experiment.claims import Part, claim_of_all

PAPER = "Mahesh et al. 2024, arXiv:2408.03100"
# As many members as checkpoints; scores are means over disjoint draws.
EQUAL = {
    "checkpoints": "checkpoints",
    "bred": "bred vectors of one",
    "both": "checkpoints x bred vectors",
    "random": "checkpoints x random",
    "physics": "imperfect simulator",
    "early_checkpoints": "checkpoints, early",
    "early_both": "checkpoints x bred vectors, early",
}
# All members that there are.
WHOLE = {
    "lagged": "lagged starts of one",
    "bred_all": "bred vectors of one, all",
    "both_all": "checkpoints x bred vectors, all",
    "random_all": "checkpoints x random, all",
}
NAMES = EQUAL | WHOLE
# RMSE and SSR at two leads of a pilot of the same setting with one seed.
PILOT = {
    "checkpoints": (0.181, 0.49, 0.469, 0.65),
    "bred_all": (0.198, 0.44, 0.474, 0.56),
    "both_all": (0.179, 0.65, 0.450, 0.74),
    "random_all": (0.178, 0.72, 0.443, 0.80),
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
    times = done["cost"]
    return times["rate_emulator"] / times["rate_system"]


def fair_ratio(config, found, name) -> np.ndarray:
    """Fair CRPS of both sources over that of another ensemble, `[seed, lead]`."""
    both = judged(config, found, "both", "fair")
    return both / judged(config, found, name, "fair")


def units(leads) -> list[str]:
    """Leads in time units, for labels."""
    return [f"{lead / 10:g}" for lead in leads]


def make_claims(config, done) -> list[dict]:
    """1.a to 1.f at the scale of this system."""
    found = done["scores"]
    about = dict(paper=PAPER, source="abstract", certainty="read", scale=config.scale)
    both = np.abs(1 - judged(config, found, "both", "ssr"))
    nearer = []
    for name in ("checkpoints", "bred"):
        gaps = np.abs(1 - judged(config, found, name, "ssr")) - both
        for lead, gap in zip(units(config.judged_leads), gaps.T):
            text = f"nearer to 1 than {NAMES[name]} at lead {lead}"
            nearer.append(Part(text, gap, 0.0))
    power = found["both_all_power"][:, 1:]  # the perturbed analysis is no forecast
    falls = np.diff(found["both_all_mean_power"][:, 1:], axis=1).max(axis=1)
    at = units(config.efi.judged_leads)
    # Halves of the emulator's ensemble, which are as large as the simulator's.
    lags = efi_at(config, found, "efi_emulator_half")
    lags = lags - efi_at(config, found, "efi_half")
    last = len(config.judged_leads) - 1
    slope = judged(config, found, "both_all", "slope")[:, last]
    area = judged(config, found, "both_all", "roc")[:, last]
    return [
        claim_of_all(
            "1.a: spread over error is nearer to 1 with both sources than with either,"
            " ensembles of equal size",
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
            "1.f: trajectories a second, emulator over the two-scale simulator, same"
            " batch",
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
        for lead, gain in zip(units(config.judged_leads), both - alone):
            text = f"(b) SSR of both less that of {NAMES[name]}, lead {lead}"
            checks.append(check_at_least(text, float(gain), 0.08))
        ratios = fair_ratio(config, found, name).mean(axis=0)
        for lead, ratio in zip(units(config.judged_leads), ratios):
            text = f"fair CRPS of both over that of {NAMES[name]}, lead {lead}"
            checks.append(check_at_most(text, float(ratio), 1.0))
    rmse = [
        judged(config, found, name, "rmse").mean(axis=0)[0]
        for name in ("both_all", "bred_all")
    ]
    power = float(at_spectral_lead(config, found, "both_all_power").mean())
    mean_power = float(at_spectral_lead(config, found, "both_all_mean_power").mean())
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
        *_alone_checks(config, done["forecast"]),
        check_at_least(
            "extremes: slope of checkpoints is farther from 1 than that of both, equal"
            " sizes, by",
            abs(1 - slopes[1]) - abs(1 - slopes[0]),
            0.0,
        ),
        check_at_least(
            "extremes: area under the ROC curve of both",
            float(judged(config, found, "both_all", "roc").mean(axis=0)[last]),
            0.7,
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
        for lead, value, bound in zip(units(config.efi.judged_leads), values, bounds):
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


def _alone_checks(config, found):
    training = config.training
    number = min(training.num_alone, config.num_checkpoints)
    steps = f"{training.alone_steps:,} of {training.total_steps:,} steps"
    return [
        check_at_most(
            f"(e) {text} of {number} checkpoints, stacked less alone, after {steps}",
            float(found[f"alone_{name}"]),
            1e-5,
        )
        for name, text in (("weights", "weights"), ("forecasts", "one-step forecasts"))
    ]


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
            values = at_spectral_lead(config, found, f"{name}_all_{part}")
            scalars[f"{name}_all_{part}"] = float(values.mean())
    for name in ("half", "emulator_half", "emulator", "emulator_random"):
        values = efi_at(config, found, f"efi_{name}").mean(axis=0)
        for lead, value in zip(config.efi.judged_leads, values):
            scalars[f"efi_{name}_{lead}"] = float(value)
    frozen = int((done["forecast"]["frozen_steps"] >= 0).sum())
    for name in ("alone", "whole"):
        for part in ("weights", "forecasts"):
            scalars[f"{name}_{part}"] = float(done["forecast"][f"{name}_{part}"])
    return scalars | {
        "amplitude": float(done["forecast"]["amplitude"].mean()),
        "num_networks_not_finite": frozen,
    }


def sizes(config, done) -> dict[str, int]:
    """Members of each ensemble."""
    found = done["forecast"]
    whole = {name: found[name.removesuffix("_all")].shape[1] for name in WHOLE}
    return dict.fromkeys(EQUAL, config.num_checkpoints) | whole
