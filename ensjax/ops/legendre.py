"""Associated Legendre functions of a grid's rows, and tables of transforms by them.

They are `[m, l, lat]`, orthonormal with e^(i m lambda), as in `ensjax.ops.sphere`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.ops.spherical_grid import SphericalGrid

# Tables of more numbers are computed by the program: constants are part of its text.
MOST_CONSTANT = 2**22


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
    # Signs of orders, degrees and rows: their product would be a large constant.
    parity = jnp.asarray(np.where((degree - order) % 2, -1.0, 1.0)[..., None], dtype)
    return jnp.where(jnp.asarray(latitude < 0), parity, 1) * found
