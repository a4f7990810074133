"""Real rain in the report: 11 members at Innsbruck before and after post-processing.

Members are GEFS reforecasts of 3-day sums, 2000 to 2013; a censored Gaussian regression
(EMOS) is fitted on the years before the split. Beside the scores of ensembles there is
SEEPS, of the median of each as a single forecast.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from ensjax import verification as v
from ensjax.experiment.fields import load_beside
from ensjax.verification.seeps import DRY_MM

data = load_beside(__file__, "seeds_rainfall_data")

# Of the raw members in all cases, and of both systems after the split, as a pilot found
# them.
KNOWN = {"bias": 6.52, "RMSE": 13.67, "BSS": -0.40, "SSR": 0.77, "AUC": 0.72}
KNOWN_TEST = {"raw_CRPS": 7.08, "emos_CRPS": 4.70, "emos_BSS": 0.14}
SCORES = ("CRPS", "RMSE", "bias", "SSR", "BSS", "AUC", "SEEPS")


def measure(config) -> dict[str, np.ndarray]:
    """Scores of raw members and of EMOS, and the card of EMOS against raw.

    Returns:
        `all_<score>` of the raw members in all cases; `raw_<score>` and `emos_<score>`
        after the split; `card_<column>` `[score]` in the order of `SCORES` (of the
        absolute bias); `dry_share` and `heavy` of the climate that SEEPS takes.
    """
    train, test = data.load(config.rain)
    parameters = data.fit_emos(train.members, train.observed)
    quantiles = config.rain.num_quantiles
    systems = {
        "emos": data.emos_members(parameters, test.members, quantiles),
        "raw": test.members.T,
    }
    # Shares of both numbers of members are among those of their multiple.
    bins = math.lcm(quantiles, train.members.shape[1])
    climate = climatology(train.observed)
    scores = card_scores(config, bins)
    every = [
        np.concatenate([getattr(train, name), getattr(test, name)])
        for name in ("members", "observed")
    ]
    sums = {
        name: sums_by_date(scores, rain, observed, climate)
        for name, rain, observed in (
            *((name, rain, test.observed) for name, rain in systems.items()),
            ("all", every[0].T, every[1]),
        )
    }
    found = {f"{system}_{name}": x for system in sums for name, x in _totals(
        scores, sums[system]).items()}  # fmt: skip
    card = v.make_scorecard(
        jax.random.key(config.seed),
        scores,
        sums["emos"],
        sums["raw"],
        variables=["rain"],
        leads=[8],
        regions=["Innsbruck"],
        block_length=config.rain.block_days,
        num_resamples=config.bootstrap.num_resamples,
    )
    for column in ("value", "reference", "normalised", "low", "high"):
        found[f"card_{column}"] = getattr(card, column)[:, 0, 0, 0]
    found |= climate
    return {name: np.asarray(value, np.float64) for name, value in found.items()}


def climatology(observed) -> dict[str, float]:
    """What SEEPS needs of a climate: share of dry cases, and the amount from which rain
    is heavy, which a third of the wet cases exceeds."""
    return {
        "dry_share": float(np.mean(observed <= DRY_MM)),
        "heavy": float(np.quantile(observed[observed > DRY_MM], 2 / 3)),
    }


def card_scores(config, num_bins) -> dict[str, v.CardScore]:
    """In the order of `SCORES`; metrics that keep every date."""
    threshold = (float(config.rain.threshold),)
    made = {
        "CRPS": (v.crps(), _itself, "low"),
        "RMSE": (v.root_mean_square_error(), _itself, "low"),
        "bias": (v.bias(), jnp.abs, "low"),
        "SSR": (v.spread_skill(), _ratio, "one"),
        "BSS": (v.brier_skill_score(threshold), _first, "high"),
        "AUC": (v.event_table(threshold, num_members=num_bins), _area, "high"),
        "SEEPS": (v.seeps(), _itself, "low"),
    }
    return {
        name: v.CardScore(metric.over(), pick, best)
        for name, (metric, pick, best) in made.items()
    }


def _itself(score):
    return score


def _ratio(score):
    return score.ratio


def _first(score):
    return score[..., 0]


def _area(table):
    return v.roc_area(table)[..., 0]


def sums_by_date(scores, rain, observed, climate) -> dict[str, v.Sums]:
    """Of `rain [member, case]` in mm, sums `[case, lead 1, variable 1, region 1]`."""
    truth = jnp.asarray(observed, jnp.float32)[:, None, None, None]
    reference = {name: jnp.full(truth.shape, value) for name, value in climate.items()}
    found = {}
    for name, score in scores.items():
        forecast = np.median(rain, axis=0)[None] if name == "SEEPS" else rain
        forecast = jnp.asarray(forecast, jnp.float32)[..., None, None, None]
        found[name] = _summed(score.metric, forecast, truth, reference)
    return found


@functools.partial(jax.jit, static_argnames="metric")
def _summed(metric, forecast, truth, reference):
    return metric.sums(forecast, truth, reference=reference)


def _totals(scores, sums):
    """The scores of all dates; the bias has its sign."""
    found = {}
    for name, score in scores.items():
        total = jax.tree.map(lambda x: x.sum(axis=0), sums[name])
        pick = _itself if name == "bias" else score.pick
        found[name] = jnp.ravel(pick(score.metric.finish(total)))[0]
    return found
