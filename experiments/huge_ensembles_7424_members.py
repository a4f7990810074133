"""Thousands of members of each start: streamed, kept at one lead, and made again.

`_scores.py` has what depends on how many members there are.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ensjax import reduce, verification
from ensjax.emulate import (
    MemberForecast,
    MemberId,
    RandomPerturbation,
    fold_program,
    product_ids,
    run_product,
    states_by_lead,
)
from ensjax.experiment.fields import load_beside
from ensjax.mesh import fetch

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
        leads: at which values are kept or folded.
    """

    def __init__(self, config, ensemble, kind, amplitude, starts, leads):
        perturb = perturbation_of(config, ensemble, kind, amplitude)
        self.leads = tuple(leads)
        self.forecast = MemberForecast(ensembles.rollout_of(ensemble), perturb)
        self.options = dict(
            models=ensemble.state,
            starts=starts,
            lead_steps=self.leads,
            block=config.block,
            seed=config.seed,
            mesh=ensemble.mesh,
        )

    def kept(self, members: MemberId) -> np.ndarray:
        """Values of all members at all leads, `[member, lead, site]`, NumPy."""
        return fetch(run_product(self.forecast, members, **self.options))

    def program(self, members: MemberId, truth, thresholds, metrics=METRICS):
        """What folds some members of one start, and its arguments.

        The states are sized for these members: those of metrics that need their order
        grow with them, to a summary.
        """

        def states(lead):
            return {
                "mean": reduce.init_moments(truth[lead]),
                "who": reduce.init_extreme_members(truth[lead], truth[lead]),
                "above": reduce.init_exceedances(truth[lead], thresholds),
                **verification.member_states(
                    metrics.values(),
                    truth[lead],
                    max_members=members.start.size,
                ),
            }

        states = states_by_lead(states, len(self.leads))
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
        `difference`, the largest of mean, variance and scores, relative, but for
        `crps_difference` of the CRPS, whose summary of the order of members is no exact
        one; `exact`, whether extremes, their members, and counts are those of the kept
        ones; `again`, whether the highest member of each lead, made alone, has the bits
        that were stored.
    """
    truth, thresholds = jnp.asarray(truth), jnp.asarray(thresholds, jnp.float32)
    program, arguments = job.program(members, truth, thresholds)
    states = fetch(program(*arguments))
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
