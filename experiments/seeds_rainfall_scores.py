"""What `seeds_rainfall.py` measures, by the room that verifies forecasts.

A system is `[member, case]` in mm. CRPS is the standard one, of ensembles of different
size, as it is in the numbers it is compared with: more members are worth something.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.verification import (
    bootstrap_comparison,
    brier_skill_score,
    crps,
    event_table,
    rank_histogram,
    reliability_diagram,
    spread_skill,
)

NUM_RANKED = 11  # members of each system that ranks are counted among


def measure(config, train, test, systems, done):
    """Scores of every system; those of generated rain by seed.

    Returns:
        "systems" {name: {score: number}}, "generated" {kind: {score: `[seed]`}}, and
        what figures need.
    """
    thresholds = tuple(config.thresholds)
    usual = (train.observed[:, None] > np.asarray(thresholds)).mean(axis=0)
    own = jax.jit(lambda rain: scores_of(rain, test, thresholds, usual))
    found = {
        "systems": {name: _numbers(own(_shuffled(x))) for name, x in systems.items()},
        "generated": {},
        "not_finite": 0,
        "parts": (len(train.observed), len(test.observed)),
    }
    for kind, stored in done.items():
        rain = stored["rain"]
        by_seed = [_numbers(own(jnp.asarray(x))) for x in rain]
        found["generated"][kind] = {
            name: np.stack([scores[name] for scores in by_seed]) for name in by_seed[0]
        }
        found["not_finite"] += int((~np.isfinite(rain)).sum())
        found["not_finite"] += int((stored["frozen_steps"] >= 0).sum())
    found["against"] = _against(config, test, systems, done)
    found["reliability"] = _reliability(config, test, systems, done)
    return found


def scores_of(rain, test, thresholds, usual):
    """Of one system `[member, case]`: scores by name, with an entry a threshold."""
    truth = jnp.asarray(test.observed)
    cases = {"case_ids": jnp.asarray(test.rows)}
    usual = jnp.broadcast_to(jnp.asarray(usual), (len(truth), len(thresholds)))
    skill = brier_skill_score(thresholds, climatology="given")
    number = min(NUM_RANKED, len(rain))
    ranks = rank_histogram(number)(rain[:number], truth, reference=cases)
    spread = spread_skill()(rain, truth)
    return {
        "crps": crps("standard")(rain, truth),
        "fair_crps": crps("fair")(rain, truth),
        "bss": skill(rain, truth, reference={"climatology": usual}),
        "bias": (rain.mean(axis=0) - truth).mean(),
        "ratio": spread.ratio,
        "unreliability": ranks.unreliability,
        "outliers": ranks.outliers,
        "counts": ranks.counts,
    }


def _numbers(scores):
    return {name: np.asarray(value, np.float64) for name, value in scores.items()}


def _shuffled(rain):
    """Members of each case in random order: quantiles come sorted."""
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.permuted(rain, axis=0), jnp.float32)


def _against(config, test, systems, done):
    """CRPS of the first seed less that of others, with a block bootstrap over dates."""
    metric = crps("standard").over()
    truth = jnp.asarray(test.observed)
    sums = {name: metric.sums(jnp.asarray(x), truth) for name, x in systems.items()}
    found = {}
    for number, (kind, stored) in enumerate(done.items()):
        own = metric.sums(jnp.asarray(stored["rain"][0]), truth)
        for name in (_first(systems, "raw"), _first(systems, "EMOS")):
            compared = bootstrap_comparison(
                jax.random.key(number),
                metric,
                own,
                sums[name],
                block_length=config.bootstrap_block_days,
            )
            found[kind, name] = [float(np.ravel(x)[0]) for x in compared.difference]
    return found


def _first(systems, start):
    return next(name for name in systems if name.startswith(start))


def _reliability(config, test, systems, done):
    """Of the highest threshold: probability, frequency and count, each `[bin]`."""
    chosen = {name: systems[_first(systems, name)] for name in ("raw", "EMOS")}
    chosen |= {kind: stored["rain"][0] for kind, stored in done.items()}
    table = event_table((config.thresholds[-1],), num_bins=10)
    found = {}
    for name, rain in chosen.items():
        diagram = reliability_diagram(
            table(jnp.asarray(rain, jnp.float32), jnp.asarray(test.observed))
        )
        found[name] = [np.asarray(x)[0] for x in diagram]
    return found
