"""The CRPS of fields on the sphere: of places by their areas, and of their waves.

Dealing the members of one place out to other places' fields leaves the CRPS of places
as it is. That of the moduli of the waves rises: members that are trained on both are
fields. Both have the kernels of `kernel_crps`, and their values are those of
`verification.crps` and `verification.spectral_crps`.

Source: Bonev et al. 2025, arXiv:2507.12144 (FourCastNet 3), section on the loss.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.ops.device_sums import sum_over
from ensjax.ops.sphere import SphericalGrid, order_weights
from ensjax.ops.sphere_split import own_block, own_orders, rows_here, split_to_waves
from ensjax.train.identity import LATER
from ensjax.train.kernel_crps import (
    check_fair,
    checked_members,
    crps_of_complex,
    crps_of_weight,
    fair_weight,
    modulus,
)
from ensjax.train.noise_members import NoiseCrps, all_rows, shared_model
from ensjax.train.rollouts import check_element_weights

# What of a wave is scored; see `wave_crps`.
KINDS = ("modulus", "complex")


def area_crps(
    members: jax.Array,
    truth: jax.Array,
    grid: SphericalGrid,
    *,
    fair: jax.Array | float = 1.0,
    form: str = "auto",
    axis: str | None = None,
) -> jax.Array:
    """The CRPS of places, averaged by their areas, `[...]`, in the unit of the values.

    Args:
        members: `[member, ..., lat, lon]`.
        truth: `[..., lat, lon]`. A NaN of either makes its field's score NaN, and all
            derivatives of it; `SphericalCrps` leaves targets that are NaN out.
        grid: of the fields; a pole that is repeated counts once.
        fair: weight of the fair estimator, from 0, the standard one, to 1. It may be
            traced, and is then not checked.
        form: of `kernel_crps`.
        axis: of the mesh, over which latitudes are split: fields are then this device's
            rows, the result is the whole sphere's, and derivatives are those of a
            device's own part (see `ops.sphere_split`).

    Raises:
        ValueError: if members and truth do not fit each other or are not on the grid,
            for another form, a weight out of range, no member, or one unless the
            weight is 0, which then is the absolute error.
        TypeError: if members or truth are complex.
    """
    members, truth = _checked_fields(members, truth, grid, fair, axis)
    values = crps_of_weight(members, truth, fair, form=form)
    area = own_block(jnp.asarray(_areas(grid)), axis, dim=0)
    return sum_over(jnp.einsum("...ij,i->...", values, area), axis)


def wave_crps(
    members: jax.Array,
    truth: jax.Array,
    grid: SphericalGrid,
    *,
    fair: jax.Array | float = 1.0,
    form: str = "auto",
    axis: str | None = None,
    kind: str = "modulus",
) -> jax.Array:
    """The CRPS of the waves, summed, `[...]`, in the unit of the values.

        sum_{l, m >= 0} v_m / (4 pi) CRPS(|c_lm|),   v_0 = 1, v_m = 2,

    with c_lm = a_lm / sqrt(4 pi) of orthonormal harmonics. Arguments as for
    `area_crps`, and as there a field with a NaN has the score NaN: every wave is of all
    places.

    Args:
        members, truth, grid, fair, form, axis: as there.
        kind: "modulus", as published: it ignores phases, and cannot replace the CRPS of
            places. "complex": CRPS(c_lm) by distances in the complex plane, which sees
            phases, always in pairs (`crps_of_complex`).

    Raises:
        ValueError: as `area_crps`, for another kind, or the sorted form of the complex
            one.
        TypeError: as there.
    """
    _check_kind(kind, form)
    members, truth = _checked_fields(members, truth, grid, fair, axis)
    waves = [split_to_waves(field, grid, axis) for field in (members, truth)]
    share = own_orders(_modulus_share(grid), grid, axis)
    if kind == "modulus":
        moduli = [modulus(x, axis=-3) for x in waves]
        moduli = [x * share.reshape((1,) * (x.ndim - 1) + (-1,)) for x in moduli]
        values = crps_of_weight(*moduli, fair, form=form)
    else:
        waves = [x * share.reshape((1,) * (x.ndim - 1) + (-1,)) for x in waves]
        parts = [jnp.moveaxis(x, -3, place) for place, x in zip((1, 0), waves)]
        values = crps_of_complex(*parts, fair)
    weights = own_orders(order_weights(grid) / np.float32(4 * np.pi), grid, axis)
    return sum_over(jnp.einsum("...lm,lm->...", values, weights), axis)


def _checked_fields(members, truth, grid, fair, axis):
    """Both as arrays, if they are fields of this device and have such a score."""
    members, truth = checked_members(members, truth)
    expected = (rows_here(grid.num_latitudes, axis), grid.num_longitudes)
    if truth.shape[-2:] != expected:
        rows = "lat" if axis is None else "lat / devices"
        raise ValueError(
            f"fields must be [..., {rows}, lon] on {expected}; got {truth.shape}."
        )
    check_fair(fair, len(members))
    return members, truth


def _check_kind(kind, form):
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}.")
    if kind == "complex" and form == "sorted":
        raise ValueError(
            'complex numbers have no order: kind="complex" needs form="pairs", or'
            ' "auto".'
        )


@functools.lru_cache(maxsize=16)
def _areas(grid):
    """Share of each place of a row in the whole sphere, `[lat]`."""
    return (grid.quadrature() / (2 * grid.num_longitudes)).astype(np.float32)


def _modulus_share(grid):
    """|c_lm| over the root of the sum of squares of its two waves, `[m]`."""
    order = np.arange(grid.degree + 1)
    share = np.where(order == 0, 1.0, np.sqrt(0.5)) / np.sqrt(4 * np.pi)
    return share.astype(np.float32)


def _is_number(value):
    return isinstance(value, (int, float))


@dataclasses.dataclass(frozen=True)
class SphericalCrps(NoiseCrps):
    """`NoiseCrps` of fields on the sphere: by area, and with a term of their waves.

        mean_c u_c (CRPS of places + spectral_weight * CRPS of waves)

    Targets are `[..., lat, lon, channel]`, such as the steps of a `RolloutLoss`. A
    target that is NaN does not count; of a field with any, there is no spectral term.

    Attributes:
        grid: of the fields.
        spectral_weight: 0.1 as published; 0 leaves the waves out. It may be traced,
            such as a hyperparameter of every member of a stack.
        spectral_kind: "modulus" as published, or "complex", which sees phases; see
            `wave_crps`.
        channel_weights: u, one for each channel, such as those of the variables times
            their deviation over that of their change in a step (`change_weights`);
            they are kept as a tuple. None: all 1.
        latitude_axis: "model": the latitudes of a case are split over that axis of the
            mesh, and the model is one of its rows (`SphericalForecaster(axis="model")`,
            `condition` a state or a pytree of fields `[..., lat, lon, channel]`). Noise
            is drawn whole on every device. None: a device has all latitudes.

    Raises:
        ValueError: as `NoiseCrps`, without a grid, for a weight that is negative, for
            weights of channels that are not finite or all 0, or if both members and
            latitudes are to be split; on the call, if the target is not on the grid, or
            has other channels than the weights.
    """

    grid: SphericalGrid | None = None
    spectral_weight: Any = 0.1
    channel_weights: tuple[float, ...] | None = None
    latitude_axis: str | None = None
    spectral_kind: str = dataclasses.field(default="modulus", metadata=LATER)

    def __post_init__(self):
        super().__post_init__()
        _check_kind(self.spectral_kind, self.form)
        if self.latitude_axis not in (None, "model"):
            raise ValueError(
                f'latitude_axis must be None or "model"; got {self.latitude_axis!r}.'
            )
        if self.latitude_axis is not None and self.axis is not None:
            raise ValueError(
                'either members (axis="model") or latitudes (latitude_axis="model")'
                " are split over the mesh; got both."
            )
        if not isinstance(self.grid, SphericalGrid):
            raise ValueError(f"grid must be a SphericalGrid; got {self.grid!r}.")
        if _is_number(self.spectral_weight) and not self.spectral_weight >= 0:
            raise ValueError(
                f"spectral_weight must not be negative; got {self.spectral_weight}."
            )
        weights = self.channel_weights
        if weights is None:
            return
        if np.ndim(weights) != 1:
            raise ValueError(
                "channel_weights must be [channel], one number for each; got shape"
                f" {np.shape(weights)}."
            )
        if not isinstance(weights, tuple):
            # What `fit` is given can be hashed.
            weights = tuple(np.asarray(weights).tolist())
            object.__setattr__(self, "channel_weights", weights)
        check_element_weights(weights, "channel_weights")

    def elements(
        self,
        model: Any,
        key: jax.Array,
        target: jax.Array,
        condition: Any,
        *,
        fair: Any = None,
    ) -> jax.Array:
        """As `NoiseCrps.elements`; the mean over a field's elements is its score."""
        if target.ndim < 3 or target.shape[-3:-1] != self.grid.shape:
            raise ValueError(
                f"targets must be [..., lat, lon, channel] on {self.grid.shape}; got"
                f" {target.shape}."
            )
        weights = self.channel_weights
        if weights is not None and len(weights) != target.shape[-1]:
            raise ValueError(
                f"channel_weights must be one for each of {target.shape[-1]} channels"
                f" of the target; got {len(weights)}."
            )
        latitudes = self.latitude_axis
        is_there = ~jnp.isnan(target)
        # Before and after: a NaN that is only masked afterwards has a NaN derivative.
        whole = jnp.where(is_there, target, 0.0)
        target = own_block(whole, latitudes, dim=-3)
        members = self.members(model, key, whole.shape, condition)
        if fair is None:
            fair = fair_weight(self.estimator, self.alpha, self.num_members)
        values = crps_of_weight(members, target, fair, form=self.form)
        values = all_rows(latitudes, values, self.grid.num_latitudes)
        size = self.grid.num_latitudes * self.grid.num_longitudes
        areas = jnp.asarray(_areas(self.grid) * size)
        areas = areas.reshape((1,) * (values.ndim - 3) + (-1, 1, 1))
        # The mean over the places that there are is the mean over their area.
        there = jnp.sum(jnp.where(is_there, areas, 0.0), axis=(-3, -2), keepdims=True)
        number = jnp.sum(is_there, axis=(-3, -2), keepdims=True)
        share = jnp.where(there > 0, number / jnp.maximum(there, 1e-6), 0.0)
        values = values * areas * jnp.where(number == size, 1.0, share)
        if not (_is_number(self.spectral_weight) and self.spectral_weight == 0):
            fields, own = (jnp.moveaxis(x, -1, -3) for x in (members, target))
            spectral = wave_crps(
                fields,
                own,
                self.grid,
                fair=fair,
                form=self.form,
                axis=latitudes,
                kind=self.spectral_kind,
            )
            is_whole = is_there.all(axis=(-3, -2))
            spectral = self.spectral_weight * jnp.where(is_whole, spectral, 0.0)
            values = values + spectral[..., None, None, :]
        if weights is not None:
            weights = jnp.asarray(weights, jnp.float32)
            values = values * weights.reshape((1,) * (values.ndim - 1) + (-1,))
        return jnp.where(is_there, values, 0.0)

    def prepare(self, model: Any) -> Any:
        """As `NoiseCrps.prepare`, also where latitudes are split."""
        return shared_model(model, self.latitude_axis or self.axis)

    def members(
        self, model: Any, key: jax.Array, shape: tuple[int, ...], condition: Any
    ) -> jax.Array:
        """As `NoiseCrps.members`; this device's rows of them where they are split."""
        axis = self.latitude_axis
        if axis is None:
            return super().members(model, key, shape, condition)

        def own(fields):
            return jax.tree.map(lambda x: own_block(x, axis, dim=-3), fields)

        def of_rows(noise, condition):
            return model(own(noise), condition)

        return super().members(of_rows, key, shape, own(condition))
