"""Ways of `bench_emulate`: to sample, simulate, score and forecast members.

A way takes the numbers of its part and gives a `Call`: what is timed, how many members
(or values) one call makes, and a few numbers by which ways of one row are compared.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ensjax.experiment.fields import load_beside

losses = load_beside(__file__, "emulate_losses")
rollouts = load_beside(__file__, "emulate_rollouts")
harmonics = load_beside(__file__, "emulate_harmonics")
sphere = load_beside(__file__, "emulate_sphere")

OURS = "ensjax"
NUM_COMPARED = 8  # members
NUM_SITES = 40
PAIRS_AT_ONCE = 2**24  # of members; some arrays of so many float32 exist at once


class Call(NamedTuple):
    """One way, ready to be timed.

    Attributes:
        run: does it once, to the end.
        made: members, or scored values, of one call.
        compared: numbers of what `run` gave that are the same for all ways.
    """

    run: Callable[[], Any]
    made: int
    compared: Callable[[Any], np.ndarray]


# Sampling: members of one start of Lorenz-96 by a network with random weights.


def _denoiser(network, num_channels, **sizes):
    """A denoiser with random weights, also where a network starts from zeros."""
    import jax

    from ensjax import Ensemble, make_mesh, nn
    from ensjax.emulate.diffusion import EDM, NetworkDenoiser

    def make_model(rngs):
        kind = getattr(nn, network)
        return kind(num_channels, rngs=rngs, **sizes)

    ensemble = Ensemble.init(make_model, num_members=1, mesh=make_mesh(member=1))
    leaves, tree = jax.tree.flatten(ensemble.state)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [
        x[0] + 0.05 * jax.random.normal(key, x.shape[1:], x.dtype)
        for x, key in zip(leaves, keys, strict=True)
    ]
    state = jax.device_get(jax.tree.unflatten(tree, leaves))
    return NetworkDenoiser(state, ensemble.graph, EDM())


def _lorenz96_task():
    import jax

    denoiser = _denoiser(
        "ResidualDenoiser", 1, num_condition_channels=3, width=32, depth=3
    )
    condition = jax.random.normal(jax.random.key(2), (NUM_SITES, 3))
    return denoiser, np.asarray(condition), (NUM_SITES, 1)


def _sphere_task():
    import jax

    denoiser = _denoiser(
        "UNetDenoiser",
        2,
        num_condition_channels=6,
        widths=(16, 32),
        depth=1,
        padding="lat_lon",
    )
    condition = jax.random.normal(jax.random.key(2), (32, 64, 6))
    return denoiser, np.asarray(condition), (32, 64, 2)


SYSTEMS = {"lorenz96": _lorenz96_task, "held_suarez": _sphere_task}


def _compared(samples):
    return np.asarray(samples[:NUM_COMPARED]).reshape(NUM_COMPARED, -1)[:, :16]


def _sampler(levels):
    from ensjax.emulate.diffusion import Heun, rho_levels

    return Heun(rho_levels(levels))


def with_ensjax(system, levels, members, alone) -> Call:
    """`diffusion.sample`: one program of all members and steps, on all devices."""
    del alone
    import jax

    from ensjax.emulate import diffusion

    denoiser, condition, shape = SYSTEMS[system]()
    ids = np.arange(members)
    sampler = _sampler(levels)

    def run():
        drawn = diffusion.sample(
            denoiser, ids, shape=shape, sampler=sampler, condition=condition
        )
        return jax.block_until_ready(drawn)

    return Call(run, members, _compared)


def _one_member(system, levels):
    """`one(denoiser, condition, member_id)`, a sample; and what it is called with."""
    import jax

    from ensjax.members import member_key

    denoiser, condition, shape = SYSTEMS[system]()
    sampler = _sampler(levels)

    def one(denoiser, condition, member_id):
        key = jax.random.fold_in(member_key(0, "sample", member_id), 0)
        return sampler(lambda x, s: denoiser(x, s, condition), key, shape)

    return one, jax.device_put(denoiser), jax.device_put(condition)


def one_by_one(system, levels, members, alone) -> Call:
    """A Python loop over members; each call samples one by a compiled sampler."""
    import jax

    one, denoiser, condition = _one_member(system, levels)
    compiled = jax.jit(one)
    count = min(members, alone)

    def run():
        drawn = [compiled(denoiser, condition, i) for i in range(count)]
        return jax.block_until_ready(drawn)

    return Call(run, count, lambda drawn: _compared(np.stack(drawn)))


def with_lax_map(system, levels, members, alone) -> Call:
    """One program that samples one member after the other."""
    import jax
    import jax.numpy as jnp

    one, denoiser, condition = _one_member(system, levels)
    count = min(members, alone)

    @jax.jit
    def compiled(denoiser, condition, ids):
        return jax.lax.map(lambda i: one(denoiser, condition, i), ids)

    def run():
        drawn = compiled(denoiser, condition, jnp.arange(count))
        return jax.block_until_ready(drawn)

    return Call(run, count, _compared)


def loop_over_steps(system, levels, members, alone) -> Call:
    """A Python loop over denoising steps; each call moves all members one level."""
    del alone
    import jax
    import jax.numpy as jnp

    from ensjax.members import member_key

    denoiser, condition, shape = SYSTEMS[system]()
    denoiser, condition = jax.device_put(denoiser), jax.device_put(condition)
    sampler = _sampler(levels)

    @jax.jit
    def first(ids):
        def of_one(i):
            key = jax.random.fold_in(member_key(0, "sample", i), 0)
            noise = jax.random.normal(jax.random.fold_in(key, 0), shape)
            return sampler.levels[0] * noise

        return jax.vmap(of_one)(ids)

    @functools.partial(jax.jit, donate_argnums=2)
    def step(denoiser, condition, x, sigma, target):
        def of_one(x):
            return sampler.step(
                lambda x, s: denoiser(x, s, condition), x, sigma, target
            )

        return jax.vmap(of_one)(x)

    @functools.partial(jax.jit, donate_argnums=2)
    def last(denoiser, condition, x, sigma):
        return jax.vmap(lambda x: denoiser(x, sigma, condition))(x)

    sigmas = [jnp.float32(sigma) for sigma in sampler.levels]
    ids = jnp.arange(members)

    def run():
        x = first(ids)
        for sigma, target in zip(sigmas[:-1], sigmas[1:], strict=True):
            x = step(denoiser, condition, x, sigma, target)
        return jax.block_until_ready(last(denoiser, condition, x, sigmas[-1]))

    return Call(run, members, _compared)


# Simulating: members of one start, from the perturbed state to the lead.


def simulated(system, levels, members, alone) -> Call:
    """The simulator's members of one start, in one program on all devices."""
    del levels, alone
    from ensjax.emulate.trajectories import forecast_twins

    if system == "held_suarez":
        if importlib.util.find_spec("dinosaur") is None:
            raise ImportError("dinosaur is not installed (ensjax[weather])")
        from ensjax.emulate.held_suarez import HeldSuarez

        model = HeldSuarez()
        days = model.steps_per_day
        # As `held_suarez_archive` makes them: 2 days of settling, 5 of forecast.
        leads, options = [5 * days], dict(settle_steps=2 * days, analysis_noise=0.2)
    else:
        from ensjax.emulate.lorenz96 import Lorenz96

        model, leads = Lorenz96(), [40]
        options = dict(analysis_noise=0.3)
    import jax

    # From rest: a step costs the same in every state, and a program to spin up seconds.
    states = jax.tree.map(lambda x: x[None], model.start(jax.random.key(0)))

    def run():
        return forecast_twins(
            model,
            states,
            np.arange(1),
            num_members=members - 1,  # and the truth, which costs as much
            lead_steps=leads,
            member_noise=options["analysis_noise"],
            seed=0,
            **options,
        )

    return Call(run, members, lambda found: np.zeros(0))


# Scoring: the mean of the standard CRPS of every value.


def make_forecast(members, *elements):
    """Members `[member, ...]` and truth `[...]`, float32."""
    rng = np.random.default_rng(0)
    size = int(np.prod(elements))
    forecast = rng.standard_normal((members, size), np.float32)
    return forecast, rng.standard_normal(size, np.float32)


def crps_ensjax(*size) -> Call:
    """`verification.crps`, members first, values split over all devices."""
    import jax

    from ensjax import verification
    from ensjax.mesh import default_mesh
    from ensjax.verification.over_devices import sum_cases

    forecast, truth = make_forecast(*size)
    metric, mesh = verification.crps(), default_mesh()
    by_value = {
        "forecast": jax.P(None, mesh.axis_names),
        "truth": jax.P(mesh.axis_names),
    }
    if len(truth) % mesh.size:
        by_value = dict.fromkeys(by_value, jax.P())
    forecast, truth = (
        jax.device_put(x, jax.NamedSharding(mesh, by_value[name]))
        for name, x in (("forecast", forecast), ("truth", truth))
    )

    def run():
        sums = sum_cases({"crps": metric}, forecast, truth, mesh=mesh)
        return float(metric.finish(sums["crps"]))

    return Call(run, int(np.prod(size)), np.atleast_1d)


def _members_last(*size):
    forecast, truth = make_forecast(*size)
    return np.ascontiguousarray(forecast.T), truth


def _scoringrules(backend):
    """`scoringrules.crps_ensemble` with the sorted estimator, members last."""

    def way(*size) -> Call:
        if importlib.util.find_spec("scoringrules") is None:
            raise ImportError("scoringrules is not installed")
        if importlib.util.find_spec(backend) is None:
            raise ImportError(f"{backend} is not installed")
        import scoringrules

        forecast, truth = _members_last(*size)
        score = functools.partial(
            scoringrules.crps_ensemble, estimator="qd", backend=backend
        )
        if backend == "jax":
            import jax

            forecast, truth = jax.device_put((forecast, truth))
            mean = jax.jit(lambda truth, forecast: score(truth, forecast).mean())
        elif backend == "torch":
            import torch

            forecast, truth = torch.from_numpy(forecast), torch.from_numpy(truth)

            def mean(truth, forecast):
                return score(truth, forecast).mean()
        else:

            def mean(truth, forecast):
                return np.mean(score(truth, forecast), dtype=np.float64)

        return Call(
            lambda: float(mean(truth, forecast)), int(np.prod(size)), np.atleast_1d
        )

    return way


def crps_xskillscore(*size) -> Call:
    """`xskillscore.crps_ensemble` on arrays of xarray, members last.

    Without numba it makes all pairs of members, some values at a time.
    """
    for name in ("xarray", "xskillscore"):
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"{name} is not installed")
    import xarray
    import xskillscore

    forecast, truth = _members_last(*size)
    most = len(truth)
    if importlib.util.find_spec("numba") is None:
        most = max(1, PAIRS_AT_ONCE // size[0] ** 2)
    forecast = xarray.DataArray(forecast, dims=("value", "member"))
    truth = xarray.DataArray(truth, dims=("value",))

    def run():
        total = 0.0
        for first in range(0, len(truth), most):
            part = slice(first, first + most)
            mean = xskillscore.crps_ensemble(truth[part], forecast[part])
            total += float(mean) * len(truth[part])
        return total / len(truth)

    return Call(run, int(np.prod(size)), np.atleast_1d)


def _as_call(way):
    return lambda *size: Call(*way(*size))


SAMPLING = {
    OURS: with_ensjax,
    "one by one": one_by_one,
    "loop over steps": loop_over_steps,
    "lax.map": with_lax_map,
}
COST = {"emulated": with_ensjax, "simulated": simulated}
CRPS = {
    OURS: crps_ensjax,
    "scoringrules numba": _scoringrules("numba"),
    "scoringrules jax": _scoringrules("jax"),
    "scoringrules torch": _scoringrules("torch"),
    "scoringrules numpy": _scoringrules("numpy"),
    "xskillscore": crps_xskillscore,
}
# The almost fair CRPS as a loss: its value and its gradient.
LOSS = {name: _as_call(way) for name, way in losses.WAYS.items()}
PARTS = {
    "sampling": SAMPLING,
    "cost": COST,
    "crps": CRPS,
    "loss": LOSS,
    "rollout": {name: _as_call(way) for name, way in rollouts.WAYS.items()},
    "harmonics": {name: _as_call(way) for name, way in harmonics.WAYS.items()},
    "sphere": {name: _as_call(way) for name, way in sphere.WAYS.items()},
}
# On a CPU these have one device for each core; others have one that uses all cores.
ON_ALL_DEVICES = (OURS, "emulated", "simulated")
