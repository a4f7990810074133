"""Perturbations of a start: bred vectors, random ones of equal norm, lagged forecasts.

A perturbation is of one member, `perturb(model, key, start) -> delta`, and depends on
nothing but its arguments: a member is made again from its identity alone. Perturbations
come in pairs, `+delta` and `-delta` (*centred*).

Source: Mahesh et al. 2024, arXiv:2408.03100 (huge ensembles I), section 3, and the code
that belongs to it; Toth and Kalnay 1993, Bulletin of the AMS 74 (breeding).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.emulate.rollout import one_step
from ensjax.verification.area import cosine_weights


class Start(NamedTuple):
    """Where a forecast begins.

    Attributes:
        state: the analysis, any pytree; `[*space, channel]` for what scales channels.
        history: analyses up to the start, the last one being its own, evenly spaced by
            a cycle of breeding, `[time, *space, channel]`; None where nothing is bred.
    """

    state: Any
    history: Any = None


@dataclasses.dataclass(frozen=True)
class GlobalNorm:
    """Root mean square over all of space, of each channel.

    Attributes:
        latitudes: in degrees, of the first axis of space, which then weighs by their
            cosine; None: all places weigh the same.
    """

    latitudes: tuple[float, ...] | None = None

    def __call__(
        self, field: jax.Array, is_there: jax.Array | None = None
    ) -> jax.Array:
        """`[1..., channel]` of a field `[*space, channel]`.

        Args:
            field: finite.
            is_there: which of its elements count, `[*space, channel]`; None: all.
        """
        _check_field(field, self.latitudes)
        weights = _row_weights(self.latitudes, field.ndim)
        return _weighted_norm(field, weights, is_there)


@dataclasses.dataclass(frozen=True)
class HemisphericNorm:
    """Root mean square north and south of the tropics, linear in latitude between.

    With one norm for all, the hemisphere that has little to amplify is given as much as
    the other has.

    Attributes:
        latitudes: in degrees, of the first axis of space, in any order.
        tropics: where they end, in degrees.

    Raises:
        ValueError: if a hemisphere has no latitude beyond the tropics.
    """

    latitudes: tuple[float, ...]
    tropics: float = 20.0

    def __post_init__(self):
        if max(self.latitudes) <= self.tropics or min(self.latitudes) >= -self.tropics:
            raise ValueError(
                f"HemisphericNorm needs latitudes beyond {self.tropics:g} degrees on"
                f" both sides; got {min(self.latitudes):g} to {max(self.latitudes):g}."
            )

    def __call__(
        self, field: jax.Array, is_there: jax.Array | None = None
    ) -> jax.Array:
        """`[lat, 1..., channel]` of a field `[lat, *space, channel]`.

        Arguments as of `GlobalNorm`.
        """
        _check_field(field, self.latitudes)
        latitudes = np.asarray(self.latitudes, np.float64)
        weights = _row_weights(self.latitudes, field.ndim)
        wide = (-1,) + (1,) * (field.ndim - 1)
        is_north = (latitudes > self.tropics).reshape(wide)
        is_south = (latitudes < -self.tropics).reshape(wide)
        north = _weighted_norm(field, weights * is_north, is_there)
        south = _weighted_norm(field, weights * is_south, is_there)
        # Where one side has nothing, the tropics are not told that they are small.
        north, south = (
            jnp.where(one > 0, one, other)
            for one, other in ((north, south), (south, north))
        )
        place = np.clip((latitudes + self.tropics) / (2 * self.tropics), 0.0, 1.0)
        return south + (north - south) * place.reshape(wide).astype(np.float32)


def _check_field(field, latitudes):
    if latitudes is None:
        return
    if field.ndim < 2 or field.shape[0] != len(latitudes):
        raise ValueError(
            f"a field must be [lat, *space, channel] with {len(latitudes)} latitudes;"
            f" got shape {field.shape}."
        )


def _row_weights(latitudes, ndim):
    if latitudes is None:
        return np.ones((1,) * ndim, np.float32)
    weights = np.asarray(cosine_weights(np.asarray(latitudes)))
    return weights.reshape((-1,) + (1,) * (ndim - 1))


def _weighted_norm(field, weights, is_there=None):
    space = tuple(range(field.ndim - 1))
    shape = (*field.shape[:-1], 1)
    weights = jnp.broadcast_to(jnp.asarray(weights, jnp.float32), shape)
    if is_there is None:
        total = jnp.sum(weights)
    else:
        weights = jnp.where(is_there, weights, 0.0)
        total = jnp.sum(weights, axis=space, keepdims=True)
        total = jnp.where(total > 0, total, 1.0)
    squares = jnp.sum(weights * field**2, axis=space, keepdims=True)
    return jnp.sqrt(squares / total)


def rescale(
    delta: jax.Array,
    amplitude: jax.Array,
    norm: Any,
    *,
    is_there: jax.Array | None = None,
) -> jax.Array:
    """`delta` with the norm `amplitude` in each channel, `[*space, channel]`.

    A channel whose norm is 0 stays 0.

    Args:
        delta: `[*space, channel]`.
        amplitude: `[channel]`, in the unit of the field.
        norm: `GlobalNorm()` or a `HemisphericNorm`.
        is_there: what the norm is taken of, `[*space, channel]`; elsewhere the result
            is 0. None: all.

    Raises:
        ValueError: if there is no number for each channel.
    """
    amplitude = jnp.asarray(amplitude, delta.dtype)
    if amplitude.shape != delta.shape[-1:]:
        raise ValueError(
            f"amplitude must be [channel] = {delta.shape[-1:]}; got {amplitude.shape}."
        )
    if is_there is None:
        size = norm(delta)
    else:
        delta = jnp.where(is_there, delta, 0.0)
        size = norm(delta, is_there)
    size = jnp.where(size > 0, size, 1.0)
    wide = amplitude.reshape((1,) * (delta.ndim - 1) + (-1,))
    return delta * (wide / size)


def bred_amplitude(
    errors: jax.Array, *, norm: Any = GlobalNorm(), share: float = 0.35
) -> jax.Array:
    """How large bred vectors should be: a share of the model's own error, `[channel]`.

    Args:
        errors: forecast less truth at a short lead (48 hours), `[case, *space,
            channel]`, of cases that nothing is judged by.
        norm: of the vectors; its latitudes weigh the error, which is that of the whole
            globe.
        share: of the root mean square error.

    Raises:
        ValueError: if there is no case, or the share is not positive and finite.
    """
    if not 0 < share < np.inf:
        raise ValueError(f"share must be positive and finite; got {share}.")
    errors = jnp.asarray(errors)
    if errors.ndim < 2 or not len(errors):
        raise ValueError(
            f"errors must be [case, *space, channel]; got shape {errors.shape}."
        )
    size = jax.vmap(GlobalNorm(norm.latitudes))(errors)  # [case, 1..., channel]
    axes = tuple(range(size.ndim - 1))
    return share * jnp.sqrt(jnp.mean(size**2, axis=axes))


def _known(values):
    """The numbers `[number]`, or none where they are not known.

    A pytree is also made of what stands for its arrays: tracers, shapes, axes.
    """
    is_known = isinstance(values, np.ndarray)
    if isinstance(values, jax.Array) and not isinstance(values, jax.core.Tracer):
        is_known = values.is_fully_addressable and not values.is_deleted()
    return np.asarray(values).ravel() if is_known else np.zeros(0)


def _check_amplitude(amplitude):
    """Raises `ValueError` where the numbers are known, and are none to scale by."""
    known = _known(amplitude)
    wrong = np.flatnonzero(~((known >= 0) & (known < np.inf)))
    if wrong.size:
        raise ValueError(
            "amplitude must be finite and not negative; that of channel"
            f" {wrong[0]} is {known[wrong[0]]}."
        )


def check_floor(floor: Any) -> None:
    """Raises `ValueError` where the numbers are known, and nothing can lie above them.

    Args:
        floor: of `perturbed`; one that is traced is not looked at.
    """
    known = [np.zeros(0)]
    for leaf in jax.tree.leaves(floor):
        is_number = isinstance(leaf, (int, float, np.generic))
        known.append(np.ravel(leaf) if is_number else _known(leaf))
    known = np.concatenate(known)
    wrong = np.flatnonzero(~(known < np.inf))
    if wrong.size:
        raise ValueError(
            "floor must be finite, or -inf where there is none; that of channel"
            f" {wrong[0]} is {known[wrong[0]]}."
        )


@dataclasses.dataclass(frozen=True)
class NormalNoise:
    """Independent normal numbers everywhere; spherical noise can take its place."""

    def __call__(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """`[*space, channel]`."""
        return jax.random.normal(key, shape)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RandomPerturbation:
    """Noise that has the given norm in every channel, as bred vectors have.

    Attributes:
        amplitude: `[channel]`.
        norm: of a perturbation.
        noise: `noise(key, shape) -> [*space, channel]`, or of one channel for all.

    Raises:
        ValueError: for an amplitude that is negative or not finite (one that is traced
            is not looked at); on the call, for one of other channels than the state's.
    """

    amplitude: jax.Array
    norm: Any = dataclasses.field(default=GlobalNorm(), metadata={"static": True})
    noise: Any = dataclasses.field(default=NormalNoise(), metadata={"static": True})

    def __post_init__(self):
        _check_amplitude(self.amplitude)

    def __call__(self, model: Any, key: jax.Array, start: Start) -> jax.Array:
        """`[*space, channel]`; the model has no say."""
        del model
        drawn = self.noise(key, start.state.shape)
        drawn = jnp.broadcast_to(drawn, start.state.shape)
        return rescale(drawn, self.amplitude, self.norm)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NoPerturbation:
    """For ensembles whose members differ by checkpoint, or by noise inside."""

    def __call__(self, model: Any, key: jax.Array, start: Start) -> Any:
        """Zeros like the state."""
        del model, key
        return jax.tree.map(jnp.zeros_like, start.state)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BredVectors:
    """What a model's own forecasts amplify most, by cycles around analyses.

        delta <- rescaled(f(x_k + delta) - f(x_k)),   x_k the analysis of cycle k

    The first delta is noise of the amplitude in `seed_channels`, 0 elsewhere. Noise
    inside f is the same in both forecasts of a cycle. With a step that takes what is
    missing (`NetworkStep.fill`), nothing is bred where an analysis is NaN, and the norm
    is that of the other places.

    Attributes:
        amplitude: `[channel]`; see `bred_amplitude`.
        step: f, as in `Rollout`; a cycle is one step.
        num_cycles: how many.
        norm: of a perturbation.
        noise: `noise(key, shape) -> [*space, channel]`, of unit deviation.
        seed_channels: which are seeded; None: all. (The authors seed 500 hPa alone.)
        valid_time_aligned: whether cycles start from the analyses before the start's
            own, so that the vector is valid at the start. False: from those up to the
            start's own, as the authors' loop has it; the vector is then valid a cycle
            later than it is added.

    Raises:
        ValueError: if there is no cycle, or for an amplitude that is negative or not
            finite (one that is traced is not looked at); on the call, for an amplitude
            or seeds of other channels than the state's, or a history that is too short
            or of other places or channels.
    """

    amplitude: jax.Array
    step: Any = dataclasses.field(metadata={"static": True})
    num_cycles: int = dataclasses.field(default=3, metadata={"static": True})
    norm: Any = dataclasses.field(default=GlobalNorm(), metadata={"static": True})
    noise: Any = dataclasses.field(default=NormalNoise(), metadata={"static": True})
    seed_channels: tuple[int, ...] | None = dataclasses.field(
        default=None, metadata={"static": True}
    )
    valid_time_aligned: bool = dataclasses.field(
        default=True, metadata={"static": True}
    )

    def __post_init__(self):
        if self.num_cycles < 1:
            raise ValueError(f"num_cycles must be at least 1; got {self.num_cycles}.")
        _check_amplitude(self.amplitude)

    @property
    def num_steps(self) -> int:
        """Steps of `step` that one vector takes: two in each cycle."""
        return 2 * self.num_cycles

    def __call__(self, model: Any, key: jax.Array, start: Start) -> jax.Array:
        """`[*space, channel]`."""
        self._check_channels(start.state.shape[-1])
        analyses = self.analyses(start)
        delta = self.noise(jax.random.fold_in(key, 0), start.state.shape)
        wide = (1,) * (delta.ndim - 1) + (-1,)
        delta = delta * jnp.asarray(self.amplitude, delta.dtype).reshape(wide)
        if self.seed_channels is not None:
            is_seeded = np.zeros(delta.shape[-1], np.float32)
            is_seeded[list(self.seed_channels)] = 1
            delta = delta * is_seeded.reshape(wide)

        def cycle(delta, of_cycle):
            number, analysis = of_cycle
            own = jax.random.fold_in(key, 1 + number)
            grown = one_step(self.step, model, own, analysis + delta)
            grown = grown - one_step(self.step, model, own, analysis)
            is_there = None
            if getattr(self.step, "takes_missing", False):
                is_there = ~jnp.isnan(analysis)
            return rescale(grown, self.amplitude, self.norm, is_there=is_there), None

        numbers = jnp.arange(self.num_cycles)
        return jax.lax.scan(cycle, delta, (numbers, analyses))[0]

    def _check_channels(self, channels):
        shape = jnp.shape(self.amplitude)
        if shape != (channels,):
            raise ValueError(
                f"amplitude must be [channel] = ({channels},), the channels of the"
                f" start; got {shape}."
            )
        for channel in self.seed_channels or ():
            if channel not in range(-channels, channels):
                raise ValueError(
                    f"seed_channels must be of the {channels} channels of the start;"
                    f" got {channel}."
                )

    def analyses(self, start: Start) -> jax.Array:
        """Those that the cycles start from, `[cycle, *space, channel]`."""
        last = 1 if self.valid_time_aligned else 0
        least = self.num_cycles + last
        given = 0 if start.history is None else start.history.shape[0]
        if given < least:
            raise ValueError(
                f"{self.num_cycles} cycles need a history of {least} analyses, the last"
                f" of which is the start's own; got {given}."
            )
        if start.history.shape[1:] != start.state.shape:
            raise ValueError(
                "a history must be [time, *space, channel] of states"
                f" {start.state.shape}, as the start's own is; got"
                f" {start.history.shape}."
            )
        return start.history[given - least : given - last]


def perturbed(state: Any, delta: Any, sign: Any, floor: Any = None) -> Any:
    """`state + sign * delta`, never below `floor`.

    Args:
        state: the analysis, any pytree.
        delta: of its structure.
        sign: -1, 0 (the analysis itself, also where delta is not finite) or 1.
        floor: for one array `[*space, channel]`: the lowest value of each channel, in
            the unit of the state, `[channel]` (humidity has one, others -inf), or one
            number for all. None: nothing is clipped.

    Raises:
        ValueError: for a floor of other channels than the state's, or one that is NaN
            or infinite above (one that is traced is not looked at).
    """

    def moved(x, dx):
        return jnp.where(sign == 0, x, x + jnp.asarray(sign, x.dtype) * dx)

    result = jax.tree.map(moved, state, delta)
    if floor is None:
        return result
    check_floor(floor)
    floor = jnp.asarray(floor, result.dtype)
    if floor.shape not in ((), result.shape[-1:]):
        raise ValueError(
            f"floor must be a number, or [channel] = {result.shape[-1:]}, the channels"
            f" of the state; got {floor.shape}."
        )
    return jnp.maximum(result, floor.reshape((1,) * (result.ndim - 1) + (-1,)))


class Lagged(NamedTuple):
    """A lagged ensemble: forecasts of neighbouring starts for the same valid time.

    Attributes:
        members: `[lag, case, lead, ...]`.
        cases: positions of the cases among the starts, `[case]`.
        leads: positions of the leads, counted from each case's own start, `[lead]`.
    """

    members: jax.Array
    cases: np.ndarray
    leads: np.ndarray


def lagged_ensemble(
    values: jax.Array, lags: Sequence[int] = (-2, -1, 0, 1, 2)
) -> Lagged:
    """An ensemble of one deterministic model: its starts before and after a case's own.

    So one checkpoint is enough to see whether an architecture can be calibrated.

    Args:
        values: forecasts from successive starts, a step apart, at leads 0, 1, 2, ... of
            as long steps: `[start, lead, ...]`.
        lags: of the members' starts, in steps; that of lag l has lead L - l where the
            case's own has L.

    Raises:
        ValueError: if no case or no lead has all lags, or lags repeat or are no whole
            numbers.

    Source: Mahesh et al. 2024, arXiv:2408.03100, section 3; Brenowitz et al. 2024,
    arXiv:2401.15305.
    """
    lags = np.asarray(lags)
    is_whole = lags.dtype.kind in "iuf" and np.all(
        np.isfinite(lags) & (lags == np.round(lags))
    )
    is_list = lags.ndim == 1 and 0 < lags.size == len(set(lags.tolist()))
    if not is_whole or not is_list:
        raise ValueError(f"lags must be different integers [lag]; got {lags}.")
    lags = lags.astype(np.int64)
    num_starts, num_leads = values.shape[:2]
    cases = np.arange(max(0, -lags.min()), num_starts - max(0, lags.max()))
    leads = np.arange(max(0, lags.max()), num_leads + min(0, lags.min()))
    if not cases.size or not leads.size:
        raise ValueError(
            f"lags {tuple(lags.tolist())} need starts and leads on both sides; there"
            f" are {num_starts} starts and {num_leads} leads."
        )
    rows = lags[:, None, None] + cases[None, :, None]
    columns = leads[None, None, :] - lags[:, None, None]
    members = jnp.asarray(values)[rows, columns]
    return Lagged(members, cases, leads)
