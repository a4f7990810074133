"""SEEPS: a score of rain in three categories that are even in every climate."""

import functools

import jax.numpy as jnp

from ensjax.verification.ingredients import needed, of_each
from ensjax.verification.member_state import OfMembers
from ensjax.verification.metric import Metric

DRY_MM = 0.25  # at most this is dry
LEAST_DRY_SHARE, MOST_DRY_SHARE = 0.1, 0.85


def seeps(*, dry: float = DRY_MM) -> Metric:
    """Stable equitable error in probability space of rain, mean over members and cases.

    0 is perfect, 1 the expectation without skill. Rain is dry, light or heavy; the
    error of forecasting one and observing another is half of

        forecast    dry observed            light             heavy
        dry         0                       1 / (1 - p)       4 / (1 - p)
        light       1 / p                   0                 3 / (1 - p)
        heavy       1 / p + 3 / (2 + p)     3 / (2 + p)       0

    with p the climate's share of dry days. It is a score of single forecasts: each
    member is scored, and the mean taken. A forecast of several members that should be
    scored as one (their median) comes as one member.

    Args:
        dry: the largest amount that is dry, in the unit of the values (mm).

    Returns:
        The metric; its reference is {"dry_share": p, "heavy": h}, `[*truth]`, by place
        and season, h being the amount above which rain is heavy, such that among wet
        days light ones are twice as many. Elements with p outside of [0.1, 0.85] are
        not scored.

    Source: Rodwell et al. 2010, QJRMS 136, equation 15.
    """
    return _seeps(float(dry))


@functools.lru_cache(maxsize=8)
def _seeps(dry):
    def category(x, level):
        return jnp.where(x <= dry, 0, jnp.where(x <= level, 1, 2))

    def inputs(truth, reference):
        return {
            name: needed(reference, name, truth.shape)
            for name in ("dry_share", "heavy")
        }

    def each(values, given):
        share, heavy, truth = (given[name] for name in ("dry_share", "heavy", "truth"))
        is_scored = (share >= LEAST_DRY_SHARE) & (share <= MOST_DRY_SHARE)
        p = jnp.where(is_scored, share, 0.5)
        forecast, observed = category(values, heavy[None]), category(truth, heavy)
        zero = jnp.zeros_like(p)
        costs = (
            (zero, 1 / (1 - p), 4 / (1 - p)),
            (1 / p, zero, 3 / (1 - p)),
            (1 / p + 3 / (2 + p), 3 / (2 + p), zero),
        )
        # By what was forecast, given what was observed: [forecast, ...].
        rows = [
            jnp.where(observed == 0, a, jnp.where(observed == 1, b, c)) / 2
            for a, b, c in costs
        ]
        cost = jnp.where(
            forecast == 0,
            rows[0][None],
            jnp.where(forecast == 1, rows[1][None], rows[2][None]),
        )
        undefined = ~is_scored | jnp.isnan(truth) | jnp.isnan(heavy)
        return OfMembers(
            moments={
                "cost": jnp.where(undefined[None] | jnp.isnan(values), jnp.nan, cost)
            }
        )

    ingredient = of_each(
        f"seeps {dry!r}",
        each,
        lambda found, truth, reference: found.moments["cost"].mean,
        inputs,
    )
    return Metric(
        ingredient,
        lambda cost, truth, reference: {"seeps": cost},
        lambda mean: mean["seeps"],
        best="low",
    )
