"""What `seeds.py` concludes: scalars, claims and our own checks."""

import numpy as np

from ensjax.experiment import check_at_least, check_at_most, claim
from ensjax.experiment.claims import Part, claim_of_all

PAPER = "Li et al. 2024, Science Advances 10(13), eadk4489"
NAMES = {
    "seeds": "2 seeds",
    "gaussian": "Gaussian at each place",
    "generated": "generated",
    "few": "generated in few calls",
    "full": "the other members",
}


def gap_closed(found) -> np.ndarray:
    """How much of the CRPS between seeds and full ensemble is gained, `[seed]`."""
    seeds, full = found["seeds_crps"], found["full_crps"]
    return (seeds - found["generated_crps"]) / (seeds - full)


def cost_ratio(done) -> float:
    """What the simulator costs for a member, in samples of the Heun sampler."""
    times = done["emulate"]
    return float(times["seconds_simulated"] / times["seconds_generated"])


def summarise(config, done) -> dict[str, float]:
    """Flat scalars: means over seeds, in the units of the system."""
    found = done["scores"]
    scalars = {}
    for name in NAMES:
        for score in ("crps", "fair", "rmse", "ssr", "pattern", "tail"):
            scalars[f"{name}_{score}"] = float(found[f"{name}_{score}"].mean())
    frozen = done["emulate"]["frozen_steps"]
    return scalars | {
        "gap_closed": float(gap_closed(found).mean()),
        "num_members_not_finite": int((frozen >= 0).sum()),
    }


def make_claims(config, done) -> list[dict]:
    """19.a, 19.b and 19.d at the scale of this system."""
    found = done["scores"]
    about = dict(paper=PAPER, certainty="read", scale=config.scale)
    ratio = found["generated_crps_equal"] / found["full_crps"]
    power = found["generated_power"]
    parts = []
    for text, values in (
        ("spread-skill ratio, of the full one's", found["generated_ssr"]),
        ("spread, of the full one's", found["generated_spread"]),
        ("least power, of the full one's", power.min(axis=-1)),
        ("most power, of the full one's", power.max(axis=-1)),
        ("share above the event, of the full one's", found["generated_tail"]),
    ):
        if text.startswith("spread-skill"):
            values = values / found["full_ssr"]
        parts += [
            Part(f"{text}: not below", values, 0.9, ">"),
            Part(f"{text}: not above", values, 1.1, "<"),
        ]
    return [
        claim(
            "19.a: skill is similar to the full ensemble's (CRPS ratio, equal sizes)",
            source="abstract",
            expected="similar predictive skill",
            values_by_seed=ratio,
            side="<",
            bound=1.05,
            **about,
        ),
        claim_of_all(
            "19.b: spread, spectra and tails are those of the full ensemble",
            source="abstract",
            expected="similar statistics",
            parts=parts,
            **about,
        ),
        claim(
            "19.d: the simulator costs more than 10 times as much per member",
            source="abstract",
            expected="less than a tenth of the cost",
            # One timing of all seeds together: it never decides.
            values_by_seed=[cost_ratio(done)],
            side=">",
            bound=10.0,
            **about,
        ),
    ]


def make_checks(config, done) -> list[dict]:
    """Acceptance (a) to (e): means over seeds."""
    found = done["scores"]
    mean = {name: values.mean(axis=0) for name, values in found.items()}
    pattern = mean["generated_pattern"] - mean["seeds_pattern"]
    excess = mean["generated_fair"] - mean["full_fair"]
    return [
        check_at_least("(a) gap closed between seeds and full", gap(mean), 0.5),
        check_at_least(
            "(b) spread-skill ratio, low", float(mean["generated_ssr"]), 0.9
        ),
        check_at_most(
            "(b) spread-skill ratio, high", float(mean["generated_ssr"]), 1.1
        ),
        check_at_least("(c) least power", float(mean["generated_power"].min()), 0.7),
        check_at_most("(c) most power", float(mean["generated_power"].max()), 1.3),
        check_at_least(
            "(c) most power of the Gaussian", float(mean["gaussian_power"].max()), 1.8
        ),
        check_at_least("(d) spread pattern above the seeds'", float(pattern), 0.05),
        check_at_least("(e) fair CRPS above the full one's", float(excess), 0.0),
    ]


def gap(mean) -> float:
    """`gap_closed` of means over seeds."""
    return float(gap_closed(mean))


def add_tables(run_dir, config, done) -> None:
    """Every ensemble's scores, means over seeds."""
    found = done["scores"]
    columns = ("crps", "fair", "rmse", "ssr", "pattern")
    rows = [
        [NAMES[name], *(f"{found[f'{name}_{c}'].mean():.3f}" for c in columns)]
        for name in NAMES
    ]
    run_dir.add_table(
        "ensembles",
        ["ensemble", "CRPS", "fair CRPS", "RMSE", "SSR", "spread pattern"],
        rows,
        f"Test cases of {config.num_seeds} seeds, {config.num_samples} samples each.",
    )


def describe(config, done) -> str:
    """A sentence for the report."""
    found = done["scores"]
    return (
        f"From two members, {config.num_samples} generated ones have a CRPS of"
        f" {found['generated_crps'].mean():.3f}; the two have"
        f" {found['seeds_crps'].mean():.3f}, the others of the simulator"
        f" {found['full_crps'].mean():.3f}."
    )
