"""A global atmosphere of dry air: Held-Suarez forcing of the package dinosaur.

Held and Suarez 1994, BAMS 75, 1825-1830: a primitive-equation core whose temperature
relaxes to a profile and whose lowest winds are rubbed away. It is chaotic and, once it
has spun up, stationary: no seasons, no land, no water.
"""

import dataclasses
import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

# Truncation by Gaussian latitudes of a hemisphere, as dinosaur has them.
_GAUSSIAN_NODES = {21: 16, 31: 24, 42: 32, 85: 64}


@dataclasses.dataclass(frozen=True)
class HeldSuarez:
    """The simulator, a `trajectories.System`; a state is one of dinosaur's.

    Attributes:
        truncation: highest wavenumber, 21, 31, 42 or 85.
        num_levels: layers of equal thickness in pressure over surface pressure.
        step_minutes: of the semi-implicit scheme; 60 for T21, 40 for T31, 30 for T42.
        variable: what `observe` gives: the temperature of the lowest layer in K, and
            the surface pressure in hPa.
        contrast_kelvin: between equator and poles in the profile that temperature
            relaxes to, in K. The published 60; others make an imperfect simulator.
        friction_days: in which friction takes 1 / e of the wind at the ground, in days.
            The published 1.
    """

    truncation: int = 21
    num_levels: int = 5
    step_minutes: int = 60
    variable: tuple[str, ...] = ("temperature", "surface_pressure")
    contrast_kelvin: float = 60.0
    friction_days: float = 1.0

    def __post_init__(self):
        if self.truncation not in _GAUSSIAN_NODES:
            known = ", ".join(map(str, _GAUSSIAN_NODES))
            raise ValueError(f"truncation is one of {known}; got {self.truncation}.")
        if self.num_levels < 2 or self.step_minutes < 1:
            raise ValueError(
                "num_levels is at least 2 and step_minutes at least 1; got"
                f" {self.num_levels} and {self.step_minutes}."
            )
        if 24 * 60 % self.step_minutes:
            raise ValueError(
                f"step_minutes must divide a day of 1,440; got {self.step_minutes}."
            )
        for name in ("contrast_kelvin", "friction_days"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 < value < np.inf:
                raise ValueError(f"{name} must be a number above 0; got {value!r}.")

    @property
    def name(self) -> str:
        name = f"Held-Suarez T{self.truncation}, {self.num_levels} levels"
        if self.contrast_kelvin != 60:
            name += f", contrast {self.contrast_kelvin:g} K"
        if self.friction_days != 1:
            name += f", friction {self.friction_days:g} days"
        return name

    @property
    def step_length(self) -> float:
        """Of a step, in days."""
        return self.step_minutes / (24 * 60)

    @property
    def steps_per_day(self) -> int:
        return 24 * 60 // self.step_minutes

    @property
    def space(self) -> dict[str, np.ndarray]:
        """Gaussian latitudes from south to north and longitudes, in degrees."""
        grid = _core(self).grid
        return {"lat": np.rad2deg(grid.latitudes), "lon": np.rad2deg(grid.longitudes)}

    @property
    def units(self) -> dict[str, str]:
        return {
            "temperature": "K",
            "surface_pressure": "hPa",
            "lat": "degrees_north",
            "lon": "degrees_east",
        }

    @property
    def latitude_weights(self) -> np.ndarray:
        """Gaussian quadrature weights `[lat]`, mean 1."""
        weights = np.asarray(_core(self).grid.quadrature_weights)[0]
        return weights / weights.mean()

    def start(self, key: jax.Array) -> Any:
        """Isothermal air at rest, with a wave of surface pressure at a random place."""
        return _core(self).start(key)

    def step(self, state: Any) -> Any:
        return _core(self).step(state)

    def perturb(self, state: Any, key: jax.Array, scale: Any) -> Any:
        """Noise on the waves of temperature, in proportion to each of them.

        Every coefficient of the expansion but the zonal means is multiplied by a
        `1 + scale * normal` of its own: noise has the state's spectrum.
        """
        temperature = state.temperature_variation  # [level, order, degree]
        factor = 1.0 + scale * jax.random.normal(key, temperature.shape)
        factor = factor.at[:, 0].set(1.0)  # of zonal wavenumber 0
        return dataclasses.replace(state, temperature_variation=temperature * factor)

    def observe(self, state: Any) -> jax.Array:
        """Lowest temperature and surface pressure, `[variable 2, lat, lon]`."""
        return _core(self).observe(state)

    @property
    def channels(self) -> tuple[str, ...]:
        """What `fields` holds: three variables of each layer, the topmost first."""
        levels = range(1, self.num_levels + 1)
        by_level = ("vorticity", "divergence", "temperature")
        return (*(f"{x}_{n}" for x in by_level for n in levels), "surface_pressure")

    def fields(self, state: Any) -> jax.Array:
        """The whole of a state on the grid, `[lat, lon, channel]`.

        Vorticity and divergence in 1/s, temperature in K, surface pressure in hPa. It
        is what perturbations and networks are made of; `from_fields` goes back.
        """
        return _core(self).fields(state)

    def from_fields(self, fields: jax.Array) -> Any:
        """The state of fields `[lat, lon, channel]`.

        What the truncation does not hold is lost, and so are global means of vorticity
        and divergence, which no wind has.

        Raises:
            ValueError: if the shape does not fit.
        """
        core = _core(self)
        longitudes, latitudes = core.grid.nodal_shape
        expected = (latitudes, longitudes, len(self.channels))
        if fields.shape != expected:
            raise ValueError(
                f"fields must be [lat, lon, channel] = {expected}; got {fields.shape}."
            )
        return core.from_fields(fields)

    def insert(self, state: Any, fields: jax.Array) -> Any:
        """The state with what is seen of it replaced; the rest stays what it is.

        Args:
            state: one of dinosaur's.
            fields: as `observe` gives them, `[variable 2, lat, lon]`. What they have
                beyond the truncation is lost.
        """
        return _core(self).insert(state, fields)


class _Core(NamedTuple):
    grid: Any
    start: Any
    step: Any
    observe: Any
    fields: Any
    from_fields: Any
    insert: Any


@functools.cache
def _core(system: HeldSuarez) -> _Core:
    """The compiled-in parts of a system: matrices of its transforms and its scheme.

    They are made once, in a thread of their own: arrays that are made where a program
    is being traced belong to its mesh, and programs of another mesh cannot use them.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(_make_core, system).result()


def _make_core(system):
    try:
        from dinosaur import (
            coordinate_systems,
            held_suarez,
            primitive_equations,
            primitive_equations_states,
            scales,
            sigma_coordinates,
            spherical_harmonic,
            time_integration,
            xarray_utils,
        )
    except ImportError as error:
        raise ImportError(
            "the Held-Suarez simulator needs package dinosaur: pip install"
            " 'ensjax[weather]'"
        ) from error
    unit = scales.units
    with jax.numpy_rank_promotion("allow"):
        specs = primitive_equations.PrimitiveEquationsSpecs.from_si()
        grid = spherical_harmonic.Grid.construct(
            max_wavenumber=system.truncation,
            gaussian_nodes=_GAUSSIAN_NODES[system.truncation],
            radius=specs.radius,
        )
        coords = coordinate_systems.CoordinateSystem(
            grid, sigma_coordinates.SigmaCoordinates.equidistant(system.num_levels)
        )
        start, features = primitive_equations_states.isothermal_rest_atmosphere(
            coords, specs, p0=1e5 * unit.pascal, p1=5e3 * unit.pascal
        )
        reference = features[xarray_utils.REF_TEMP_KEY]
        orography = np.zeros(grid.modal_shape, np.float32)
        equations = time_integration.compose_equations(
            [
                primitive_equations.PrimitiveEquations(
                    reference, orography, coords, specs
                ),
                held_suarez.HeldSuarezForcing(
                    coords,
                    specs,
                    reference,
                    kf=1 / (system.friction_days * unit.day),
                    dTy=system.contrast_kelvin * unit.degK,
                ),
            ]
        )
        length = specs.nondimensionalize(system.step_minutes * unit.minute)
        step = time_integration.step_with_filters(
            time_integration.imex_rk_sil3(equations, length),
            [time_integration.exponential_step_filter(grid, length)],
        )
    kelvin = float(specs.dimensionalize(1.0, unit.degK).m)
    hectopascal = float(specs.dimensionalize(1.0, unit.pascal).m) / 100
    lowest = float(reference[-1])

    def observe(state):
        temperature = lowest + grid.to_nodal(state.temperature_variation[-1])
        pressure = jax.numpy.exp(grid.to_nodal(state.log_surface_pressure[0]))
        fields = jax.numpy.stack([temperature * kelvin, pressure * hectopascal])
        return fields.swapaxes(-1, -2)  # [variable, lat, lon]

    per_second = float(specs.dimensionalize(1.0, 1 / unit.second).m)
    units = np.repeat([per_second, per_second, kelvin], system.num_levels)
    units = np.append(units, hectopascal).astype(np.float32)
    offset = np.zeros(len(units), np.float32)
    offset[2 * system.num_levels : -1] = np.asarray(reference) * kelvin

    def fields(state):
        parts = state.vorticity, state.divergence, state.temperature_variation
        nodal = [grid.to_nodal(part) for part in parts]  # [level, lon, lat]
        pressure = jax.numpy.exp(grid.to_nodal(state.log_surface_pressure))
        found = jax.numpy.concatenate([*nodal, pressure]).transpose(2, 1, 0)
        return found * units + offset

    def from_fields(fields):
        nodal = ((fields - offset) / units).transpose(2, 1, 0)
        nodal = jax.numpy.concatenate([nodal[:-1], jax.numpy.log(nodal[-1:])])
        # The last degree of dinosaur's waves is for derivatives.
        waves = grid.clip_wavenumbers(grid.to_modal(nodal))
        of_wind = 2 * system.num_levels
        waves = waves.at[:of_wind, 0, 0].set(0.0)
        first = (system.num_levels, of_wind, of_wind + system.num_levels)
        return primitive_equations.State(*jax.numpy.split(waves, first))

    def insert(state, fields):
        temperature, pressure = fields.swapaxes(-1, -2)  # [lon, lat] of dinosaur
        air = state.temperature_variation
        lowest_air = grid.to_modal(temperature / kelvin - lowest)
        surface = grid.to_modal(jax.numpy.log(pressure / hectopascal))
        return dataclasses.replace(
            state,
            temperature_variation=air.at[-1].set(lowest_air.astype(air.dtype)),
            log_surface_pressure=surface[None].astype(air.dtype),
        )

    functions = (start, step, observe, fields, from_fields, insert)
    return _Core(grid, *map(_allowing_ranks, functions))


def _allowing_ranks(fn):
    """`fn` with silent broadcasting of ranks, which the package relies on."""

    @functools.wraps(fn)
    def run(*args):
        with jax.numpy_rank_promotion("allow"):
            return fn(*args)

    return run
