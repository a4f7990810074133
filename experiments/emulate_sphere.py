"""Ways of `bench_emulate` to run members of networks on the sphere.

Random weights, a grid with both poles, blocks on an inner grid of half the latitudes,
`NUM_STEPS` steps. Two networks:

- spectral: a spherical Fourier neural operator of 74 channels and 8 spectral blocks;
  721 latitudes and a width of 620 are the published one (`nn.sfno`, of 2.2 billion real
  numbers), for an accelerator.
- local: 72 channels, 8 local blocks and 2 spectral ones, and 11 channels of noise and
  of what is known, the same in every step here; 721 and 641 are `nn.fourcastnet3`.
"""

from typing import Any

import numpy as np

NUM_STEPS = 4
NUM_CHANNELS = {"spectral": 74, "local": 72}
NUM_KNOWN = {"spectral": 0, "local": 11}
BLOCKS = {"spectral": 8 * ("global",), "local": 2 * (4 * ("local",) + ("global",))}
PUBLISHED = {"spectral": (721, 620), "local": (721, 641)}


def _task(members, latitudes, width, network):
    """A stack of one network, and the start of each member `[member, lat, lon, c]`."""
    import jax

    from ensjax import Ensemble, make_mesh, nn
    from ensjax.ops.sphere import SphericalGrid

    def make_model(rngs):
        if (latitudes, width) == PUBLISHED[network]:
            published = {"spectral": nn.sfno, "local": nn.fourcastnet3}
            return published[network](rngs=rngs)
        half = latitudes // 2
        return nn.SphericalForecaster(
            SphericalGrid(latitudes, 4 * half, "poles", northward=False),
            NUM_CHANNELS[network],
            num_noise_channels=NUM_KNOWN[network],
            width=width,
            blocks=BLOCKS[network],
            inner_grid=SphericalGrid(half, 2 * half, northward=False),
            adds_to_state=network == "spectral",
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
    shape = (members, latitudes, 4 * (latitudes // 2), NUM_CHANNELS[network])
    return ensemble, jax.device_put(rng.standard_normal(shape, np.float32))


def _known(network):
    """What the network is given beside the state, as a function of key and shape."""
    import jax.numpy as jnp

    count = NUM_KNOWN[network]
    if not count:
        return None

    def known(key, shape):
        del key
        lat, lon = (jnp.linspace(0, 2 * np.pi, n, dtype=np.float32) for n in shape[:2])
        waves = jnp.arange(1, count + 1, dtype=np.float32)
        return jnp.cos(lat[:, None, None] + lon[:, None] * waves)

    return known


def _timed(run, members) -> tuple[Any, int, Any]:
    def compared(found):
        return np.asarray(found[0]).ravel()[:512]

    return run, members * NUM_STEPS, compared


def with_ensjax(members, latitudes, width, network):
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

    ensemble, starts = _task(members, latitudes, width, network)
    forecast = MemberForecast(Rollout(NetworkStep(ensemble.graph, _known(network))))

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


def loop_over_steps(members, latitudes, width, network):
    """A Python loop over members and steps of one compiled step, which donates."""
    import functools

    import jax

    ensemble, starts = _task(members, latitudes, width, network)
    params, known = jax.tree.map(lambda x: x[0], ensemble.state), _known(network)

    @functools.partial(jax.jit, donate_argnums=1)
    def step(params, state):
        noise = None if known is None else known(None, state.shape)
        return ensemble.graph.merge(params, train=False)(noise, state)

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
