"""Climate of place and season, and values in units of it: `Standardiser`.

Mean and standard deviation of every variable at every place, by day of the year
(smoothed over a window) or constant. Days are those of a leap year, 0 to 365.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct

from ensjax.emulate.archive import Archive

_LEAP_DAY = 59  # 29 February among 366


def day_of_leap_year(time: np.ndarray) -> np.ndarray:
    """Which of 366 days a date is: 0 on 1 January, 59 on 29 February, 60 on 1 March.

    Args:
        time: datetime64 of any shape.

    Returns:
        int32 of that shape.

    Raises:
        TypeError: if `time` holds no dates.
    """
    time = np.asarray(time)
    if time.dtype.kind != "M":
        raise TypeError(f"time must be datetime64; got {time.dtype}.")
    day = time.astype("datetime64[D]")
    year = day.astype("datetime64[Y]")
    number = (day - year.astype("datetime64[D]")).astype(np.int32)
    years = year.astype(np.int64) + 1970
    is_leap = (years % 4 == 0) & ((years % 100 != 0) | (years % 400 == 0))
    return number + (~is_leap & (number >= _LEAP_DAY)).astype(np.int32)


@struct.dataclass
class Standardiser:
    """Mean and standard deviation by place and season; a pytree.

    Attributes:
        mean: `[day, variable, *space]` in units of the variable; `day` is 1 (constant)
            or 366, and a space axis that was pooled has length 1.
        sd: likewise, above 0.

    Times below are datetime64, or days of a leap year (`day_of_leap_year`), which may
    be traced. Their shape stands in front of `[variable, *space]`; an axis they do not
    depend on, such as the members', has length 1. A constant climate needs none.
    """

    mean: Any
    sd: Any

    def mean_at(self, time: Any = None) -> jnp.ndarray:
        """The mean of the days of `time`, `[*time, variable, *space]`.

        Of valid times it is what `standardise` subtracts; of base times (starts) it is
        the season in which a forecast began.
        """
        return jnp.asarray(self.mean)[self._slots(time)]

    def sd_at(self, time: Any = None) -> jnp.ndarray:
        """The standard deviation of the days of `time`, `[*time, variable, *space]`."""
        return jnp.asarray(self.sd)[self._slots(time)]

    def season_at(self, time: Any = None) -> jnp.ndarray:
        """The mean of those days against that of the year, in units of the sd.

            (mean(day) - mean over days) / sqrt(mean over days of sd^2)

        An input of about unit size that says which season it is, for base times; 0 for
        a constant climate. `[*time, variable, *space]`.
        """
        mean, sd = jnp.asarray(self.mean), jnp.asarray(self.sd)
        scale = jnp.sqrt(jnp.square(sd).mean(axis=0, keepdims=True))
        return ((mean - mean.mean(axis=0, keepdims=True)) / scale)[self._slots(time)]

    def standardise(self, values: Any, valid_time: Any = None) -> jnp.ndarray:
        """`(values - mean) / sd` at the valid times.

        Args:
            values: `[..., variable, *space]`.
            valid_time: `[...]`, of length 1 where it does not depend on an axis; for
                an archive `archive.valid_time[:, None]`.

        Raises:
            ValueError: if shapes do not fit, or a seasonal climate has no times.
        """
        mean, sd = self._fields(values, valid_time)
        return (jnp.asarray(values) - mean) / sd

    def restore(self, values: Any, valid_time: Any = None) -> jnp.ndarray:
        """`values * sd + mean` at the valid times: undoes `standardise` to rounding."""
        mean, sd = self._fields(values, valid_time)
        return jnp.asarray(values) * sd + mean

    def standardise_archive(self, archive: Archive) -> Archive:
        """The archive in units of the climate at its valid times, truth included."""
        time = archive.valid_time if self._is_seasonal else None
        members = None if time is None else time[:, None]
        truth = archive.truth
        return dataclasses.replace(
            archive,
            values=np.asarray(self.standardise(archive.values, members)),
            truth=None if truth is None else np.asarray(self.standardise(truth, time)),
            units={k: v for k, v in archive.units.items() if k not in archive.variable},
        )

    @property
    def _is_seasonal(self):
        return self.mean.shape[0] > 1

    def _slots(self, time):
        if not self._is_seasonal:
            return 0 if time is None else jnp.zeros(np.shape(time), jnp.int32)
        if time is None:
            raise ValueError("this climate depends on the day of the year: give times.")
        if hasattr(time, "dtype") and jnp.issubdtype(time.dtype, jnp.integer):
            return jnp.asarray(time)
        return jnp.asarray(day_of_leap_year(time))

    def _fields(self, values, time):
        place = self.mean.shape[1:]
        shape = np.shape(values)
        lead_axes = len(shape) - len(place)
        own = shape[max(lead_axes, 0) :]
        if lead_axes < 0 or any(p not in (1, s) for p, s in zip(place, own)):
            raise ValueError(
                f"values must be [..., variable, *space] with [variable, *space] ="
                f" {place}; got shape {shape}."
            )
        if not self._is_seasonal:
            new = (1,) * lead_axes + place
            return tuple(jnp.asarray(x).reshape(new) for x in (self.mean, self.sd))
        mean = self.mean_at(time)
        front = mean.shape[: mean.ndim - len(place)]
        if len(front) != lead_axes or any(
            t not in (1, s) for t, s in zip(front, shape)
        ):
            raise ValueError(
                f"valid_time must have the shape {shape[:lead_axes]} in front of"
                " [variable, *space], or 1 along an axis it does not depend on; got"
                f" {front}."
            )
        return mean, self.sd_at(time)


def fit_standardiser(
    values: np.ndarray,
    time: np.ndarray | None = None,
    *,
    window_days: int = 15,
    pool: Sequence[int] = (),
) -> Standardiser:
    """The climate of some samples; in float64, missing values left out.

    With times it is seasonal: the mean of a day is that of all samples within a centred
    window around the year's end too; the standard deviation that of the same samples
    around their own days' means. Samples of 29 February count half on each neighbour,
    and its climate is the mean of theirs.

    Args:
        values: `[sample, variable, *space]`; NaN is missing.
        time: datetime64 `[sample]`; None: a constant climate.
        window_days: odd, from 1 to 365.
        pool: axes of `[variable, *space]` counted from 1 on (the first space axis) that
            have one climate.

    Returns:
        A climate whose standard deviations divide by the number of samples; 1 where all
        are equal, so that they stay finite; NaN at a place without any sample.

    Raises:
        ValueError: if shapes or the window do not fit, or a day has no sample at a
            place that has some.
    """
    values = np.asarray(values, np.float64)
    if values.ndim < 2 or not values.shape[0]:
        raise ValueError(
            f"values must be [sample, variable, *space]; got shape {values.shape}."
        )
    axes = tuple(1 + axis for axis in pool)
    if any(not 2 <= axis < values.ndim for axis in axes):
        raise ValueError(
            f"pool names axes 1 to {values.ndim - 2} of [variable, *space]; got"
            f" {tuple(pool)}."
        )
    if time is None:
        days, total = _constant_days(len(values))
        window_days = 1
    else:
        days, total = _calendar_days(time, len(values))
        if window_days % 2 == 0 or not 1 <= window_days <= 365:
            raise ValueError(f"window_days is odd, 1 to 365; got {window_days}.")
    mean = _windowed_mean(values, days, total, window_days, axes)
    square = sum(
        weight[(...,) + (None,) * (values.ndim - 1)] * (values - mean[day]) ** 2
        for day, weight in days
    )
    variance = _windowed_mean(square, days, total, window_days, axes)
    sd = np.sqrt(variance)
    sd = np.where(sd == 0, 1.0, sd)
    if total > 1:
        mean, sd = (
            np.insert(x, _LEAP_DAY, x[_LEAP_DAY - 1 : _LEAP_DAY + 1].mean(axis=0), 0)
            for x in (mean, sd)
        )
    return Standardiser(mean.astype(np.float32), sd.astype(np.float32))


def fit_archive_climate(
    archive: Archive,
    *,
    of: str,
    is_seasonal: bool = True,
    window_days: int = 15,
    pool: Sequence[str] = (),
) -> Standardiser:
    """The climate of what an archive says came true, or of what its members say.

    Args:
        archive: forecasts; all leads count alike, each on its valid day.
        of: "truth", or "members".
        is_seasonal: whether it depends on the day of the year.
        window_days: as in `fit_standardiser`.
        pool: names of space axes along which there is one climate.

    Raises:
        ValueError: if `of` or a name is unknown, or there is no truth; and as
            `fit_standardiser`.
    """
    if of not in ("truth", "members"):
        raise ValueError(f'of must be "truth" or "members"; got {of!r}.')
    if of == "truth" and archive.truth is None:
        raise ValueError('the archive holds no truth; use of="members".')
    unknown = [name for name in pool if name not in archive.space]
    if unknown:
        raise ValueError(
            f"pool names {unknown}, but the space axes are {list(archive.space)}."
        )
    axes = [1 + list(archive.space).index(name) for name in pool]
    if of == "truth":
        values = archive.truth
        time = archive.valid_time if is_seasonal else None
    else:
        values = archive.values
        shape = values.shape[:3]
        time = (
            np.broadcast_to(archive.valid_time[:, None], shape) if is_seasonal else None
        )
    place = values.shape[-1 - len(archive.space) :]
    return fit_standardiser(
        values.reshape(-1, *place),
        None if time is None else time.reshape(-1),
        window_days=window_days,
        pool=axes,
    )


def _constant_days(samples):
    return [(np.zeros(samples, np.int64), np.ones(samples))], 1


def _calendar_days(time, samples):
    """Pairs of days among 365 and weights of samples, and 365."""
    time = np.asarray(time)
    if time.shape != (samples,):
        raise ValueError(f"time must be [sample] = ({samples},); got {time.shape}.")
    day = day_of_leap_year(time)
    is_leap_day = day == _LEAP_DAY
    before = np.where(day >= _LEAP_DAY, day - 1, day)
    after = np.where(is_leap_day, _LEAP_DAY, before)
    half = np.where(is_leap_day, 0.5, 1.0)
    return [(before, half), (after, 1.0 - half)], 365


def _windowed_mean(values, days, total, window, axes):
    """The mean of the window around each day, `[day, variable, *space]`."""
    known = np.isfinite(values)
    sums = np.zeros((total, *values.shape[1:]))
    counts = np.zeros_like(sums)
    filled = np.where(known, values, 0.0)
    for day, weight in days:
        weight = weight[(...,) + (None,) * (values.ndim - 1)]
        np.add.at(sums, day, weight * filled)
        np.add.at(counts, day, weight * known)
    sums, counts = (x.sum(axis=axes, keepdims=True) for x in (sums, counts))
    reach = window // 2
    sums, counts = (
        sum(np.roll(x, shift, axis=0) for shift in range(-reach, reach + 1))
        for x in (sums, counts)
    )
    is_empty = (counts == 0) & (counts.sum(axis=0, keepdims=True) > 0)
    if is_empty.any():
        day = np.flatnonzero(is_empty.reshape(total, -1).any(axis=1))
        raise ValueError(
            f"{day.size} days of the year have no sample within {window} days, the"
            f" first is day {day[0]}: widen window_days, or use a constant climate."
        )
    with np.errstate(invalid="ignore"):
        return sums / counts
