"""The streaming statistics of a known field, beside those of two passes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ensjax import reduce
from ensjax.emulate import (
    MemberForecast,
    NoPerturbation,
    Rollout,
    Start,
    fold_program,
    product_ids,
    run_product,
    states_by_lead,
)
from ensjax.experiment.fields import load_beside
from ensjax.mesh import fetch, make_mesh

cpu_devices = load_beside(__file__, "cpu_devices")


@dataclasses.dataclass(frozen=True)
class Draw:
    """In the place of a step: Gaussian numbers, or those of extreme values (Gumbel).

    A field of means near 280 has half of its places Gaussian and half Gumbel.
    """

    def __call__(self, model, key, state):
        del model
        half = state.shape[0] // 2
        gaussian = jax.random.normal(key, state.shape)
        gumbel = jax.random.gumbel(key, state.shape)
        place = jnp.arange(state.shape[0]).reshape(-1, *(1,) * (state.ndim - 1))
        return state + jnp.where(place < half, gaussian, gumbel)


def statistics_of_draws(num_members: int, shape, seed: int) -> dict[str, float]:
    """The streaming statistics of a known field of numbers like temperatures.

    One device and two are compared in a process of its own, on CPU devices, where this
    one has one device.

    Returns:
        `two_pass`, `block` and `devices`: the largest relative difference of mean and
        variance from two passes in double precision, from another block, and between
        one device and two; `counts`, whether extremes, their members and counts are
        equal in all of them.
    """
    given = (num_members, tuple(shape), seed)
    found = statistics_here(*given)
    if jax.device_count() > 1:
        return found
    other = cpu_devices.in_own_process(__file__, given, 2)
    counts = min(found["counts"], float(other["counts"]))
    return found | {"devices": float(other["devices"]), "counts": counts}


def statistics_here(num_members: int, shape, seed: int) -> dict[str, float]:
    """`statistics_of_draws` on this process's devices; NaN of two where it has one."""
    field = 280 + 10 * np.random.default_rng(seed).normal(size=shape)
    field = jnp.asarray(field, jnp.float32)
    members = product_ids(1, num_members // 2, 1)
    job = MemberForecast(Rollout(Draw()), NoPerturbation())
    given = dict(models=None, starts=Start(field[None]), lead_steps=(1,), seed=seed)

    def fold(block, devices):
        def states(lead):
            return {
                "moments": reduce.init_moments(field),
                "who": reduce.init_extreme_members(field, field),
                "ranks": reduce.init_ranks(field + 1),
            }

        mesh = make_mesh(member=devices, devices=jax.devices()[:devices])
        states = states_by_lead(states, 1)
        program, arguments = fold_program(
            job, members, states, block=block, mesh=mesh, **given
        )
        return jax.tree.map(lambda x: x[0], fetch(program(*arguments)))

    mesh = make_mesh(member=1, devices=jax.devices()[:1])
    kept = fetch(run_product(job, members, block=128, mesh=mesh, **given))[:, 0]
    wide, observed = kept.astype(np.float64), np.asarray(field + 1)
    first, other = fold(128, 1), fold(96, 1)
    runs = [first, other]
    if len(jax.devices()) > 1:
        runs.append(fold(128, 2))
    mean, variance = (np.asarray(x) for x in reduce.finish_moments(first["moments"]))

    def gap(state):
        found = reduce.finish_moments(state["moments"])
        pairs = zip(found, (mean, variance))
        return max(float(np.abs(np.asarray(a) / b - 1).max()) for a, b in pairs)

    counts = [
        np.array_equal(run["who"].highest.value, kept.max(axis=0))
        and np.array_equal(run["who"].lowest.value, kept.min(axis=0))
        and np.array_equal(run["who"].highest.member, kept.argmax(axis=0))
        and np.array_equal(run["ranks"].below, (kept < observed).sum(axis=0))
        for run in runs
    ]
    return {
        "two_pass": max(
            float(np.abs(mean / wide.mean(axis=0) - 1).max()),
            float(np.abs(variance / wide.var(axis=0) - 1).max()),
        ),
        "block": gap(other),
        "devices": gap(runs[2]) if len(runs) > 2 else np.nan,
        "counts": float(all(counts)),
    }


if __name__ == "__main__":
    cpu_devices.answer(lambda given: statistics_here(*given))
