"""Ways of `bench_emulate` to run forecasts: products of checkpoints and perturbations.

Six checkpoints of a network on 36 sites (three residual blocks of 32 channels, random
weights, which cost what trained ones do), perturbed at random. A way takes how many
members and steps there are, and how many members are run one by one.
"""

import functools

import numpy as np

NUM_CHECKPOINTS, NUM_SITES, BLOCK = 6, 36, 64
NUM_COMPARED = 8  # members


@functools.lru_cache(maxsize=1)
def _task():
    """The forecast of a member, the checkpoints, and the start, on the host."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from ensjax import Ensemble, nn
    from ensjax.emulate import (
        MemberForecast,
        NetworkStep,
        RandomPerturbation,
        Rollout,
        Start,
    )

    def make_model(rngs):
        # Short steps: rounding is not carried on to other weather.
        network = nn.ResidualForecaster(
            1, width=32, depth=3, step_scale=0.01, rngs=rngs
        )
        kernel = network.head.linear.kernel
        kernel[...] = 0.1 * jax.random.normal(rngs.params(), kernel.shape)
        return nnx.clone(network)

    ensemble = Ensemble.init(make_model, num_members=NUM_CHECKPOINTS)
    forecast = MemberForecast(
        Rollout(NetworkStep(ensemble.graph)), RandomPerturbation(jnp.full(1, 0.1))
    )
    state = jax.random.normal(jax.random.key(3), (1, NUM_SITES, 1))
    return forecast, jax.device_get(ensemble.state), Start(np.asarray(state))


def _members(count):
    from ensjax.emulate import MemberId, product_ids

    pairs = -(-count // (2 * NUM_CHECKPOINTS))
    return MemberId(*(x[:count] for x in product_ids(NUM_CHECKPOINTS, pairs, 1)))


def _compared(values):
    return np.asarray(values[:NUM_COMPARED]).reshape(NUM_COMPARED, -1)


def with_ensjax(call, members, steps, alone):
    """`run_product`: one program of all members and steps, on all devices."""
    del alone
    import jax

    from ensjax.emulate import run_product

    forecast, models, starts = _task()
    ids = _members(members)

    def run():
        options = dict(models=models, starts=starts, block=BLOCK)
        found = run_product(forecast, ids, lead_steps=(steps,), **options)
        return jax.block_until_ready(found)

    return call(run, members * steps, _compared)


def gathered(call, members, steps, alone):
    """`run_product` with parameters of its own for every member of a block."""
    del alone
    import jax

    from ensjax.emulate import run_product

    forecast, models, starts = _task()
    ids = _members(members)

    def run():
        options = dict(models=models, starts=starts, block=BLOCK, share="member")
        found = run_product(forecast, ids, lead_steps=(steps,), **options)
        return jax.block_until_ready(found)

    return call(run, members * steps, _compared)


def _begun(forecast, models, start, ids):
    """Parameters, key and state of one member, by its number."""
    import jax

    def begin(number):
        member = type(ids)(*(x[number] for x in ids))
        model = jax.tree.map(lambda x: x[member.checkpoint], models)
        return model, *forecast.begin(member, model, start, 0)

    return begin


def one_by_one(call, members, steps, alone):
    """A Python loop over members; each call makes all steps of one."""
    import jax
    import jax.numpy as jnp

    forecast, models, starts = _task()
    models, start = jax.device_put((models, jax.tree.map(lambda x: x[0], starts)))
    count = min(members, alone)
    ids = jax.device_put(_members(members))

    @jax.jit
    def compiled(models, start, ids, number, leads):
        model, key, state = _begun(forecast, models, start, ids)(number)
        return forecast.rollout(model, key, state, leads)

    leads = jnp.asarray([steps])

    def run():
        found = [compiled(models, start, ids, i, leads) for i in range(count)]
        return jax.block_until_ready(found)

    return call(run, count * steps, lambda found: _compared(np.stack(found)))


def loop_over_steps(call, members, steps, alone):
    """A Python loop over steps; each call moves all members, one checkpoint's at once.

    So do pipelines whose models are called step by step.
    """
    del alone
    import jax

    forecast, models, starts = _task()
    start = jax.tree.map(lambda x: x[0], starts)
    ids = _members(members)
    given = jax.device_put((models, start, ids))
    begun = jax.jit(jax.vmap(_begun(forecast, *given)))
    rows = [np.flatnonzero(ids.checkpoint == c) for c in range(NUM_CHECKPOINTS)]
    step = jax.jit(jax.vmap(forecast.rollout.step, in_axes=(None, None, 0)))
    parameters = [jax.device_put(jax.tree.map(lambda x, c=c: x[c], models))
                  for c in range(NUM_CHECKPOINTS)]  # fmt: skip
    key = jax.random.key(0)  # the network has no noise

    def run():
        _, _, states = begun(np.arange(members))
        found = [states[own] for own in rows]
        for _ in range(steps):
            found = [
                step(model, key, own) if len(own) else own
                for model, own in zip(parameters, found)
            ]
        states = np.empty(states.shape, np.float32)
        for own, values in zip(rows, jax.block_until_ready(found)):
            states[own] = values
        return states

    return call(run, members * steps, _compared)


WAYS = {
    "ensjax": with_ensjax,
    "gathered": gathered,
    "one by one": one_by_one,
    "loop over steps": loop_over_steps,
}
