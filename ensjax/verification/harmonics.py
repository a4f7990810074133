"""Spherical harmonics of fields on a Gaussian or regular grid, by dense matrices.

A field is a sum of a_lm Y_lm with orthonormal Y_lm, so that its area mean square is
sum |a_lm|^2 / (4 pi). Coefficients of a real field are stored for m >= 0, as complex
numbers `[l, m]`; those below the diagonal (m > l) are 0, and those of m > 0 stand for
two. A Fourier transform along longitudes, then a matrix for each m along latitudes:
quick enough for verification up to a few hundred latitudes.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.verification.area import gauss_latitudes

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

    def latitudes(self) -> np.ndarray:
        """In degrees, as the rows are ordered, `[lat]`."""
        number = self.num_latitudes
        if self.kind == "gauss":
            south = gauss_latitudes(number)
        elif self.kind == "poles":
            south = np.linspace(-90, 90, number)
        else:
            south = -90 + 180 * (np.arange(number) + 0.5) / number
        return south if self.northward else south[::-1]

    def quadrature(self) -> np.ndarray:
        """Weights of the rows for integrals over the sine of latitude, `[lat]`; sum 2.

        Exact for polynomials of degree 2 num_latitudes - 1 ("gauss") or
        num_latitudes - 1.
        """
        weights = _quadrature(self.num_latitudes, self.kind)
        return weights if self.northward else weights[::-1]


@functools.lru_cache(maxsize=32)
def _quadrature(number, kind):
    if kind == "gauss":
        return np.polynomial.legendre.leggauss(number)[1]
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


@functools.lru_cache(maxsize=16)
def _legendre(grid: SphericalGrid) -> np.ndarray:
    """Associated Legendre functions of the rows, orthonormal with e^(i m lambda).

    `[m, l, lat]`, float64, with the phase (-1)^m.

    Source: Holmes and Featherstone 2002, Journal of Geodesy 76, equations 11 and 13
    (normalised recurrence in the degree).
    """
    size = grid.degree + 1
    sine = np.sin(np.radians(grid.latitudes()))
    cosine = np.sqrt(np.maximum(1 - sine**2, 0.0))
    found = np.zeros((size, size, len(sine)))
    diagonal = np.full(len(sine), np.sqrt(1 / (4 * np.pi)))
    for m in range(size):
        if m:
            diagonal = -np.sqrt((2 * m + 1) / (2 * m)) * cosine * diagonal
        found[m, m] = diagonal
        for n in range(m + 1, size):
            a = np.sqrt((4 * n**2 - 1) / (n**2 - m**2))
            b = np.sqrt(((n - 1) ** 2 - m**2) / (4 * (n - 1) ** 2 - 1)) if n > 1 else 0
            before = found[m, n - 2] if n >= m + 2 else 0.0
            found[m, n] = a * (sine * found[m, n - 1] - b * before)
    return found


def to_harmonics(field: jax.Array, grid: SphericalGrid) -> jax.Array:
    """The coefficients a_lm of a field, complex64 `[..., l, m]`, m from 0.

    Args:
        field: `[..., lat, lon]`, real.
        grid: its grid.

    Raises:
        ValueError: if the shape does not fit.
    """
    field = jnp.asarray(field)
    shape = (grid.num_latitudes, grid.num_longitudes)
    if field.shape[-2:] != shape:
        raise ValueError(f"field must be [..., lat, lon] = {shape}; got {field.shape}.")
    matrix = jnp.asarray(_legendre(grid) * grid.quadrature(), jnp.float32)
    around = jnp.fft.rfft(field.astype(jnp.float32), axis=-1)[..., : grid.degree + 1]
    around = around * np.float32(2 * np.pi / grid.num_longitudes)

    def along(x):
        return jnp.einsum("mlj,...jm->...lm", matrix, x, precision="highest")

    return jax.lax.complex(along(around.real), along(around.imag))


def from_harmonics(coefficients: jax.Array, grid: SphericalGrid) -> jax.Array:
    """The field of coefficients `[..., l, m]`, float32 `[..., lat, lon]`.

    Args:
        coefficients: complex; the imaginary part of m = 0 is ignored.
        grid: the grid of the field.

    Raises:
        ValueError: if the shape does not fit.
    """
    size = grid.degree + 1
    if coefficients.shape[-2:] != (size, size):
        raise ValueError(
            f"coefficients must be [..., l, m] = {(size, size)}; got"
            f" {coefficients.shape}."
        )
    matrix = jnp.asarray(_legendre(grid), jnp.float32)

    def along(x):
        return jnp.einsum("mlj,...lm->...jm", matrix, x, precision="highest")

    around = jax.lax.complex(along(coefficients.real), along(coefficients.imag))
    padding = [(0, 0)] * (around.ndim - 1)
    padding.append((0, grid.num_longitudes // 2 + 1 - size))
    around = jnp.pad(around, padding) * grid.num_longitudes
    return jnp.fft.irfft(around, n=grid.num_longitudes, axis=-1)


def order_weights(grid: SphericalGrid) -> np.ndarray:
    """How many harmonics each stored coefficient stands for, float32 `[l, m]`.

    1 for m = 0, 2 for 0 < m <= l, 0 for m > l.
    """
    degree, order = np.indices((grid.degree + 1, grid.degree + 1))
    return np.where(order > degree, 0.0, np.where(order == 0, 1.0, 2.0)).astype(
        np.float32
    )
