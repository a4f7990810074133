"""From sums to scores and intervals, as a tidy dataset."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.emulate.gridded.packages import optional_package
from ensjax.emulate.gridded.row_sums import Totals, VerifyJob
from ensjax.verification import (
    Comparison,
    Sums,
    bootstrap_comparison,
    bootstrap_score,
    scored_share,
)

_BRIER = ("brier", "fair_brier")


def finish_scores(
    job: VerifyJob, totals: Sequence[Totals], bootstrap: Any
) -> dict[str, dict[str, np.ndarray]]:
    """By score: `value`, `low`, `high` and the rest, `[lead, channel, region]`.

    Intervals are NaN where fewer than 4 blocks of starts were scored.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    key = jax.random.key(0 if bootstrap is None else bootstrap.seed)
    settings = {} if bootstrap is None else dataclasses.asdict(bootstrap)
    settings.pop("seed", None)
    if bootstrap is not None:  # of one block, too, intervals are not known
        num_dates = job.pairs.sizes["case"]
        settings["block_length"] = min(bootstrap.block_length, num_dates)
    for metric_name, metric in job.scores.metrics.items():
        own = {k: s for k, s in job.scores.scores.items() if s.metric == metric_name}
        sums = totals[0].sums(metric_name)
        second = None if job.other is None else totals[1].sums(metric_name)
        other_metric = None if second is None else job.other_scores.metrics[metric_name]
        share = np.asarray(scored_share(_over_dates(sums)))

        def then(score, own=own):
            return {name: s.pick(score) for name, s in own.items()}

        def with_distances(score, then=then, own=own):
            found = then(score)
            return found | {
                _distance(name): jnp.abs(found[name] - 1)
                for name, s in own.items()
                if s.best == "one"
            }

        values = then(metric.finish(_over_dates(sums)))
        others = None
        if second is not None:
            others = then(other_metric.finish(_over_dates(second)))
        intervals = drawn = None
        if bootstrap is not None and second is None:
            intervals = bootstrap_score(key, metric, sums, then=then, **settings)
        elif bootstrap is not None:
            both = (metric, other_metric), (sums, second)
            drawn = _compared(key, *both, with_distances, settings)
            intervals = drawn.first
        for name, score in own.items():
            row = found[name] = {"value": values[name]}
            row["scored"] = share[..., _threshold_of(name)] if share.ndim > 3 else share
            if intervals is not None and score.has_interval:
                row["low"], row["high"] = intervals[name].low, intervals[name].high
            if others is None:
                continue
            row["reference"] = others[name]
            row["difference"] = values[name] - others[name]
            if score.best == "low":
                row["skill"] = 1 - values[name] / others[name]
            if score.best == "one":
                row["nearer"] = abs(others[name] - 1) - abs(values[name] - 1)
            if drawn is None or not score.has_interval:
                continue
            for what in (
                ("difference", "skill") if score.best == "low" else ("difference",)
            ):
                interval = getattr(drawn, what)[name]
                row[f"{what}_low"], row[f"{what}_high"] = interval.low, interval.high
            if score.best == "one":
                interval = drawn.difference[_distance(name)]
                row["nearer_low"], row["nearer_high"] = -interval.high, -interval.low
    return found


def _distance(name):
    return f"{name}, distance from 1"


def _threshold_of(name):
    return int(name.rsplit("_", 1)[1])


def _over_dates(sums):
    """The sums of all dates, in double precision."""
    total = {
        k: np.sum(np.asarray(v, np.float64) + np.asarray(sums.lost[k]), axis=0)
        for k, v in sums.total.items()
    }
    high = {k: v.astype(np.float32) for k, v in total.items()}
    return Sums(
        {k: jnp.asarray(v) for k, v in high.items()},
        {k: jnp.asarray((total[k] - v).astype(np.float32)) for k, v in high.items()},
    )


def _compared(key, metrics, sums, then, settings):
    """`bootstrap_comparison`, where a rank histogram knows its number of members."""
    if metrics[0] is metrics[1]:
        return bootstrap_comparison(key, metrics[0], *sums, then=then, **settings)
    # The draws are of the key alone, so both see the same dates; only the difference
    # of ensembles of different size has no meaning for ranks.
    first = bootstrap_score(key, metrics[0], sums[0], then=then, **settings)
    second = bootstrap_score(key, metrics[1], sums[1], then=then, **settings)
    unknown = {
        k: v._replace(low=v.low * np.nan, high=v.high * np.nan)
        for k, v in first.items()
    }
    return Comparison(first, second, unknown, unknown)


def tidy_dataset(
    job: VerifyJob,
    found: dict[str, dict[str, np.ndarray]],
    regions: Sequence[str],
    thresholds: Mapping[str, Sequence[float]] | None,
    bootstrap: Any,
) -> Any:
    """The scores as `verify` returns them."""
    xarray = optional_package("xarray")
    pairs = job.pairs
    names = [c.name for c in pairs.channels]
    found, told = _name_thresholds(job, found, thresholds, names)
    columns = list(dict.fromkeys(k for row in found.values() for k in row))
    order = ["value", "low", "high", "scored"]
    columns = order + [c for c in columns if c not in order]
    shape = (len(names), pairs.sizes["lead"], len(regions))
    empty = np.full(shape, np.nan, np.float32)
    data = {}
    for column in columns:
        rows = [
            np.moveaxis(np.asarray(row[column], np.float32), 0, 1)
            if column in row
            else empty
            for row in found.values()
        ]
        data[column] = (("score", "variable", "lead", "region"), np.stack(rows))
    result = xarray.Dataset(
        data,
        coords={
            "score": list(found),
            "variable": names,
            "lead": pairs.forecast["lead"].values,
            "region": regions,
            "best": ("score", [score.best for score in told.values()]),
        },
        attrs={
            "forecast": pairs.names[0],
            "truth": pairs.names[1],
            "num_cases": pairs.sizes["case"],
            "num_members": pairs.sizes["member"],
        },
    )
    if job.other is not None:
        result.attrs["compare_to"] = job.other.names[0]
        result.attrs["num_members_of_compare_to"] = job.other.sizes["member"]
        is_same_size = job.other.sizes["member"] == pairs.sizes["member"]
        result = result.assign_coords(
            comparable=(
                "score",
                [is_same_size or score.is_comparable for score in told.values()],
            )
        )
    if bootstrap is not None:
        result.attrs |= {
            f"bootstrap_{k}": v for k, v in dataclasses.asdict(bootstrap).items()
        }
    return result


def _number_text(value):
    """As short as it can be without being another number."""
    text = f"{value:g}"
    return text if float(text) == value else repr(value)


def _name_thresholds(job, found, thresholds, names):
    """Brier scores under their thresholds: those of a variable are NaN elsewhere.

    Also the `Score` of each.
    """
    scores = job.scores.scores
    plain = {k: v for k, v in found.items() if scores[k].metric not in _BRIER}
    told = {k: scores[k] for k in plain}
    values = sorted({float(t) for row in (thresholds or {}).values() for t in row})
    for kind in _BRIER if thresholds else ():
        for value in values:
            rows = {}
            for name, own in thresholds.items():
                if value not in [float(t) for t in own]:
                    continue
                at = [float(t) for t in own].index(value)
                channel = names.index(name)
                for column, array in found[f"{kind}_{at}"].items():
                    array = np.asarray(array)
                    row = rows.setdefault(column, np.full(array.shape, np.nan))
                    row[:, channel] = array[:, channel]
            plain[f"{kind}_above_{_number_text(value)}"] = rows
            told[f"{kind}_above_{_number_text(value)}"] = scores[f"{kind}_0"]
    return plain, told
