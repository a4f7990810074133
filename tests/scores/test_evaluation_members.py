"""Diversity, doubt and spread by name: values, intervals, masks, and what is refused.

Each interval is that of a NumPy loop over the same resamples of groups, which takes the
rows of a resample out and scores them alone.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, cohen_kappa_score, roc_auc_score

from ensjax import scores
from ensjax.experiment.json_files import to_json_value
from ensjax.predictions import Predictions
from ensjax.provenance import LeakageError, Provenance

MEMBERS, ROWS, CLASSES, RESAMPLES = 4, 40, 3, 25
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, CLASSES, ROWS)
LOGITS = RNG.normal(size=(MEMBERS, ROWS, CLASSES)) + 1.5 * np.eye(CLASSES)[LABELS]
LOGITS = LOGITS.astype(np.float32)
IS_OOD = RNG.uniform(size=ROWS) < 0.5
TARGETS = RNG.normal(size=ROWS).astype(np.float32)
POINTS = (TARGETS + RNG.normal(size=(MEMBERS, ROWS))).astype(np.float32)
GROUPS = np.arange(ROWS) // 3
OPTIONS = dict(groups=GROUPS, bootstrap=RESAMPLES, seed=3)


@functools.cache
def resamples():
    """The rows of each resample of groups."""
    draws = []

    def keep(counts):
        draws.append(np.asarray(counts))
        return np.float32(0)

    def tap(counts):
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return jax.pure_callback(keep, shape, counts, vmap_method="sequential")

    scores.paired_bootstrap(
        jax.random.key(3),
        tap,
        ROWS,
        groups=GROUPS,
        num_groups=int(GROUPS.max()) + 1,
        num_resamples=RESAMPLES,
    )
    found = {
        row.tobytes(): row for row in draws if row.sum() > 0 and not (row == 1).all()
    }
    assert len(found) == RESAMPLES
    return [np.repeat(np.arange(ROWS), row.astype(int)) for row in found.values()]


def interval(score, *arrays):
    """The ends over resamples of groups; `score` sees the rows that were drawn."""
    values = [score(*(a[..., rows, :] for a in arrays)) for rows in resamples()]
    return np.quantile(values, [0.025, 0.975])


def pairs(of_two):
    """The mean of `of_two(first, second, labels)` of votes over pairs of members."""

    def score(logits, labels):
        votes, labels = logits.argmax(-1), labels[:, 0]
        found = [
            of_two(votes[i], votes[j], labels)
            for i in range(len(votes))
            for j in range(i)
        ]
        return np.mean(found)

    return score


def q_statistic(first, second, labels):
    first, second = first == labels, second == labels
    both, none = (first & second).sum(), (~first & ~second).sum()
    one, other = (first & ~second).sum(), (~first & second).sum()
    return (both * none - one * other) / (both * none + one * other)


def correlation(first, second, labels):
    return np.corrcoef(first == labels, second == labels)[0, 1]


def entropy(probs):
    return -(probs * np.log(probs)).sum(-1)


def mutual_information(logits, labels=None):
    probs = softmax(logits.astype(float), axis=-1)
    return (entropy(probs.mean(0)) - entropy(probs).mean(0)).mean()


def jensen_gap(logits, labels):
    own = log_softmax(logits.astype(float), axis=-1)
    own = own[:, np.arange(len(labels)), labels[:, 0]]
    return (np.log(np.exp(own).mean(0)) - own.mean(0)).mean()


def vote_shares(logits):
    return np.eye(CLASSES)[logits.argmax(-1)].mean(0)


def normalized_disagreement(logits, labels):
    differs = pairs(lambda a, b, y: (a != b).mean())(logits, labels)
    return differs / (logits.argmax(-1) != labels[:, 0]).mean()


DIVERSITY = {
    "disagreement": pairs(lambda a, b, y: (a != b).mean()),
    "normalized_disagreement": normalized_disagreement,
    "kappa": pairs(lambda a, b, y: cohen_kappa_score(a, b)),
    "error_correlation": pairs(correlation),
    "q_statistic": pairs(q_statistic),
    "double_fault": pairs(lambda a, b, y: ((a != y) & (b != y)).mean()),
    "jensen_gap": jensen_gap,
    "mutual_information": mutual_information,
    "variation_ratio": lambda x, y: (1 - vote_shares(x).max(-1)).mean(),
}


def check(found, references, *arrays):
    for name, reference in references.items():
        np.testing.assert_allclose(
            found[name], reference(*arrays), rtol=2e-5, atol=1e-6, err_msg=name
        )
        ends = interval(reference, *arrays)
        np.testing.assert_allclose(
            [found[f"{name}_low"], found[f"{name}_high"]],
            ends,
            rtol=2e-5,
            atol=1e-6,
            err_msg=name,
        )


def test_diversity_and_its_intervals_are_those_of_a_loop():
    found = scores.evaluate_diversity(LOGITS, LABELS, list(DIVERSITY), **OPTIONS)
    check(found, DIVERSITY, LOGITS, LABELS[:, None])
    assert (found["num_members"], found["num_rows"]) == (MEMBERS, ROWS)


@pytest.mark.slow
def test_all_measures_have_intervals_around_the_plain_score():
    found = scores.evaluate_diversity(LOGITS, LABELS, bootstrap=10)
    assert set(scores.DIVERSITY_METRICS) <= set(found)
    np.testing.assert_allclose(
        found["mean_pairwise_kl"], scores.mean_pairwise_kl(LOGITS), rtol=1e-5
    )
    np.testing.assert_allclose(
        found["label_probability_variance"],
        scores.label_probability_variance(LOGITS, LABELS),
        rtol=1e-5,
    )
    for name in scores.DIVERSITY_METRICS:
        low, high = found[f"{name}_low"], found[f"{name}_high"]
        assert low <= found[name] <= high and low < high, name


@pytest.mark.slow
def test_doubt_and_its_intervals_are_those_of_a_loop():
    def doubt(logits):
        return entropy(softmax(logits.astype(float), axis=-1).mean(0))

    def distance(x, logits):
        return abs(x).sum(-1)

    features = RNG.normal(size=(ROWS, 2)).astype(np.float32)
    given = {
        "entropy": scores.DOUBTS["predictive_entropy"],
        "far": abs(features).sum(1),
    }
    found = scores.evaluate_ood(LOGITS, IS_OOD, given, **OPTIONS)
    references = {
        "entropy_auroc": lambda x, z, y: roc_auc_score(y[:, 0], doubt(x)),
        "entropy_auprc": lambda x, z, y: average_precision_score(y[:, 0], doubt(x)),
        "far_auroc": lambda x, z, y: roc_auc_score(y[:, 0], abs(z).sum(-1)),
    }
    check(found, references, LOGITS, features, IS_OOD[:, None])
    everything = scores.evaluate_ood(LOGITS, IS_OOD)
    assert len(everything) == 3 * len(scores.DOUBTS) + 2
    for name in scores.DOUBTS:
        assert 0 <= everything[f"{name}_fpr_at_tpr"] <= 1


@pytest.mark.slow
def test_spread_and_its_intervals_are_those_of_a_loop():
    def ambiguity(x, y):
        return x[..., 0].var(axis=0).mean()

    def crps(x, y):
        x, y = x[..., 0].astype(float), y[:, 0]
        apart = abs(x[:, None] - x[None]).sum((0, 1)) / 2
        return (abs(x - y).mean(0) - apart / MEMBERS**2).mean()

    def ranks(x, y):
        x, y = x[..., 0], y[:, 0]
        return spearmanr(x.std(0), abs(x.mean(0) - y)).statistic

    names = ["ambiguity", "error_rank_correlation", "crps_samples"]
    found = scores.evaluate_spread(POINTS, TARGETS, names, **OPTIONS)
    references = {"ambiguity": ambiguity, "error_rank_correlation": ranks}
    references["crps_samples"] = crps
    check(found, references, POINTS[..., None], TARGETS[:, None])
    everything = scores.evaluate_spread(POINTS, TARGETS, bootstrap=10)
    for name in scores.SPREAD_METRICS:
        assert everything[f"{name}_low"] < everything[f"{name}_high"], name


@pytest.mark.parametrize("how", ["mask", "weights"])
def test_members_that_do_not_count_are_as_if_removed(how):
    silent = np.array([1, 1, 0, 1], np.float32)
    value = jnp.asarray(silent > 0) if how == "mask" else jnp.asarray(silent)
    left = silent > 0
    names = ["disagreement", "double_fault", "jensen_gap", "mutual_information"]
    given = Predictions.from_logits(LOGITS).replace(**{how: value})
    found = scores.evaluate_diversity(given, LABELS, names)
    expected = scores.evaluate_diversity(LOGITS[left], LABELS, names)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)
    given = Predictions.from_points(POINTS).replace(**{how: value})
    spread = ["ambiguity", "spread_skill", "confidence_curve_area"]
    found = scores.evaluate_spread(given, TARGETS, spread)
    expected = scores.evaluate_spread(POINTS[left], TARGETS, spread)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)
    given = Predictions.from_logits(LOGITS).replace(**{how: value})
    found = scores.evaluate_ood(given, IS_OOD, ["mutual_information", "max_prob"])
    expected = scores.evaluate_ood(
        LOGITS[left], IS_OOD, ["mutual_information", "max_prob"]
    )
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)


def test_rows_of_weight_zero_count_as_removed():
    weight = (np.arange(ROWS) % 4 != 0).astype(np.float32)
    broken = np.where(weight[None, :, None] == 0, np.nan, LOGITS)
    kept = weight > 0
    names = ["kappa", "q_statistic", "mean_pairwise_kl", "label_probability_variance"]
    found = scores.evaluate_diversity(broken, LABELS, names, sample_weight=weight)
    expected = scores.evaluate_diversity(LOGITS[:, kept], LABELS[kept], names)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)
    found = scores.evaluate_ood(broken, IS_OOD, ["margin"], sample_weight=weight)
    expected = scores.evaluate_ood(LOGITS[:, kept], IS_OOD[kept], ["margin"])
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)


def test_votes_and_masks_by_row_have_their_measures():
    votes = Predictions.from_votes(LOGITS.argmax(-1), CLASSES)
    names = ["disagreement", "kappa", "double_fault", "vote_entropy"]
    found = scores.evaluate_diversity(votes, LABELS, names)
    expected = scores.evaluate_diversity(LOGITS, LABELS, names)
    for name in names:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6)
    mask = RNG.uniform(size=(MEMBERS, ROWS)) < 0.8
    mask[0] = True
    given = Predictions.from_logits(LOGITS, mask=mask)
    found = scores.evaluate_diversity(given, LABELS, ["disagreement"], bootstrap=5)
    plain = scores.disagreement(LOGITS, mask=mask)
    np.testing.assert_allclose(found["disagreement"], plain, rtol=1e-6)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="unknown metrics 'kapa'"):
        scores.evaluate_diversity(LOGITS, LABELS, ["kapa"])
    with pytest.raises(ValueError, match="metric 'matrix' must give a scalar"):
        scores.evaluate_diversity(
            LOGITS, LABELS, {"matrix": lambda p, y, sample_weight: scores.kappa(p)}
        )
    with pytest.raises(ValueError, match=r"doubt 'far' must give \[batch\] = \(40,\)"):
        scores.evaluate_ood(LOGITS, IS_OOD, {"far": np.zeros(3)})
    with pytest.raises(ValueError, match="No member counts"):
        nobody = Predictions.from_logits(LOGITS, mask=np.zeros(MEMBERS, bool))
        scores.evaluate_diversity(nobody, LABELS)
    about = Provenance.of("wine", np.arange(ROWS), trained_on=[3])
    told = Predictions.from_logits(LOGITS, provenance=about)
    for call in (
        functools.partial(scores.evaluate_diversity, told, LABELS, ["kappa"]),
        functools.partial(scores.evaluate_ood, told, IS_OOD, ["margin"]),
        functools.partial(
            scores.evaluate_spread,
            Predictions.from_points(POINTS, provenance=about),
            TARGETS,
            ["ambiguity"],
        ),
    ):
        with pytest.raises(LeakageError, match="row 3"):
            call()
        assert call(allow_seen=True)["num_members"] == MEMBERS


def test_what_is_undefined_is_nan_and_null_in_a_file():
    found = scores.evaluate_spread(POINTS[:1], TARGETS)
    undefined = {name for name, value in found.items() if np.isnan(value)}
    assert undefined == {
        "confidence_curve_area",
        "error_rank_correlation",
        "sparsification_error",
        "spread_skill",
    }
    held = json.loads(json.dumps(to_json_value(found), allow_nan=False))
    assert {name for name, value in held.items() if value is None} == undefined
    assert held["num_members"] == 1


@pytest.mark.slow
def test_every_metric_has_a_value_with_few_classes():
    found = scores.evaluate(LOGITS, LABELS, list(scores.METRICS))
    assert found["top_k_accuracy"] == 1 and np.isfinite(found["macro_auroc"])
