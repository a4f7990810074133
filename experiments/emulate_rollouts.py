"""Ways of `bench_emulate` to run many members of an emulator for many steps.

Member i is of checkpoint i mod 4 and starts from a state of its own; networks have
random weights. A way gives what is timed, how many steps of members it makes, and the
last states of some members.
"""

from typing import Any

import numpy as np

NUM_CHECKPOINTS = 4
NUM_SITES = 36
BLOCK = 64  # of a CPU; an accelerator takes all members of a checkpoint at once
NUM_COMPARED = 8  # members


def _make_model(rngs):
    from ensjax.nn import ResidualForecaster

    return ResidualForecaster(1, width=32, depth=3, step_scale=0.5, rngs=rngs)


def _task(members):
    """The stack, the checkpoint of each member, and its start `[member, site, 1]`."""
    import jax

    from ensjax import Ensemble

    ensemble = Ensemble.init(_make_model, num_members=NUM_CHECKPOINTS, seed=0)
    leaves, tree = jax.tree.flatten(ensemble.state)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    # The last layer starts from zeros. Small weights keep the states finite.
    leaves = [
        x + 0.001 * jax.random.normal(key, x.shape, x.dtype)
        for x, key in zip(leaves, keys, strict=True)
    ]
    state = jax.device_get(jax.tree.unflatten(tree, leaves))
    rng = np.random.default_rng(2)
    starts = rng.standard_normal((members, NUM_SITES, 1), np.float32)
    return ensemble.graph, state, np.arange(members) % NUM_CHECKPOINTS, starts


def _timed(run, members, steps) -> tuple[Any, int, Any]:
    return run, members * steps, lambda found: np.asarray(found)[:NUM_COMPARED, :8, 0]


def with_ensjax(members, steps):
    """`emulate.run_product`: blocks of members of one checkpoint, on all devices."""
    import jax

    from ensjax.emulate import (
        MemberForecast,
        MemberId,
        NetworkStep,
        Rollout,
        Start,
        run_product,
    )

    graph, state, checkpoints, starts = _task(members)
    rows = np.arange(members, dtype=np.int32)
    ids = MemberId(
        checkpoints.astype(np.int32), np.zeros_like(rows), np.zeros_like(rows), rows
    )
    forecast = MemberForecast(Rollout(NetworkStep(graph)))
    state, starts = jax.device_put((state, starts))
    is_cpu = jax.default_backend() == "cpu"
    block = BLOCK if is_cpu else -(-members // NUM_CHECKPOINTS)

    def run():
        found = run_product(
            forecast,
            ids,
            models=state,
            starts=Start(starts),
            lead_steps=[steps],
            block=block,
        )
        return jax.block_until_ready(found[:, 0])

    return _timed(run, members, steps)


def _one_member(graph, steps):
    """`one(params, start)`: the last state of one member, as a compiled scan."""
    import jax

    def one(params, start):
        network = graph.merge(params, train=False)

        def advance(state, _):
            return network(None, state), None

        return jax.lax.scan(advance, start, None, length=steps)[0]

    return one


def loop_over_members(members, steps):
    """A Python loop over members; each call is the compiled forecast of one."""
    import jax

    graph, state, checkpoints, starts = _task(members)
    compiled = jax.jit(_one_member(graph, steps))
    models = [
        jax.device_put(jax.tree.map(lambda x, i=i: x[i], state))
        for i in range(NUM_CHECKPOINTS)
    ]
    starts = list(jax.device_put(starts))

    def run():
        found = [
            compiled(models[i], start)
            for i, start in zip(checkpoints, starts, strict=True)
        ]
        return np.stack(jax.block_until_ready(found))

    return _timed(run, members, steps)


def with_lax_map(members, steps):
    """One program that forecasts one member after the other."""
    import jax

    graph, state, checkpoints, starts = _task(members)
    one = _one_member(graph, steps)
    state, starts = jax.device_put((state, starts))

    @jax.jit
    def compiled(state, checkpoints, starts):
        def of_member(member):
            number, start = member
            return one(jax.tree.map(lambda x: x[number], state), start)

        return jax.lax.map(of_member, (checkpoints, starts))

    def run():
        return jax.block_until_ready(compiled(state, checkpoints, starts))

    return _timed(run, members, steps)


def loop_over_steps(members, steps):
    """A Python loop over steps; a call moves all members of a checkpoint at once."""
    import functools

    import jax

    graph, state, checkpoints, starts = _task(members)
    models = [
        jax.device_put(jax.tree.map(lambda x, i=i: x[i], state))
        for i in range(NUM_CHECKPOINTS)
    ]
    rows = [np.flatnonzero(checkpoints == i) for i in range(NUM_CHECKPOINTS)]
    own = [jax.device_put(starts[row]) for row in rows]

    @functools.partial(jax.jit, donate_argnums=1)
    def step(params, states):
        network = graph.merge(params, train=False)
        return jax.vmap(lambda state: network(None, state))(states)

    def run():
        states = [states.copy() for states in own]
        for _ in range(steps):
            states = [step(*one) for one in zip(models, states, strict=True)]
        found = np.empty_like(starts)
        for row, state in zip(rows, states, strict=True):
            found[row] = state
        return found

    return _timed(run, members, steps)


WAYS = {
    "ensjax": with_ensjax,
    "loop over members": loop_over_members,
    "lax.map": with_lax_map,
    "loop over steps": loop_over_steps,
}
