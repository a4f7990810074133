"""Ends of intervals: Wilson's for proportions, of gaps for calibration, one program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import ndtr
from scipy.stats import binomtest

from ensjax import scores
from ensjax.predictions import Predictions
from ensjax.scores.ends import auroc_ends, half_sum_ends, wilson_ends
from ensjax.scores.intervals import Interval
from ensjax.scores.metrics import METRICS
from ensjax.scores.programs import With, known_name, number_of_bins

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(3, 40, 4)).astype(np.float32)
LABELS = RNG.integers(0, 4, 40)
POINTS = RNG.normal(size=(3, 40)).astype(np.float32)


def wilson(successes, number):
    ends = binomtest(successes, number).proportion_ci(method="wilson")
    return pytest.approx([ends.low, ends.high], abs=1e-5)


def ends_of(found, name):
    return [found[f"{name}_low"], found[f"{name}_high"]]


def test_accuracies_have_wilsons_ends_also_where_all_is_right():
    right = 10 * np.eye(2, dtype=np.float32)[np.arange(30) % 2]
    logits = np.stack([right, np.roll(right, 1, axis=0)])
    logits[1, :3] = right[:3]
    # The second member is right on 3 rows, the mixture by the lower class on others.
    weights = np.array([1.0, 1e-3], np.float32)
    given = Predictions.from_logits(logits, weights=weights)
    found = scores.evaluate(given, np.arange(30) % 2, ["accuracy"], bootstrap=20)
    assert found["accuracy"] == 1
    for name in ("accuracy", "accuracy_best_member", "accuracy_oracle"):
        assert ends_of(found, name) == wilson(30, 30)
    members = np.array(ends_of(found, "accuracy_members"))
    assert list(members[:, 0]) == wilson(30, 30)
    assert list(members[:, 1]) == wilson(3, 30)
    # What groups are like is told by resamples of groups alone.
    grouped = scores.evaluate(
        given,
        np.arange(30) % 2,
        ["accuracy"],
        bootstrap=20,
        groups=np.arange(30) // 3,
    )
    assert ends_of(grouped, "accuracy") == [1, 1]


def gaussian_score(points, targets, *, sample_weight):
    """Negative where the density is above 1: what some call NLL."""
    losses = 50 * (points - targets[None]) ** 2 - 3
    return jnp.sum(losses * sample_weight, axis=-1) / jnp.sum(sample_weight, axis=-1)


def test_a_range_is_that_of_the_function_and_not_of_its_name():
    targets = POINTS[0] + 0.1
    near = 0.1 * POINTS + 0.9 * targets[None]
    metrics = {"nll": gaussian_score, "brier": scores.mae}
    found = scores.evaluate_points(near, targets, metrics, bootstrap=20)
    assert found["nll_low"] < found["nll"] < found["nll_high"] < 0
    assert found["nll_members_high"][0] < 0
    assert 0 <= found["brier_low"] < found["brier"] < found["brier_high"]
    doubled = {"disagreement": lambda *_, sample_weight: 3 + jnp.mean(sample_weight)}
    found = scores.evaluate_diversity(LOGITS, LABELS, doubled, bootstrap=5)
    assert found["disagreement_low"] > 1
    # What the package knows keeps its range under another name.
    same = {"mine": scores.accuracy, "own": functools.partial(scores.ece, num_bins=5)}
    assert [known_name(score, METRICS) for score in same.values()] == [
        "accuracy",
        "ece",
    ]


@pytest.mark.slow
def test_weights_make_fewer_rows_of_many():
    weight = RNG.uniform(0.1, 3, 40).astype(np.float32)
    found = scores.evaluate(
        LOGITS, LABELS, ["accuracy"], sample_weight=weight, bootstrap=20
    )
    number = weight.sum() ** 2 / (weight**2).sum()
    assert number < 35
    expected = scores.wilson_interval(found["accuracy"] * number, number)
    np.testing.assert_allclose(
        ends_of(found, "accuracy"), [expected.low, expected.high], rtol=1e-5
    )


def test_coverage_of_sets_and_intervals_has_wilsons_ends():
    sets = np.ones((40, 4), bool)
    sets[:2] = False
    found = scores.evaluate_sets(sets, LABELS, bootstrap=20)
    assert ends_of(found, "coverage") == wilson(38, 40)
    found = scores.evaluate_intervals(
        POINTS[0] - 1, POINTS[0] + 1, POINTS[0], bootstrap=20
    )
    assert ends_of(found, "coverage") == wilson(40, 40)


def calibrated(rng, num_rows, sharpness):
    """Logits, and labels drawn from them where `sharpness` is 1."""
    logits = 2 * rng.normal(size=(num_rows, 10))
    probs = np.exp(logits)
    probs /= probs.sum(axis=1, keepdims=True)
    labels = (probs.cumsum(axis=1) > rng.uniform(size=(num_rows, 1))).argmax(axis=1)
    return (sharpness * logits).astype(np.float32), labels


def coverage(names, sharpness, num_repeats, num_rows=300, num_resamples=100):
    """How often the ends hold the value of many rows; and the estimate: always."""
    rng = np.random.default_rng(1)
    many = calibrated(rng, 100_000, sharpness)
    truth = {name: float(getattr(scores, name)(*many)) for name in names}
    held = dict.fromkeys(names, 0)
    for repeat in range(num_repeats):
        logits, labels = calibrated(rng, num_rows, sharpness)
        found = scores.evaluate(
            logits[None], labels, names, bootstrap=num_resamples, seed=repeat
        )
        for name in names:
            low, high = ends_of(found, name)
            assert 0 <= low <= found[name] <= high <= 1, name
            # Half a thousandth for the rounding and noise of the truth of many rows.
            held[name] += low - 1e-3 <= truth[name] <= high + 1e-3
    return {name: count / num_repeats for name, count in held.items()}


@pytest.mark.slow
@pytest.mark.parametrize("sharpness", [1.0, 1.5])
def test_ends_of_calibration_errors_hold_the_truth(sharpness):
    names = ["ece", "adaptive_ece"]
    found = coverage(names, sharpness, num_repeats=20, num_rows=200, num_resamples=60)
    # 17 of 20 or more has a chance of .984 if the ends cover 95 of 100.
    assert min(found.values()) >= 0.85, found


@pytest.mark.slow
@pytest.mark.parametrize("sharpness", [1.0, 1.2, 1.5, 3.0])
def test_ends_of_calibration_errors_cover_as_often_as_they_say(sharpness):
    names = ["ece", "adaptive_ece", "classwise_ece"]
    found = coverage(names, sharpness, num_repeats=200, num_resamples=200)
    # 181 of 200 or more has a chance of .997 if the ends cover 95 of 100.
    assert min(found.values()) >= 0.905, found


@pytest.mark.slow
def test_ends_of_the_largest_gap_miss_as_often_as_evaluate_says():
    for num_rows, num_repeats, least, most in ((300, 40, 0, 2), (2000, 100, 20, 42)):
        rng, missed, widths = np.random.default_rng(1), 0, []
        for repeat in range(num_repeats):
            logits, labels = calibrated(rng, num_rows, 1.0)
            found = scores.evaluate(
                logits[None], labels, ["mce"], bootstrap=100, seed=repeat
            )
            low, high = ends_of(found, "mce")
            missed += low > 0
            widths.append(high - low)
        # 31 of 100 as measured, within two standard deviations of 4.6.
        assert least <= missed <= most, (num_rows, missed)
        assert 0.15 < np.mean(widths) < 0.5


def test_the_number_of_bins_is_told():
    few = functools.partial(scores.ece, num_bins=5)
    found = scores.evaluate(LOGITS, LABELS, {"ece": few, "nll": scores.nll})
    assert found["ece_num_bins"] == 5 and "nll_num_bins" not in found
    assert number_of_bins(With.of(scores.adaptive_ece, num_bins=7)) == 7
    assert number_of_bins(scores.mce) == 15


CALLS = {
    "probabilities": lambda: scores.evaluate(
        LOGITS, LABELS, ["nll", "ece", "accuracy"], bootstrap=3
    ),
    "votes": lambda: scores.evaluate_votes(
        Predictions.from_votes(LOGITS.argmax(-1), num_classes=4),
        LABELS,
        ["accuracy"],
        bootstrap=3,
    ),
    "points": lambda: scores.evaluate_points(POINTS, POINTS[0], ["mae"], bootstrap=3),
    "quantiles": lambda: scores.evaluate_quantiles(
        Predictions.from_quantiles(np.sort(LOGITS, axis=-1), (0.1, 0.4, 0.6, 0.9)),
        POINTS[0],
        ["mean_coverage_error"],
        bootstrap=3,
    ),
    "intervals": lambda: scores.evaluate_intervals(
        POINTS[0] - 1, POINTS[0] + 1, POINTS[1], bootstrap=3
    ),
    "sets": lambda: scores.evaluate_sets(LOGITS[0] > 0, LABELS, bootstrap=3),
    "diversity": lambda: scores.evaluate_diversity(
        LOGITS, LABELS, ["disagreement"], bootstrap=3
    ),
    "ood": lambda: scores.evaluate_ood(LOGITS, LABELS > 1, ["max_prob"], bootstrap=3),
    "spread": lambda: scores.evaluate_spread(
        POINTS, POINTS[0], ["crps_samples"], bootstrap=3
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        name
        if name in ("points", "sets")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in CALLS
    ],
)
def test_a_second_call_of_equal_shapes_compiles_nothing(name, compilations):
    first = CALLS[name]()
    assert compilations
    compilations.clear()
    # repr: NaN is not equal to itself.
    assert repr(CALLS[name]()) == repr(first) and compilations == []


@pytest.mark.slow
def test_functions_of_equal_options_are_one():
    one, other = (With.of(scores.ece, num_bins=3) for _ in range(2))
    assert one == other and hash(one) == hash(other)
    assert one != With.of(scores.ece, num_bins=4)
    value = one(LOGITS, LABELS)
    np.testing.assert_array_equal(value, scores.ece(LOGITS, LABELS, num_bins=3))
    assert isinstance(value, jax.Array) and jnp.shape(value) == (3,)


def reversed_test(value, num_positive, num_negative, z=1.959964):
    """Ends of an AUROC by root finding, from Newcombe 2006, part 2, method 5."""
    n = (num_positive + num_negative) / 2 - 1

    def apart(area):
        more = n * ((1 - area) / (2 - area) + area / (1 + area))
        variance = area * (1 - area) * (1 + more) / (num_positive * num_negative)
        return abs(value - area) - z * np.sqrt(variance)

    low = brentq(apart, 1e-12, value - 1e-9) if value > 0 else 0.0
    high = brentq(apart, value + 1e-9, 1 - 1e-12) if value < 1 else 1.0
    return low, high


@pytest.mark.parametrize("value", [0.0, 0.05, 0.5, 0.83, 1.0])
def test_ends_of_an_auroc_are_where_its_normal_test_turns(value):
    kinds = np.arange(50) < 20
    found = auroc_ends(np.array(value), kinds * 1.0, ~kinds * 1.0, 0.95)
    low, high = reversed_test(value, 20, 30)
    assert float(found.low) == pytest.approx(low, abs=1e-6)
    assert float(found.high) == pytest.approx(high, abs=1e-6)
    assert found.low < found.high
    # Rows that weigh half as much are half as many, and twice the weight says nothing.
    halved = auroc_ends(np.array(value), 2.0 * kinds, 2.0 * ~kinds, 0.95)
    np.testing.assert_array_equal(halved.low, found.low)


def test_ends_of_a_half_sum_follow_from_both_rates():
    a, b = np.array([0.0, 0.2]), np.array([0.0, 0.1])
    first, second = (
        Interval(rate, rate - 0.03 * (rate > 0), rate + 0.04) for rate in (a, b)
    )
    found = half_sum_ends((a + b) / 2, first, second)
    np.testing.assert_allclose(found.low, [0, 0.15 - 0.03 * 2**0.5 / 2])
    np.testing.assert_allclose(found.high, (a + b) / 2 + 0.04 * 2**0.5 / 2)


@pytest.mark.slow
def test_kinds_that_are_told_apart_leave_room_for_an_error():
    genuine = np.arange(30) >= 15
    looks = (genuine + 0.3 * RNG.uniform(size=30)).astype(np.float32)
    types = np.arange(30) % 3
    run = functools.partial(scores.evaluate_detection, attack_types=types, bootstrap=20)
    found = run(looks, genuine, 0.5)
    assert found["auroc"] == 1 and found["auroc_high"] == 1
    assert found["auroc_low"] == pytest.approx(reversed_test(1.0, 15, 15)[0], abs=1e-6)
    rate = binomtest(0, 15).proportion_ci(method="wilson").high
    for name in ("hter", "eer"):
        assert found[name] == found[f"{name}_low"] == 0, name
        expected = pytest.approx(rate * 2**0.5 / 2, abs=1e-6)
        assert found[f"{name}_high"] == expected, name
    of_type = binomtest(0, 5).proportion_ci(method="wilson").high
    assert found["apcer_high"] == pytest.approx(of_type, abs=1e-6)
    half = np.hypot(of_type, rate) / 2
    assert found["acer_high"] == pytest.approx(half, abs=1e-6)
    # Of members, and upside down.
    both = run(np.stack([looks, -looks]), genuine, 0.5)
    assert both["auroc"] == [1, 0] and both["auroc_low"][1] == 0
    assert both["auroc_high"][1] == pytest.approx(1 - found["auroc_low"], abs=1e-9)
    grouped = run(looks, genuine, 0.5, groups=np.arange(30) // 3)
    assert ends_of(grouped, "hter") == [0, 0]
    doubt = {"looks": looks}
    ood = scores.evaluate_ood(
        np.zeros((1, 30, 2), np.float32), genuine, doubt, bootstrap=3
    )
    assert ood["looks_auroc_low"] == pytest.approx(found["auroc_low"], abs=1e-9)


def test_an_equal_error_rate_is_never_below_zero():
    rng = np.random.default_rng(0)
    genuine = np.arange(90) >= 30
    weight = rng.uniform(0.1, 1, (200, 90)).astype(np.float32)
    found = jax.jit(scores.equal_error_rate)(
        np.broadcast_to(genuine * 1.0, (200, 90)), genuine, sample_weight=weight
    )
    assert (np.asarray(found.rate) >= 0).all() and found.rate.max() < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("apart", [0.5, 2.0, 4.0])
def test_ends_of_detection_cover_about_as_often_as_they_say(apart):
    rng = np.random.default_rng(4)
    repeats, num = 2000, 30
    genuine = np.arange(2 * num) < num
    looks = rng.normal(size=(repeats, 2 * num)) + apart * genuine
    area = np.asarray(jax.jit(scores.auroc)(looks, genuine), float)
    ends = auroc_ends(area, genuine * 1.0, ~genuine * 1.0, 0.95)
    true = ndtr(apart / 2**0.5)
    held = ((ends.low <= true) & (true <= ends.high)).mean()
    assert 0.93 <= held <= 0.985, held
    rates = scores.error_rates(looks, genuine, apart / 2)
    both = (
        wilson_ends(np.asarray(rate), weight, 0.95)
        for rate, weight in zip(rates, (~genuine * 1.0, genuine * 1.0), strict=True)
    )
    ends = half_sum_ends(np.asarray(sum(rates)) / 2, *both)
    true = ndtr(-apart / 2)
    held = ((ends.low <= true) & (true <= ends.high)).mean()
    assert 0.93 <= held <= 0.985, held
