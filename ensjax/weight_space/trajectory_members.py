"""Ensembles of what was kept along training: means, checkpoints, draws of a Gaussian.

Batch statistics belong to the weights that were trained: `recompute_statistics`
measures those of the new members.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.ensemble import Ensemble
from ensjax.mapping import map_members
from ensjax.members import num_members
from ensjax.mesh import fetch
from ensjax.weight_space.ensembles import ensemble_of
from ensjax.weight_space.trajectory import LAWA, SWAG

# Draws of one member that are made together.
AT_ONCE = 16


def averaged(ensemble: Ensemble, average: Any, states: Any) -> Ensemble:
    """The ensemble with every member's average in place of its weights (compiled).

    Batch statistics stay what they were; see `recompute_statistics`.

    Args:
        ensemble: what `fit` returned.
        average: `EMA`, `SWA`, `LAWA` or `SWAG`.
        states: its states, leaves `[member, ...]`, such as `log.averages["ema"]`.

    Raises:
        ValueError: if there are other members than in the ensemble, or no step of one
            has counted; gives the ids.
    """
    _check_members(ensemble, states)
    if "count" in states:
        _check_counted(ensemble, states, type(average).__name__)
    mean = map_members(_Mean(average), kinds=("member", "member"), mesh=ensemble.mesh)
    params = mean(states, ensemble.params)
    state = {**ensemble.state, "params": params}
    return dataclasses.replace(ensemble, state=state).on_mesh(ensemble.mesh)


def lawa_members(ensemble: Ensemble, lawa: LAWA, states: Any) -> Ensemble:
    """An ensemble of the checkpoints that `LAWA` holds of every member (compiled).

    Args:
        ensemble: what `fit` returned, M members.
        lawa: the `LAWA` that was kept.
        states: its states, leaves `[member, ...]`, such as `log.averages["lawa"]`.

    Returns:
        The checkpoints of the first member first, the oldest first, with ids 0, 1, ...;
        M k of them where all members have reached k. Their batch statistics are those
        of the member at the end; see `recompute_statistics`.

    Raises:
        ValueError: if there are other members than in the ensemble, or one has no
            checkpoint yet; gives the ids.
    """
    _check_members(ensemble, states)
    counts = _check_counted(ensemble, states, "LAWA")
    size = lawa.num_checkpoints
    take = map_members(
        _Checkpoints(lawa), kinds=("member", "member"), mesh=ensemble.mesh
    )
    found = ensemble_of(ensemble, _in_a_row(take(states, ensemble.state)))
    is_held = np.arange(size)[None] < counts[:, None]
    if is_held.all():
        return found
    return found[is_held.ravel()].with_ids(range(is_held.sum()))


def swag_members(
    ensemble: Ensemble,
    swag: SWAG,
    states: Any,
    *,
    num_samples: int,
    seed: int = 0,
    scale: float = 0.5,
) -> Ensemble:
    """An ensemble of draws from every member's Gaussian (compiled).

    Args:
        ensemble: what `fit` returned, M members.
        swag: the `SWAG` that was fitted.
        states: its states, leaves `[member, ...]`.
        num_samples: S, draws of each member.
        seed: a draw depends on it, the member's id and its own number alone.
        scale: of the covariance.

    Returns:
        M S members, the draws of the first member first, with ids 0, 1, ... Their
        batch statistics are those of the member; see `recompute_statistics`.

    Raises:
        ValueError: if `num_samples` is below 1, `scale` is negative, or there are other
            members than in the ensemble.
    """
    _check_members(ensemble, states)
    if num_samples < 1 or not scale >= 0:
        raise ValueError(
            "num_samples must be at least 1 and scale at least 0; got"
            f" {num_samples} and {scale}."
        )
    count, devices = ensemble.num_members, ensemble.mesh.shape["member"]
    # Each state is there once. Where members do not divide over the devices, they are
    # on every device, and several devices draw of one member.
    parts = min(devices // math.gcd(count, devices), num_samples)
    per_part = math.ceil(num_samples / parts)
    rows = jnp.repeat(jnp.arange(count), parts)
    states, state, ids = (
        jax.tree.map(lambda x: jnp.asarray(x)[rows], tree) if parts > 1 else tree
        for tree in (states, ensemble.state, ensemble.member_ids)
    )
    sample = map_members(
        _Sample(swag, per_part),
        kinds=("member", "member", "member", "member", "shared", "shared"),
        mesh=ensemble.mesh,
    )
    first = jnp.tile(jnp.arange(parts) * per_part, count)
    drawn = sample(states, state, ids, first, jnp.uint32(seed), jnp.float32(scale))
    drawn = ensemble_of(ensemble, _in_a_row(drawn))
    if parts * per_part == num_samples:
        return drawn
    numbers = np.tile(np.arange(parts * per_part) < num_samples, count)
    return drawn[numbers].with_ids(range(count * num_samples))


def _like(tree, params):
    return jax.tree.map(lambda x, p: x.astype(p.dtype), tree, params)


@dataclasses.dataclass(frozen=True)
class _Mean:
    average: Any

    def __call__(self, state, params):
        return _like(self.average.mean(state), params)


@dataclasses.dataclass(frozen=True)
class _Sample:
    """Some draws of one member, `[draw, ...]`, a few at a time."""

    swag: SWAG
    num_draws: int

    def __call__(self, own, state, member_id, first, seed, scale):
        key = jax.random.key(seed, impl="threefry2x32")
        key = jax.random.fold_in(key, member_id)

        def draw(number):
            drawn = self.swag.sample(own, jax.random.fold_in(key, number), scale=scale)
            return _like(drawn, state["params"])

        numbers = first + jnp.arange(self.num_draws)
        params = jax.lax.map(draw, numbers, batch_size=min(AT_ONCE, self.num_draws))
        return {"params": params, "rest": _repeated(state["rest"], self.num_draws)}


@dataclasses.dataclass(frozen=True)
class _Checkpoints:
    """What is held of one member, `[checkpoint, ...]`."""

    lawa: LAWA

    def __call__(self, own, state):
        held = self.lawa.checkpoints(own)
        return {
            "params": _like(held, state["params"]),
            "rest": _repeated(state["rest"], self.lawa.num_checkpoints),
        }


def _repeated(tree, count):
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), tree)


def _in_a_row(tree):
    """`[member, number, ...]` as `[member * number, ...]`."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def _check_counted(ensemble, states, name):
    """Counts `[member]`; raises `ValueError` with the ids where one is 0."""
    counts = np.asarray(fetch(states["count"]))
    if not counts.all():
        ids = fetch(ensemble.member_ids)[counts == 0].tolist()
        raise ValueError(
            f"no step of the members with ids {ids} has counted, so that {name} holds"
            " no weights of them. Leave them out, of ensemble and states."
        )
    return counts


def _check_members(ensemble, states):
    if num_members(states) != ensemble.num_members:
        raise ValueError(
            f"states hold {num_members(states)} members, the ensemble"
            f" {ensemble.num_members}."
        )
