"""Forecasts whose members differ by a learned Gaussian perturbation of their state.

    z_m ~ N(mu(X), sigma(X)^2),   X the states from which a step starts
    next state = F(X + s z_m),    s the deviation of a step's change, by channel

The perturbation depends on the flow and is drawn again at every step, from the states
that the member itself has come to. What is here is all that a forecast needs; the
network that sees the truth belongs to training and is in `variational_training`.

A state of the emulator holds the last states of the system side by side in its
channels, `[*space, num_states * channel]`, the oldest first.

Source: Zhong et al. 2024, arXiv:2405.05925 (FuXi-ENS), the perturbation network.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from ensjax.emulate.gaps import check_no_gaps
from ensjax.ops.side_by_side import missing_places

LOG_VARIANCE_OFFSET = -4.0
LOG_VARIANCE_RANGE = (-12.0, 2.0)


class GaussianField(NamedTuple):
    """Independent normal numbers at every place and channel.

    Attributes:
        mean: `[*space, channel]`.
        log_variance: `[*space, channel]`, the natural logarithm.
    """

    mean: jax.Array
    log_variance: jax.Array

    def at(self, noise: jax.Array | None) -> jax.Array:
        """`mean + sigma noise`, `[*space, channel]`; the mean without noise."""
        return self.mean if noise is None else self.mean + self.sigma * noise

    @property
    def sigma(self) -> jax.Array:
        """Standard deviation, `[*space, channel]`."""
        return jnp.exp(0.5 * self.log_variance)


def gaussian_kl(first: GaussianField, second: GaussianField) -> jax.Array:
    """KL(first || second) of every element, `[*space, channel]`, in nats.

        0.5 (l2 - l1 + (exp(l1) + (m1 - m2)^2) / exp(l2) - 1),   l the log variance

    Raises:
        ValueError: if the two have not the same shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from ensjax.emulate.variational import GaussianField, gaussian_kl
        >>> narrow = GaussianField(jnp.zeros(1), jnp.zeros(1))
        >>> moved = GaussianField(jnp.ones(1), jnp.log(4.0)[None])
        >>> print(f"{gaussian_kl(narrow, moved)[0]:.4f}")  # ln 2 + (1 + 1) / 8 - 1 / 2
        0.4431
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(
            "both Gaussians must be on the same grid and channels; got shapes"
            f" {first.mean.shape} and {second.mean.shape}."
        )
    # As one exponential of a difference: neither variance is divided by a small one.
    ratio = first.log_variance - second.log_variance
    moved = jnp.square(first.mean - second.mean) * jnp.exp(-second.log_variance)
    return 0.5 * (jnp.expm1(ratio) - ratio + moved)


class GaussianPerturbation(nnx.Module):
    """Mean and log variance at every place and channel, of what a network is shown.

        mean, l = network(x);   log variance = clip(offset + l)

    The network's last layer should start from zeros (as that of `nn.GridNet`): the
    mean is then 0 and the log variance the offset everywhere.

    Args:
        network: `network(x [*space, any]) -> [*space, 2 num_channels]`.
        num_channels: of the perturbation.
        offset: of the log variance; -4 is a deviation of 0.135.
        limits: of the log variance; beyond them it has no gradient.

    Raises:
        ValueError: if the limits do not hold the offset between them; on the call, if
            the network returns other channels.

    Source: the offset, the zeros and the limits are those of a public
    re-implementation of arXiv:2405.05925.

    Example::

        network = nn.GridNet(2, 4, rngs=rngs)  # two states of one channel
        prior = GaussianPerturbation(network, 2)
        mean, log_variance = prior(states)  # [36, 2] -> 2 x [36, 2]
    """

    def __init__(
        self,
        network: nnx.Module,
        num_channels: int,
        *,
        offset: float = LOG_VARIANCE_OFFSET,
        limits: Sequence[float] = LOG_VARIANCE_RANGE,
    ):
        low, high = (float(limit) for limit in limits)
        if not low < offset < high:
            raise ValueError(
                f"the offset of the log variance must lie between its limits {low:g}"
                f" and {high:g}; got {offset}."
            )
        if num_channels < 1:
            raise ValueError(f"num_channels must be at least 1; got {num_channels}.")
        self.network = network
        self.num_channels = num_channels
        self.offset, self.limits = float(offset), (low, high)

    def __call__(self, x: jax.Array) -> GaussianField:
        """The Gaussian for one sample, float32."""
        both = self.network(x)
        if both.shape != (*x.shape[:-1], 2 * self.num_channels):
            raise ValueError(
                "the network of a perturbation must return"
                f" {(*x.shape[:-1], 2 * self.num_channels)}, means and log variances;"
                f" got {both.shape}."
            )
        mean, log_variance = jnp.split(both.astype(jnp.float32), 2, axis=-1)
        low, high = self.limits
        return GaussianField(mean, jnp.clip(self.offset + log_variance, low, high))


class Fixed(nnx.Variable):
    """An array of a module that is not trained."""


class ConstantPerturbation(nnx.Module):
    """A Gaussian that does not depend on the state: what a learned one is held to.

    Args:
        num_channels: of the perturbation.
        mean, log_variance: of every place, one number or `[channel]`. They are not
            trained.

    Raises:
        ValueError: if shapes do not fit.
    """

    def __init__(self, num_channels: int, *, mean: Any = 0.0, log_variance: Any = -4.0):
        self.num_channels = num_channels
        self.mean = _fixed("mean", mean, num_channels)
        self.log_variance = _fixed("log_variance", log_variance, num_channels)

    def __call__(self, x: jax.Array) -> GaussianField:
        """The same Gaussian at every place of the grid of `x`."""
        return GaussianField(
            _everywhere(self.mean[...], x), _everywhere(self.log_variance[...], x)
        )


class ConstantSpread(nnx.Module):
    """A perturbation with its own mean, whose variance does not depend on the state.

    Args:
        prior: `prior(x) -> GaussianField`, of which the mean is taken.
        log_variance: of every place, one number or `[channel]`; it is not trained.

    Raises:
        ValueError: if shapes do not fit.
    """

    def __init__(self, prior: Any, *, log_variance: Any):
        self.prior, self.num_channels = prior, prior.num_channels
        self.log_variance = _fixed("log_variance", log_variance, self.num_channels)

    def __call__(self, x: jax.Array) -> GaussianField:
        """The mean at every place, and the same log variance there."""
        mean = self.prior(x).mean
        return GaussianField(mean, _everywhere(self.log_variance[...], x))


def _fixed(name, value, num_channels):
    value = jnp.asarray(value, jnp.float32)
    if value.shape not in ((), (num_channels,)):
        raise ValueError(
            f"{name} must be one number or [{num_channels}]; got shape {value.shape}."
        )
    return Fixed(jnp.broadcast_to(value, (num_channels,)))


def _everywhere(values, x):
    """Values `[channel]` at every place of the grid of `x`."""
    row = values.reshape(*(1,) * (x.ndim - 1), -1)
    return jnp.broadcast_to(row, (*x.shape[:-1], row.shape[-1]))


class VariationalForecaster(nnx.Module):
    """An emulator that perturbs the states it starts from, then advances them.

    Args:
        prior: the perturbation from the states alone, in units of a step's change:
            `GaussianPerturbation` or one of those that are constant, of `num_states *
            num_channels` channels.
        forecaster: `forecaster(None, newest [*space, channel], earlier) -> [*space,
            channel]` one step later, where `earlier` is `[*space, (num_states - 1) *
            channel]`, or None with one state, such as `nn.ResidualForecaster`.
        num_channels: of one state.
        num_states: how many states a step starts from.
        step_scale: standard deviation of one step's change, for all channels or one for
            each: what makes a log variance mean the same for all of them.

    Raises:
        ValueError: if numbers do not fit.

    Example::

        emulator = VariationalForecaster(prior, forecaster, num_channels=1)
        noise = jax.random.normal(key, states.shape)
        states = emulator(noise, states)  # [36, 2] -> [36, 2]; now: newest(states)
    """

    def __init__(
        self,
        prior: Callable[[jax.Array], GaussianField],
        forecaster: Callable[..., jax.Array],
        *,
        num_channels: int,
        num_states: int = 2,
        step_scale: float | Sequence[float] = 1.0,
    ):
        scales = (step_scale,) if isinstance(step_scale, int | float) else step_scale
        scales = tuple(float(scale) for scale in scales)
        scales = scales * num_channels if len(scales) == 1 else scales
        if len(scales) != num_channels or not all(scale > 0 for scale in scales):
            raise ValueError(
                "step_scale must be one positive number or one for each of the"
                f" {num_channels} channels; got {scales}."
            )
        if num_states < 1:
            raise ValueError(f"num_states must be at least 1; got {num_states}.")
        own = getattr(prior, "num_channels", num_states * num_channels)
        if own != num_states * num_channels:
            raise ValueError(
                f"the perturbation of {num_states} states of {num_channels} channels"
                f" has {num_states * num_channels}; that of the prior has {own}."
            )
        self.prior, self.forecaster = prior, forecaster
        self.num_channels, self.num_states = num_channels, num_states
        self.step_scale = scales

    def __call__(self, noise: jax.Array | None, states: jax.Array) -> jax.Array:
        """The states one step later, `[*space, num_states * channel]`, float32.

        Args:
            noise: of unit variance, of the shape of the states; None takes the
                perturbation's mean.
            states: the oldest first.

        Raises:
            ValueError: if shapes do not fit.
        """
        channels = self.num_states * self.num_channels
        if states.ndim < 2 or states.shape[-1] != channels:
            raise ValueError(
                f"states must be [*space, {channels}], {self.num_states} states of"
                f" {self.num_channels} channels side by side; got {states.shape}."
            )
        if noise is not None and noise.shape != states.shape:
            raise ValueError(
                f"noise must be {states.shape}, one number for each of the states;"
                f" got {noise.shape}."
            )
        return self.advance(states, self.prior(states).at(noise))

    def advance(self, states: jax.Array, perturbation: jax.Array) -> jax.Array:
        """The states one step later, of a perturbation in units of a step's change.

        The next step starts from what was, without the perturbation, and from what has
        come of it.
        """
        scale = jnp.asarray(self.step_scale * self.num_states, jnp.float32)
        moved = states + scale.reshape(*(1,) * (states.ndim - 1), -1) * perturbation
        earlier, now = moved[..., : -self.num_channels], self.newest(moved)
        earlier = earlier if self.num_states > 1 else None
        after = self.forecaster(None, now, earlier)
        return jnp.concatenate([states[..., self.num_channels :], after], axis=-1)

    def newest(self, states: jax.Array) -> jax.Array:
        """The last state `[..., *space, channel]` of states side by side."""
        return states[..., -self.num_channels :]


def step_noise(member_key: jax.Array, step: Any, shape: Sequence[int]) -> jax.Array:
    """The noise of one member at one step, `[*shape]`, whatever the others are.

    Args:
        member_key: of the case, with the member's number folded in.
        step: integer, from 0; may be traced.
        shape: of the states.
    """
    return jax.random.normal(jax.random.fold_in(member_key, step), tuple(shape))


def sample_forecast(
    emulator: VariationalForecaster,
    key: jax.Array,
    member_id: Any,
    states: jax.Array,
    *,
    num_steps: int,
    fill: float | None = None,
) -> jax.Array:
    """One member's forecast of one case, `[step, *space, channel]`; a compiled scan.

    Args:
        emulator: of one member; not what it was trained with, which holds a network
            that sees the truth (`emulators_of` takes that away).
        key: of the case.
        member_id: integer. A member is the same whichever others are made.
        states: `[*space, num_states * channel]`, the oldest first.
        num_steps: how many.
        fill: what a missing value is taken for, as `VariationalLoss` has it: where one
            of the states is NaN, the emulator is given `fill` at every step, and what
            it says there is left as it is. None: the states have no NaN.

    Raises:
        TypeError: if it is no `VariationalForecaster`.
        ValueError: if shapes do not fit; or if states that are known (not traced) hold
            NaN, and there is no `fill`.
    """
    if not isinstance(emulator, VariationalForecaster):
        raise TypeError(
            "a forecast is made by a VariationalForecaster alone; got"
            f" {type(emulator).__name__}. Take `.emulator` of what was trained, or"
            " emulators_of(ensemble)."
        )

    if fill is None:
        check_no_gaps("states", states, "fill=0.0, as the training had it")
    own_key = jax.random.fold_in(key, member_id)

    is_missing = None
    if fill is not None:
        is_missing = missing_places(jnp.isnan(states), emulator.num_states)

    def one_step(states, step):
        if fill is not None:
            states = jnp.where(is_missing, fill, states)
        noise = step_noise(own_key, step, states.shape)
        states = emulator(noise, states)
        return states, emulator.newest(states)

    return jax.lax.scan(one_step, states, jnp.arange(num_steps))[1]
