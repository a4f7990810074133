"""What an ensemble is worth: scores of members, of ensembles of every size, calibrated.

Everything takes logits `[seed, member, batch, class]`: seeds of the whole ensemble are
one more axis in front of the members.
"""

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ensjax import combine, scores
from ensjax.experiment import ConfigError

MEMBER, ENSEMBLE = "single member", "ensemble"
CALIBRATED, CALIBRATED_MEMBER = "ensemble, calibrated", "single member, calibrated"
SYSTEMS = (MEMBER, ENSEMBLE, CALIBRATED, CALIBRATED_MEMBER)
METRICS = ("accuracy", "nll", "brier", "ece", "aurc")
ENTROPY, MUTUAL_INFORMATION = "predictive entropy", "mutual information"
DOUBT = "1 - largest probability"


class Calibration(NamedTuple):
    """What is learnt from the held-out rows.

    Attributes:
        temperature: of the pooled predictive, `[seed]`.
        member_temperature: of each member alone, `[seed, member]`.
        member_nll: of each member before any temperature, in nats, `[seed, member]`.
    """

    temperature: jax.Array
    member_temperature: jax.Array
    member_nll: jax.Array


@jax.jit
def fit_calibration(logits: jax.Array, labels: jax.Array) -> Calibration:
    """Temperatures after pooling, and of each member by itself.

    Args:
        logits: of the calibration rows, `[seed, member, batch, class]`.
        labels: `[batch]`.
    """
    ensemble = jax.vmap(lambda x: combine.calibrate(x, labels))(logits)
    member = jax.vmap(lambda x: combine.calibrate_members(x, labels))(logits)
    nll = scores.nll(logits, labels)
    return Calibration(ensemble.temperature, member.temperature, nll)


@jax.jit
def predict_systems(
    logits: jax.Array, calibration: Calibration | None
) -> dict[str, jax.Array]:
    """Log-probabilities in nats of every system that is compared.

    Args:
        logits: `[seed, member, batch, class]`.
        calibration: None: nothing is calibrated.

    Returns:
        `[seed, batch, class]` of ensembles, `[seed, member, batch, class]` of members.
    """
    pooled = jax.vmap(combine.mean_probs)(logits)
    systems = {MEMBER: jax.nn.log_softmax(logits), ENSEMBLE: pooled}
    if calibration is not None:
        by_seed = calibration.temperature[:, None, None]
        by_member = calibration.member_temperature[:, :, None, None]
        systems[CALIBRATED] = jax.nn.log_softmax(pooled / by_seed)
        systems[CALIBRATED_MEMBER] = jax.nn.log_softmax(logits / by_member)
    return systems


def measure_systems(
    systems: dict[str, jax.Array], labels: jax.Array, num_bins: int
) -> dict[str, dict[str, np.ndarray]]:
    """System, then metric of `METRICS`, to `[seed]` or `[seed, member]`, float64.

    NLL in nats, Brier from 0 to 2, ECE in `num_bins` equal bins, AURC by the largest
    probability.
    """
    systems = {name: systems[name] for name in SYSTEMS if name in systems}
    # All systems in one array: one program is compiled instead of one for each shape.
    rows = [x.reshape(-1, *x.shape[-2:]) for x in systems.values()]
    values = jax.device_get(_measure(jnp.concatenate(rows), labels, num_bins))
    ends = np.cumsum([len(x) for x in rows])
    measured = {}
    for (name, x), end in zip(systems.items(), ends):
        own = slice(end - math.prod(x.shape[:-2]), end)
        measured[name] = {
            metric: values[metric][own].reshape(x.shape[:-2]).astype(np.float64)
            for metric in METRICS
        }
    return measured


@functools.partial(jax.jit, static_argnums=2)
def _measure(log_probs, labels, num_bins):
    return {
        "accuracy": scores.accuracy(log_probs, labels),
        "nll": scores.nll(log_probs, labels),
        "brier": scores.brier(log_probs, labels),
        "ece": scores.ece(log_probs, labels, num_bins=num_bins),
        "aurc": scores.aurc(log_probs, labels),
    }


def scored_members(frozen_steps: np.ndarray) -> np.ndarray:
    """Positions of the members that are scored, `[seed, scored]`.

    A member that stopped being finite counts in no score. Every seed keeps its first
    finite members, as many as the seed with the fewest has: ensembles of all seeds are
    of one size.

    Args:
        frozen_steps: steps after which a member was found not finite, or -1,
            `[seed, member]`.

    Raises:
        ConfigError: if a seed has no member left.
    """
    is_finite = np.asarray(frozen_steps) < 0
    num_scored = int(is_finite.sum(axis=1).min())
    if not num_scored:
        seed = int(is_finite.any(axis=1).argmin())
        raise ConfigError(
            f"no member of seed {seed} stayed finite, so there is nothing to score;"
            " choose a smaller learning rate."
        )
    return np.argsort(~is_finite, axis=1, kind="stable")[:, :num_scored]


class Subsets(NamedTuple):
    """Which members form the smaller ensembles.

    Attributes:
        sizes: `[size]`.
        rows: 1.0 for a member of the subset, else 0.0, `[size, subset, member]`.
        exists: `[size, subset]`; False pads sizes that have fewer subsets.
    """

    sizes: np.ndarray
    rows: np.ndarray
    exists: np.ndarray


def draw_subsets(num_members: int, num_subsets: int, seed: int) -> Subsets:
    """At most `num_subsets` subsets of each size, all of them where there are as few.

    Sizes are 1 to `num_members`; if there are more than 16, some 16 of these in equal
    ratios and the powers of two up to 16.
    """
    rng = np.random.default_rng(seed)
    sizes = np.arange(1, num_members + 1)
    if num_members > 16:
        ratios = np.geomspace(1, num_members, 16).round().astype(int)
        sizes = np.unique([*ratios, 2, 4, 8, 16])
    rows = np.zeros((len(sizes), num_subsets, num_members), np.float32)
    exists = np.zeros((len(sizes), num_subsets), bool)
    for i, size in enumerate(sizes.tolist()):
        if math.comb(num_members, size) <= num_subsets:
            chosen = np.array(list(itertools.combinations(range(num_members), size)))
        else:
            order = np.tile(np.arange(num_members), (num_subsets, 1))
            chosen = rng.permuted(order, axis=1)[:, :size]
        np.put_along_axis(rows[i, : len(chosen)], chosen, 1.0, axis=1)
        exists[i, : len(chosen)] = True
    return Subsets(sizes, rows, exists)


def measure_sizes(
    logits: Any, labels: Any, subsets: Subsets, num_bins: int
) -> dict[str, np.ndarray]:
    """Every metric of the subsets' ensembles, `[seed, size, subset]`; NaN if padded.

    A subset is a row of weights for `combine.mean_probs`; a few rows run at a time, so
    that memory does not grow with the number of subsets.
    """
    values = _measure_sizes(jnp.asarray(logits), labels, subsets.rows, num_bins)
    return {
        name: np.where(subsets.exists[None], np.asarray(value, np.float64), np.nan)
        for name, value in values.items()
    }


@functools.partial(jax.jit, static_argnums=3)
def _measure_sizes(logits, labels, rows, num_bins):
    flat = rows.reshape(-1, rows.shape[-1])

    def one_seed(logits):
        def one_subset(weights):
            log_probs = combine.mean_probs(logits, weights)
            return _measure(log_probs, labels, num_bins)

        return jax.lax.map(one_subset, flat, batch_size=min(8, flat.shape[0]))

    values = jax.lax.map(one_seed, logits)
    return jax.tree.map(lambda x: x.reshape(-1, *rows.shape[:2]), values)


@jax.jit
def measure_diversity(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """Jensen gap (nats), disagreement, and how often any member is right, `[seed]`.

    "disagreement_matrix" is `[seed, member, member]`.
    """
    any_right = jnp.any(jnp.argmax(logits, -1) == labels[None, None], axis=1)
    return {
        "jensen_gap": jax.vmap(lambda x: scores.jensen_gap(x, labels))(logits),
        "disagreement": jax.vmap(scores.disagreement)(logits),
        "disagreement_matrix": jax.vmap(scores.disagreement_matrix)(logits),
        "any_right": jnp.mean(any_right.astype(jnp.float32), axis=-1),
    }


@jax.jit
def measure_uncertainty(logits: jax.Array) -> dict[str, dict[str, jax.Array]]:
    """Uncertainty score, then system, to one number per row.

    `[seed, batch]` of the ensemble and `[seed, member, batch]` of members, in nats for
    entropies. A member alone has no mutual information.
    """
    systems = predict_systems(logits, None)
    pair = {name: systems[name] for name in (ENSEMBLE, MEMBER)}
    return {
        ENTROPY: {k: scores.predictive_entropy(x) for k, x in pair.items()},
        MUTUAL_INFORMATION: {ENSEMBLE: jax.vmap(scores.mutual_information)(logits)},
        DOUBT: {k: 1.0 - jnp.exp(jnp.max(x, axis=-1)) for k, x in pair.items()},
    }


def measure_auroc(inside: Any, outside: Any) -> dict[str, dict[str, np.ndarray]]:
    """AUROC of telling `outside` rows from `inside` ones, both `measure_uncertainty`.

    `[seed]` of the ensemble, `[seed, member]` of members: the chance that a row from
    outside is the less certain of the two.
    """
    return {
        score: {
            system: np.asarray(_auroc(x, outside[score][system]), np.float64)
            for system, x in systems.items()
        }
        for score, systems in inside.items()
    }


@jax.jit
def _auroc(inside, outside):
    is_outside = jnp.arange(inside.shape[-1] + outside.shape[-1]) >= inside.shape[-1]
    return scores.auroc(jnp.concatenate([inside, outside], axis=-1), is_outside)
