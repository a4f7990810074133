"""Power by wavenumber, along latitude circles and on the sphere.

Members should keep the truth's power at all leads; the ensemble mean must lose it at
small scales as members diverge. A score of single places cannot see either.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.ops.sphere import SphericalGrid, to_real_harmonics, wave_power
from ensjax.scores.rows import floating
from ensjax.verification.ingredients import of_each, whole_vectors
from ensjax.verification.member_state import OfMembers
from ensjax.verification.metric import Metric

EARTH_RADIUS_KM = 6371.0


def zonal_power(field: jax.Array) -> jax.Array:
    """Power of each zonal wavenumber, `[..., wavenumber]` from 0 to L // 2.

        F_k = (1 / L) sum_j f_j e^(-2 pi i k j / L),   P_0 = |F_0|^2,  P_k = 2 |F_k|^2

    and for even L the last one, L / 2, only once: so the sum over k is the mean of f^2.
    Others double it too. In squared units.

    Args:
        field: `[..., lon]`, real.

    Raises:
        ValueError: if there is no longitude.
    """
    field = floating(field)
    if field.ndim < 1 or field.shape[-1] < 1:
        raise ValueError(f"field must be [..., lon]; got shape {field.shape}.")
    length = field.shape[-1]
    modes = jnp.fft.rfft(field, axis=-1) / length
    times = np.full(length // 2 + 1, 2.0, np.float32)
    times[0] = 1.0
    if length % 2 == 0:
        times[-1] = 1.0
    squared = modes.real**2 + modes.imag**2
    return squared * jnp.broadcast_to(times, squared.shape)


def zonal_spectrum(
    field: jax.Array, latitudes: jax.Array, *, radius_km: float = EARTH_RADIUS_KM
) -> jax.Array:
    """Energy density of zonal wavenumbers, `[..., lat, wavenumber]`, squared units x m.

    `zonal_power` times the circumference 2 pi R cos(latitude): its sum over wavenumbers
    is the integral of f^2 along the circle. Against the wavelength (`zonal_wavelength`)
    it compares latitudes.

    Args:
        field: `[..., lat, lon]`.
        latitudes: in degrees, `[lat]`.
        radius_km: of the sphere.

    Raises:
        ValueError: if a shape does not fit.
    """
    around = _circumference(latitudes, radius_km)
    field = floating(field)
    if field.ndim < 2 or field.shape[-2:-1] != around.shape:
        raise ValueError(
            f"field must be [..., lat, lon] with {around.shape[0]} latitudes; got shape"
            f" {field.shape}."
        )
    power = zonal_power(field)
    return power * around.reshape((1,) * (power.ndim - 2) + (-1, 1))


def zonal_wavelength(
    latitudes: jax.Array, num_longitudes: int, *, radius_km: float = EARTH_RADIUS_KM
) -> jax.Array:
    """Wavelengths in km, `[lat, wavenumber]`; infinite for wavenumber 0."""
    around = _circumference(latitudes, radius_km) / 1000.0
    number = jnp.arange(num_longitudes // 2 + 1)
    return jnp.where(
        number == 0, jnp.inf, around[:, None] / jnp.maximum(number, 1)[None]
    )


def _circumference(latitudes, radius_km):
    latitudes = jnp.asarray(latitudes, jnp.float32)
    if latitudes.ndim != 1:
        raise ValueError(f"latitudes must be [lat]; got shape {latitudes.shape}.")
    return 2 * np.pi * 1000.0 * radius_km * jnp.cos(jnp.radians(latitudes))


def spherical_power(field: jax.Array, grid: SphericalGrid) -> jax.Array:
    """Power of each degree, `[..., l]`, in squared units; the sum is the mean square.

        P_l = sum_m |a_lm|^2 / (4 pi)

    Args:
        field: `[..., lat, lon]`, on `grid`.
        grid: where it is.

    Raises:
        ValueError: if the shape does not fit.
    """
    return wave_power(to_real_harmonics(floating(field), grid))


class Spectra(NamedTuple):
    """Power, averaged over cases, and its ratio to the truth's; `[..., wavenumber]`.

    Attributes:
        members: mean over the members' own spectra.
        ensemble_mean: of the mean of the members.
        truth: of the observations.
        members_ratio: members over truth; near 1 at all scales is best.
        mean_ratio: ensemble mean over truth.
        distance: log-spectral distance of members and truth in decibel, `[...]`.
    """

    members: jax.Array
    ensemble_mean: jax.Array
    truth: jax.Array
    members_ratio: jax.Array
    mean_ratio: jax.Array
    distance: jax.Array


@functools.lru_cache(maxsize=1)
def zonal_spectra() -> Metric:
    """Spectra along the last axis, `Spectra`, by `zonal_power`.

    Elements are `[..., lat]`: weights of 0 and 1 choose a band of latitudes, and
    `.over(0)` keeps latitudes apart. Any periodic axis will do (Lorenz-96).
    """
    return _spectra("zonal", zonal_power, 1)


@functools.lru_cache(maxsize=32)
def spherical_spectra(grid: SphericalGrid) -> Metric:
    """Spectra of fields `[..., lat, lon]` on the sphere, `Spectra`, by degree l.

    Args:
        grid: of the fields.
    """
    power = functools.partial(spherical_power, grid=grid)
    return _spectra(f"spherical, {grid}", power, 2)


class _FieldPower(NamedTuple):
    """Mean power of the members `[..., wavenumber]`, and the mean member."""

    power: jax.Array
    mean: jax.Array


def _spectra(name, power, vector_axes):
    def each(values, given):
        del given
        values = whole_vectors(values, vector_axes)
        is_there = ~jnp.isnan(values)
        for _ in range(vector_axes - 1):
            is_there = is_there[..., 0]
        found = power(jnp.where(jnp.isnan(values), 0.0, values))
        found = jnp.where(is_there[..., :1], found, jnp.nan)
        return OfMembers(moments={"power": found, "member": values})

    def known(found, truth, reference):
        del truth, reference
        return _FieldPower(*(found.moments[n].mean for n in ("power", "member")))

    def statistics(members, truth, reference):
        del reference
        return {
            "members": members.power,
            "ensemble_mean": power(members.mean),
            "truth": power(truth),
        }

    def final(mean):
        truth = jnp.where(mean["truth"] > 0, mean["truth"], jnp.nan)
        return Spectra(
            mean["members"],
            mean["ensemble_mean"],
            mean["truth"],
            mean["members"] / truth,
            mean["ensemble_mean"] / truth,
            log_spectral_distance(mean["members"], mean["truth"]),
        )

    ingredient = of_each(f"power, {name}", each, known)
    return Metric(ingredient, statistics, final, best="none", vector_axes=vector_axes)


def log_spectral_distance(
    power: jax.Array, reference_power: jax.Array, *, first: int = 1
) -> jax.Array:
    """Root mean square over wavenumbers of 10 log10 of the ratio, in decibel, `[...]`.

    Args:
        power: `[..., wavenumber]`, averaged over cases before.
        reference_power: of the same shape.
        first: the first wavenumber that counts; 1 leaves the mean out.

    Raises:
        ValueError: if the shapes differ or no wavenumber is left.
    """
    power, reference_power = floating(power), floating(reference_power)
    if power.shape != reference_power.shape or not 0 <= first < power.shape[-1]:
        raise ValueError(
            "power and reference_power must be of one shape [..., wavenumber] with"
            f" more than {first}; got {power.shape} and {reference_power.shape}."
        )
    decibel = 10 * (jnp.log10(power) - jnp.log10(reference_power))[..., first:]
    return jnp.sqrt(jnp.mean(decibel**2, axis=-1))
