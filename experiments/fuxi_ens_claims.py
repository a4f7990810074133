"""What `fuxi_ens.py` concludes: scalars, the paper's claims, and our own checks."""

import numpy as np

from ensjax.experiment import check_at_least, check_at_most, claim
from ensjax.experiment.claims import (
    Part,
    claim_of_all,
    interval_text,
    not_run,
)
from ensjax.experiment.fields import load_beside

training = load_beside(__file__, "fuxi_ens_training")

PAPER = "Zhong et al. 2024, arXiv:2405.05925"
# Of a pilot with one seed: SSR at the first step and at leads 10 and 40, fair CRPS at
# leads 10 and 40, error of the mean at lead 40.
PILOT = {
    "crps": (0.92, 0.94, 0.96, 0.060, 0.382, 0.744),
    "l1": (0.09, 0.09, 0.41, 0.080, 0.548, 0.887),
}
CONSTANTS = {
    "replaced": "its mean variance everywhere",
    "constant": "trained with a constant Gaussian",
    "one_spread": "trained with a learned mean, one spread",
}
FIELDS = 78  # five variables on 13 levels, and 13 at the surface
SMALL_WEIGHT = 1e-2  # up to which the weight of the KL changes little


def label(name) -> str:
    """A network of the run in words."""
    if name in CONSTANTS:
        return CONSTANTS[name]
    if name == "simulator":
        return "imperfect simulator"
    kind, weight = name.split("_")
    return f"{kind.upper()} + {weight} KL"


def systems(config) -> list[str]:
    """All that is scored."""
    return [*training.variants(config), *CONSTANTS, "simulator"]


def at(config, done, name, score, place) -> np.ndarray:
    """A score `[seed]` at one of the short leads, which are counted from 0."""
    return done["emulate"][f"{name}/{score}"][:, config.short_leads[place] - 1]


def summarise(config, done) -> dict[str, float]:
    """Flat scalars: means over seeds, in deviations of the climate and mm."""
    found, rain = done["emulate"], done["rain"]
    scalars = {}
    for name in systems(config):
        for place, lead in enumerate(config.short_leads):
            for score in ("fair", "ssr", "rmse"):
                value = at(config, done, name, score, place).mean()
                scalars[f"{name}_{score}_{lead}"] = float(value)
    for name in training.variants(config):
        for score in ("kl", "sigma", "spearman"):
            scalars[f"{name}_{score}"] = float(found[f"{name}/{score}"].mean())
    share = found["cells/share"][:, 0]
    full = {f"full_size_{name}": float(x) for name, x in done["full_size"].items()}
    return (
        scalars
        | full
        | {
            "share_of_cells": float(share.mean()),
            "first_lead": float(found["cells/first_lead"].mean()),
            "rain_crps": float(rain["crps"].mean()),
            "rain_ssr": float(rain["ssr"].mean()),
            "num_networks_not_finite": not_finite(done),
        }
    )


def not_finite(done) -> int:
    """Networks that were frozen."""
    frozen = int((done["emulate"]["frozen_steps"] >= 0).sum())
    return frozen + int(done["rain"]["not_finite"])


def make_claims(config, done) -> list[dict]:
    """20.a to 20.d at the scale of this system."""
    found = done["emulate"]
    about = dict(paper=PAPER, certainty="read", scale=config.scale)
    own, l1 = training.learned_name(config), training.l1_name(config)
    leads = list(enumerate(config.short_leads))

    def less(other, place):
        return at(config, done, own, "fair", place) - at(
            config, done, other, "fair", place
        )

    return [
        not_run(
            "20.a: global forecasts every 6 hours to day 15 at 0.25 degrees, 78 fields"
            f" (traced: {full_size_text(done)})",
            source="abstract",
            expected="5 variables on 13 levels and 13 at the surface",
            **{**about, "scale": "full"},
        ),
        claim_of_all(
            "20.b: CRPS + KL beats L1 + KL",
            source="abstract; supplement",
            expected="a lower CRPS",
            parts=[
                Part(
                    f"fair CRPS less that of L1 + KL, lead {lead}",
                    less(l1, i),
                    0.0,
                    "<",
                )
                for i, lead in leads
            ],
            **about,
        ),
        claim_of_all(
            "20.c: perturbations that depend on the flow help",
            source="abstract; section on the perturbation module",
            expected="better than without flow dependence",
            parts=[
                *(
                    Part(
                        f"fair CRPS less that of one {text}, lead {lead}",
                        less(name, i),
                        0.0,
                        "<",
                    )
                    for name, text in CONSTANTS.items()
                    if name != "replaced"
                    for i, lead in leads
                ),
                Part(
                    "Spearman correlation of deviation and error",
                    found[f"{own}/spearman"],
                    0.0,
                ),
            ],
            **about,
        ),
        claim(
            "20.d: share of leads and blocks of sites with a lower fair CRPS than the"
            " imperfect simulator's, whose red noise starts at random (the paper: 360"
            " variables and leads, ECMWF)",
            source="abstract",
            expected=0.981,
            values_by_seed=found["cells/share"][:, 0],
            side=">",
            bound=0.9,
            is_share=True,
            **about,
        ),
    ]


def make_checks(config, done) -> list[dict]:
    """Acceptance (a) to (e) and that of rain, on means over seeds."""
    own, l1 = training.learned_name(config), training.l1_name(config)
    last = len(config.short_leads) - 1

    def mean(name, score, place):
        return float(at(config, done, name, score, place).mean())

    gain = 1 - mean(own, "fair", last) / mean(l1, "fair", last)
    checks = [
        check_at_least("(a) SSR at step 1, CRPS + KL, low", mean(own, "ssr", 0), 0.8),
        check_at_most("(a) SSR at step 1, CRPS + KL, high", mean(own, "ssr", 0), 1.1),
        check_at_most("(a) SSR at step 1, L1 + KL", mean(l1, "ssr", 0), 0.3),
        check_at_least("(b) fair CRPS gained over L1 + KL, last lead", gain, 0.2),
        check_at_least(
            "(c) Spearman correlation of deviation and error",
            float(done["emulate"][f"{own}/spearman"].mean()),
            0.2,
        ),
    ]
    small = [
        mean(name, "fair", last)
        for name, kind, weight in zip(
            training.variants(config),
            config.variants.reconstructions,
            config.variants.kl_weights,
            strict=True,
        )
        if kind == "crps" and weight <= SMALL_WEIGHT
    ]
    if len(small) > 1:
        checks.append(
            check_at_most(
                f"(d) fair CRPS, last lead: most over least, KL up to {SMALL_WEIGHT:g}",
                max(small) / min(small),
                1.05,
            )
        )
    for name, text in CONSTANTS.items():
        excess = mean(name, "fair", 0) / mean(own, "fair", 0) - 1
        checks.append(check_at_least(f"(e) fair CRPS at step 1, {text}", excess, 0.0))
    rain = float(done["rain"]["crps"].mean())
    frozen = not_finite(done)
    fields = abs(float(done["full_size"]["channels"]) - FIELDS)
    return [
        *checks,
        check_at_most(f"20.a fields of the paper preset, off {FIELDS}", fields, 0),
        check_at_most("CRPS of rain, mm", rain, 4.85),
        check_at_most("networks not finite", frozen, 0),
    ]


def full_size_text(done) -> str:
    """What the paper's sizes cost, in words."""
    full = {name: float(value) for name, value in done["full_size"].items()}
    return (
        f"{full['parameters'] / 1e9:.2f} billion parameters, {full['bytes'] / 1e9:.1f}"
        " GB with gradients and moments,"
        f" {full['step_flops']:.3g} operations a training step,"
        f" {full['forecast_flops']:.3g} a step of one member's forecast"
    )


def add_tables(run_dir, config, done) -> None:
    """Every system's scores beside the pilot's; the sweep; rain."""
    leads = config.short_leads
    columns = [("ssr", i) for i in range(len(leads))]
    columns += [("fair", i) for i in range(len(leads))]
    columns += [("rmse", len(leads) - 1)]
    rows = []
    for name in systems(config):
        texts = [interval_text(at(config, done, name, *column)) for column in columns]
        rows.append([label(name), *texts, _pilot(config, name)])
    titles = {"ssr": "SSR", "fair": "fair CRPS", "rmse": "RMSE of the mean"}
    run_dir.add_table(
        "ensembles",
        [
            "ensemble",
            *(f"{titles[score]}, lead {leads[place]}" for score, place in columns),
            "pilot: SSR x 3 / fair CRPS x 2 / RMSE",
        ],
        rows,
        f"In deviations of the climate; {config.archive.num_starts} starts from the"
        f" truth, {config.num_members} members, {config.num_seeds} seeds (mean and 95 %"
        " interval); leads in outputs of 0.1 time units. The pilot had one seed, 800"
        " steps of networks of 32 channels, and leads 1, 10 and 40 (10 and 40 of the"
        " CRPS).",
    )
    found = done["emulate"]
    scores = ("kl", "sigma", "ssr_trained", "spearman")
    run_dir.add_table(
        "perturbations",
        [
            "network",
            "KL (nats an element)",
            "mean deviation",
            "SSR in training",
            "Spearman with the error",
        ],
        [
            [label(name), *(interval_text(found[f"{name}/{key}"]) for key in scores)]
            for name in training.variants(config)
        ],
        "KL of prior and posterior, the prior's mean deviation in units of a step's"
        " change, and spread over error, all of the last tenth of the training; and"
        " Spearman's correlation of the deviation with the error of the mean after one"
        " step, over starts and sites.",
    )
    _add_full_size(run_dir, done)
    rain = done["rain"]
    run_dir.add_table(
        "rain",
        ["system", "CRPS, mm"],
        [
            ["raw, 11 members", f"{float(rain['raw']):.3f}"],
            ["climatology", f"{float(rain['climatology']):.3f}"],
            ["EMOS of 11", f"{float(rain['emos']):.3f}"],
            ["learned perturbation", interval_text(rain["crps"])],
        ],
        f"Rain of 3 days at Innsbruck, tested from {config.rain.split_date} on;"
        f" {config.rain.num_members} members are drawn. Seeds share the cases.",
    )


def _add_full_size(run_dir, done):
    full = {name: float(value) for name, value in done["full_size"].items()}
    run_dir.add_table(
        "full_size",
        ["of the preset paper", "traced"],
        [
            ["latitudes x longitudes", f"{full['rows']:.0f} x {full['columns']:.0f}"],
            ["fields of a state", f"{full['channels']:.0f}"],
            ["parameters", f"{full['parameters']:.4g}"],
            ["of these in forecasts", f"{full['emulator_parameters']:.4g}"],
            ["bytes: weights, gradients, two moments", f"{full['bytes']:.4g}"],
            ["operations: training step", f"{full['step_flops']:.4g}"],
            ["operations: a member's step", f"{full['forecast_flops']:.4g}"],
        ],
        "Shapes traced, nothing run: 8 members of one case in training, one step of"
        " rollout; operations of all matrix products, a multiplication and an addition"
        " as two.",
    )


def _pilot(config, name):
    own, l1 = training.learned_name(config), training.l1_name(config)
    values = {own: PILOT["crps"], l1: PILOT["l1"]}.get(name)
    return "-" if values is None else " / ".join(f"{value:g}" for value in values)


def describe(config, done) -> str:
    """The summary: what was done and what came out."""
    found, rain = done["emulate"], done["rain"]
    own, l1 = training.learned_name(config), training.l1_name(config)
    last = len(config.short_leads) - 1

    def mean(name, score, place):
        return float(at(config, done, name, score, place).mean())

    share, low, high = found["cells/share"].mean(axis=0)
    firsts = found["cells/first_lead"]
    led = [str(int(first)) if first else "none" for first in firsts]
    return (
        f"{config.num_seeds} seeds of two-scale Lorenz-96; all numbers in deviations of"
        f" the climate. {label(own)}: spread over error {mean(own, 'ssr', 0):.2f} after"
        f" one step and {mean(own, 'ssr', last):.2f} at lead"
        f" {config.short_leads[last]},"
        f" fair CRPS there {mean(own, 'fair', last):.3f}; {label(l1)}"
        f" {mean(l1, 'ssr', 0):.2f}, {mean(l1, 'ssr', last):.2f} and"
        f" {mean(l1, 'fair', last):.3f}. A constant Gaussian of equal variance:"
        f" {mean('constant', 'fair', last):.3f} where the forecaster is trained with"
        f" it, {mean('one_spread', 'fair', last):.3f} where it also has a learned mean,"
        f" {mean('replaced', 'fair', last):.3f} where only the learned deviation is"
        " made constant; the imperfect simulator"
        f" {mean('simulator', 'fair', last):.3f} (emulators see two exact states; the"
        " simulator has one, and its red noise starts at random). Of"
        f" {_num_cells(config)} cells (lead, block of {config.block_sites} sites) the"
        " learned ensemble is better in"
        f" {100 * share:.0f} % (means of the seeds' intervals {100 * low:.0f} to"
        f" {100 * high:.0f} %); from lead {', '.join(led)} on at all later ones. Rain:"
        f" CRPS {rain['crps'].mean():.3f} mm, EMOS {float(rain['emos']):.3f}, raw"
        f" {float(rain['raw']):.3f}. At full size, traced: {full_size_text(done)}."
    )


def _num_cells(config):
    blocks = config.archive.num_sites // config.block_sites
    return config.archive.num_leads * blocks
