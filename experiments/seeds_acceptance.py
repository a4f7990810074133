"""What is claimed and accepted of any ensemble that continues another from two members.

`found` are scores `[seed]` by `<ensemble>_<score>`, of "seeds" (the two), "generated"
and "full" (the others of the simulator), as `seeds_scores.py` and
`seeds_sphere_scores.py` measure them.
"""

import numpy as np

from ensjax.experiment import check_at_least, check_at_most, claim
from ensjax.experiment.claims import Part, claim_of_all

PAPER = "Li et al. 2024, Science Advances 10(13), eadk4489"


def gap_closed(found, name="generated") -> np.ndarray:
    """How much of the CRPS between seeds and full ensemble is gained, `[seed]`."""
    seeds, full = found["seeds_crps"], found["full_crps"]
    return (seeds - found[f"{name}_crps"]) / (seeds - full)


def make_claims(config, found, power, more=None) -> list[dict]:
    """19.a and 19.b at the scale of the config.

    Args:
        config: of the run.
        found: scores.
        power: of what was generated over that of the full ensemble, `[seed, ...]`.
        more: texts and ratios `[seed]` of what else is to be as in the full ensemble.
    """
    about = dict(paper=PAPER, source="abstract", certainty="read", scale=config.scale)
    other_axes = tuple(range(1, power.ndim))
    ratios = {
        "spread-skill ratio": found["generated_ssr"] / found["full_ssr"],
        "spread": found["generated_spread"],
        "least power": power.min(axis=other_axes),
        "most power": power.max(axis=other_axes),
        "share of events": found["generated_tail"],
        **(more or {}),
    }
    parts = []
    for text, values in ratios.items():
        parts += [
            Part(f"{text} over the full one's: not below", values, 0.9, ">"),
            Part(f"{text} over the full one's: not above", values, 1.1, "<"),
        ]
    return [
        claim(
            "19.a: skill is similar to the full ensemble's (CRPS ratio, equal sizes)",
            expected="similar predictive skill",
            values_by_seed=found["generated_crps_equal"] / found["full_crps"],
            side="<",
            bound=1.05,
            **about,
        ),
        claim_of_all(
            "19.b: spread, spectra and tails are those of the full ensemble",
            expected="similar statistics",
            parts=parts,
            **about,
        ),
    ]


def make_checks(found, power, gaussian_power) -> list[dict]:
    """Acceptance (a) to (e): means over seeds.

    Args:
        found: scores.
        power: of what was generated over that of the full ensemble, `[seed, ...]`.
        gaussian_power: that of a Gaussian at each place.
    """
    mean = {name: values.mean(axis=0) for name, values in found.items()}
    power, gaussian_power = power.mean(axis=0), gaussian_power.mean(axis=0)
    ssr = float(mean["generated_ssr"])
    pattern = mean["generated_pattern"] - mean["seeds_pattern"]
    excess = mean["generated_fair"] - mean["full_fair"]
    noisiest = float(gaussian_power.max())
    return [
        check_at_least(
            "(a) gap closed between seeds and full", float(gap_closed(mean)), 0.5
        ),
        check_at_least("(b) spread-skill ratio, low", ssr, 0.9),
        check_at_most("(b) spread-skill ratio, high", ssr, 1.1),
        check_at_least("(c) least power, of the full one's", float(power.min()), 0.7),
        check_at_most("(c) most power, of the full one's", float(power.max()), 1.3),
        check_at_least("(c) most power of the Gaussian", noisiest, 1.8),
        check_at_least("(d) spread pattern above the seeds'", float(pattern), 0.05),
        check_at_least("(e) fair CRPS above the full one's", float(excess), 0.0),
    ]
