"""The scores that `verify` gives, as metrics of `ensjax.verification`."""

from collections.abc import Callable
from typing import Any, NamedTuple

from ensjax import verification
from ensjax.verification import Metric


class Score(NamedTuple):
    """A number that `verify` gives.

    Attributes:
        metric: the name of its metric in `Scores.metrics`.
        pick: it, from what the metric's final function gives.
        best: "low", "high", "one" or "none" where it is no score.
        has_interval: False where resampling shifts it, as it does the squared
            deviations of counts, so that the interval of resamples is not around it.
        is_comparable: False where its estimator depends on the number of members, so
            that ensembles of different size cannot be judged by it.
    """

    metric: str
    pick: Callable[[Any], Any]
    best: str
    has_interval: bool = True
    is_comparable: bool = True


class Scores(NamedTuple):
    """What is computed, and what is told of it, both by name."""

    metrics: dict[str, Metric]
    scores: dict[str, Score]


def score_list(
    num_members: int, *, with_climatology: bool, num_thresholds: int = 0
) -> Scores:
    """The scores of an ensemble of so many members.

    Args:
        num_members: M; with one, what needs two is NaN.
        with_climatology: also those of anomalies.
        num_thresholds: also Brier scores, of `reference["thresholds"]`.
    """
    metrics = {
        "crps": verification.crps(),
        "fair_crps": verification.crps("fair"),
        "rmse": verification.root_mean_square_error(),
        "bias": verification.bias(),
        "spread_skill": verification.spread_skill(),
        "ranks": verification.rank_histogram(num_members),
    }
    scores = {
        "crps": Score("crps", _itself, "low", is_comparable=False),
        "fair_crps": Score("fair_crps", _itself, "low"),
        "rmse": Score("rmse", _itself, "low"),
        "bias": Score("bias", _itself, "none"),
        "spread": Score("spread_skill", lambda s: s.spread, "none"),
        "spread_skill_ratio": Score("spread_skill", lambda s: s.ratio, "one"),
        "unbiased_spread_skill_ratio": Score(
            "spread_skill", lambda s: s.unbiased_ratio, "one"
        ),
        "rank_unreliability": Score(
            "ranks",
            lambda r: r.unreliability,
            "none",
            has_interval=False,
            is_comparable=False,
        ),
        "outliers": Score("ranks", lambda r: r.outliers, "none", is_comparable=False),
    }
    if with_climatology:
        metrics["anomalies"] = verification.anomalies()
        scores |= {
            "acc": Score("anomalies", lambda a: a.acc, "high"),
            "forecast_activity": Score(
                "anomalies", lambda a: a.forecast_activity, "none"
            ),
            "truth_activity": Score("anomalies", lambda a: a.truth_activity, "none"),
            "activity_ratio": Score("anomalies", lambda a: a.activity_ratio, "one"),
        }
    if num_thresholds:
        metrics["brier"] = verification.brier_score()
        metrics["fair_brier"] = verification.brier_score(fair=True)
        for i in range(num_thresholds):
            for name in ("brier", "fair_brier"):
                scores[f"{name}_{i}"] = Score(
                    name, _at(i), "low", is_comparable=name == "fair_brier"
                )
    return Scores(metrics, scores)


def _itself(score):
    return score


def _at(i):
    return lambda score: score[..., i]
