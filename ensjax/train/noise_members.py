"""One network with noise inside, trained on the CRPS of the members that it makes.

Members share all parameters and differ by the noise that is fed in: one forward pass is
one member. The science is written for one network and one case; `fit` stacks networks
and splits cases, and `NoiseCrps` maps the noise and scores across it.

Source: Lang et al. 2024, arXiv:2412.15832 (AIFS-CRPS), section 2.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ensjax.ops.device_sums import shared_by
from ensjax.train.kernel_crps import FORMS, crps_of_weight, fair_weight
from ensjax.train.losses import example_keys, weighted_mean


@dataclasses.dataclass(frozen=True)
class WhiteNoise:
    """Independent normal numbers at every place of the grid.

    Attributes:
        num_channels: at each place.
    """

    num_channels: int = 4

    def __post_init__(self):
        if self.num_channels < 1:
            raise ValueError(
                f"num_channels must be at least 1; got {self.num_channels}."
            )

    def __call__(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """`[*space, num_channels]` for a sample of shape `[*space, channel]`."""
        return jax.random.normal(key, (*shape[:-1], self.num_channels))


@dataclasses.dataclass(frozen=True)
class NoiseCrps:
    """A loss of `fit`: the CRPS of several members that one network makes of noise.

    Called as `loss(model, batch, key)`, where `batch` is `(condition, target)` with
    leaves `[batch, ...]`; the condition may be any pytree or None. The model is a
    network of one sample, `model(noise, condition) -> [*space, channel]`.

    The noise of a member depends on the case's place in the global batch and on the
    member's number alone: the first two of four members are those of two, on any mesh.
    Elements whose target is NaN do not count and have no gradient.

    Attributes:
        num_members: M, in training; any number can be made afterwards.
        noise: `noise(key, shape of the target) -> array`, such as `WhiteNoise(4)`.
        estimator, alpha, form: of `kernel_crps`.
        centred: members 2 i and 2 i + 1 have the same noise with opposite signs, so
            that the noise has mean 0 in every case. Members are then no independent
            draws, and the fair score is not unbiased.
        axis: a mesh axis that splits the members, "model" (along which `fit` splits
            nothing else); each device then makes M / size of them. None: all members of
            a case are made by the device that has the case.

    Raises:
        ValueError: for words and numbers that do not fit; on the call, if the members
            do not divide over the axis.

    Source: Lang et al. 2024, arXiv:2412.15832, section 2; centred noise as in
    FourCastNet 3 (Bonev et al. 2025, arXiv:2507.12144), whose last stage has it.
    """

    num_members: int
    noise: Callable[[jax.Array, tuple[int, ...]], jax.Array] = WhiteNoise()
    estimator: str = "almost_fair"
    alpha: float = 0.95
    form: str = "auto"
    axis: str | None = None
    centred: bool = False
    # Of (condition, target): see `feeds.takes_missing_of`.
    takes_missing: ClassVar[tuple[bool, bool]] = (False, True)

    def __post_init__(self):
        fair_weight(self.estimator, self.alpha, self.num_members)
        check_count("num_members", self.num_members)
        if self.form not in FORMS:
            raise ValueError(
                f"form must be one of {', '.join(FORMS)}; got {self.form!r}."
            )
        if self.axis not in (None, "model"):
            raise ValueError(f'axis must be None or "model"; got {self.axis!r}.')
        if self.centred and self.num_members % 2:
            raise ValueError(
                f"centred noise comes in pairs of members; got {self.num_members}."
            )

    def __call__(self, model, batch, key, weight=None):
        """The mean loss of the batch; `weight` `[batch]` weighs its rows."""
        condition, target = batch
        keys = example_keys(key, target.shape[0])
        model = self.prepare(model)
        losses = jax.vmap(lambda *one: self.of_one(model, *one))(
            keys, target, condition
        )
        return weighted_mean(losses, weight)

    def prepare(self, model: Any) -> Any:
        """The model that `of_one` is given: its derivative sums over the axis."""
        # Each device goes back through its own members only.
        return shared_model(model, self.axis)

    def of_one(
        self, model: Any, key: jax.Array, target: jax.Array, condition: Any
    ) -> jax.Array:
        """The loss of one case: the mean over its elements that have a target."""
        values = self.elements(model, key, target, condition)
        return jnp.sum(values) / jnp.maximum(jnp.sum(~jnp.isnan(target)), 1)

    def elements(
        self,
        model: Any,
        key: jax.Array,
        target: jax.Array,
        condition: Any,
        *,
        fair: Any = None,
    ) -> jax.Array:
        """The score of every element of one case, 0 where it has no target.

        Args:
            model: what `prepare` returned.
            key: of the case.
            target: `[*shape]`, NaN where there is none.
            condition: of the case.
            fair: weight of the fair estimator, from 0 to 1, in the place of the loss's
                own; it may be traced.
        """
        members = self.members(model, key, target.shape, condition)
        if fair is None:
            fair = fair_weight(self.estimator, self.alpha, self.num_members)
        is_there = ~jnp.isnan(target)
        return crps_of_weight(members, target, fair, form=self.form, mask=is_there)

    def members(
        self, model: Any, key: jax.Array, shape: tuple[int, ...], condition: Any
    ) -> jax.Array:
        """All members of one case, `[member, *shape]`, on every device of the axis."""
        ids = jnp.arange(self.num_members)
        if self.axis is not None:
            size = jax.lax.axis_size(self.axis)
            if self.num_members % size:
                raise ValueError(
                    f"{self.num_members} members do not divide over {size} devices of"
                    f" the mesh axis {self.axis!r}."
                )
            local = self.num_members // size
            ids = jax.lax.axis_index(self.axis) * local + jnp.arange(local)

        def of_member(member_id):
            number = member_id // 2 if self.centred else member_id
            noise = self.noise(jax.random.fold_in(key, number), shape)
            if self.centred:
                noise = jax.tree.map(lambda x: x * (1 - 2 * (member_id % 2)), noise)
            return model(noise, condition)

        own = jax.vmap(of_member)(ids)
        return own if self.axis is None else all_parts(self.axis, own)


def check_count(name: str, count: Any) -> None:
    """Raises `ValueError` unless it is a whole number of 1 or more."""
    is_whole = isinstance(count, (int, np.integer)) and not isinstance(count, bool)
    if not is_whole or count < 1:
        raise ValueError(f"{name} must be at least 1, and a whole number; got {count}.")


def shared_model(model: Any, axis: str | None) -> Any:
    """The model of all devices of an axis, whose parts of the derivative are summed."""
    if axis is None:
        return model
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    return nnx.merge(graph, shared_by(params, axis), rest)


def all_rows(axis: str | None, values: jax.Array, num_rows: int) -> jax.Array:
    """`[..., lat, lon, channel]` of all devices' rows of it, as `all_parts` has it."""
    if axis is None:
        return values
    whole = all_parts(axis, jnp.moveaxis(values, -3, 0))[:num_rows]
    return jnp.moveaxis(whole, 0, -3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def all_parts(axis, own):
    """The members (or rows) of all devices, `[member, ...]`, of each one's own.

    Every device holds the derivative of the whole score with respect to every member,
    and goes back through its own. (Gathering others' members without a derivative would
    halve that of each pair: both sides of |x_m - x_l| move.)
    """
    return jax.lax.all_gather(own, axis, axis=0, tiled=True)


def _all_parts_fwd(axis, own):
    return all_parts(axis, own), None


def _all_parts_bwd(axis, _, cotangents):
    size = jax.lax.axis_size(axis)
    local = cotangents.shape[0] // size
    first = jax.lax.axis_index(axis) * local
    return (jax.lax.dynamic_slice_in_dim(cotangents, first, local, axis=0),)


all_parts.defvjp(_all_parts_fwd, _all_parts_bwd)
