"""Grids of the sphere: their latitudes, and weights of rows for integrals."""

import dataclasses
import functools

import numpy as np

KINDS = ("gauss", "poles", "cells")


@dataclasses.dataclass(frozen=True)
class SphericalGrid:
    """A grid of latitudes, from south to north or north to south, and longitudes.

    Attributes:
        num_latitudes: rows, `[lat, lon]`.
        num_longitudes: evenly spaced around the circle, whichever comes first.
        kind: "gauss": Gaussian latitudes; "poles": evenly spaced with both poles;
            "cells": evenly spaced centres of cells, half a step off the poles.
        truncation: the largest degree l; 0: the largest whose transform is exact, which
            is num_latitudes - 1 for "gauss" and half of that for the others, but at
            most (num_longitudes - 1) // 2.
        northward: whether the first row is the southernmost.

    Raises:
        ValueError: if the kind is unknown, or the truncation beyond what is exact.
    """

    num_latitudes: int
    num_longitudes: int
    kind: str = "gauss"
    truncation: int = 0
    northward: bool = True

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(
                f"kind must be one of {', '.join(KINDS)}; got {self.kind!r}."
            )
        if self.num_latitudes < 3 or self.num_longitudes < 3:
            raise ValueError(
                "a grid needs three latitudes and longitudes or more; got"
                f" {self.num_latitudes} and {self.num_longitudes}."
            )
        if not 0 <= self.truncation <= self._exact():
            raise ValueError(
                f"truncation must be from 1 to {self._exact()}, beyond which this grid"
                f" aliases, or 0 for that; got {self.truncation}."
            )

    def _exact(self):
        rows = self.num_latitudes - 1
        rows = rows if self.kind == "gauss" else rows // 2
        return min(rows, (self.num_longitudes - 1) // 2)

    @property
    def degree(self) -> int:
        """The largest degree l of the transform."""
        return self.truncation or self._exact()

    @property
    def shape(self) -> tuple[int, int]:
        """Latitudes and longitudes."""
        return self.num_latitudes, self.num_longitudes

    @property
    def wave_shape(self) -> tuple[int, int, int]:
        """Of the waves: parts, degrees and orders."""
        return 2, self.degree + 1, self.degree + 1

    def latitudes(self) -> np.ndarray:
        """In degrees, as the rows are ordered, `[lat]`."""
        number = self.num_latitudes
        if self.kind == "gauss":
            south = np.degrees(np.arcsin(_gauss(number)[0]))
        elif self.kind == "poles":
            south = np.linspace(-90, 90, number)
        else:
            south = -90 + 180 * (np.arange(number) + 0.5) / number
        return south if self.northward else south[::-1]

    def quadrature(self) -> np.ndarray:
        """Weights of the rows for integrals over the sine of latitude, `[lat]`; sum 2.

        A pole is one point, however often its row repeats it. Exact for polynomials of
        degree 2 num_latitudes - 1 ("gauss") or num_latitudes - 1.
        """
        weights = _quadrature(self.num_latitudes, self.kind)
        return weights if self.northward else weights[::-1]


def find_grid(
    latitudes: np.ndarray, num_longitudes: int, *, truncation: int = 0
) -> SphericalGrid:
    """The grid that has these latitudes.

    Args:
        latitudes: in degrees, `[lat]`, rising or falling, to 0.001 degrees.
        num_longitudes: evenly spaced.
        truncation: as in `SphericalGrid`.

    Raises:
        ValueError: if a latitude comes twice, a pole for instance, they are in no
            order, or they are those of no known kind.
    """
    latitudes = np.asarray(latitudes, np.float64)
    if latitudes.ndim != 1 or len(latitudes) < 3:
        raise ValueError(
            f"latitudes must be [lat], three or more; got shape {latitudes.shape}."
        )
    steps = np.diff(latitudes)
    if (steps == 0).any():
        row = int(np.argmax(steps == 0))
        raise ValueError(
            f"latitude {latitudes[row]:g} is both row {row} and row {row + 1}: drop one"
            " of them, since their place would count twice."
        )
    if not ((steps > 0).all() or (steps < 0).all()):
        raise ValueError(
            f"latitudes must rise or fall throughout; got {latitudes[:3]} and so on."
        )
    for kind in KINDS:
        grid = SphericalGrid(
            len(latitudes), num_longitudes, kind, truncation=0, northward=steps[0] > 0
        )
        if np.abs(grid.latitudes() - latitudes).max() < 1e-3:
            return dataclasses.replace(grid, truncation=truncation)
    raise ValueError(
        f"{len(latitudes)} latitudes from {latitudes[0]:g} to {latitudes[-1]:g} degrees"
        " are neither Gaussian nor evenly spaced with or half a step off the poles."
    )


@functools.lru_cache(maxsize=32)
def _gauss(number):
    return np.polynomial.legendre.leggauss(number)


@functools.lru_cache(maxsize=32)
def _quadrature(number, kind):
    if kind == "gauss":
        return _gauss(number)[1]
    rows = np.arange(number)
    if kind == "poles":
        angle = np.pi * rows / (number - 1)
    else:
        angle = np.pi * (rows + 0.5) / number
    # The weights that integrate every cosine of the colatitude, hence every polynomial
    # in its cosine, up to degree number - 1 (Clenshaw and Curtis; Fejer).
    degree = np.arange(number)
    integral = np.where(degree % 2 == 0, 2 / (1.0 - degree**2 + (degree == 1)), 0.0)
    return np.linalg.solve(np.cos(np.outer(degree, angle)), integral)
