"""Thousands of members of each start: streamed, kept at one lead, and made again.

`_scores.py` has what depends on how many members there are.
"""

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from ensjax import reduce, verification
from ensjax.emulate import (
    MemberForecast,
    MemberId,
    NoPerturbation,
    RandomPerturbation,
    Rollout,
    Start,
    fold_program,
    product_ids,
    run_product,
    states_by_lead,
)
from ensjax.experiment.fields import load_beside
from ensjax.mesh import fetch, make_mesh

ensembles = load_beside(__file__, "huge_ensembles_members")

KINDS = ("bred", "random")
METRICS = {
    "crps": verification.crps(),
    "outliers": verification.outliers(),
    "spread": verification.spread_skill(),
}


def perturbation_of(config, ensemble, kind, amplitude):
    """Of one kind, with the checkpoints' own steps where they are bred."""
    if kind == "random":
        return RandomPerturbation(amplitude)
    return ensembles.bred_of(config, ensemble, amplitude)


def all_members(config, start: int) -> MemberId:
    """Every checkpoint with every pair, of one start."""
    return product_ids(config.num_checkpoints, config.perturbations.num_pairs, [start])


class Job:
    """The forecasts of one seed's checkpoints from its starts, with one perturbation.

    Args:
        config: of the run.
        ensemble: the checkpoints.
        kind: of the perturbation.
        amplitude: its norm, `[1]`.
        starts: of all cases.
    """

    def __init__(self, config, ensemble, kind, amplitude, starts):
        perturb = perturbation_of(config, ensemble, kind, amplitude)
        self.config = config
        self.forecast = MemberForecast(ensembles.rollout_of(ensemble), perturb)
        self.options = dict(
            models=ensemble.state,
            starts=starts,
            lead_steps=tuple(config.leads),
            block=config.block,
            seed=config.seed,
            mesh=ensemble.mesh,
        )

    def kept(self, members: MemberId) -> np.ndarray:
        """Values of all members at all leads, `[member, lead, site]`, NumPy."""
        return fetch(run_product(self.forecast, members, **self.options))

    def program(self, members: MemberId, truth, thresholds, max_members):
        """What folds some members of one start, and its arguments."""

        def states(lead):
            return {
                "mean": reduce.init_moments(truth[lead]),
                "who": reduce.init_extreme_members(truth[lead], truth[lead]),
                "above": reduce.init_exceedances(truth[lead], thresholds),
                **verification.member_states(
                    METRICS.values(),
                    truth[lead],
                    max_members=max_members,
                ),
            }

        states = states_by_lead(states, len(self.config.leads))
        return fold_program(self.forecast, members, states, **self.options)


def stream(job: Job, members: MemberId, kept, truth, thresholds) -> dict:
    """The streamed statistics of one start beside those of its kept members.

    Args:
        job: of one kind.
        members: of the start.
        kept: `[member, lead, site]`, the same members.
        truth: `[lead, site]`.
        thresholds: `[threshold]`.

    Returns:
        `seconds` of the start, compiled before; `bytes` of the program at all members
        and at few (`few_bytes`), temporary ones; `difference`, the largest of mean,
        variance and scores, relative, but for `crps_difference` of the CRPS, whose
        summary of the order of members is no exact one; `exact`, whether extremes,
        their members, and counts are those of the kept ones; `again`, whether the
        highest member of each lead, made alone, has the bits that were stored.
    """
    truth, thresholds = jnp.asarray(truth), jnp.asarray(thresholds, jnp.float32)
    few = MemberId(*(x[: min(512, x.size // 2)] for x in members))
    sizes = []
    for some in (few, members):  # what runs below is the program of all
        program, arguments = job.program(some, truth, thresholds, members.start.size)
        compiled = program.lower(*arguments).compile()
        sizes.append(compiled.memory_analysis().temp_size_in_bytes)
    begin = time.perf_counter()
    states = jax.block_until_ready(compiled(*arguments))
    seconds = time.perf_counter() - begin
    states = fetch(states)
    who = states["who"]
    above = (kept[:, :, None] > np.asarray(thresholds)[None, None, :, None]).sum(axis=0)
    exact = [
        np.array_equal(who.highest.value, kept.max(axis=0)),
        np.array_equal(who.lowest.value, kept.min(axis=0)),
        np.array_equal(who.highest.member, kept.argmax(axis=0)),
        np.array_equal(who.lowest.member, kept.argmin(axis=0)),
        np.array_equal(states["above"].above, above),
    ]
    return {
        "seconds": seconds,
        "bytes": sizes[1],
        "few_bytes": sizes[0],
        **_differences(states, kept, truth),
        "exact": float(all(exact)),
        "again": float(_made_again(job, members, who)),
    }


def _differences(states, kept, truth) -> dict[str, float]:
    wide = np.asarray(kept, np.float64)
    leads = range(len(truth))
    by_lead = [
        reduce.finish_moments(jax.tree.map(lambda x, i=i: x[i], states["mean"]))
        for i in leads
    ]
    mean, variance = (np.stack(x) for x in zip(*by_lead))
    gaps = [
        np.abs(mean - wide.mean(axis=0)).max() / np.abs(wide).max(),
        np.abs(variance / wide.var(axis=0) - 1).max(),
    ]
    of_crps = []
    for lead in leads:
        reduced = jax.tree.map(lambda x, i=lead: x[i], states)
        for name, metric in METRICS.items():
            streamed, whole = _scored(metric, reduced, kept[:, lead], truth[lead])
            pairs = zip(jax.tree.leaves(streamed), jax.tree.leaves(whole))
            own = of_crps if name == "crps" else gaps
            own += [abs(float(a) - float(b)) / max(abs(float(b)), 1) for a, b in pairs]
    return {"difference": float(max(gaps)), "crps_difference": float(max(of_crps))}


@functools.partial(jax.jit, static_argnames="metric")
def _scored(metric, reduced, kept, truth):
    """A score of what was streamed, and of members that were kept."""
    return metric.finish(metric.sums_of_reduced(reduced, truth)), metric(kept, truth)


def _made_again(job, members, who) -> bool:
    """The highest member of any site at each lead, alone."""
    same = []
    for lead in range(len(who.highest.value)):
        site = int(np.argmax(who.highest.value[lead]))
        number = int(who.highest.member[lead, site])
        alone = job.kept(MemberId(*(x[number] for x in members)))
        same.append(alone[0, lead, site] == who.highest.value[lead, site])
    return all(same)


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

    Returns:
        `two_pass`, `block` and `devices`: the largest relative difference of mean and
        variance from two passes in double precision, from another block, and between
        one device and two (NaN where there is one); `counts`, whether extremes, their
        members and counts are equal in all of them.
    """
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
