"""What `rebasin.py` measures of trained members: paths of pairs, and joint alignment."""

import jax
import jax.numpy as jnp
import numpy as np

from ensjax import scores, weight_space
from ensjax.mesh import fetch

SETS = ("train", "test")
SCORES = ("nll", "accuracy")
# What is done to the second member of a pair, or to the mixtures.
WAYS = ("naive", "weights", "weights_repair", "activations")


def datasets(dataset):
    """Images and labels of "train" and "test"."""
    return {
        "train": (dataset.x_train, dataset.y_train.astype(np.int32)),
        "test": (dataset.x_test, dataset.y_test.astype(np.int32)),
    }


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


def largest_difference(before, after, x) -> float:
    """Between outputs of two ensembles, relative to the largest output or to 1."""
    a, b = (np.asarray(fetch(e(x)), np.float64) for e in (before, after))
    return float(np.abs(a - b).max() / max(1.0, np.abs(a).max()))


def values(config, ensemble, rows, tests, statistics=None) -> np.ndarray:
    """NLL and accuracy of mixtures, `[set, score, mixture]`, sets as in `tests`."""
    swept = weight_space.sweep(
        ensemble,
        rows,
        tests,
        scores=SCORES,
        statistics=statistics,
        batch_size=config.predict_batch_size,
    ).values["weights"]
    return np.stack([[swept[name][score] for score in SCORES] for name in tests])


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
    tests = datasets(dataset)
    line = alphas(config)
    paths = [
        weight_space.alpha_path(line, num_members=members, ends=(first, first + 1))
        for first in range(0, members, 2)
    ]
    rows = np.concatenate(paths)

    def of_ensemble(own):
        found = values(config, own, rows, tests)
        return found.reshape(*found.shape[:2], len(paths), len(line))

    def repaired():
        each = []
        for pair in range(len(paths)):
            ends = aligned.select(np.arange(2 * pair, 2 * pair + 2))
            own = weight_space.alpha_path(line, num_members=2)
            mixed = weight_space.mix_members(ends, own)
            mended = weight_space.repair(mixed, ends, own, x)
            each.append(values(config, mended, np.eye(len(line)), tests))
        return np.stack(each, axis=2)

    odd = np.arange(1, members, 2)
    ways = {
        "naive": lambda: of_ensemble(ensemble),
        "weights": lambda: of_ensemble(aligned),
        "weights_repair": repaired,
        "activations": lambda: of_ensemble(responding),
    }
    return {
        "paths": np.stack([ways[way]() for way in WAYS]),
        "difference": largest_difference(ensemble, aligned, dataset.x_test),
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
    tests = datasets(dataset)
    statistics = x if has_statistics else None
    found = weight_space.match_weights_jointly(ensemble, spec)
    aligned = weight_space.apply_permutations(ensemble, spec, found.permutations)
    share = np.full((1, members), 1 / members, np.float32)

    def matrix(own):
        return weight_space.connectivity(
            own,
            {"test": tests["test"]},
            alphas=config.num_matrix_alphas,
            statistics=statistics,
            batch_size=config.predict_batch_size,
        ).matrix["test"]

    def soup(own):
        merged = weight_space.mix_members(own, share)
        if has_statistics:
            merged = weight_space.recompute_statistics(merged, x)
        return merged

    soups = [soup(ensemble), soup(aligned)]
    if not has_statistics:
        soups.append(weight_space.repair(soups[1], aligned, share, x))
    outputs = {name: np.asarray(fetch(ensemble(t[0]))) for name, t in tests.items()}
    labels = tests["test"][1]
    ece = [np.asarray(scores.ece(outputs["test"], labels)).mean()]
    ece += [float(scores.ece(own(tests["test"][0]), labels)[0]) for own in soups]
    return {
        "matrix": np.stack([matrix(ensemble), matrix(aligned)]),
        "soup": np.stack(
            [values(config, own, np.eye(1), tests)[..., 0] for own in soups]
        ),
        "members": values(config, ensemble, np.eye(members), tests),
        "ensemble": np.stack([_of_mean(outputs[n], t[1]) for n, t in tests.items()]),
        "ece": np.array(ece),
        "agreement": np.array([np.mean(fetch(a)) for a in (found.before, found.after)]),
        "difference": largest_difference(ensemble, aligned, dataset.x_test),
        "sweeps": found.sweeps,
    }


def _of_mean(logits, labels):
    """NLL and accuracy of the mean of members' probabilities, `[2]`."""
    logs = np.asarray(scores.predictive_log_probs(jnp.asarray(logits)))
    own = np.take_along_axis(logs, labels[:, None], axis=1)
    return np.array([-own.mean(), (logs.argmax(axis=1) == labels).mean()])


def measure_sets(config, ensemble, dataset, num_members, *, has_statistics):
    """`measure_set` of one set after the other, with an axis `[num_sets, ...]`."""
    found = [
        measure_set(
            config,
            ensemble.select(np.arange(number * num_members, (number + 1) * num_members)),
            dataset,
            has_statistics=has_statistics,
        )
        for number in range(config.num_sets)
    ]
    return {name: np.stack([own[name] for own in found]) for name in found[0]}
