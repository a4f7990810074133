"""What depends on how many members there are, from subsets of thousands."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ensjax import verification


def by_size(key, members, truth, clusters, settings) -> dict[str, np.ndarray]:
    """Statistics of subsets of each size, without replacement.

    Args:
        key: random key.
        members: at one lead, `[member, start, site]`.
        truth: `[start, site]`.
        clusters: checkpoint of each member, `[member]`.
        settings: `sizes`, `num_resamples`, `num_score_resamples`, `crps_size`, and
            `extreme` and `high` (thresholds of the Brier score and of owCRPS).

    Returns:
        `[size]`: `outliers`, the share outside; `gain`, the median over cells of its
        mean over subsets, and `gain_low`, `gain_high`, the least and most of a cell;
        `best`, root mean square error of the best member; `brier` of exceeding
        `extreme`, whose standard form falls with the number of members by construction,
        and `fair_brier`, whose mean over subsets is that of all, with its standard
        error `fair_brier_error`; `owcrps` and `fair_owcrps`, which both fall: the
        error of the largest member, where none is above, falls whatever the estimator,
        and fair ones leave out events with one above, other ones at each size; `width`
        and `cluster_width`, mean over cells of the 95 % interval of that probability
        over members with replacement (which falls as n^-1/2 whatever they are), and
        over whole checkpoints; `bracketed`, the share of cells that are satisfactory.
        `[]`:
        `fair` and `crps` of all, and `small_fair`, `small_crps` of subsets of
        `crps_size`, with standard errors over subsets `small_error` and
        `small_crps_error`; `small_gap`, standard less fair of the same subset, with
        `small_gap_error`; `spread` (half the mean distance of two members), `ssr` of
        all.
    """
    members, truth = jnp.asarray(members), jnp.asarray(truth)
    rows = {}
    for number, size in enumerate(settings["sizes"]):
        own = jax.random.fold_in(key, number)
        is_whole = size >= len(members)
        found = _of_size(
            own,
            members,
            truth,
            jnp.float32(settings["extreme"]),
            jnp.float32(settings["high"]),
            size=min(size, len(members)),
            resamples=1 if is_whole else settings["num_resamples"],
            scored=1 if is_whole else settings["num_score_resamples"],
        )
        for name, of in (("width", None), ("cluster_width", clusters)):
            found[name] = width(own, members, settings, size, of)
        for name, value in jax.device_get(found).items():
            rows.setdefault(name, []).append(value)
    found = {name: np.asarray(values, np.float64) for name, values in rows.items()}
    return found | _crps(key, members, truth, settings)


_OUTCOME = {
    "owcrps": verification.outcome_weighted_crps(None),
    "fair_owcrps": verification.outcome_weighted_crps(None, estimator="fair"),
}


@functools.partial(jax.jit, static_argnames=("size", "resamples", "scored"))
def _of_size(key, members, truth, extreme, high, *, size, resamples, scored):
    options = dict(replace=False)

    def of_subset(subset):
        low, top = jnp.min(subset, axis=0), jnp.max(subset, axis=0)
        share = jnp.mean((subset > extreme) * 1.0, axis=0)
        brier = (share - (truth > extreme)) ** 2
        return {
            "outside": verification.is_outside(low, top, truth) * 1.0,
            "gain": verification.gain(subset),
            "best": jnp.min((subset - truth[None]) ** 2, axis=0),
            "brier": brier,
            "fair_brier": brier - share * (1 - share) / (size - 1),
        }

    drawn = verification.of_size(
        key, members, size, of_subset, num_resamples=resamples, **options
    )
    gain = jnp.mean(drawn["gain"], axis=0)

    def outcome_weighted(subset):
        level = {"threshold": jnp.broadcast_to(high, truth.shape)}
        return {
            name: metric(subset, truth, reference=level)[0]
            for name, metric in _OUTCOME.items()
        }

    ow = verification.of_size(
        key, members, size, outcome_weighted, num_resamples=scored, **options
    )
    fair = jnp.mean(drawn["fair_brier"], axis=(1, 2))  # [resample]
    inside = 1 - jnp.mean(drawn["outside"], axis=0)
    return {
        "outliers": jnp.mean(drawn["outside"]),
        "gain": jnp.median(gain),
        "gain_low": jnp.min(gain),
        "gain_high": jnp.max(drawn["gain"]),
        "best": jnp.sqrt(jnp.mean(drawn["best"])),
        "brier": jnp.mean(drawn["brier"]),
        "fair_brier": jnp.mean(fair),
        "fair_brier_error": jnp.std(fair) / resamples**0.5,
        **{name: jnp.mean(values) for name, values in ow.items()},
        "bracketed": jnp.mean((inside > 0.95) * 1.0),
    }


def width(key, members, settings, size, clusters) -> np.ndarray:
    """Mean over cells of the interval of P(x > extreme); cells where it is 0 do not
    count."""
    found = _interval(
        key,
        members,
        jnp.float32(settings["extreme"]),
        size=size,
        num_resamples=settings["num_resamples"],
        clusters=None if clusters is None else tuple(np.asarray(clusters).tolist()),
    )
    possible = np.asarray((found.estimate > 0.002) & (found.estimate < 0.998))
    return np.mean(np.asarray(found.high - found.low)[possible])


@functools.partial(jax.jit, static_argnames=("size", "num_resamples", "clusters"))
def _interval(key, members, extreme, *, size, num_resamples, clusters):
    return verification.exceedance_interval(
        key,
        members,
        extreme,
        size,
        num_resamples=num_resamples,
        replace=clusters is None,  # whole checkpoints are drawn with it
        clusters=clusters,
    )


_STANDARD, _FAIR = verification.crps(), verification.crps_parts("fair")


@jax.jit
def _of_all(members, truth):
    whole = _FAIR(members, truth)
    return {
        "fair": whole.skill - whole.spread / 2,
        "crps": _STANDARD(members, truth),
        "spread": whole.spread / 2,
        "ssr": verification.spread_skill()(members, truth).ratio,
    }


@functools.partial(jax.jit, static_argnames=("size", "num_resamples"))
def _of_few(key, members, truth, *, size, num_resamples):
    def score(subset):
        few = _FAIR(subset, truth)
        return few.skill - few.spread / 2, _STANDARD(subset, truth)

    return verification.of_size(
        key, members, size, score, num_resamples=num_resamples, replace=False
    )


def _crps(key, members, truth, settings) -> dict[str, np.ndarray]:
    """Fair and standard CRPS of all members and of subsets, each form by itself."""
    size = min(settings["crps_size"], len(members))
    number = settings["num_resamples"]
    few = _of_few(key, members, truth, size=size, num_resamples=number)
    found = dict(jax.device_get(_of_all(members, truth)))
    fair, standard = (np.asarray(values, np.float64) for values in few)
    rows = {"": fair, "_crps": standard, "_gap": standard - fair}
    for name, values in rows.items():
        found[f"small{name or '_fair'}"] = values.mean()
        found[f"small{name}_error"] = values.std(ddof=1) / np.sqrt(len(values))
    return {name: np.float64(value) for name, value in found.items()}
