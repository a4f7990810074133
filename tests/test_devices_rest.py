"""What other tests of devices leave: all of it in one program, and nothing forgotten.

Every public function of `scores` and `combine` is compared on one device and on members
split over eight, here or in the tests named in `ELSEWHERE`, or stands in `NO_MEMBERS`
with the others that no axis of members goes into.
"""

import functools
import pathlib
import re

import jax
import numpy as np
import pytest

from ensjax import Ensemble, combine, make_mesh, scores
from ensjax.mesh import place
from ensjax.predictions import Predictions

MEMBERS, ROWS, CLASSES = 8, 48, 3
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, CLASSES, ROWS)
GROUPS = RNG.integers(0, 4, ROWS)
FOLDS = np.arange(ROWS) % 4
TARGETS = RNG.normal(size=ROWS).astype(np.float32)
MASK = RNG.uniform(size=(MEMBERS, ROWS)) < 0.8
INBAG = RNG.multinomial(ROWS, np.ones(ROWS) / ROWS, size=MEMBERS)
LEVELS = np.array([0.25, 0.5, 0.75], np.float32)
OUT_OF_FOLD = np.arange(MEMBERS) % 4
IS_OOD = RNG.uniform(size=ROWS) < 0.5
# A hundred scores in three programs: most of the time goes into machine code that runs
# once. How values are split and summed over devices is decided before that.
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}

LOG_PROBS = [
    "accuracy",
    "augrc",
    "balanced_accuracy",
    "balanced_classification_accuracy",
    "cohen_kappa",
    "coverage_at_risk",
    "excess_aurc",
    "hand_till_auroc",
    "macro_auroc",
    "macro_f1",
    "matthews_correlation",
    "mce",
    "per_class_f1",
    "per_class_precision",
    "per_class_recall",
    "reliability_bins",
    "risk_at_coverage",
    "risk_coverage",
    "rps",
]
POINTS = [
    "mae",
    "max_error",
    "median_absolute_error",
    "pearson_correlation",
    "r2",
    "rmse",
]
GAUSSIAN = [
    "confidence_curve_area",
    "crps_gaussian",
    "ence",
    "error_rank_correlation",
    "gaussian_nll",
    "miscalibration_area",
    "pit_gaussian",
    "sparsification_error",
]
CONFIDENCE = ["predictive_entropy", "max_logit", "max_log_odds", "negative_energy"]
QUANTILES = ["crps_quantiles", "pinball", "pinball_losses", "weighted_interval_score"]
INTERVALS = ["coverage_probability_accuracy", "interval_coverage"]


def point_scores(x):
    mean, std = x[..., 0], 0.5 + abs(x[..., 1])
    low, high = mean - std, mean + std
    ordered = x.sort(-1)
    found = {name: getattr(scores, name)(mean, TARGETS) for name in POINTS}
    found |= {name: getattr(scores, name)(mean, std, TARGETS) for name in GAUSSIAN}
    found |= {
        name: getattr(scores, name)(ordered, TARGETS, levels=LEVELS)
        for name in (*QUANTILES, "pit_quantiles")
    }
    found |= {n: getattr(scores, n)(low, high, TARGETS) for n in INTERVALS[1:]}
    return found | {
        "coverage_probability_accuracy": scores.coverage_probability_accuracy(
            low, high, TARGETS, nominal=0.5
        ),
        "mean_width": scores.mean_width(low, high),
        "interval_score": scores.interval_score(low, high, TARGETS, alpha=0.2),
        "weighted_error_score": scores.weighted_error_score(mean, low, high, TARGETS),
        "central_intervals": scores.central_intervals(ordered, LEVELS),
        "crossing_rate": scores.crossing_rate(x),
        "quantile_coverage": scores.quantile_coverage(ordered, TARGETS),
    }


def class_scores(x):
    sure, right = x.max(-1), x.argmax(-1) == LABELS[None]
    sets = x > 0
    found = {name: getattr(scores, name)(x, LABELS) for name in LOG_PROBS}
    found |= {name: getattr(scores, name)(x) for name in (*CONFIDENCE,)}
    found["class_log_odds"] = scores.class_log_odds(x, 1)
    return found | {
        "top_k_accuracy": scores.top_k_accuracy(x, LABELS, k=2),
        "auprc": scores.auprc(sure, IS_OOD),
        "fpr_at_tpr": scores.fpr_at_tpr(sure, IS_OOD),
        "equal_error_rate": scores.equal_error_rate(sure, IS_OOD),
        "error_rates": scores.error_rates(sure, IS_OOD, 0.5),
        "hter": scores.hter(sure, IS_OOD, 0.5),
        "negative_entropy": scores.negative_entropy(x),
        "set_coverage": scores.set_coverage(sets, LABELS),
        "mean_set_size": scores.mean_set_size(sets),
        "class_coverage": scores.class_coverage(sets, LABELS),
        "coverage_gap": scores.coverage_gap(sets, LABELS, nominal=0.9),
        "size_stratified_coverage": scores.size_stratified_coverage(sets, LABELS),
        "complementarity_matrix": scores.complementarity_matrix(right),
        "pairwise_mean": scores.pairwise_mean(scores.disagreement_matrix(x)),
        "neighbor_distances": scores.neighbor_distances(
            x.mean(0), np.eye(CLASSES, dtype=np.float32), num_neighbors=2
        ),
        "score_summary": scores.score_summary(
            x, LABELS, mask=MASK[:, 0], block=16, top_k=2
        ),
        "reject_by_cost": scores.reject_by_cost(x, reject_cost=0.4),
        "paired_bootstrap": scores.paired_bootstrap(
            jax.random.key(0),
            lambda weight: scores.nll(x, LABELS, sample_weight=weight),
            ROWS,
            num_resamples=20,
        ),
    }


def rules(x):
    quantiles = x.sort(-1)
    points, scale = x[..., 0], 0.5 + abs(x[..., 1])
    losses = scores.nll(x, LABELS)
    predictions = Predictions.from_logits(x, mask=MASK)
    sets = functools.partial(combine.fit_conformal_sets_by_group, num_groups=4)
    lac, mean, spread = combine.LacScore(), points.mean(0), points.std(0)
    ends = points.min(0), points.max(0)
    intervals = Predictions.from_points(points, lower=points - 1, upper=points + 1)
    by_fold = combine.fit_cv_plus(mean, TARGETS, FOLDS)
    band = combine.fit_cv_plus_band(*ends, TARGETS, FOLDS)
    return {
        "adjust_prior": combine.adjust_prior(
            combine.mean_probs(x), np.ones(3) / 3, np.array([0.2, 0.3, 0.5])
        ),
        "agreed_labels": combine.agreed_labels(x, share=0.5, mask=MASK),
        "balanced_labels": combine.balanced_labels(x, share=0.5),
        "confident_labels": combine.confident_labels(x, threshold=0.5),
        "average_quantiles": combine.average_quantiles(
            quantiles, rule=combine.median_points
        ),
        "best_members": combine.best_members(losses, 3),
        "keep_best_members": combine.keep_best_members(x, LABELS, 3)(x),
        "distance_weights": combine.distance_weights(losses),
        "softmin_weights": combine.softmin_weights(losses),
        "accuracy_weights": combine.accuracy_weights(scores.accuracy(x, LABELS), 3),
        "fit_accuracy_vote": combine.fit_accuracy_vote(x, LABELS)(x),
        "fit_conformal_sets_by_class": combine.fit_conformal_sets_by_class(
            lac, x, LABELS, alpha=0.2
        )(x),
        "fit_conformal_sets_by_group": sets(lac, x, LABELS, GROUPS, alpha=0.2)(
            x, groups=GROUPS
        ),
        "fit_conformal_interval": combine.fit_conformal_interval(
            mean, TARGETS, alpha=0.2, scale=spread
        )(mean, scale=spread),
        "fit_conformal_quantiles": combine.fit_conformal_quantiles(
            quantiles.mean(0), LEVELS, TARGETS
        ),
        "fit_conformal_band": combine.fit_conformal_band(*ends, TARGETS, alpha=0.2),
        "fit_asymmetric_band": combine.fit_asymmetric_band(*ends, TARGETS, alpha=0.2),
        "fit_cv_plus": by_fold(np.ones((4, 1), np.float32) * mean[None, :2], alpha=0.2),
        "fit_cv_plus_band": band.errors,
        "fit_sigma_scale": combine.fit_sigma_scale(mean, spread, TARGETS).scale,
        "gate_entropy": combine.gate_entropy(combine.softmax_gate(x[..., 0].T)),
        "load_imbalance": combine.load_imbalance(combine.sigmoid_gate(x[..., 0].T)),
        "top_k_gate": combine.top_k_gate(x[..., 0].T, 2),
        "leave_one_out": combine.leave_one_out(combine.mean_probs, predictions),
        "level_one_features": combine.level_one_features(x, "log_probs", mask=MASK),
        "out_of_bag_predictions": combine.mean_probs(
            combine.out_of_bag_predictions(x, INBAG)
        ),
        "out_of_bag_score": combine.out_of_bag_score(scores.nll, x, INBAG, LABELS),
        "pool": combine.pool(combine.mean_probs, predictions),
        "pool_intervals": combine.pool_intervals(intervals),
        "order_quantiles": combine.order_quantiles(x, "isotonic", levels=LEVELS),
        "inverse_variance_points": combine.inverse_variance_points(points, scale),
    }


def linear(params, x):
    return (params[None] * x[:, :, None]).sum(1)


def run_cascade(x, run, **options):
    """A cascade whose stages are members, split like `x` where that is possible."""
    ends = np.array([0.4], np.float32), np.array([1.0], np.float32)
    windows = combine.Windows(*ends, threshold=ends[1])
    cascade = combine.Cascade(windows, (tuple(range(4)), tuple(range(4, 8))))
    size = min(len(x.sharding.device_set), 4)
    mesh = make_mesh(member=size, devices=jax.devices()[:size])
    params = np.asarray(x)[:, :4]
    ensemble = Ensemble.from_apply(linear, params, mesh=mesh)
    models = cascade.split_members(ensemble)
    return run(cascade, models, np.asarray(x)[0, :, [0, 1, 2, 0]].T, **options)


@functools.partial(jax.jit, static_argnames="share", compiler_options=QUICK)
def in_one_program(cascade, models, rows, *, share):
    return combine.run_with_capacity(cascade, models, rows, share=share)


def evaluate(x):
    # Uncompiled on eight devices every operation costs: one metric each.
    options = dict(groups=GROUPS, bootstrap=4)
    votes = Predictions.from_votes(x.argmax(-1), CLASSES, mask=MASK)
    quantiles = Predictions.from_quantiles(x.sort(-1), LEVELS)
    return {
        "votes": scores.evaluate_votes(votes, LABELS, ["accuracy"], **options),
        "quantiles": scores.evaluate_quantiles(
            quantiles, TARGETS, ["pinball"], **options
        ),
        "diversity": scores.evaluate_diversity(x, LABELS, ["kappa"], **options),
        "ood": scores.evaluate_ood(x, IS_OOD, ["mutual_information"], **options),
        "spread": scores.evaluate_spread(x[..., 0], TARGETS, ["ambiguity"], **options),
        "detection": scores.evaluate_detection(x[..., 0], IS_OOD, 0.1, **options),
        "sets": scores.evaluate_sets(x > 0, LABELS, **options),
        "intervals": scores.evaluate_intervals(
            x[..., 0] - 1, x[..., 0] + 1, TARGETS, **options
        ),
    }


def on_the_host(x):
    predictions = Predictions.from_logits(x)
    right = x.argmax(-1) == LABELS[None]
    return {
        "out_of_fold": combine.mean_probs(combine.out_of_fold(x, FOLDS)),
        "cluster_weights": combine.cluster_weights(predictions, LABELS).weights,
        "pairwise_mcnemar": scores.pairwise_mcnemar(right),
        "friedman": scores.friedman(x[..., 0].T, higher_is_better=True),
        "fusion_rows": combine.fusion_rows(
            Predictions.from_features(x, columns=("a", "b", "c"))
        ).inputs,
    }


# Not as one program: each decides something on the host.
EAGER = {
    "evaluate": evaluate,
    "host": on_the_host,
    "run_compacted": lambda x: run_cascade(x, combine.run_compacted, batch_size=48),
    "run_with_capacity": lambda x: run_cascade(x, in_one_program, share=0.5),
}
PARTS = {"points": point_scores, "classes": class_scores, "rules": rules}
ELSEWHERE = (
    "combine/test_devices.py",
    "combine/test_devices_learned.py",
    "combine/test_rules.py",
    "combine/quantiles/test_aggregator.py",
    "scores/test_devices.py",
)
# Of one system's rows, of tables, estimators, texts and costs: no axis of members.
NO_MEMBERS = """
    agreement_table attack_errors binned_coverage cascade_cost complementarity
    conformal_quantile conformal_quantile_by_group corrected_t_interval
    corrected_t_test delong estimator_out_of_fold exact_interval false_false_true
    fit_and_predict fit_isotonic fit_out_of_fold fit_pit_map fit_single_threshold
    fit_threshold fit_windows flops_per_row fold_of_rows fold_weights front_costs
    front_scores gain_parts holm matched_control mcnemar mix_with_ood parse_answer
    parse_answers point_at_coverage point_at_risk point_at_threshold
    point_with_guaranteed_risk probability_better probability_of_improvement
    rank_windows recentre_windows subgroup subgroup_rate t_interval team_weights
    true_true_false wilson_interval
"""


@pytest.fixture(scope="module")
def layouts():
    """The same logits `[member, batch, class]` on one device and split."""
    skill = np.linspace(0.5, 2, MEMBERS)[:, None, None]
    logits = RNG.normal(size=(MEMBERS, ROWS, CLASSES))
    logits = (logits + skill * np.eye(CLASSES)[LABELS]).astype(np.float32)
    one = make_mesh(member=1, devices=jax.devices()[:1])
    spec = jax.P("member")
    return place(logits, one, spec), place(logits, make_mesh(member=8), spec)


def assert_same(one, eight, name):
    one, eight = jax.tree.leaves(one), jax.tree.leaves(eight)
    for a, b in zip(one, eight, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_eight_devices_equal_one(part, layouts):
    program = jax.jit(PARTS[part], compiler_options=QUICK)
    one, eight = map(program, layouts)
    for name in one:
        assert_same(one[name], eight[name], name)


@pytest.mark.slow
@pytest.mark.parametrize("part", EAGER)
def test_eight_devices_equal_one_uncompiled(part, layouts):
    one, eight = map(EAGER[part], layouts)
    assert_same(one, eight, part)


def test_no_function_is_forgotten():
    here = pathlib.Path(__file__).parent
    text = "".join((here / name).read_text() for name in ELSEWHERE)
    text += pathlib.Path(__file__).read_text().split("NO_MEMBERS = ")[0]
    functions = {
        name
        for room in (scores, combine)
        for name in room.__all__
        if callable(getattr(room, name)) and not isinstance(getattr(room, name), type)
    }
    compared = {name for name in functions if re.search(rf"\b{name}\b", text)}
    assert functions - compared == set(NO_MEMBERS.split())
