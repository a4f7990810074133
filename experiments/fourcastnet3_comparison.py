"""32.a and 32.b of `fourcastnet3.py`: the network, samplers and the simulators.

The imperfect simulator is what the claim is about; the one with the truth's equations
is a ceiling.
"""

import dataclasses

import numpy as np

from ensjax.experiment.claims import (
    Part,
    check_at_least,
    check_at_most,
    claim_of_all,
    interval_text,
)
from ensjax.experiment.fields import load_beside

base = load_beside(__file__, "spherical_noise_claims")
sampler = load_beside(__file__, "fourcastnet3_sampler")
simulator = load_beside(__file__, "fourcastnet3_simulator")

NET = sampler.NET
SIMULATORS = {
    "ensemble": "simulator with the truth's equations",
    "imperfect": "imperfect simulator",
}
EQUAL = 1.01  # fair CRPS of a sampler over that of the best one
MOST_BEHIND = 1.03  # of the network over the best sampler's, where speeds are compared
SSR = (0.85, 1.15)  # where both must lie for "equal skill"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The network beside the samplers on the first day.

    Attributes:
        best: the sampler with the least fair CRPS, mean over seeds.
        cheapest: the fastest sampler whose fair CRPS is within 1 % of that.
        ratio: fair CRPS of the network over that of `best`, `[seed]`.
        ratio_half: half the 95 % interval that the choice of the test's runs makes.
        faster: members a second of the network over those of `cheapest`, `[seed]`.
        ssr: spread over error of the network and of `cheapest`, means over seeds.
    """

    best: str
    cheapest: str
    ratio: np.ndarray
    ratio_half: float
    faster: np.ndarray
    ssr: tuple[float, float]

    @property
    def is_equal(self) -> bool:
        """Whether the skill is equal: in fair CRPS, and in the spread of both."""
        is_near = self.ratio.mean() <= MOST_BEHIND
        return bool(is_near and all(SSR[0] <= x <= SSR[1] for x in self.ssr))


def compare(config, found) -> Comparison:
    """What the stage "sample" found."""
    names = sampler.sampler_names(config)
    fair = {name: float(found[f"fair_{name}"].mean()) for name in names}
    best = min(names, key=fair.get)
    weights = base.draw_runs(config)
    drawn = [weights @ found[f"fair_by_run_{name}"].T for name in (NET, best)]
    within = [name for name in names if fair[name] <= EQUAL * fair[best]]
    cheapest = max(within, key=lambda name: float(found[f"rate_{name}"].mean()))
    return Comparison(
        best,
        cheapest,
        found[f"fair_{NET}"] / found[f"fair_{best}"],
        base.half_of_draws(config, drawn[0] / drawn[1]),
        found[f"rate_{NET}"] / found[f"rate_{cheapest}"],
        tuple(float(found[f"ssr_{name}"].mean()) for name in (NET, cheapest)),
    )


def ahead_of_simulator(done, stage="imperfect") -> np.ndarray:
    """Fair CRPS of the network less a simulator's, mean over leads, `[seed]`."""
    own = base.scores_of(done)["diffusion"]["crps"]
    return (own - done[stage]["crps"]).mean(axis=(1, 2))


def half_ahead(config, done) -> float:
    """Half the 95 % interval of `ahead_of_simulator` by the choice of runs."""
    weights = base.draw_runs(config)
    own = base.scores_of(done)["diffusion"]["crps_by_run"].mean(axis=(2, 3))
    other = done["imperfect"]["crps_by_run"].mean(axis=(1, 2))
    return base.half_of_draws(config, weights @ (own - other).T)


def make_claims(config, done, **about) -> list[dict]:
    """32.a and 32.b.

    All seeds share the runs that they are tested on, and one ensemble of a simulator.
    """
    both = compare(config, done["sample"])
    equal = Part(
        "fair CRPS over the best sampler's", both.ratio, MOST_BEHIND, "<",
        shared_half=both.ratio_half,
    )  # fmt: skip
    return [
        claim_of_all(
            "32.a: more accurate than an imperfect simulator's ensemble, and within 5 %"
            " of a diffusion model",
            parts=[
                Part(
                    "fair CRPS less the simulator's, mean over leads",
                    ahead_of_simulator(done),
                    0.0,
                    "<",
                    shared_half=half_ahead(config, done),
                ),
                equal._replace(bound=1.05),
            ],
            expected="beats IFS ENS, rivals GenCast",
            **about,
        ),
        claim_of_all(
            # By fair CRPS alone; whether spreads fit the errors is for the checks.
            "32.b: 8 to 60 times faster than a diffusion sampler whose fair CRPS is no"
            f" better (spread over error {both.ssr[0]:.2f}, the sampler's"
            f" {both.ssr[1]:.2f})",
            parts=[
                Part("times as many members a second", both.faster, 8.0, ">"),
                equal,
            ],
            expected="8 to 60 times",
            **about,
        ),
    ]


def make_checks(config, done) -> list[dict]:
    """Our bounds, of means over seeds."""
    both = compare(config, done["sample"])
    checks = [
        # Starts by regression that are out of balance would be no baseline.
        check_at_most(
            f"{SIMULATORS[stage]}: fair CRPS over the climate's, most of any lead",
            (
                done[stage]["crps"].mean(axis=1)
                / done[stage]["climate_crps"].mean(axis=1)
            ).max(),
            1.0,
        )
        for stage in SIMULATORS
    ]
    # A simulator whose flaws do not show would be the ceiling again.
    flaw = done["imperfect"]["crps"].mean() / done["ensemble"]["crps"].mean()
    checks += [
        check_at_least("imperfect simulator: fair CRPS over the other's", flaw, 1.02),
        check_at_least("speed: times the cheapest sampler's", both.faster.mean(), 10.0),
        check_at_most("speed: fair CRPS over the best's", both.ratio.mean(), 1.05),
    ]
    for what, ssr in zip(("network", "sampler"), both.ssr, strict=True):
        checks += [
            check_at_least(f"speed: SSR of the {what}, low", ssr, SSR[0]),
            check_at_most(f"speed: SSR of the {what}, high", ssr, SSR[1]),
        ]
    return checks


def summarise(config, done) -> dict[str, float]:
    """Flat scalars without times."""
    found, simulated = done["sample"], done["ensemble"]
    scalars = {
        "climate_crps": float(simulated["climate_crps"].mean()),
        "climate_crps_first": float(simulated["climate_crps"][0].mean()),
        "denoiser_frozen": int((found["frozen_steps"] >= 0).sum()),
    }
    for stage, name in (("ensemble", "simulator"), ("imperfect", "imperfect")):
        scalars |= {
            f"{name}_crps": float(done[stage]["crps"].mean()),
            f"{name}_crps_first": float(done[stage]["crps"][0].mean()),
            f"{name}_ssr_first": float(done[stage]["ssr"][0].mean()),
            f"{name}_ssr_last": float(done[stage]["ssr"][-1].mean()),
        }
    for name in (*sampler.names_of(config), sampler.HALF):
        power = kept_power(config, found[f"power_{name}"].mean(axis=0))
        scalars |= {
            f"day_fair_{name}": float(found[f"fair_{name}"].mean()),
            f"day_ssr_{name}": float(found[f"ssr_{name}"].mean()),
            f"day_least_power_{name}": float(power.min()),
            f"day_most_power_{name}": float(power.max()),
        }
    return scalars


def kept_power(config, ratio) -> np.ndarray:
    """Of the degrees that are compared."""
    return ratio[..., 1 : config.last_degree + 1]


def label_of(name: str) -> str:
    """A row's name in the table."""
    if name == NET:
        return "CRPS network, one call"
    if name == sampler.HALF:
        return "diffusion, trained over half of the steps, most levels"
    return f"diffusion, {name.removeprefix('levels_')} Heun levels"


def add_table(run_dir, config, done) -> None:
    """All systems: skill, spread, spectra and speed side by side."""
    found = done["sample"]
    own = base.scores_of(done)["diffusion"]["crps"].mean(axis=(1, 2))
    rows = []
    passes = sampler.passes(config)
    for name in (*sampler.names_of(config), sampler.HALF):
        power = kept_power(config, found[f"power_{name}"].mean(axis=0))
        is_timed = name != sampler.HALF
        trained = name if name in passes else "whole"
        rows.append(
            [label_of(name), f"{passes[trained]:,}",
             interval_text(found[f"fair_{name}"]),
             interval_text(own) if name == NET else "",
             interval_text(found[f"ssr_{name}"]),
             f"{power.min():.2f} to {power.max():.2f}",
             f"{found[f'rate_{name}'].mean():,.1f}" if is_timed else "",
             f"{found[f'calls_{name}']}" if is_timed else ""]
        )  # fmt: skip
    for stage, name in SIMULATORS.items():
        simulated = done[stage]
        power = kept_power(config, sampler.power_ratio(simulated)[0])
        rows.append(
            [f"{name}, starts by regression", "",
             f"{simulated['crps'][0].mean():.3f}", f"{simulated['crps'].mean():.3f}",
             f"{simulated['ssr'][0].mean():.3f}",
             f"{power.min():.2f} to {power.max():.2f}",
             f"{simulated['rate']:,.1f}", ""]
        )  # fmt: skip
    climate = done["ensemble"]["climate_crps"]
    rows.append(
        ["days of the climate", "", f"{climate[0].mean():.3f}", f"{climate.mean():.3f}",
         "", "", "", ""]
    )  # fmt: skip
    both, flaws = compare(config, found), simulator.FLAWS
    run_dir.add_table(
        "systems",
        ["members made by", "states made in training", "fair CRPS, day 1",
         "fair CRPS, all leads", "SSR, day 1",
         "power, day 1, of the truth's", "days of a member a second", "calls a day"],
        rows,
        f"{done['simulate']['num_cases']} cases; {config.sampler.num_members} members"
        f" on day 1, {config.simulator.num_members} of simulators and climate;"
        f" {config.num_seeds} seeds (means and 95 % intervals) of the networks, one of"
        " a simulator. The imperfect one relaxes to a contrast of"
        f" {flaws['contrast_kelvin']:g} K (the truth: 60) and has a friction of"
        f" {flaws['friction_days']:g} days (1). Power is the least and the most"
        f" over degrees 1 to {config.last_degree}. Days a second are of one device,"
        " means over the seeds' networks, each timed alone; of a simulator one number."
        " Stages of a run that was resumed may have been timed beside other work: both"
        " simulators are one program."
        f" Training of a denoiser took {found['training_seconds']:,.0f} s. Skill of"
        f" network and sampler is {'' if both.is_equal else 'not '}equal: fair CRPS"
        f" within 3 % and both SSR in {SSR[0]} to {SSR[1]}.",
    )  # fmt: skip


def describe(config, done) -> str:
    """A sentence for the report."""
    both = compare(config, done["sample"])
    word = "at equal skill" if both.is_equal else "but not at equal skill"
    return (
        f" It makes {both.faster.mean():.1f} times as many members a second as"
        f" {label_of(both.cheapest)}, {word}: its fair CRPS on day 1 is"
        f" {both.ratio.mean():.3f} of the best sampler's, and spread over error is"
        f" {both.ssr[0]:.2f} and {both.ssr[1]:.2f}. Over all leads the network's fair"
        " CRPS is"
        f" {ahead_of_simulator(done).mean():+.3f} from the imperfect simulator's"
        f" {done['imperfect']['crps'].mean():.3f}, whose hidden starts come from its"
        " climate by regression, and"
        f" {ahead_of_simulator(done, 'ensemble').mean():+.3f} from"
        f" {done['ensemble']['crps'].mean():.3f} of one with the truth's equations."
    )
