"""Tests of whether two systems, or several, differ: on rows, on splits, on data sets.

All work on the host in double precision: they end an analysis, and their tails need
more digits than float32 has. A p-value is not the probability that a system is better.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from ensjax.scores.intervals import Interval
from ensjax.scores.rows import as_kinds


class TestResult(NamedTuple):
    """A statistic and its two-sided p-value, in (0, 1]."""

    __test__ = False  # not a test of pytest's

    statistic: float
    p_value: float


class AurocDifference(NamedTuple):
    """Of two AUROCs on the same rows: both, the standard error, and the test."""

    first: float
    second: float
    standard_error: float
    z: float
    p_value: float


class FriedmanResult(NamedTuple):
    """Of systems over data sets: mean ranks, the test, and what is a difference.

    Attributes:
        mean_ranks: `[system]`; 1 is best.
        statistic: Friedman's chi-square, ties corrected.
        p_value: two-sided.
        critical_difference: Nemenyi's: systems whose mean ranks differ by at least so
            much differ at the level that was asked for.
    """

    mean_ranks: np.ndarray
    statistic: float
    p_value: float
    critical_difference: float


def mcnemar(first: jax.Array, second: jax.Array, *, exact: bool = True) -> TestResult:
    """McNemar's test of two systems that were right and wrong on the same rows.

    Only rows on which one is right and the other wrong count, b and c of them.

    Args:
        first: bool, `[batch]`: whether the first system is right.
        second: the same of the second.
        exact: by the binomial distribution of b among b + c; else by chi-square
            (|b - c| - 1)^2 / (b + c), with Edwards's correction.

    Returns:
        The smaller of b and c (or the chi-square), and the p-value; 1 without rows on
        which they differ.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if the arguments are not bool.

    Source: McNemar 1947; Edwards 1948.
    """
    from scipy import stats

    first, second = np.asarray(first), np.asarray(second)
    for name, values in (("first", first), ("second", second)):
        if values.dtype != bool:
            raise TypeError(
                f"{name} must be bool, whether each row is right; got {values.dtype}."
            )
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(
            f"first and second must both be [batch]; got {first.shape}, {second.shape}."
        )
    b, c = int((first & ~second).sum()), int((~first & second).sum())
    if exact:
        p = stats.binomtest(min(b, c), b + c).pvalue if b + c else 1.0
        return TestResult(float(min(b, c)), float(p))
    if b + c == 0:
        return TestResult(0.0, 1.0)
    statistic = max(abs(b - c) - 1, 0) ** 2 / (b + c)
    return TestResult(float(statistic), float(stats.chi2.sf(statistic, 1)))


def delong(
    first: jax.Array, second: jax.Array, is_positive: jax.Array
) -> AurocDifference:
    """DeLong's test of two AUROCs of the same rows.

    Args:
        first: scores of the first system, `[batch]`; larger means more positive.
        second: of the second.
        is_positive: bool, `[batch]`.

    Returns:
        Both areas, the standard error of their difference, z and the p-value. Equal
        scores have z = 0 and p = 1.

    Raises:
        ValueError: if a shape does not fit, a score is NaN, or one kind has fewer than
            two rows.

    Source: DeLong, DeLong and Clarke-Pearson 1988; Sun and Xu 2014.
    """
    from scipy import stats

    scores = np.stack([np.asarray(first, float), np.asarray(second, float)])
    kind = np.asarray(as_kinds("is_positive", is_positive))
    if scores.ndim != 2 or kind.shape != scores.shape[1:]:
        raise ValueError(
            "first, second and is_positive must all be [batch]; got"
            f" {scores.shape[1:]} and {kind.shape}."
        )
    if np.isnan(scores).any():
        raise ValueError("scores must not be NaN; leave such rows out of all three.")
    num_positive, num_negative = int(kind.sum()), int((~kind).sum())
    if min(num_positive, num_negative) < 2:
        raise ValueError(
            "DeLong's variance needs two rows of each kind; got"
            f" {num_positive} positive and {num_negative} negative."
        )

    def placements(positive, negative):
        """Of each row, the share of the other kind that it beats."""
        together = stats.rankdata(np.concatenate([positive, negative]))
        of_positive = together[: len(positive)] - stats.rankdata(positive)
        of_negative = together[len(positive) :] - stats.rankdata(negative)
        return of_positive / len(negative), 1 - of_negative / len(positive)

    parts = [placements(row[kind], row[~kind]) for row in scores]
    positive = np.stack([part[0] for part in parts])
    negative = np.stack([part[1] for part in parts])
    areas = positive.mean(axis=1)
    covariance = np.cov(positive) / num_positive + np.cov(negative) / num_negative
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    difference = areas[0] - areas[1]
    error = float(np.sqrt(max(variance, 0.0)))
    z = 0.0 if difference == 0 else float(np.divide(difference, error))
    return AurocDifference(*areas.tolist(), error, z, float(2 * stats.norm.sf(abs(z))))


def corrected_t_test(
    differences: jax.Array, *, num_train: int, num_test: int
) -> TestResult:
    """Nadeau and Bengio's t-test of differences over repeated random splits.

        t = mean / sqrt((1 / J + n_test / n_train) var),   var with J - 1

    Splits share rows, so that their differences are not independent: the plain t-test
    finds differences that are not there.

    Args:
        differences: of two systems, one for each of the J splits, `[split]`.
        num_train: training rows of a split.
        num_test: test rows of a split.

    Returns:
        t with J - 1 degrees of freedom and its p-value. Differences that are all 0 have
        t = 0 and p = 1.

    Raises:
        ValueError: for fewer than two splits, a NaN, or a number of rows below 1.

    Source: Nadeau and Bengio 2003, equation 7.
    """
    from scipy import stats

    values = np.asarray(differences, float)
    scale = _corrected_scale(values, num_train, num_test)
    mean = values.mean()
    if mean == 0:
        return TestResult(0.0, 1.0)
    t = float(np.divide(mean, scale)) if scale else float(np.copysign(np.inf, mean))
    return TestResult(t, float(2 * stats.t.sf(abs(t), len(values) - 1)))


def corrected_t_interval(
    values: jax.Array, *, num_train: int, num_test: int, confidence: float = 0.95
) -> Interval:
    """The interval of the mean that belongs to `corrected_t_test`.

        mean +- t_{J-1} sqrt((1 / J + n_test / n_train) var),   var with J - 1

    Args:
        values: one for each of J repeated random splits of the same rows, `[split]`.
        num_train: rows of a split that are not tested on. Training on some of them
            alone changes nothing: n_test / (n_train + n_test) stands for the share of
            test rows that two splits have in common.
        num_test: test rows of a split.
        confidence: coverage of the interval, in (0, 1).

    Returns:
        `Interval` in double precision.

    Raises:
        ValueError: for fewer than two splits, a NaN, a number of rows below 1, or
            `confidence` outside of (0, 1).

    Source: Nadeau and Bengio 2003, equation 7.
    """
    from scipy import stats

    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1); got {confidence}.")
    values = np.asarray(values, float)
    scale = _corrected_scale(values, num_train, num_test)
    half = float(stats.t.ppf(0.5 + confidence / 2, len(values) - 1) * scale)
    mean = float(values.mean())
    return Interval(mean, mean - half, mean + half)


def _corrected_scale(values, num_train, num_test):
    """Nadeau and Bengio's standard error of the mean over splits."""
    if values.ndim != 1 or len(values) < 2 or np.isnan(values).any():
        raise ValueError(
            "values over splits must be [split], at least two numbers without NaN; got"
            f" shape {values.shape}."
        )
    if min(num_train, num_test) < 1:
        raise ValueError(
            f"num_train and num_test must be at least 1; got {num_train}, {num_test}."
        )
    return np.sqrt((1 / len(values) + num_test / num_train) * values.var(ddof=1))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's adjusted p-values, in the order given: reject those below the level.

    Args:
        p_values: of several tests, `[test]`.

    Raises:
        ValueError: if one is not between 0 and 1.

    Source: Holm 1979.
    """
    values = np.asarray(p_values, float)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise ValueError("p_values must be [test], each between 0 and 1.")
    order = np.argsort(values, kind="stable")
    factors = len(values) - np.arange(len(values))
    adjusted = np.maximum.accumulate(values[order] * factors)
    result = np.empty_like(values)
    result[order] = np.minimum(adjusted, 1.0)
    return result


def friedman(
    scores: jax.Array, *, higher_is_better: bool, level: float = 0.05
) -> FriedmanResult:
    """Friedman's test over data sets, and Nemenyi's critical difference of mean ranks.

        CD = q sqrt(k (k + 1) / (6 n)),   k systems, n data sets

    where q is the studentised range of k systems and infinitely many degrees of
    freedom, over sqrt(2).

    Args:
        scores: `[data set, system]`.
        higher_is_better: whether a larger score ranks first.
        level: of Nemenyi's test, in (0, 1).

    Raises:
        ValueError: for fewer than three systems or two data sets, or a NaN.

    Source: Demsar 2006, section 3.2.2.
    """
    from scipy import stats

    values = np.asarray(scores, float)
    if values.ndim != 2 or values.shape[0] < 2 or values.shape[1] < 3:
        raise ValueError(
            "scores must be [data set, system] of at least 2 and 3; got shape"
            f" {values.shape}. Two systems: mcnemar or corrected_t_test."
        )
    if np.isnan(values).any():
        raise ValueError("scores must not be NaN.")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie between 0 and 1; got {level}.")
    num_sets, num_systems = values.shape
    ranks = stats.rankdata(-values if higher_is_better else values, axis=1)
    if (values == values[:, :1]).all():
        statistic, p_value = 0.0, 1.0
    else:
        statistic, p_value = stats.friedmanchisquare(*values.T)
    q = stats.studentized_range.ppf(1 - level, num_systems, np.inf) / np.sqrt(2)
    difference = q * np.sqrt(num_systems * (num_systems + 1) / (6 * num_sets))
    return FriedmanResult(
        ranks.mean(axis=0), float(statistic), float(p_value), float(difference)
    )


def pairwise_mcnemar(is_right: jax.Array) -> dict[tuple[int, int], float]:
    """Holm's adjusted p-values of McNemar's exact test for all pairs of systems.

    Args:
        is_right: bool, `[system, batch]`.

    Returns:
        `(i, j) -> p`, i < j.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if it is not bool.
    """
    is_right = np.asarray(is_right)
    if is_right.ndim != 2 or len(is_right) < 2:
        raise ValueError(
            f"is_right must be [system, batch] of two or more; got {is_right.shape}."
        )
    pairs = list(itertools.combinations(range(len(is_right)), 2))
    found = [mcnemar(is_right[i], is_right[j]).p_value for i, j in pairs]
    return dict(zip(pairs, holm(found).tolist(), strict=True))
