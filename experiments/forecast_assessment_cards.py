"""Scorecards of `forecast_assessment.py`, and intervals of differences of two systems.

Everything is on common axes `[start, lead, truth, region, place]`: the truth is the
analysis or what stations observe, and a region is the ring or half of it.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ensjax import verification as v
from ensjax.experiment.fields import load_beside

scores = load_beside(__file__, "forecast_assessment_scores")

REGIONS = ("ring", "first half", "second half")
COLUMNS = ("value", "reference", "normalised", "low", "high")
TRUTHS, ENSEMBLES, at_truth = scores.TRUTHS, scores.ENSEMBLES, scores.at_truth


@functools.partial(jax.jit, static_argnames="metric")
def _summed(metric, forecast, truth, reference):
    return metric.sums(forecast, truth, reference=reference)


def padded(config, case):
    """Both truths and what they are compared with on common axes.

    Returns:
        `values [start, lead, truth, region, place]`, NaN where a truth or a region has
        no such place, its reference, and a function that puts a forecast there.
    """
    sites = config.archive.num_sites
    number = max(truth.values.shape[-1] for truth in case.truths.values())
    place = np.arange(sites)
    regions = [np.ones(sites, bool), place < sites // 2, place >= sites // 2]

    def wide(x):
        short = [(0, 0)] * (x.ndim - 1) + [(0, number - x.shape[-1])]
        return np.pad(x, short, constant_values=np.nan)

    def masks(kind):
        if kind == "analysis":
            return np.stack(regions)
        # A station is in the region of the grid point that has most weight.
        corner = case.stations.weight.argmax(axis=0)
        nearest = case.stations.index[corner, np.arange(len(corner)), 0]
        return np.stack([region[nearest] for region in regions])

    def at_regions(kind, x):
        kept = np.where(masks(kind), x[..., None, :], np.nan)
        return wide(kept)

    values = np.stack(
        [at_regions(kind, case.truths[kind].values) for kind in TRUTHS], axis=2
    )
    climate = np.stack([wide(case.truths[k].climatology) for k in TRUTHS])
    levels = np.stack([wide(case.truths[k].thresholds.T).T for k in TRUTHS])
    reference = {
        "climatology": np.nan_to_num(climate)[:, None].astype(np.float32),
        "thresholds": np.nan_to_num(levels)[:, None].astype(np.float32),
    }

    def placed(field):
        """`[..., lead, site]` as `[..., lead, truth, region, place]`."""
        parts = [wide(at_truth(field, kind, case)) for kind in TRUTHS]
        parts = np.stack(parts, axis=-2)[..., None, :]
        shape = (*parts.shape[:-2], len(regions), number)
        return np.broadcast_to(parts, shape)

    return values.astype(np.float32), reference, placed


def card_scores(config) -> dict[str, dict[str, v.CardScore]]:
    """Scores of the two cards: single forecasts, and ensembles."""
    names = [f"{percent:g} %" for percent in config.extremes.percents]
    errors, bias = v.activity_errors().over(4), v.bias().over(4)
    single = {
        "RMSE": v.CardScore(errors, _Part("rmse")),
        "RMSE at equal activity": v.CardScore(errors, _Part("equal_activity_rmse")),
        "ACC": v.CardScore(errors, _Part("acc"), "high"),
        "activity ratio": v.CardScore(errors, _Part("activity_ratio"), "one"),
        "|bias|": v.CardScore(bias, jnp.abs),
    }
    table = scores.table_of(1).over(4)
    for i, name in enumerate(names):
        single[f"SEDI {name}"] = v.CardScore(table, _Sedi(i), "high")
    spread = v.spread_skill().over(4)
    ensemble = {
        "fair CRPS": v.CardScore(v.crps("fair").over(4), _itself),
        "RMSE of the mean": v.CardScore(v.root_mean_square_error().over(4), _itself),
        "spread over error": v.CardScore(spread, _Part("unbiased_ratio"), "one"),
    }
    table = scores.table_of(config.num_members).over(4)
    for i, name in enumerate(names):
        ensemble[f"ROC area {name}"] = v.CardScore(table, _RocArea(i), "high")
        ensemble[f"Brier score {name}"] = v.CardScore(table, _Brier(i))
    return {"single": single, "ensemble": ensemble}


class _Part(NamedTuple):
    name: str

    def __call__(self, score):
        return getattr(score, self.name)


class _Sedi(NamedTuple):
    threshold: int

    def __call__(self, table):
        return v.sedi(table)[..., self.threshold, 0]


class _Brier(NamedTuple):
    threshold: int

    def __call__(self, table):
        return v.brier_decomposition(table).brier[..., self.threshold]


class _RocArea(NamedTuple):
    threshold: int

    def __call__(self, table):
        return v.roc_area(table)[..., self.threshold]


def _itself(score):
    return score


def measure(config, archives, forecasts) -> dict[str, np.ndarray]:
    """Cards of emulator against simulator, and of CRPS members against the simulator's
    ensemble: `card_<kind>_<column>`, `[seed, score, truth, lead, region]`.

    All seeds see the same resamples of starts, whose starts are others.
    """
    parts = [
        sums_of_seed(config, *scores.case_and_forecasts(config, archives, forecasts, i))
        for i in range(config.num_seeds)
    ]
    found = {}
    names = [f"{truth} {i}" for i in range(config.num_seeds) for truth in TRUTHS]
    for kind, own in card_scores(config).items():
        # Seeds stand beside each other on the axis of variables.
        sums = [
            {
                metric: jax.tree.map(
                    lambda *x: jnp.concatenate(x, axis=2),
                    *(part[kind][system][metric] for part in parts),
                )
                for metric in parts[0][kind][system]
            }
            for system in range(2)
        ]
        card = v.make_scorecard(
            jax.random.key(config.seed),
            own,
            *({name: of[score.metric] for name, score in own.items()} for of in sums),
            variables=names,
            leads=scores.lead_times(config),
            regions=REGIONS,
            **dict(config.bootstrap),
        )
        for column in COLUMNS:
            values = getattr(card, column)
            values = values.reshape(len(own), -1, len(TRUTHS), *values.shape[2:])
            found[f"card_{kind}_{column}"] = np.moveaxis(values, 1, 0)
    return scores.numbers(found)


def sums_of_seed(config, case, own) -> dict[str, list[dict[v.Metric, v.Sums]]]:
    """By kind of card, of both systems, the sums of every metric."""
    values, reference, placed = padded(config, case)
    pairs = {
        "single": [placed(own[name])[None] for name in ("emulator", "simulator")],
        "ensemble": [placed(own[name]) for name in ENSEMBLES],
    }
    return {
        kind: [
            {
                metric: _summed(metric, forecast, values, reference)
                for metric in dict.fromkeys(score.metric for score in listed.values())
            }
            for forecast in pairs[kind]
        ]
        for kind, listed in card_scores(config).items()
    }
