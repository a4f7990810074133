"""What `seeds.py` concludes: scalars, claims and our own checks."""

import numpy as np

from ensjax.experiment import check_at_most, claim
from ensjax.experiment.claims import interval_text
from ensjax.experiment.fields import load_beside

speed = load_beside(__file__, "seeds_speed_claims")
acceptance = load_beside(__file__, "seeds_acceptance")

PAPER, gap_closed = acceptance.PAPER, acceptance.gap_closed
NAMES = {
    "seeds": "2 seeds",
    "gaussian": "Gaussian at each place",
    "generated": "generated",
    "few": "generated in few calls",
    "full": "the other members",
}


SCALARS = ("crps", "crps_equal", "fair", "rmse", "ssr", "spread", "pattern", "tail")
# CRPS, fair CRPS, RMSE and SSR of a pilot of the same setting with one seed.
PILOT = {
    "seeds": (0.647, 0.433, 0.993, 0.99),
    "gaussian": (0.602, None, None, None),
    "generated": (0.508, 0.500, 0.907, 1.02),
    "full": (0.450, 0.436, 0.829, 0.98),
}


def cost_ratio(done) -> np.ndarray:
    """What the simulator costs for a member, in samples of the Heun sampler, `[seed]`.

    The sampler is timed once, with all seeds at once.
    """
    times = done["emulate"]
    return times["seconds_simulated"] / times["seconds_generated"]


def summarise(config, done) -> dict[str, float]:
    """Flat scalars: means over seeds, in the units of the system."""
    found = done["scores"]
    scalars = {}
    for name in NAMES:
        for score in SCALARS:
            scalars[f"{name}_{score}"] = float(found[f"{name}_{score}"].mean())
        mean_power = found[f"{name}_power"].mean(axis=0)
        scalars[f"{name}_least_power"] = float(mean_power.min())
        scalars[f"{name}_most_power"] = float(mean_power.max())
    frozen = done["emulate"]["frozen_steps"]
    scalars |= speed.summarise(config, done["speed"])
    return scalars | {
        "gap_closed": float(gap_closed(found).mean()),
        "num_members_not_finite": int((frozen >= 0).sum()),
    }


def make_claims(config, done) -> list[dict]:
    """19.a, 19.b and 19.d at the scale of this system."""
    found = done["scores"]
    patterns = found["generated_pattern_equal"] / found["full_pattern_equal"]
    more = {"correlation of spreads (with half of it)": patterns}
    return [
        *acceptance.make_claims(config, found, found["generated_power"], more),
        claim(
            "19.d: cost of a simulated member over that of a generated one (simulator"
            " timed for each seed, sampler once for all)",
            paper=PAPER,
            source="abstract",
            certainty="read",
            scale=config.scale,
            expected="more than 10",
            values_by_seed=cost_ratio(done),
            side=">",
            bound=10.0,
        ),
    ]


def make_checks(config, done) -> list[dict]:
    """Acceptance (a) to (e), means over seeds, and that of the table of speed."""
    found = done["scores"]
    frozen = int((done["emulate"]["frozen_steps"] >= 0).sum())
    power = found["generated_power"], found["gaussian_power"]
    return [
        *acceptance.make_checks(found, *power),
        check_at_most("networks not finite", frozen, 0),
        *speed.make_checks(config, done["speed"]),
    ]


def add_tables(run_dir, config, done) -> None:
    """Every ensemble's scores beside the pilot's, cost, and speed at equal skill."""
    found = done["scores"]
    columns = ("crps", "fair", "rmse", "ssr", "pattern", "unreliability")
    rows = []
    for name, label in NAMES.items():
        pilot = PILOT.get(name, (None,) * 4)
        texts = [interval_text(found[f"{name}_{column}"]) for column in columns]
        beside = ["" if value is None else f"{value:.3g}" for value in pilot]
        rows.append([label, *texts, " / ".join(beside).strip(" /") or "-"])
    archive = config.archive
    run_dir.add_table(
        "ensembles",
        ["ensemble", "CRPS", "fair CRPS", "RMSE", "SSR", "spread pattern",
         "unreliability", "pilot: CRPS / fair / RMSE / SSR"],
        rows,
        f"In deviations of the climate. {archive.num_test_cases} test cases,"
        f" {config.num_seeds} seeds (mean and 95 % interval),"
        f" {config.num_samples} generated members. The standard CRPS has few"
        " members pay for being few; the fair one has not: the two seeds are draws of"
        " the simulator itself. Spread pattern: correlation over cases and sites with"
        " the spread of the others. Unreliability of ranks: about 1 is reliable if"
        " elements were independent, which neighbours are not.",
    )  # fmt: skip
    times = done["emulate"]
    rows = [
        [label, f"{1 / float(seconds):,.0f}"]
        for label, seconds in (
            ("simulator", times["seconds_simulated"].mean()),
            (
                f"sampler, {config.sampler.num_levels} levels",
                times["seconds_generated"],
            ),
            (f"distilled, {config.few.num_levels} calls", times["seconds_few"]),
        )
    ]
    run_dir.add_table(
        "cost",
        ["members made by", "members/s"],
        rows,
        f"Of a case, many at once, on this machine. The simulator's are"
        f" {archive.lead_steps} steps of {archive.num_sites} numbers: no emulator of"
        " such a system can be cheap beside it.",
    )
    speed.add_table(run_dir, config, done["speed"])


def describe(config, done) -> str:
    """The summary: what was done, what came out, what it does not show."""
    found = done["scores"]
    mean = {name: values.mean(axis=0) for name, values in found.items()}
    power = mean["generated_power"]
    return (
        f"{config.num_seeds} seeds of Lorenz-96, each with an archive and a network of"
        f" its own; errors in deviations of the climate. From two members,"
        f" {config.num_samples} generated ones have a CRPS of"
        f" {mean['generated_crps']:.3f}; the two have {mean['seeds_crps']:.3f}, a"
        f" Gaussian at each place {mean['gaussian_crps']:.3f}, the"
        f" {config.archive.num_test_members - 2} others of the simulator"
        f" {mean['full_crps']:.3f}. Fair CRPS: generated {mean['generated_fair']:.3f},"
        f" others {mean['full_fair']:.3f}. Spread-skill ratio"
        f" {mean['generated_ssr']:.2f}; power {power.min():.2f} to {power.max():.2f} of"
        f" the simulator's (the Gaussian's up to {mean['gaussian_power'].max():.2f})."
        f" {config.few.num_levels} calls of the distilled network: CRPS"
        f" {mean['few_crps']:.3f}, spread-skill ratio {mean['few_ssr']:.2f}. A"
        f" simulated member costs {cost_ratio(done).mean():.2g} generated ones: this"
        " simulator is a toy, and the claim of cost is about one that is not."
        + speed.describe(config, done["speed"])
    )
