"""Area weights of the latitudes of a grid, of mean 1, in double precision on the host.

A mean over a latitude-longitude grid without them counts the poles far too much. Give
them to a metric as `weights[:, None]`, for elements `[..., lat, lon]`.
"""

import numpy as np


def cosine_weights(latitudes: np.ndarray) -> np.ndarray:
    """Weights cos(latitude), `[lat]`; 0 at the poles.

    Args:
        latitudes: in degrees from -90 to 90, `[lat]`.

    Raises:
        ValueError: if a latitude is out of range, or there is none.
    """
    latitudes = _checked(latitudes)
    # The cosine of 90 degrees is 6e-17 in floating point.
    is_pole = np.abs(latitudes) == 90
    weights = np.where(is_pole, 0.0, np.cos(np.radians(latitudes)))
    return _normalised(weights)


def cell_weights(latitudes: np.ndarray) -> np.ndarray:
    """Areas of the cells around the latitudes, `[lat]`: the form to take by default.

        w_i = sin b_(i+1) - sin b_i

    with bounds b in the middle between latitudes, at the ends half a cell beyond them
    but not beyond the poles. A pole has the area of its cap.

    Args:
        latitudes: in degrees from -90 to 90, rising or falling, two or more, `[lat]`.

    Raises:
        ValueError: if they are out of range or in no order, or fewer than two.
    """
    latitudes = _checked(latitudes)
    steps = np.diff(latitudes)
    if len(latitudes) < 2 or not (np.all(steps > 0) or np.all(steps < 0)):
        raise ValueError(
            "cells need two latitudes or more, rising or falling throughout; got"
            f" {latitudes}."
        )
    inner = (latitudes[1:] + latitudes[:-1]) / 2
    first = latitudes[0] - steps[0] / 2
    last = latitudes[-1] + steps[-1] / 2
    bounds = np.clip(np.concatenate([[first], inner, [last]]), -90, 90)
    return _normalised(np.abs(np.diff(np.sin(np.radians(bounds)))))


def gauss_weights(num_latitudes: int) -> np.ndarray:
    """Quadrature weights of a Gaussian grid, `[lat]`; see `gauss_latitudes`.

    Raises:
        ValueError: if there is no latitude.
    """
    return _normalised(_gauss(num_latitudes)[1])


def gauss_latitudes(num_latitudes: int) -> np.ndarray:
    """The latitudes of a Gaussian grid from south to north, in degrees, `[lat]`.

    Raises:
        ValueError: if there is no latitude.
    """
    return np.degrees(np.arcsin(_gauss(num_latitudes)[0]))


def colatitude_sine_weights(num_latitudes: int) -> np.ndarray:
    """Weights sin(colatitude) of equally spaced latitudes from pole to pole, `[lat]`.

    The cosine weights of such a grid; bred vectors are scaled by them.

    Raises:
        ValueError: if there are fewer than three latitudes.

    Source: Mahesh et al. 2024, arXiv:2408.03100, and the code that belongs to it.
    """
    if num_latitudes < 3:
        raise ValueError(
            "a grid with both poles needs three latitudes or more; got"
            f" {num_latitudes}."
        )
    return cosine_weights(np.linspace(-90, 90, num_latitudes))


def _gauss(number):
    if number < 1:
        raise ValueError(f"a Gaussian grid needs a latitude or more; got {number}.")
    return np.polynomial.legendre.leggauss(number)


def _checked(latitudes):
    latitudes = np.asarray(latitudes, np.float64)
    if latitudes.ndim != 1 or not latitudes.size:
        raise ValueError(f"latitudes must be [lat]; got shape {latitudes.shape}.")
    if not np.all(np.abs(latitudes) <= 90):
        raise ValueError(
            "latitudes are in degrees from -90 to 90; got"
            f" {latitudes.min()} to {latitudes.max()}."
        )
    return latitudes


def _normalised(weights):
    if not weights.sum() > 0:
        raise ValueError("no latitude has any area: all of them are poles.")
    return weights / weights.mean()
