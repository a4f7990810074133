"""What `spherical_noise.py` concludes: scalars, the claim and our own checks."""

import numpy as np

from ensjax.experiment.claims import (
    Part,
    check,
    check_at_least,
    check_at_most,
    claim_of_all,
    interval_text,
)
from ensjax.experiment.fields import load_beside

base = load_beside(__file__, "spherical_noise_scores")

PAPER = "Bonev et al. 2025"
NAMES = {
    "diffusion": "diffusion noise, with waves",
    "places": "diffusion noise, places alone",
    "white": "white noise, with waves",
}


_DRAWS = 1000


def difference(found, name) -> np.ndarray:
    """Log-spectral distance with diffusion noise and waves less that of `name`."""
    return found["diffusion"]["distance"] - found[name]["distance"]


def draw_runs(config) -> np.ndarray:
    """Weights of the test's runs where as many are drawn, `[draw, run]`.

    Runs are independent, and all cases of one stay together: blocks of a bootstrap.
    """
    count = config.data.num_test_runs
    rng = np.random.default_rng(config.seed)
    return rng.multinomial(count, np.full(count, 1 / count), size=_DRAWS) / count


def half_of_runs(config, found, statistic) -> float:
    """Half the 95 % interval that the choice of the test's runs, shared by all, makes.

    Args:
        config: of the run.
        found: of `scores_of`.
        statistic: `statistic(found) -> [draw, seed]` of the scores that `of_runs`
            gives, by variant; its mean over seeds is what is resampled.

    Returns:
        Of the percentile interval, times sqrt(n / (n - 1)), by which a bootstrap of n
        runs is too narrow; 0 for one run, or where scores are not finite.

    Source: Efron and Tibshirani 1993, An introduction to the bootstrap, chapter 6.
    """
    weights = draw_runs(config)
    drawn = {name: base.of_runs(config, x, weights) for name, x in found.items()}
    return half_of_draws(config, statistic(drawn))


def half_of_draws(config, values) -> float:
    """As `half_of_runs`, of a statistic `[draw, seed]` for the rows of `draw_runs`."""
    count = config.data.num_test_runs
    low, high = np.percentile(values.mean(axis=-1), [2.5, 97.5])
    half = (high - low) / 2 * np.sqrt(count / max(count - 1, 1))
    return float(half) if np.isfinite(half) else 0.0


def summarise(config, done) -> dict[str, float]:
    """Flat scalars: means over seeds."""
    noise, found = done["noise"], scores_of(done)
    scalars = {
        "noise_sd_off": float(np.abs(noise["sd"] - 1).max()),
        "noise_lag_off": float(np.abs(noise["lag"] - noise["lag_expected"]).max()),
        "noise_power_errors": float(noise["power_errors"].max()),
        "noise_latitude_errors": float(noise["latitude_errors"].max()),
        "noise_contrast_errors": float(noise["contrast_errors"].max()),
        "noise_pair_sd": float(noise["pair_sd"]),
        "noise_pair_sum": float(noise["pair_sum"]),
        "scramble_places": float(noise["scramble_places"]),
        "scramble_waves": float(noise["scramble_waves"]),
    }
    for name, scores in found.items():
        for score in ("crps", "rmse", "ssr", "large_ssr"):
            for place, lead in ((0, "first"), (-1, "last")):
                value = scores[score][:, place].mean()
                scalars[f"{name}_{score}_{lead}"] = float(value)
        scalars[f"{name}_distance"] = float(scores["distance"].mean())
        scalars[f"{name}_frozen"] = int((scores["frozen_steps"] >= 0).sum())
        least, most = long_range(config, scores)
        scalars[f"{name}_long_least"], scalars[f"{name}_long_most"] = least, most
    return scalars


def scores_of(done) -> dict[str, dict[str, np.ndarray]]:
    """What was found `[seed, ...]` by variant."""
    return {
        variant: {
            name.removeprefix(f"{variant}_"): value
            for name, value in done["emulate"].items()
            if name.startswith(f"{variant}_")
        }
        for variant in NAMES
    }


def long_range(config, scores, place=-1, last_degree=None) -> tuple[float, float]:
    """Least and most power at a long step over the truth's, by degree.

    Args:
        config: of the run.
        scores: of a variant.
        place: of the step among the long ones.
        last_degree: the last one that counts; None: the config's.

    Returns:
        Of all seeds, variables and degrees from 1: nothing is averaged.
    """
    last = config.last_degree if last_degree is None else last_degree
    ratio = scores["long_ratio"][:, place, :, 1 : last + 1]
    return float(ratio.min()), float(ratio.max())


def check_long_power(config, scores, place=-1, last_degree=None) -> dict:
    """(e): of no seed does any degree leave 0.5 to 2."""
    least, most = long_range(config, scores, place, last_degree)
    last = config.last_degree if last_degree is None else last_degree
    return check(
        f"(e) power of degrees 1 to {last} after {config.test.long_days[place]} steps,"
        " of the truth's, of any seed",
        bound="0.5 to 2",
        measured=least if least < 1 / most else most,
        passed=least >= 0.5 and most <= 2 and bool(scores["is_finite"].all()),
    )


def check_level_one(found, ssr) -> list[dict]:
    """(a), (c) and (d) of level 1, means over seeds, variables and leads.

    Args:
        found: of `scores_of`.
        ssr: spread over error from the second step on, of which least and most count.
    """
    ratio = found["diffusion"]["crps"].mean() / found["places"]["crps"].mean()
    large = {name: found[name]["large_ssr"].mean() for name in ("diffusion", "white")}
    return [
        check(
            "(a) CRPS of places, with over without waves",
            bound="0.97 to 1.03",
            measured=ratio,
            passed=abs(ratio - 1) <= 0.03,
        ),
        check_at_least("(c) SSR from step 2 on, least", ssr.min(), 0.8),
        check_at_most("(c) SSR from step 2 on, most", ssr.max(), 1.15),
        check_at_most(
            "(d) SSR of degrees 1 to 5, white over diffusion noise",
            large["white"] / large["diffusion"],
            1.0,
        ),
    ]


def make_claims(config, done) -> list[dict]:
    """32.d: the sphere's noise, and a loss that sees waves, make better spectra."""
    found = scores_of(done)

    def part(text, name):
        return Part(
            text,
            difference(found, name),
            0,
            "<",
            shared_half=half_of_runs(config, found, lambda x: difference(x, name)),
        )

    return [
        claim_of_all(
            "32.d: noise of the sphere and a term of its waves bring members' spectra"
            f" nearer to the truth's after {config.test.lead_days[-1]} steps (decibel)",
            parts=[
                part("diffusion minus white noise", "white"),
                part("with minus without waves in the loss", "places"),
            ],
            paper=PAPER,
            source="abstract",
            certainty="read",
            scale=config.scale,
            expected="stable spectra and realistic dynamics",
        )
    ]


def make_checks(config, done) -> list[dict]:
    """Level 0, exact; and level 1 of the card, means over seeds."""
    noise, found = done["noise"], scores_of(done)
    lag = np.abs(noise["lag"] - noise["lag_expected"]).max()
    mine = found["diffusion"]["distance"].mean()
    later = [i for i, day in enumerate(config.test.lead_days) if day >= 2]
    ssr = found["diffusion"]["ssr"][:, later].mean(axis=(0, 2))
    return [
        check_at_most("noise: sd less 1", np.abs(noise["sd"] - 1).max(), 0.02),
        check_at_most("noise: sd, standard errors", noise["sd_errors"].max(), 4.5),
        check_at_most("noise: lag-1 correlation off exp(-lambda)", lag, 0.02),
        check_at_most(
            "noise: power by degree, standard errors", noise["power_errors"].max(), 4.5
        ),
        check_at_most(
            "noise: variance by latitude, standard errors",
            noise["latitude_errors"].max(),
            4.5,
        ),
        check_at_most(
            "noise: variance of poles and equator, standard errors",
            noise["contrast_errors"].max(),
            4.5,
        ),
        check_at_most("noise: sum of centred pairs", noise["pair_sum"], 0.0),
        check(
            "noise: deviation of the mean of different pairs, of what is expected",
            bound="0.8 to 1.2",
            measured=noise["pair_sd"],
            passed=0.8 <= noise["pair_sd"] <= 1.2,
        ),
        check_at_most(
            "scramble: CRPS of places, less 1",
            abs(float(noise["scramble_places"]) - 1),
            1e-6,
        ),
        check_at_least("scramble: CRPS of waves", noise["scramble_waves"], 1.5),
        *check_level_one(found, ssr),
        check_at_most(
            "(b) distance of spectra, with over without waves",
            mine / found["places"]["distance"].mean(),
            0.8,
        ),
        check_at_most(
            "distance of spectra, diffusion over white noise",
            mine / found["white"]["distance"].mean(),
            0.8,
        ),
        check_long_power(config, found["diffusion"]),
        check_long_power(
            config, found["diffusion"], last_degree=config.data.truncation
        ),
    ]  # fmt: skip


def add_tables(run_dir, config, done) -> None:
    """Noise by channel, and forecasts by variant."""
    noise = done["noise"]
    run_dir.add_table(
        "noise",
        ["length, km", "sd", "correlation of steps", "expected",
         "power, standard errors", "variance by latitude, standard errors",
         "variance of poles and equator, standard errors"],
        [
            [f"{length:g}", f"{sd:.3f}", f"{lag:.3f}", f"{expected:.3f}",
             f"{power:.1f}", f"{latitude:.1f}", f"{contrast:.1f}"]
            for length, sd, lag, expected, power, latitude, contrast in zip(
                config.noise.lengths_km, noise["sd"], noise["lag"],
                noise["lag_expected"], noise["power_errors"],
                noise["latitude_errors"], noise["contrast_errors"],
            )
        ],
        "2,000 draws of each channel on the simulator's grid; deviations are the"
        " largest over degrees, and over latitudes; the last one is of the mean of f^2"
        " times the second Legendre polynomial of the sine of latitude.",
    )  # fmt: skip
    leads = config.test.lead_days
    rows = []
    for name, scores in scores_of(done).items():
        least, most = long_range(config, scores)
        first, last = (
            [interval_text(scores[s][:, i].mean(axis=-1)) for s in ("crps", "ssr")]
            for i in (0, -1)
        )
        rows.append(
            [NAMES[name], *first, *last,
             interval_text(scores["large_ssr"][:, -1].mean(axis=-1)),
             interval_text(scores["distance"], form=".2f"),
             f"{least:.2f} to {most:.2f}"]
        )  # fmt: skip
    run_dir.add_table(
        "forecasts",
        ["trained with", f"fair CRPS, day {leads[0]}", f"SSR, day {leads[0]}",
         f"fair CRPS, day {leads[-1]}", f"SSR, day {leads[-1]}",
         f"SSR of degrees 1 to 5, day {leads[-1]}",
         f"distance of spectra, day {leads[-1]}, dB",
         f"power, day {config.test.long_days[-1]}, of the truth's"],
        rows,
        f"{done['simulate']['num_cases']} cases of {config.test.num_members} members,"
        f" from {config.data.num_test_runs} runs;"
        f" {config.num_seeds} seeds (means and 95 % intervals), which share the runs of"
        " the simulator. In units of the climate's deviation; means by area and over"
        f" both variables. Distance and power of degrees 1 to {config.last_degree};"
        " power is the least and the most of all seeds, variables and degrees.",
    )  # fmt: skip


def describe(config, done) -> str:
    """A sentence for the report."""
    found = scores_of(done)
    return (
        f"After {config.test.lead_days[-1]} daily steps the spectra of members are"
        f" {found['diffusion']['distance'].mean():.2f} dB off the truth's with"
        " diffusion noise and a term of waves,"
        f" {found['places']['distance'].mean():.2f} without the term and"
        f" {found['white']['distance'].mean():.2f} with white noise; mean of"
        f" {config.num_seeds} seeds. Scrambled members have"
        f" {done['noise']['scramble_waves']:.2f} times the CRPS of waves and the same"
        " of places."
    )
