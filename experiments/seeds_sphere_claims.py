"""What `seeds_sphere.py` concludes: scalars, claims and our own checks."""

import numpy as np

from ensjax.experiment import claim
from ensjax.experiment.claims import interval_text
from ensjax.experiment.fields import load_beside

acceptance = load_beside(__file__, "seeds_acceptance")

PAPER, gap_closed = acceptance.PAPER, acceptance.gap_closed
NAMES = {
    "seeds": "2 seeds",
    "gaussian": "Gaussian at each place",
    "generated": "generated",
    "few": "generated in fewer steps",
    "full": "the other members",
}


def cost_ratio(done, name) -> float:
    """What the simulator costs for a member, in samples."""
    times = done["emulate"]
    return float(times["seconds_simulated"] / times[f"seconds_{name}"])


def compared_power(config, found, name) -> np.ndarray:
    """Power over the full ensemble's, `[seed, variable, band]`.

    A band is a degree of spherical harmonics up to `config.last_degree`; what is beyond
    is the last one.
    """
    return bands(config, found[f"{name}_power"]) / bands(config, found["full_power"])


def bands(config, power) -> np.ndarray:
    """Of power by degree from 1 on, `[..., degree]`."""
    low, high = np.split(power, [config.last_degree], axis=-1)
    return np.concatenate([low, high.sum(axis=-1, keepdims=True)], axis=-1)


def summarise(config, done) -> dict[str, float]:
    """Flat scalars: means over seeds, in units of the climate's deviation."""
    found = done["scores"]
    scalars = {}
    for name in NAMES:
        for score in ("crps", "fair", "rmse", "ssr", "spread", "pattern", "tail"):
            scalars[f"{name}_{score}"] = float(found[f"{name}_{score}"].mean())
        power = compared_power(config, found, name).mean(axis=0)
        scalars[f"{name}_least_power"] = float(power.min())
        scalars[f"{name}_most_power"] = float(power.max())
        scalars[f"{name}_most_power_beyond"] = float(power[:, -1].max())
    archives = done["simulate"]
    for lead, own, climate in zip(
        archives["lead_days"], archives["spread_by_lead"], archives["climate_sd"]
    ):
        scalars[f"spread_of_climate_day_{lead}"] = float(own[0] / climate[0])
    frozen = done["emulate"]["frozen_steps"]
    return scalars | {
        "gap_closed": float(gap_closed(found).mean()),
        "gap_closed_few": float(gap_closed(found, "few").mean()),
        "num_members_not_finite": int((frozen >= 0).sum()),
    }


def make_claims(config, done) -> list[dict]:
    """19.a, 19.b and 19.d at the scale of this simulator.

    Seeds have networks of their own and are given other members, but share the archive:
    intervals do not tell what another archive would give.
    """
    found = done["scores"]
    power = compared_power(config, found, "generated")
    return [
        *acceptance.make_claims(config, found, power),
        *(
            claim(
                "19.d: the simulator costs more than 10 times as much per member"
                f" ({NAMES[name]}: {levels} noise levels)",
                paper=PAPER,
                source="abstract",
                certainty="read",
                scale=config.scale,
                expected="less than a tenth of the cost",
                # One timing of all seeds together: it never decides.
                values_by_seed=[cost_ratio(done, name)],
                side=">",
                bound=10.0,
            )
            for name, levels in _levels(config).items()
        ),
    ]


def _levels(config):
    sampler = config.sampler
    return {"generated": sampler.num_levels, "few": sampler.few_levels}


def make_checks(config, done) -> list[dict]:
    """Acceptance (a) to (e): means over seeds."""
    found = done["scores"]
    power, gaussian_power = (
        compared_power(config, found, name) for name in ("generated", "gaussian")
    )
    return acceptance.make_checks(found, power, gaussian_power)


def add_tables(run_dir, config, done) -> None:
    """Scores of every ensemble, what a member costs, and how spread grows."""
    found, archives = done["scores"], done["simulate"]
    cases, members = archives["test"].shape[:2]
    columns = ("crps", "fair", "rmse", "ssr", "pattern", "tail", "outliers")
    rows = []
    for name in NAMES:
        power = compared_power(config, found, name).mean(axis=0)
        own = found[f"{name}_crps_own"].mean(axis=0)
        rows.append(
            [
                NAMES[name],
                *(interval_text(found[f"{name}_{c}"]) for c in columns),
                f"{power.min():.2f} to {power.max():.2f}",
                *(f"{value:.3f}" for value in own),
            ]
        )
    run_dir.add_table(
        "ensembles",
        ["ensemble", "CRPS", "fair CRPS", "RMSE", "SSR", "spread pattern",
         "events, of the full one's", "outliers, of a reliable one's",
         "power, of the full one's", "CRPS, K", "CRPS, hPa"],
        rows,
        f"{cases} test cases at day {archives['lead_days'][-1]}, {members} members,"
        f" {config.num_samples} samples; {config.num_seeds} seeds (means and 95 %"
        " intervals), which share the archive. In units of the climate's deviation"
        " where no other is given; all means by area. Events lie"
        f" {config.event_sds:g} deviations or more off the climate's mean. Power of"
        f" degrees 1 to {config.last_degree} and of all beyond, least and most of them"
        " and of the variables.",
    )  # fmt: skip
    times = done["emulate"]
    rows = [
        [
            f"{NAMES[name]}: Heun, {levels} levels",
            2 * levels - 1,
            f"{1 / times[f'seconds_{name}']:.3g}",
            f"{1 / times['seconds_simulated']:.3g}",
            f"{cost_ratio(done, name):.3g}",
            f"{found[f'{name}_fair'].mean():.3f}",
            f"{found[f'{name}_ssr'].mean():.3f}",
        ]
        for name, levels in _levels(config).items()
    ]
    days = config.archive.settle_days + config.archive.lead_days[-1]
    run_dir.add_table(
        "cost",
        ["sampler", "calls of the network", "samples a second",
         "members a second of the simulator", "simulator over sampler", "fair CRPS",
         "SSR"],
        rows,
        f"On the same device, one after the other, without compilation. A member is"
        f" simulated for {days} days; one day is timed. The two members that a case is"
        " given must be simulated, and the network trained, which is not counted.",
    )  # fmt: skip
    rows = [
        [int(lead), *(f"{value:.2f}" for value in (*spread, *error)),
         *(f"{value:.2f}" for value in spread / climate)]
        for lead, spread, error, climate in zip(
            archives["lead_days"], archives["spread_by_lead"],
            archives["error_by_lead"], archives["climate_sd"],
        )
    ]  # fmt: skip
    run_dir.add_table(
        "growth",
        ["day", "spread, K", "spread, hPa", "error of the mean, K", "error, hPa",
         "spread over climate, temperature", "spread over climate, pressure"],
        rows,
        f"Test members from noise of {config.archive.noise:g} of every wave of"
        f" temperature; days since {config.archive.settle_days} days after it. Climate:"
        " deviations from the mean of the latitude.",
    )  # fmt: skip


def describe(config, done) -> str:
    """A sentence for the report."""
    found, archives = done["scores"], done["simulate"]
    cases, members = archives["test"].shape[:2]
    return (
        f"From two of {members} members, {config.num_samples} generated ones have a"
        f" CRPS of {found['generated_crps'].mean():.3f} climate deviations at day"
        f" {archives['lead_days'][-1]} of {cases} cases; the two have"
        f" {found['seeds_crps'].mean():.3f}, the others of the simulator"
        f" {found['full_crps'].mean():.3f}. A member costs"
        f" {cost_ratio(done, 'generated'):.2g} times as much in the simulator as a"
        " sample. Seeds share the archive, so that intervals are of networks and of"
        " which members are given, not of another climate sample."
    )
