"""What `rebasin.py` measures of members: paths of pairs, and joint alignment."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

import ensjax
from ensjax import scores, weight_space
from ensjax.mesh import fetch
from ensjax.predictions import predictive_log_probs

SETS = ("train", "test")
SCORES = ("nll", "accuracy")
# What is done to the second member of a pair, or to the mixtures.
WAYS = ("naive", "weights", "weights_repair", "activations")


def all_rows(dataset):
    """Training and test rows one behind the other: one program evaluates both."""
    x = np.concatenate([dataset.x_train, dataset.x_test])
    return x, np.concatenate([dataset.y_train, dataset.y_test]).astype(np.int32)


def by_set(dataset, values) -> np.ndarray:
    """Means over the rows of each of `SETS`, `[set, ...]`, of `[..., row]`."""
    count = len(dataset.y_train)
    return np.stack([values[..., :count].mean(-1), values[..., count:].mean(-1)])


def statistics_rows(config, dataset) -> np.ndarray:
    """The training rows on which activations are measured."""
    return dataset.x_train[: config.num_statistics]


def alphas(config) -> np.ndarray:
    """Points on the path of a pair, `[alpha]`."""
    return np.linspace(0, 1, config.num_alphas, dtype=np.float32)


def spec_of(ensemble, dataset):
    """Which units are interchangeable."""
    shape = jax.ShapeDtypeStruct((1, *dataset.x_train.shape[1:]), np.float32)
    return weight_space.infer_permutations(ensemble, shape)


def outputs_of(config, ensemble, x) -> np.ndarray:
    """Logits of all members, `[member, row, class]`."""
    found = ensjax.predict(ensemble, x, batch_size=config.predict_batch_size)
    return np.asarray(fetch(found), np.float64)


def largest_difference(before, after) -> float:
    """Between outputs, relative to the largest output or to 1."""
    return float(np.abs(before - after).max() / max(1.0, np.abs(before).max()))


def values(config, ensemble, rows, dataset) -> np.ndarray:
    """NLL and accuracy of mixtures, `[set, score, mixture]`."""
    swept = weight_space.sweep(
        ensemble,
        rows,
        {"all": all_rows(dataset)},
        scores=SCORES,
        per_row=True,
        batch_size=config.predict_batch_size,
    ).rows["weights"]["all"]
    return by_set(dataset, np.stack([swept[score] for score in SCORES]))


def row_scores(logits, labels) -> np.ndarray:
    """NLL and accuracy of every row, `[score, ..., row]`, of `[..., row, class]`."""
    logs = logits - scipy.special.logsumexp(logits, axis=-1, keepdims=True)
    own = logs[..., np.arange(len(labels)), labels]
    return np.stack([-own, logs.argmax(axis=-1) == labels])


def measure_pairs(config, ensemble, dataset) -> dict[str, np.ndarray]:
    """The paths from member 0 to 1, 2 to 3, ..., before and after matching.

    Returns:
        `paths` `[way, set, score, pair, alpha]`; `difference` `[]`, by how much
        matching changes outputs; `sweeps` `[]`; `correlation` `[2]`, of paired units'
        activations before and after matching them.
    """
    members = ensemble.num_members
    references = np.arange(members) // 2 * 2
    spec, x = spec_of(ensemble, dataset), statistics_rows(config, dataset)
    by_weights = weight_space.match_weights(ensemble, spec, reference=references)
    by_response = weight_space.match_activations(ensemble, x, reference=references)
    aligned, responding = (
        weight_space.apply_permutations(ensemble, spec, found.permutations)
        for found in (by_weights, by_response)
    )
    line = alphas(config)
    paths = [
        weight_space.alpha_path(line, num_members=members, ends=(first, first + 1))
        for first in range(0, members, 2)
    ]
    rows = np.concatenate(paths)

    def of_ensemble(own):
        found = values(config, own, rows, dataset)
        return found.reshape(*found.shape[:2], len(paths), len(line))

    def repaired():
        each = []
        for pair in range(len(paths)):
            ends = aligned.select(np.arange(2 * pair, 2 * pair + 2))
            own = weight_space.alpha_path(line, num_members=2)
            mixed = weight_space.mix_members(ends, own)
            mended = weight_space.repair(mixed, ends, own, x)
            each.append(values(config, mended, np.eye(len(line)), dataset))
        return np.stack(each, axis=2)

    odd = np.arange(1, members, 2)
    before, after = (
        outputs_of(config, own, dataset.x_test) for own in (ensemble, aligned)
    )
    ways = {
        "naive": lambda: of_ensemble(ensemble),
        "weights": lambda: of_ensemble(aligned),
        "weights_repair": repaired,
        "activations": lambda: of_ensemble(responding),
    }
    return {
        "paths": np.stack([ways[way]() for way in WAYS]),
        "difference": largest_difference(before, after),
        "sweeps": by_weights.sweeps,
        "correlation": np.array(
            [fetch(c)[odd].mean() for c in (by_response.before, by_response.after)]
        ),
    }


def measure_set(config, ensemble, dataset, *, has_statistics) -> dict[str, np.ndarray]:
    """Members aligned jointly: their soup and all pairs, before and after.

    Args:
        ensemble: one set.
        dataset: its data.
        has_statistics: whether mixtures' batch statistics are measured, instead of
            REPAIR.

    Returns:
        `matrix` `[2, member, member]`, barriers of test NLL before and after; `soup`
        `[way, set, score]` of the mean of all weights before, after and after REPAIR;
        `members` `[set, score, member]`, `ensemble` `[set, score]` of mean
        probabilities; `ece` `[1 + way]`, on test rows, the members' mean first;
        `agreement` `[2]`, of a member and the mean of the others, mean over members;
        `difference` `[]` and `sweeps` `[]`.
    """
    members = ensemble.num_members
    spec, x = spec_of(ensemble, dataset), statistics_rows(config, dataset)
    test = {"test": (dataset.x_test, dataset.y_test.astype(np.int32))}
    found = weight_space.match_weights_jointly(ensemble, spec)
    aligned = weight_space.apply_permutations(ensemble, spec, found.permutations)
    share = np.full((1, members), 1 / members, np.float32)

    def matrix(own):
        return weight_space.connectivity(
            own,
            test,
            alphas=config.num_matrix_alphas,
            statistics=x if has_statistics else None,
            batch_size=config.predict_batch_size,
        ).matrix["test"]

    soups = [weight_space.mix_members(own, share) for own in (ensemble, aligned)]
    if not has_statistics:
        soups.append(weight_space.repair(soups[1], aligned, share, x))
    soups = functools.reduce(lambda a, b: a.concatenate(b), soups)
    soups = soups.with_ids(np.arange(soups.num_members, dtype=np.int32))
    if has_statistics:
        soups = weight_space.recompute_statistics(soups, x)
    rows, labels = all_rows(dataset)
    before, after, merged = (
        outputs_of(config, own, rows) for own in (ensemble, aligned, soups)
    )
    mean = np.asarray(predictive_log_probs(jnp.asarray(before, jnp.float32)))
    count = len(dataset.y_train)
    test_labels = labels[count:]
    eces = [
        np.asarray(scores.ece(jnp.asarray(own[:, count:], jnp.float32), test_labels))
        for own in (before, merged)
    ]
    return {
        "matrix": np.stack([matrix(ensemble), matrix(aligned)]),
        "soup": np.moveaxis(by_set(dataset, row_scores(merged, labels)), -1, 0),
        "members": by_set(dataset, row_scores(before, labels)),
        "ensemble": by_set(dataset, row_scores(mean, labels)),
        "ece": np.array([eces[0].mean(), *eces[1]]),
        "agreement": np.array([np.mean(fetch(a)) for a in (found.before, found.after)]),
        "difference": largest_difference(before, after),
        "sweeps": found.sweeps,
    }


def measure_sets(config, ensemble, dataset, num_members, *, has_statistics):
    """`measure_set` of one set after the other, with an axis `[num_sets, ...]`."""
    found = [
        measure_set(
            config,
            ensemble.select(
                np.arange(number * num_members, (number + 1) * num_members)
            ),
            dataset,
            has_statistics=has_statistics,
        )
        for number in range(config.num_sets)
    ]
    return {name: np.stack([own[name] for own in found]) for name in found[0]}
