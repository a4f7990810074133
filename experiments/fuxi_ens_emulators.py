"""What `fuxi_ens.py` makes of trained emulators: their moments, twins, and forecasts.

A twin is an emulator whose perturbation does not depend on the state, or its spread
does not.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ensjax.emulate.variational import ConstantSpread, sample_forecast
from ensjax.graphs import NnxGraph
from ensjax.mapping import map_members
from ensjax.members import member_key
from ensjax.mesh import fetch
from ensjax.ops.side_by_side import side_by_side

NUM_STATES = 2
_MOMENT_WINDOWS = 2_000  # of which the prior's mean and variance are taken


@dataclasses.dataclass(frozen=True)
class _Moments:
    graph: Any

    def __call__(self, state, states):
        emulator = self.graph.merge(state, train=False)
        field = jax.vmap(emulator.prior)(states)
        axes = tuple(range(states.ndim - 1))
        variance = jnp.mean(jnp.square(field.sigma), axis=axes)
        return field.mean.mean(axis=axes), jnp.log(variance)


def prior_moments(first, data):
    """Mean of the perturbations, and the log of their mean variance.

    Both `[seed, channel]`, over windows and places. What the mean itself does from
    state to state is no spread: the forecaster is told it without noise.

    Args:
        first: an emulator for each seed.
        data: windows `[window, seed, time, site, 1]`.
    """
    step = max(1, len(data) // _MOMENT_WINDOWS)
    windows = np.moveaxis(data[::step, :, :NUM_STATES], 1, 0)
    states = jax.vmap(jax.vmap(side_by_side))(jnp.asarray(windows))
    run = map_members(
        _Moments(first.graph), kinds=("member", "member"), mesh=first.mesh, block=1
    )
    return fetch(run(first.state, states))


def with_moments(moments, ensemble):
    """Constant Gaussians with a mean and log variance of each network's own."""
    values = dict(zip(("mean", "log_variance"), moments, strict=True))
    flat = [
        (path, variable.replace(jnp.asarray(values[path[-1]])))
        for path, variable in nnx.to_flat_state(ensemble.state["rest"])
    ]
    state = {**ensemble.state, "rest": nnx.from_flat_state(flat)}
    return dataclasses.replace(ensemble, state=state).on_mesh(ensemble.mesh)


def with_one_spread(learned, moments):
    """The learned emulators with a variance that is everywhere its mean."""
    graph = learned.graph
    emulator = nnx.merge(graph.graphdef, learned.state["params"], learned.state["rest"])
    channels = emulator.prior.num_channels
    emulator.prior = ConstantSpread(emulator.prior, log_variance=jnp.zeros(channels))
    graphdef, params, rest = nnx.split(emulator, nnx.Param, ...)
    state = {"params": params, "rest": rest}
    changed = dataclasses.replace(learned, state=state, graph=NnxGraph(graphdef))
    return with_moments(moments, changed)


@dataclasses.dataclass(frozen=True)
class _Forecasts:
    """All members of all starts of one network, `[member, start, lead, site]`."""

    graph: Any
    num_members: int
    num_leads: int

    def __call__(self, state, states, seed):
        emulator = self.graph.merge(state, train=False)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            member_key(seed, "sample", 0), jnp.arange(len(states))
        )

        def of_member(member_id):
            def of_start(key, states):
                return sample_forecast(
                    emulator, key, member_id, states, num_steps=self.num_leads
                )[..., 0]

            return jax.vmap(of_start)(keys, states)

        sigma = jax.vmap(emulator.prior)(states).sigma
        sigma = jnp.sqrt(jnp.mean(jnp.square(sigma), axis=-1))
        return jax.lax.map(of_member, jnp.arange(self.num_members)), sigma


def forecasts(config, ensemble, archives) -> tuple[np.ndarray, np.ndarray]:
    """Forecasts of every network from the truth at the starts of its seed.

    Returns:
        `[network, member, start, lead, site]` in deviations; and the deviation that the
        perturbation has at the start, in units of a step's change, `[network, start,
        site]`.
    """
    per_seed = ensemble.num_members // config.num_seeds
    last = config.archive.num_before + 1
    starts = archives["truth"][:, :, last - NUM_STATES : last]  # [seed, start, time]
    states = np.moveaxis(starts, 2, -1).astype(np.float32)
    run = map_members(
        _Forecasts(ensemble.graph, config.num_members, config.archive.num_leads),
        kinds=("member", "member", "shared"),
        out=("member", "member"),
        mesh=ensemble.mesh,
        block=1,
    )
    states = jnp.asarray(np.repeat(states, per_seed, axis=0))
    return fetch(run(ensemble.state, states, jnp.int32(config.seed)))
