"""`evaluate` says what its scores say one by one, with intervals that cover."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn import metrics

from ensjax import scores
from ensjax.predictions import Predictions, predictive_log_probs
from ensjax.provenance import LeakageError, Provenance

MEMBERS, ROWS, CLASSES = 4, 50, 3


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, ROWS)
    logits = rng.normal(size=(MEMBERS, ROWS, CLASSES))
    logits[:, np.arange(ROWS), labels] += 1
    return jnp.asarray(logits, jnp.float32), labels


def one_system(probs, labels, share):
    """The scores of one system in float64; `share` are weights that sum to 1."""
    right, confidence = probs.argmax(axis=1) == labels, probs.max(axis=1)
    bins = np.ceil(confidence * 15)
    order = np.argsort(-confidence)
    risk = np.cumsum((share * ~right)[order]) / np.cumsum(share[order])
    gaps = share * (right - confidence)
    return {
        "nll": -share @ np.log(probs[np.arange(len(labels)), labels]),
        "accuracy": share @ right,
        "brier": share @ ((probs - np.eye(CLASSES)[labels]) ** 2).sum(axis=1),
        "ece": sum(abs(gaps[bins == b].sum()) for b in np.unique(bins)),
        "aurc": share[order] @ risk,
    }


def test_values_are_those_of_the_scores(case):
    logits, labels = case
    weight = np.random.default_rng(1).uniform(size=ROWS)
    found = scores.evaluate(logits, labels, sample_weight=weight)
    probs = np.exp(log_softmax(np.asarray(logits, float), axis=-1))
    probs = np.concatenate([probs, probs.mean(axis=0, keepdims=True)])
    share = weight / weight.sum()
    expected = [one_system(system, labels, share) for system in probs]
    for name in ("nll", "accuracy", "brier", "ece", "aurc"):
        *own, value = (system[name] for system in expected)
        own = np.array(own)
        assert found[name] == pytest.approx(float(value), abs=1e-6)
        assert found[f"{name}_mean_member"] == pytest.approx(
            float(own.mean()), abs=1e-6
        )
        gain = float(value - own.mean())
        assert found[f"{name}_gain"] == pytest.approx(gain, abs=1e-6)
        np.testing.assert_allclose(found[f"{name}_members"], own, atol=1e-6)
    assert found["num_members"] == MEMBERS and found["num_rows"] == ROWS
    assert json.loads(json.dumps(found)) == found


def test_the_best_member_and_the_oracle_equal_loops(case):
    logits, labels = case
    mask = np.ones((MEMBERS, ROWS), bool)
    mask[3], mask[1, :20] = False, False
    broken = jnp.where(mask[..., None], logits, jnp.nan)
    predictions = Predictions.from_logits(broken, mask=mask, names=list("abcd"))
    found = scores.evaluate(predictions, labels, ["nll", "accuracy"])
    log_probs = log_softmax(np.asarray(logits, float), axis=-1)
    own = log_probs[:, np.arange(ROWS), labels]
    right = log_probs.argmax(-1) == labels
    nll = [-own[m][mask[m]].mean() for m in range(3)]
    accuracy = [right[m][mask[m]].mean() for m in range(3)]
    assert found["nll_best_index"] == np.argmin(nll)
    assert found["accuracy_best_index"] == np.argmax(accuracy)
    assert found["nll_best_member"] == pytest.approx(min(nll), abs=1e-6)
    assert found["accuracy_best_member"] == pytest.approx(max(accuracy), abs=1e-6)
    total = 0.0
    for n in range(ROWS):
        members = [m for m in range(MEMBERS) if mask[m, n]]
        members = [m for m in members if right[m, n]] or members
        total -= max(own[m, n] for m in members)
    assert found["nll_oracle"] == pytest.approx(total / ROWS, abs=1e-6)
    some = (right & mask).any(axis=0).mean()
    assert found["accuracy_oracle"] == pytest.approx(some, abs=1e-6)
    # Chosen elsewhere, it is that member, best or not.
    found = scores.evaluate(predictions, labels, ["nll"], chosen_member="c")
    assert found["nll_best_index"] == 2
    assert found["nll_best_member"] == found["nll_members"][2]
    for chosen in (3, "e", -1):
        with pytest.raises(ValueError, match="chosen_member must be"):
            scores.evaluate(predictions, labels, ["nll"], chosen_member=chosen)


@pytest.mark.parametrize("groups", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_row_of_weight_0_leaves_no_trace_in_resamples(case, groups):
    logits, labels = case
    weight = np.random.default_rng(1).uniform(0.5, 2, ROWS).astype(np.float32)
    weight[[0, 7, 8, 49]] = 0
    kept = weight > 0
    names = np.array([f"scene {i // 4}" for i in range(ROWS)])
    options = dict(metrics=["nll"], bootstrap=20)
    found = scores.evaluate(
        jnp.where(kept[:, None], logits, jnp.nan),
        np.where(kept, labels, 77),
        sample_weight=weight,
        groups=names if groups else None,
        **options,
    )
    expected = scores.evaluate(
        logits[:, kept],
        labels[kept],
        sample_weight=weight[kept],
        groups=names[kept] if groups else None,
        **options,
    )
    assert found == expected
    assert found["num_rows"] == ROWS - 4 and np.isfinite(found["nll_oracle_high"])


@pytest.mark.slow
def test_a_row_of_weight_0_leaves_no_trace_in_intervals_and_sets(points_case):
    points, targets = points_case
    lower, upper = points.min(axis=0), points.max(axis=0)
    sets = np.random.default_rng(0).uniform(size=(ROWS, CLASSES)) < 0.5
    labels = np.arange(ROWS) % CLASSES
    weight = (np.arange(ROWS) % 4 > 0).astype(np.float32)
    kept = weight > 0
    broken = np.where(kept, lower, np.nan)
    np.testing.assert_equal(  # NaN (sizes that do not occur) equals NaN
        scores.evaluate_intervals(
            broken, upper, targets, sample_weight=weight, bootstrap=20
        ),
        scores.evaluate_intervals(
            lower[kept], upper[kept], targets[kept], bootstrap=20
        ),
    )
    np.testing.assert_equal(
        scores.evaluate_sets(
            sets, np.where(kept, labels, 77), sample_weight=weight, bootstrap=20
        ),
        scores.evaluate_sets(sets[kept], labels[kept], bootstrap=20),
    )


def test_predictions_go_to_the_scores_of_their_kind(points_case):
    points, targets = points_case
    weights = np.array([1.0, 2, 0, 1], np.float32)
    found = scores.evaluate(
        Predictions.from_points(points, weights=weights), targets, ["mae"]
    )
    error = np.abs(np.average(points, axis=0, weights=weights) - targets)
    assert found["mae"] == pytest.approx(error.mean(), abs=1e-5)
    assert found["mae_members"][2] is None
    nearest = np.abs(points - targets)[[0, 1, 3]].min(axis=0)
    assert found["mae_oracle"] == pytest.approx(nearest.mean(), abs=1e-5)

    levels = np.array([0.1, 0.5, 0.8])
    spread = np.array([-1.2, 0.0, 0.9], np.float32)
    quantiles = points[..., None] + spread
    found = scores.evaluate(
        Predictions.from_quantiles(quantiles, levels, weights=weights), targets
    )
    systems = [*quantiles, np.average(quantiles, axis=0, weights=weights)]
    losses = np.zeros((len(systems), ROWS))
    for s, system in enumerate(systems):
        for n, (row, target) in enumerate(zip(system, targets)):
            over = target - row
            losses[s, n] = np.maximum(levels * over, (levels - 1) * over).mean()
    assert found["pinball"] == pytest.approx(losses[-1].mean(), abs=1e-5)
    assert found["pinball_members"][2] is None
    assert found["pinball_members"][3] == pytest.approx(losses[3].mean(), abs=1e-5)
    best = losses[[0, 1, 3]].min(axis=0).mean()
    assert found["pinball_oracle"] == pytest.approx(best, abs=1e-5)
    covered = (targets[:, None] <= systems[-1]).mean(axis=0)
    off = np.abs(covered - levels).mean()
    assert found["mean_coverage_error"] == pytest.approx(off, abs=1e-6)
    with pytest.raises(TypeError, match="features"):
        scores.evaluate(Predictions.from_features(quantiles), targets)


@pytest.mark.slow
def test_a_masked_member_is_a_member_that_is_not_there(case):
    logits, labels = case
    broken = logits.at[2].set(jnp.nan)
    mask = np.array([True, True, False, True])
    masked = Predictions.from_logits(broken, mask=mask)
    found = scores.evaluate(masked, labels, ["nll", "ece"], bootstrap=20)
    expected = scores.evaluate(logits[mask], labels, ["nll", "ece"], bootstrap=20)
    for name, value in expected.items():
        if isinstance(value, list):
            assert found[name].pop(2) is None
        if name.endswith("_index"):
            value += value >= 2
        assert found[name] == pytest.approx(value, abs=1e-6), name


def test_rows_without_a_member_are_left_out_of_its_score_alone(case):
    logits, labels = case
    mask = np.ones((MEMBERS, ROWS), bool)
    mask[1, :20] = False
    found = scores.evaluate(Predictions.from_logits(logits, mask=mask), labels, ["nll"])
    own = scores.nll(logits[1, 20:], labels[20:])
    assert found["nll_members"][1] == pytest.approx(float(own), abs=1e-6)
    ensemble = scores.nll(predictive_log_probs(logits, mask=mask), labels)
    assert found["nll"] == pytest.approx(float(ensemble), abs=1e-6)


@pytest.mark.slow
def test_intervals_are_those_of_the_paired_bootstrap(case):
    logits, labels = case
    found = scores.evaluate(logits, labels, ["nll"], bootstrap=200, seed=3)

    def gain(rows):
        own = scores.nll(logits, labels, sample_weight=rows)
        together = scores.nll(predictive_log_probs(logits), labels, sample_weight=rows)
        return together - own.mean()

    expected = scores.paired_bootstrap(jax.random.key(3), gain, ROWS, num_resamples=200)
    assert found["nll_gain_low"] == pytest.approx(float(expected.low), abs=1e-5)
    assert found["nll_gain_high"] == pytest.approx(float(expected.high), abs=1e-5)
    assert found["nll_gain_high"] < 0  # the mixture is better than its mean member
    # Of the ensemble alone rows differ more than of a difference.
    assert found["nll_high"] - found["nll_low"] > 2 * (
        found["nll_gain_high"] - found["nll_gain_low"]
    )


@pytest.mark.slow
def test_groups_are_drawn_whole(case):
    logits, labels = case
    # Ten copies of five rows: fifty rows say no more than five.
    logits, labels = jnp.tile(logits[:, :5], (1, 10, 1)), np.tile(labels[:5], 10)
    names = np.tile([f"patient {i}" for i in range(5)], 10)
    rows = scores.evaluate(logits, labels, ["nll"], bootstrap=300)
    groups = scores.evaluate(logits, labels, ["nll"], bootstrap=300, groups=names)

    def width(found):
        return found["nll_high"] - found["nll_low"]

    assert width(groups) > 2 * width(rows)
    assert groups["nll"] == rows["nll"]


def test_other_metrics_come_as_functions(case):
    logits, labels = case
    found = scores.evaluate(logits, labels, {"F1": scores.macro_f1})
    expected = float(scores.macro_f1(predictive_log_probs(logits), labels))
    assert found["F1"] == pytest.approx(expected, abs=1e-6)


def test_mistakes_are_named(case):
    logits, labels = case
    for names, message in (
        (["nll", "elo"], "unknown metrics 'elo'; there are nll"),
        ("nll", "a list of names"),
        ([], "empty"),
        ({"recall": scores.per_class_recall}, "metric 'recall' must return one number"),
    ):
        with pytest.raises(ValueError, match=message):
            scores.evaluate(logits, labels, names)
    nobody = Predictions.from_logits(logits, mask=np.zeros(MEMBERS, bool))
    with pytest.raises(ValueError, match="No member counts"):
        scores.evaluate(nobody, labels)
    with pytest.raises(ValueError, match="groups must be"):
        scores.evaluate(logits, labels, bootstrap=5, groups=np.zeros(3))
    with pytest.raises(ValueError, match="bootstrap"):
        scores.evaluate(logits, labels, bootstrap=-1)
    votes = Predictions.from_votes(labels[None], CLASSES)
    with pytest.raises(ValueError, match="unknown metrics 'nll'; there are accuracy"):
        scores.evaluate(votes, labels, ["nll"])


@pytest.fixture(scope="module")
def points_case():
    rng = np.random.default_rng(2)
    targets = rng.normal(size=ROWS).astype(np.float32)
    return targets + rng.normal(size=(MEMBERS, ROWS)).astype(np.float32), targets


def test_points_are_scored_as_by_the_scores(points_case):
    points, targets = points_case
    weights, weight = np.array([1.0, 2, 0, 1]), np.linspace(0, 1, ROWS)
    found = scores.evaluate_points(
        points, targets, weights=weights, sample_weight=weight
    )
    together = np.average(points, axis=0, weights=weights)
    every = np.concatenate([points, together[None]])
    best = {"mae": np.min, "r2": np.max, "slope": lambda x: x[np.abs(x - 1).argmin()]}
    for name in ("mae", "rmse", "max_error", "r2", "slope", "spearman_correlation"):
        own = np.asarray(getattr(scores, name)(every, targets, sample_weight=weight))
        assert found[name] == pytest.approx(float(own[-1]), abs=1e-5)
        assert found[f"{name}_members"][2] is None
        kept = own[[0, 1, 3]]
        if name in best:
            value = found[f"{name}_best_member"]
            assert value == pytest.approx(best[name](kept), abs=1e-5)
        assert found[f"{name}_mean_member"] == pytest.approx(kept.mean(), abs=1e-5)
    assert found["num_members"] == 3 and found["num_rows"] == ROWS - 1
    assert json.loads(json.dumps(found)) == found


def test_several_targets_are_scored_one_by_one_on_the_same_resamples(points_case):
    points, targets = points_case
    both = np.stack([points, 2 * points + 1], axis=-1)
    truth = np.stack([targets, 2 * targets + 1], axis=-1)
    told = dict(bootstrap=20, chosen_member=1)
    alone = scores.evaluate_points(points, targets, ["mae"], **told)
    given = Predictions.from_points(both, scale=both**2, columns=("x", "y"))
    found = scores.evaluate(given, truth, ["mae"], **told)
    assert {key: found[f"x_{key}"] for key in alone if key[:3] == "mae"} == {
        key: value for key, value in alone.items() if key[:3] == "mae"
    }
    for key in ("mae", "mae_low", "mae_high", "mae_gain", "mae_best_member"):
        assert found[f"y_{key}"] == pytest.approx(2 * alone[key], rel=1e-4, abs=1e-5)
    assert found["num_members"] == MEMBERS and found["num_rows"] == ROWS
    assert len(found) == 2 * (len(alone) - 2) + 2
    plain = scores.evaluate_points(both, truth, ["mae"], **told)
    assert plain["target1_mae"] == found["y_mae"]
    with pytest.raises(ValueError, match=r"targets must be \[batch, target\]"):
        scores.evaluate_points(both, targets)
    with pytest.raises(ValueError, match="different names"):
        scores.evaluate(given.replace(columns=("x", "x")), truth)


@pytest.mark.slow
def test_points_of_groups_have_wider_intervals_and_masks_remove(points_case):
    points, targets = points_case
    mask = np.ones((MEMBERS, ROWS), bool)
    mask[1, :9] = False
    broken = np.where(mask, points, np.nan)
    # Rows of a group are copies, so that groups are what there is to draw.
    rows = np.repeat(np.arange(10), 5)
    found = scores.evaluate_points(
        points[:, rows], targets[rows], ["mae"], groups=rows, bootstrap=200
    )
    alone = scores.evaluate_points(
        points[:, rows], targets[rows], ["mae"], bootstrap=200
    )
    width, narrow = (r["mae_high"] - r["mae_low"] for r in (found, alone))
    assert found["mae"] == alone["mae"] and width > 1.5 * narrow
    found = scores.evaluate_points(broken, targets, ["mae"], mask=mask)
    own = np.abs(points[1] - targets)[9:].mean()
    assert found["mae_members"][1] == pytest.approx(own, abs=1e-5)
    assert np.isfinite(found["mae"])
    with pytest.raises(ValueError, match="unknown metrics 'nll'"):
        scores.evaluate_points(points, targets, ["nll"])


@pytest.mark.slow
def test_intervals_and_sets_are_scored_as_by_the_scores(points_case):
    points, targets = points_case
    lower, upper = points.min(axis=0), points.max(axis=0)
    found = scores.evaluate_intervals(lower, upper, targets, nominal=0.8, bootstrap=50)
    expected = {
        "coverage": scores.interval_coverage(lower, upper, targets),
        "width": scores.mean_width(lower, upper),
        "interval_score": scores.interval_score(lower, upper, targets, alpha=0.2),
        "cwc": scores.coverage_width_criterion(lower, upper, targets, nominal=0.8),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), rel=1e-5)
        assert found[f"{name}_low"] <= found[name] <= found[f"{name}_high"]
    labels = np.arange(ROWS) % CLASSES
    sets = np.random.default_rng(0).uniform(size=(ROWS, CLASSES)) < 0.5
    found = scores.evaluate_sets(sets, labels, bootstrap=50)
    covered = sets[np.arange(ROWS), labels].mean()
    assert found["coverage"] == pytest.approx(covered, abs=1e-6)
    assert found["size"] == pytest.approx(sets.sum(axis=1).mean(), abs=1e-6)
    assert found["coverage_low"] < covered < found["coverage_high"]
    with pytest.raises(ValueError, match="nominal must lie"):
        scores.evaluate_intervals(lower, upper, targets, nominal=1.0)


@pytest.mark.slow
def test_every_classification_score_goes_by_its_name(case):
    logits, labels = case
    # Some of each kind are compiled; all are functions of the room by that name.
    assert all(getattr(scores, name) is fn for name, fn in scores.METRICS.items())
    names = ["macro_f1", "risk_at_coverage"]
    found = scores.evaluate(logits, labels, names)
    for name in names:
        own = getattr(scores, name)(logits, labels)
        np.testing.assert_allclose(found[f"{name}_members"], own, atol=1e-6)
        best = np.argmin(own) if name == "risk_at_coverage" else np.argmax(own)
        assert found[f"{name}_best_index"] == best


def sklearn_of_votes(votes, labels, weight):
    """By scikit-learn, to which an abstention is one more class that no row is of."""
    votes = np.where(votes < 0, CLASSES, votes)
    told = dict(sample_weight=weight)
    classes = range(CLASSES)
    bca = []
    for c in classes:
        own = labels == c
        recall = np.average(votes[own] == c, weights=weight[own])
        bca.append((recall + np.average(votes[~own] != c, weights=weight[~own])) / 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of votes for no class
        return {
            "accuracy": metrics.accuracy_score(labels, votes, **told),
            "balanced_accuracy": metrics.balanced_accuracy_score(labels, votes, **told),
            "macro_f1": metrics.f1_score(
                labels, votes, labels=classes, average="macro", zero_division=0, **told
            ),
            "cohen_kappa": metrics.cohen_kappa_score(labels, votes, **told),
            "matthews_correlation": metrics.matthews_corrcoef(labels, votes, **told),
            "balanced_classification_accuracy": np.mean(bca),
        }


def test_votes_are_scored_as_by_scikit_learn(case):
    logits, labels = case
    rng = np.random.default_rng(2)
    votes = np.asarray(logits).argmax(-1)
    votes[0, :5] = -1
    mask = np.ones((MEMBERS, ROWS), bool)
    mask[1, 10:20], mask[3] = False, False
    votes[3] = 77  # what is masked leaves no trace
    weight = rng.uniform(0.5, 2, ROWS)
    said = Predictions.from_votes(votes, CLASSES, mask=mask)
    found = scores.evaluate(said, labels, sample_weight=weight)
    counted = [
        np.bincount(votes[mask[:, n] & (votes[:, n] >= 0), n], minlength=CLASSES)
        for n in range(ROWS)
    ]
    ensemble = sklearn_of_votes(np.argmax(counted, axis=1), labels, weight)
    members = [
        sklearn_of_votes(votes[m][mask[m]], labels[mask[m]], weight[mask[m]])
        for m in range(3)
    ]
    for name, value in ensemble.items():
        own = [member[name] for member in members]
        assert found[name] == pytest.approx(value, abs=1e-5), name
        assert found[f"{name}_members"][3] is None
        np.testing.assert_allclose(found[f"{name}_members"][:3], own, atol=1e-5)
        assert found[f"{name}_mean_member"] == pytest.approx(np.mean(own), abs=1e-5)
        assert found[f"{name}_best_index"] == np.argmax(own)
    some_right = ((votes == labels) & mask).any(axis=0)
    oracle = np.average(some_right, weights=weight)
    assert found["accuracy_oracle"] == pytest.approx(oracle, abs=1e-6)
    assert found["num_members"] == 3


def test_members_have_intervals_that_are_those_of_each_alone(case):
    logits, labels = case
    mask = np.asarray([True, True, False, True])
    votes = Predictions.from_votes(np.asarray(logits).argmax(-1), CLASSES, mask=mask)
    # Percentiles are for groups, here of one row each; without, ends are Wilson's.
    found = scores.evaluate(
        votes, labels, ["accuracy"], bootstrap=200, groups=np.arange(ROWS)
    )
    assert found["accuracy_members_low"][2] is None
    right = votes.votes == jnp.asarray(labels)[None]

    def accuracies(weight):
        return (right * weight[None]).sum(axis=1) / weight.sum()

    ends = scores.paired_bootstrap(
        jax.random.key(0), accuracies, ROWS, num_resamples=200
    )
    for m in (0, 1, 3):
        for end, own in (("low", ends.low), ("high", ends.high)):
            got = found[f"accuracy_members_{end}"][m]
            assert got == pytest.approx(float(own[m]), abs=1e-6)
    assert json.loads(json.dumps(found)) == found


def test_votes_on_seen_rows_are_refused(case):
    labels = case[1]
    about = Provenance.of("toy", np.arange(ROWS), trained_on=[4])
    said = Predictions.from_votes(labels[None], CLASSES, provenance=about)
    with pytest.raises(LeakageError, match="row 4 of 'toy'"):
        scores.evaluate(said, labels)
