"""How N grows with k: the slope of log N on log k, and which of three laws is nearest.

A regression on k log k alone is no test, since any smooth growth correlates with it.
So the laws are compared where they were not fitted: one factor on small k, the error of
the prediction on larger ones.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

LAWS = {
    "k": lambda k: k,
    "k log k": lambda k: k * np.log(k),
    "k^2": lambda k: k**2,
}


class PowerLaw(NamedTuple):
    """N = exp(intercept) k^slope, by least squares of log N on log k.

    Attributes:
        intercept: a of log N = a + b log k.
        slope: b.
        low, high: ends of an interval of the slope.
        error: root mean square of the residuals in log N.
    """

    intercept: float
    slope: float
    low: float
    high: float
    error: float

    def predict(self, k: np.ndarray) -> np.ndarray:
        """N at some k, alike."""
        return np.exp(self.intercept) * np.asarray(k, np.float64) ** self.slope


def fit_power_law(
    k: np.ndarray, num_members: np.ndarray, *, level: float = 0.95
) -> PowerLaw:
    """The slope with its Student-t interval, of one number N for each k.

    For N that are exact the interval says how far the curve is from a power of k, not
    how well it is known.

    Args:
        k: `[size]`, different, at least 3.
        num_members: N, `[size]`, positive and finite.
        level: of the interval.

    Raises:
        ValueError: if there are fewer than 3 sizes, or a number is not positive or not
            finite; names its k.
    """
    log_k, log_n = _logs(k, num_members)
    intercept, slope, residuals = _least_squares(log_k, log_n)
    free = len(log_k) - 2
    spread = np.sqrt(residuals @ residuals / free / np.sum((log_k - log_k.mean()) ** 2))
    half = stdtrit(free, (1 + level) / 2) * spread
    error = np.sqrt(np.mean(residuals**2))
    found = (intercept, slope, slope - half, slope + half, error)
    return PowerLaw(*map(float, found))


def bootstrap_power_law(
    k: np.ndarray,
    draws: np.ndarray,
    *,
    quantile: float = 0.5,
    num_resamples: int = 2_000,
    level: float = 0.95,
    seed: int = 0,
) -> PowerLaw:
    """The slope of a quantile of N*, with a bootstrap interval.

    In each resample the draws of every k are drawn anew with replacement, their
    quantile is taken and the line is fitted again; the interval is between quantiles of
    the slopes.

    Args:
        k: `[size]`, different, at least 3.
        draws: N*, `[size, draw]`, finite and not negative, and above 0 from below the
            quantile on; sizes are independent.
        quantile: 0.5 for N50, 0.9 for N90.
        num_resamples: how often.
        level: of the interval.
        seed: of the resamples.

    Raises:
        ValueError: if shapes do not fit, a draw is not finite, or a quantile of the
            draws or of a resample is not positive; names its k.

    Source: Efron and Tibshirani 1993, chapter 13 (percentile interval).
    """
    draws = np.asarray(draws, np.float64)
    if draws.ndim != 2 or draws.shape[1] < 2:
        raise ValueError(
            f"draws are [size, draw], at least 2 for each k; got {draws.shape}."
        )
    if len(draws) == len(k):
        _check_numbers(k, draws, positive=False)
    point = np.quantile(draws, quantile, axis=1)
    log_k, log_n = _logs(k, point)
    intercept, slope, residuals = _least_squares(log_k, log_n)
    rng = np.random.default_rng(seed)
    slopes = np.empty(num_resamples)
    for number in range(num_resamples):
        chosen = rng.integers(0, draws.shape[1], draws.shape)
        again = np.quantile(np.take_along_axis(draws, chosen, axis=1), quantile, axis=1)
        _check_numbers(k, again)
        slopes[number] = _least_squares(log_k, np.log(again))[1]
    low, high = np.quantile(slopes, [(1 - level) / 2, (1 + level) / 2])
    error = np.sqrt(np.mean(residuals**2))
    return PowerLaw(*map(float, (intercept, slope, low, high, error)))


def held_out_errors(
    k: np.ndarray, num_members: np.ndarray, *, fitted_up_to: float
) -> dict[str, float]:
    """Error of k, k log k and k^2 where they were not fitted, by law.

    For each law one factor is fitted by least squares of log N on the k up to a bound;
    the error is the root mean square of log N - log prediction on those above.

    Args:
        k: `[size]`, different, above 1.
        num_members: N, `[size]`, positive and finite.
        fitted_up_to: the largest k of the fit.

    Raises:
        ValueError: if there is no k on one of the sides, or a number is not positive or
            not finite; names its k.
    """
    k, num_members = np.asarray(k, np.float64), np.asarray(num_members, np.float64)
    if k.shape != num_members.shape or k.ndim != 1:
        raise ValueError(
            f"k and num_members are [size]; got {k.shape} and {num_members.shape}."
        )
    if not (np.isfinite(k) & (k > 1)).all():
        raise ValueError(f"k must be above 1, and finite; got {k}.")
    _check_numbers(k, num_members)
    inside = k <= fitted_up_to
    if inside.all() or not inside.any():
        raise ValueError(
            f"there must be k up to {fitted_up_to:g} to fit on, and above it to be"
            f" tried on; got {k}."
        )
    errors = {}
    for name, law in LAWS.items():
        away = np.log(num_members) - np.log(law(k))
        errors[name] = float(
            np.sqrt(np.mean((away[~inside] - away[inside].mean()) ** 2))
        )
    return errors


def nearest_law(errors: dict[str, float]) -> str:
    """The law with the least held-out error.

    Raises:
        ValueError: if there is no law, or an error that is not finite: of such, none is
            the least.
    """
    wrong = [name for name, error in errors.items() if not np.isfinite(error)]
    if wrong or not errors:
        raise ValueError(
            f"the errors of laws must be finite, of one law at least; got {errors}."
        )
    return min(errors, key=errors.__getitem__)


def _logs(k, num_members):
    k, num_members = np.asarray(k, np.float64), np.asarray(num_members, np.float64)
    if k.shape != num_members.shape or k.ndim != 1 or len(set(k.tolist())) < 3:
        raise ValueError(
            "a slope with an interval needs at least 3 different k and one N for each;"
            f" got {k} and {num_members}."
        )
    if not (np.isfinite(k) & (k > 0)).all():
        raise ValueError(f"k must be above 0, and finite; got {k}.")
    _check_numbers(k, num_members)
    return np.log(k), np.log(num_members)


def _check_numbers(k, numbers, *, positive=True):
    """Raises, with the k, where N `[size, ...]` has no logarithm."""
    numbers = numbers.reshape(len(numbers), -1)
    wrong = ~(np.isfinite(numbers) & (numbers > 0 if positive else numbers >= 0))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise ValueError(
            f"N must be {'above' if positive else 'at least'} 0 and finite; got"
            f" {numbers[row, column]:.6g} at k = {np.asarray(k)[row]:g}. Where N is"
            " infinite a mean lies on the wrong side of its threshold, and no law"
            " describes it: leave that k out, and say so."
        )


def _least_squares(x, y):
    slope = np.sum((x - x.mean()) * (y - y.mean())) / np.sum((x - x.mean()) ** 2)
    intercept = y.mean() - slope * x.mean()
    return intercept, slope, y - intercept - slope * x
