"""Real spherical harmonics of fields on a Gaussian or regular grid, by dense matrices.

A field is a sum of orthonormal real harmonics of degree l and order m,

    Y_l0 = P_l0,   Y_lm cos = sqrt(2) P_lm cos(m lambda),   sin likewise,

with P_lm normalised so that Y_lm = P_lm e^(i m lambda) has square 1 over the sphere.
Waves are stored as `[..., part 2, l, m]`: cosines, then sines; what is no harmonic (m >
l, the sine of m = 0) is 0. The area mean of a field's square is the plain sum of the
squares of its waves over 4 pi. Nothing here is complex, which TPUs hardly do: a
transform along circles, by a matrix or a fast one, then a matrix for each m along
latitudes. That suits grids of up to some hundred latitudes.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

KINDS = ("gauss", "poles", "cells")
# Circles of so many places are transformed by a matrix, larger ones by the FFT.
_MOST_BY_MATRIX = 256
# Tables of more numbers are computed by the program: constants are part of its text.
MOST_CONSTANT = 2**22


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


@functools.lru_cache(maxsize=16)
def legendre(grid: SphericalGrid) -> np.ndarray:
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


def analysis_table(grid: SphericalGrid, dtype=jnp.float32) -> jax.Array:
    """What sums along circles (`circle_waves`) are multiplied by, `[m, l, lat]`."""
    root = np.where(np.arange(grid.degree + 1) == 0, 1.0, np.sqrt(2.0))
    weights = grid.quadrature() * 2 * np.pi / grid.num_longitudes
    return _legendre_times(root[:, None, None] * weights, grid, dtype)


def synthesis_table(grid: SphericalGrid, dtype=jnp.float32) -> jax.Array:
    """What waves are multiplied by to be sums along circles, `[m, l, lat]`."""
    order = np.arange(grid.degree + 1)
    # A wave is a share of the sum of itself times its cosine: 1 of n, or of n / 2.
    count = np.where(order == 0, 1.0, np.sqrt(0.5)) * grid.num_longitudes
    return _legendre_times(count[:, None, None], grid, dtype)


def _legendre_times(factor, grid, dtype):
    size = (grid.degree + 1) ** 2 * grid.num_latitudes
    if size <= MOST_CONSTANT:
        return jnp.asarray(legendre(grid) * factor, dtype)
    return legendre_in_program(grid, dtype) * jnp.asarray(factor, dtype)


def legendre_in_program(grid: SphericalGrid, dtype=jnp.float32) -> jax.Array:
    """`legendre`, computed on the device by the program that uses it.

    All orders and rows at once go from degree to degree, in float32 to a few millionths
    of the largest. Two things make that possible. What is added from one degree to the
    next is computed itself, of t = 1 - |sine| where x = |sine| loses its digits near a
    pole:

        (l - m) d_l = (l + m - 1) d_(l-1) - (2 l - 1) t P_(l-1),   d_l = P_l - P_(l-1).

    And each number has an exponent beside it: P_mm is far below what float32 holds for
    large m near a pole, where P_lm is not.

    Source: Abramowitz and Stegun 1964, equation 8.5.3, for x = 1 - t; Fukushima 2012,
    Journal of Geodesy 86, section 2, for the exponents.
    """
    size = grid.degree + 1
    latitude = np.radians(grid.latitudes())
    cosine = np.maximum(np.cos(latitude), 1e-300)
    is_pole = np.abs(np.abs(grid.latitudes()) - 90) < 1e-9
    small = 2 * np.sin((np.pi / 2 - np.abs(latitude)) / 2) ** 2
    order, degree = np.arange(size)[:, None], np.arange(size)
    steps = np.log2((2 * order + 1) / np.maximum(2 * order, 1)) / 2
    steps[0] = -np.log2(4 * np.pi) / 2
    log = np.cumsum(steps, axis=0) + order * np.log2(cosine)  # of |P_mm|
    low = np.floor(log)
    start = np.where(order % 2, -1.0, 1.0) * 2 ** (log - low)
    start = np.where((order > 0) & is_pole, 0.0, start)
    # Coefficients [degree, order, 1], where the degree is above the order.
    above = np.maximum(degree - order, 1)
    kept, taken = (degree + order - 1) / above, (2 * degree - 1) / above
    ratio = (2 * degree + 1) / np.maximum(2 * degree - 1, 1)
    norm = np.sqrt(ratio * above / np.maximum(degree + order, 1))
    coefficients = [
        jnp.asarray(np.where(degree > order, x, 0.0).T[..., None], dtype)
        for x in (kept, taken, norm)
    ]
    start, low, small = (jnp.asarray(x, dtype) for x in (start, low, small[None]))

    def to_next(carry, row):
        last, change, exponent = carry
        number, kept, taken, norm = row
        change = kept * change - taken * small * last
        new, change = norm * (last + change), norm * change
        is_first = number == order
        new, change = (jnp.where(is_first, start, x) for x in (new, change))
        scale = jnp.where(jnp.abs(new) > 2.0**30, jnp.asarray(2.0**-30, dtype), 1.0)
        new, change = new * scale, change * scale
        exponent = jnp.where(scale < 1, exponent + 30, exponent)
        found = new * jnp.exp2(jnp.maximum(exponent, -100.0))
        return (new, change, exponent), jnp.where(exponent < -100, 0.0, found)

    carry = (jnp.zeros_like(start), jnp.zeros_like(start), low)
    rows = (jnp.arange(size), *coefficients)
    found = jax.lax.scan(to_next, carry, rows)[1].swapaxes(0, 1)  # of |sine|
    is_odd = ((degree - order) % 2 == 1)[..., None] & (latitude < 0)
    return jnp.where(is_odd, -found, found)


def to_real_harmonics(field: jax.Array, grid: SphericalGrid) -> jax.Array:
    """The waves of a field, real `[..., part 2, l, m]`; linear in the field.

    Args:
        field: `[..., lat, lon]`; low precision is computed in float32.
        grid: its grid.

    Raises:
        ValueError: if the shape does not fit.

    Example:
        >>> import numpy as np
        >>> from ensjax.ops.sphere import SphericalGrid, to_real_harmonics
        >>> grid = SphericalGrid(8, 16)
        >>> north = np.sin(np.radians(grid.latitudes()))[:, None]
        >>> waves = to_real_harmonics(np.tile(north, 16), grid)  # sqrt(4 pi / 3) Y_10
        >>> print(waves.shape, waves[0, 1, 0].round(4))
        (2, 8, 8) 2.0467
    """
    field = wide(field)
    if field.shape[-2:] != grid.shape:
        raise ValueError(
            f"field must be [..., lat, lon] = {grid.shape}; got {field.shape}."
        )
    around = circle_waves(field, grid.degree + 1)
    return along_latitudes(around, analysis_table(grid, field.dtype))


def from_real_harmonics(waves: jax.Array, grid: SphericalGrid) -> jax.Array:
    """The field `[..., lat, lon]` of waves `[..., part 2, l, m]`.

    What is no harmonic is ignored.

    Args:
        waves: real; low precision is computed in float32.
        grid: of the field.

    Raises:
        ValueError: if the shape does not fit.
    """
    waves = wide(waves)
    if waves.shape[-3:] != grid.wave_shape:
        raise ValueError(
            f"waves must be [..., part, l, m] = {grid.wave_shape}; got {waves.shape}."
        )
    table = synthesis_table(grid, waves.dtype)
    return circle_field(along_degrees(waves, table), grid.num_longitudes)


def along_latitudes(around: jax.Array, table: jax.Array) -> jax.Array:
    """Waves `[..., part, l, m]` of sums along circles `[..., lat, part, m]`."""
    return jnp.einsum("mlj,...jpm->...plm", table, around, precision="highest")


def along_degrees(waves: jax.Array, table: jax.Array) -> jax.Array:
    """Sums along circles `[..., lat, part, m]` of waves `[..., part, l, m]`."""
    return jnp.einsum("mlj,...plm->...jpm", table, waves, precision="highest")


def circle_waves(field: jax.Array, num_orders: int) -> jax.Array:
    """sum_j f_j cos(m lambda_j), and with the sine: `[..., part 2, m]`.

    Args:
        field: `[..., lon]`, real.
        num_orders: m from 0 to one less, at most lon // 2 + 1 of them.
    """
    length = field.shape[-1]
    if length <= _MOST_BY_MATRIX:
        matrix = jnp.asarray(_circle(length)[:, :, :num_orders], field.dtype)
        return jnp.einsum("...j,jpm->...pm", field, matrix, precision="highest")
    modes = jnp.fft.rfft(field, axis=-1)[..., :num_orders]
    return jnp.stack([modes.real, -modes.imag], axis=-2)


def circle_field(waves: jax.Array, length: int) -> jax.Array:
    """The field `[..., lon]` of `circle_waves` `[..., part 2, m]`.

    Orders that are not given are 0; the sines of m = 0 and m = lon / 2 are ignored.
    """
    num_orders = waves.shape[-1]
    if length <= _MOST_BY_MATRIX:
        order = np.arange(num_orders)
        share = np.where((order == 0) | (2 * order == length), 1.0, 2.0) / length
        matrix = _circle(length)[:, :, :num_orders] * share
        matrix = jnp.asarray(matrix, waves.dtype)
        return jnp.einsum("...pm,jpm->...j", waves, matrix, precision="highest")
    modes = jax.lax.complex(waves[..., 0, :], -waves[..., 1, :])
    padding = [(0, 0)] * (modes.ndim - 1) + [(0, length // 2 + 1 - num_orders)]
    return jnp.fft.irfft(jnp.pad(modes, padding), n=length, axis=-1)


@functools.lru_cache(maxsize=16)
def _circle(length):
    """cos(m lambda_j) and sin(m lambda_j), `[lon, part 2, m]`, float64."""
    place, order = np.arange(length)[:, None], np.arange(length // 2 + 1)
    # Whole turns are taken off in integers, which are exact.
    angle = 2 * np.pi * (place * order % length) / length
    sine = np.where(2 * order % length == 0, 0.0, np.sin(angle))
    return np.stack([np.cos(angle), sine], axis=1)


def harmonic_mask(grid: SphericalGrid) -> np.ndarray:
    """1 where there is a harmonic and 0 elsewhere, float32 `[part 2, l, m]`."""
    part, degree, order = np.indices(grid.wave_shape)
    is_harmonic = (order <= degree) & ((part == 0) | (order > 0))
    return is_harmonic.astype(np.float32)


def order_weights(grid: SphericalGrid) -> np.ndarray:
    """How many complex harmonics have degree l and order m or -m, float32 `[l, m]`.

    1 for m = 0, 2 for 0 < m <= l, 0 for m > l.
    """
    return harmonic_mask(grid).sum(axis=0)


def wave_power(waves: jax.Array) -> jax.Array:
    """Power of each degree, `[..., l]`; the sum is the area mean of the field's square.

    Args:
        waves: `[..., part 2, l, m]`, 0 where there is no harmonic.
    """
    return jnp.sum(jnp.square(waves), axis=(-3, -1)) / np.float32(4 * np.pi)


def wide(values: jax.Array) -> jax.Array:
    """As floating-point numbers of float32 or wider."""
    values = jnp.asarray(values)
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))
