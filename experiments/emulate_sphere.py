"""Ways of `bench_emulate` to run members of a spherical Fourier neural operator.

Random weights, a grid with both poles, 74 channels, 8 spectral blocks on an inner grid
of half the latitudes, `NUM_STEPS` steps. 721 latitudes and a width of 620 are the
published network (`nn.sfno`, of 2.2 billion real numbers), for an accelerator.
"""

from typing import Any

import numpy as np

NUM_CHANNELS = 74
NUM_STEPS = 4
PUBLISHED = (721, 620)


def _task(members, latitudes, width):
    """A stack of one network, and the start of each member `[member, lat, lon, c]`."""
    import jax

    from ensjax import Ensemble, make_mesh, nn
    from ensjax.ops.sphere import SphericalGrid

    def make_model(rngs):
        if (latitudes, width) == PUBLISHED:
            return nn.sfno(rngs=rngs)
        half = latitudes // 2
        return nn.SphericalForecaster(
            SphericalGrid(latitudes, 4 * half, "poles", northward=False),
            NUM_CHANNELS,
            width=width,
            blocks=8 * ("global",),
            inner_grid=SphericalGrid(half, 2 * half, northward=False),
            adds_to_state=True,
            rngs=rngs,
        )

    mesh = make_mesh(member=1, devices=jax.devices()[:1])
    ensemble = Ensemble.init(make_model, num_members=1, seed=0, mesh=mesh)
    # The last layer starts from zeros.
    decoder = ensemble.params["decoder"]
    leaves, tree = jax.tree.flatten(decoder)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    ensemble.params["decoder"] = jax.tree.unflatten(
        tree,
        [
            x + 0.01 * jax.random.normal(k, x.shape)
            for x, k in zip(leaves, keys, strict=True)
        ],
    )
    rng = np.random.default_rng(2)
    shape = (members, latitudes, 4 * (latitudes // 2), NUM_CHANNELS)
    return ensemble, jax.device_put(rng.standard_normal(shape, np.float32))


def _timed(run, members) -> tuple[Any, int, Any]:
    def compared(found):
        return np.asarray(found[0]).ravel()[:512]

    return run, members * NUM_STEPS, compared


def with_ensjax(members, latitudes, width):
    """`emulate.run_product`: one program of all steps, a member after the other."""
    import jax

    from ensjax import make_mesh
    from ensjax.emulate import (
        MemberForecast,
        NetworkStep,
        Rollout,
        Start,
        product_ids,
        run_product,
    )

    ensemble, starts = _task(members, latitudes, width)
    forecast = MemberForecast(Rollout(NetworkStep(ensemble.graph)))

    def run():
        found = run_product(
            forecast,
            product_ids(1, 0, members),
            models=ensemble.state,
            starts=Start(starts),
            lead_steps=[NUM_STEPS],
            block=1,
            mesh=make_mesh(member=1, devices=jax.devices()[:1]),
        )
        return jax.block_until_ready(found[:, 0])

    return _timed(run, members)


def loop_over_steps(members, latitudes, width):
    """A Python loop over members and steps of one compiled step, which donates."""
    import functools

    import jax

    ensemble, starts = _task(members, latitudes, width)
    params = jax.tree.map(lambda x: x[0], ensemble.state)

    @functools.partial(jax.jit, donate_argnums=1)
    def step(params, state):
        return ensemble.graph.merge(params, train=False)(None, state)

    def run():
        found = []
        for start in starts:
            state = start + 0  # a copy, which may be given away
            for _ in range(NUM_STEPS):
                state = step(params, state)
            found.append(state)
        return jax.block_until_ready(found)

    return _timed(run, members)


WAYS = {"ensjax": with_ensjax, "loop over steps": loop_over_steps}
