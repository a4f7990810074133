"""What is stated of points, and rates at thresholds, by name and with intervals."""

import numpy as np
import pytest
from scipy import stats
from scipy.stats import binomtest

from ensjax import scores
from ensjax.predictions import Predictions

M, N = 3, 60
RNG = np.random.default_rng(0)
TARGETS = RNG.normal(size=N).astype(np.float32)
POINTS = (TARGETS + RNG.normal(size=(M, N))).astype(np.float32)
SCALE = RNG.uniform(0.5, 2, (M, N)).astype(np.float32)
LOWER, UPPER = POINTS - SCALE, POINTS + 2 * SCALE


def stated(scale=True, ends=True, **more):
    told = {"scale": SCALE} if scale else {}
    told |= {"lower": LOWER, "upper": UPPER} if ends else {}
    return Predictions.from_points(POINTS, **told, **more)


def reference(points, scale, lower, upper, weight):
    """Each score of one system by a float64 formula or loop."""
    points, scale = points.astype(float), scale.astype(float)
    share = weight / weight.sum()
    z = (TARGETS - points) / scale
    crps = z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - np.pi**-0.5
    sure = weight / (upper - lower)
    level = abs(2 * stats.norm.cdf(z) - 1)
    grid = (np.arange(20_000) + 0.5) / 20_000
    order = np.argsort(level)
    reached = np.append(0, np.cumsum(share[order]))
    covered = reached[np.searchsorted(level[order], grid, side="right")]
    return {
        "gaussian_nll": share @ -stats.norm.logpdf(TARGETS, points, scale),
        "crps_gaussian": share @ (scale * crps),
        "weighted_error_score": sure @ abs(points - TARGETS) / sure.sum(),
        "coverage_probability_accuracy": abs(
            share @ ((lower < TARGETS) & (upper > TARGETS)) - 0.5
        ),
        "miscalibration_area": abs(covered - grid).mean(),
    }


@pytest.mark.slow
def test_what_members_state_is_scored_by_name_as_by_formulas():
    weight = RNG.uniform(0.5, 2, N).astype(np.float32)
    shares = np.array([0.5, 0.2, 0.3], np.float32)
    names = sorted(scores.STATED_METRICS)
    found = scores.evaluate(
        stated(weights=shares),
        TARGETS,
        [*names, "mae"],
        sample_weight=weight,
        bootstrap=20,
    )
    pool = shares @ POINTS
    spread = np.sqrt(shares @ (SCALE**2 + (POINTS - pool) ** 2))
    want = reference(pool, spread, shares @ LOWER, shares @ UPPER, weight)
    members = [
        reference(*parts, weight)
        for parts in zip(POINTS, SCALE, LOWER, UPPER, strict=True)
    ]
    for name, value in want.items():
        assert found[name] == pytest.approx(value, abs=2e-4), name
        own = [member[name] for member in members]
        np.testing.assert_allclose(found[f"{name}_members"], own, atol=2e-4)
        assert found[f"{name}_low"] <= found[name] <= found[f"{name}_high"], name
    ence = scores.ence(pool, spread, TARGETS, sample_weight=weight)
    assert found["ence"] == pytest.approx(float(ence), rel=1e-4)
    assert found["ence_num_bins"] == 10 and found["ence_low"] >= 0
    mean = np.average(abs(pool - TARGETS), weights=weight)
    assert found["mae"] == pytest.approx(float(mean), abs=1e-5)
    nearest = abs(POINTS - TARGETS).argmin(axis=0)
    chosen = [part[nearest, np.arange(N)] for part in (POINTS, SCALE, LOWER, UPPER)]
    bound = reference(*chosen, weight)["weighted_error_score"]
    assert found["weighted_error_score_oracle"] == pytest.approx(bound, abs=1e-4)


def test_a_masked_member_states_nothing():
    mask = np.array([True, False, True])
    nan = np.where(mask[:, None], 1.0, np.nan).astype(np.float32)
    names = ["crps_gaussian", "weighted_error_score"]
    told = dict(scale=SCALE * nan, lower=LOWER * nan, upper=UPPER * nan)
    found = scores.evaluate_points(
        Predictions.from_points(POINTS * nan, mask=mask, **told), TARGETS, names
    )
    fewer = Predictions.from_points(
        POINTS[mask], scale=SCALE[mask], lower=LOWER[mask], upper=UPPER[mask]
    )
    want = scores.evaluate_points(fewer, TARGETS, names)
    for name in names:
        assert found[name] == pytest.approx(want[name], rel=1e-5)
        assert found[f"{name}_members"][1] is None


def test_what_is_not_stated_is_asked_for():
    with pytest.raises(ValueError, match="'weighted_error_score' needs lower and upp"):
        scores.evaluate(stated(ends=False), TARGETS, ["weighted_error_score"])
    with pytest.raises(ValueError, match="'crps_gaussian' needs scale"):
        scores.evaluate(stated(scale=False), TARGETS, ["crps_gaussian"])


GENUINE = RNG.uniform(size=N) < 0.5
LOOKS = (RNG.normal(size=(M, N)) + GENUINE).astype(np.float32)


@pytest.mark.slow
def test_rates_at_a_threshold_equal_counts_and_have_wilsons_ends():
    types = np.arange(N) % 3
    found = scores.evaluate_detection(
        LOOKS, GENUINE, 0.4, attack_types=types, bootstrap=30
    )
    for m in range(M):
        wrong, right = LOOKS[m] > 0.4, LOOKS[m] <= 0.4
        far, frr = wrong[~GENUINE].mean(), right[GENUINE].mean()
        assert found["false_accept_rate"][m] == pytest.approx(far, abs=1e-6)
        assert found["false_reject_rate"][m] == pytest.approx(frr, abs=1e-6)
        assert found["hter"][m] == pytest.approx((far + frr) / 2, abs=1e-6)
        worst = max(wrong[~GENUINE & (types == k)].mean() for k in range(3))
        assert found["apcer"][m] == pytest.approx(worst, abs=1e-6)
        assert found["acer"][m] == pytest.approx((worst + frr) / 2, abs=1e-6)
        ends = binomtest(int(wrong[~GENUINE].sum()), int((~GENUINE).sum()))
        ends = ends.proportion_ci(method="wilson")
        assert found["false_accept_rate_low"][m] == pytest.approx(ends.low, abs=1e-5)
        assert found["false_accept_rate_high"][m] == pytest.approx(ends.high, abs=1e-5)
        assert 0 <= found["eer_low"][m] <= found["eer_high"][m] <= 1
    one = scores.evaluate_detection(LOOKS[0], GENUINE)
    assert set(one) == {"auroc", "eer", "num_rows"}
    assert one["eer"] == pytest.approx(found["eer"][0])


def test_detection_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="go with a threshold"):
        scores.evaluate_detection(LOOKS, GENUINE, attack_types=np.zeros(N, int))
    with pytest.raises(TypeError, match="must be bool"):
        scores.evaluate_detection(LOOKS, GENUINE * 1.0)
    with pytest.raises(ValueError, match="0 or above"):
        scores.evaluate_detection(LOOKS, GENUINE, 0.0, attack_types=np.full(N, -1))


def test_sets_of_members_are_scored_apart_by_class_and_size():
    sets = RNG.uniform(size=(M, N, 4)) < 0.6
    labels = RNG.integers(0, 3, N)  # no row is of the last class
    found = scores.evaluate_sets(sets, labels, nominal=0.7, bootstrap=20)
    hit = sets[:, np.arange(N), labels]
    np.testing.assert_allclose(found["coverage"], hit.mean(axis=1), atol=1e-6)
    by_class = np.array([hit[:, labels == c].mean(axis=1) for c in range(3)]).T
    got = np.array(found["class_coverage"])
    np.testing.assert_allclose(got[:, :3], by_class, atol=1e-6)
    assert np.isnan(got[:, 3]).all()
    gap = abs(by_class - 0.7).mean(axis=1)
    np.testing.assert_allclose(found["coverage_gap"], gap, atol=1e-6)
    ends = binomtest(int(hit[0, labels == 1].sum()), int((labels == 1).sum()))
    ends = ends.proportion_ci(method="wilson")
    assert found["class_coverage_low"][0][1] == pytest.approx(ends.low, abs=1e-5)
    small = sets.sum(axis=-1)[2] < 2
    assert found["size_stratified_coverage"][2][0] == pytest.approx(
        hit[2, small].mean(), abs=1e-6
    )
    low = np.array(found["coverage_gap_low"])
    assert (low >= 0).all() and (low <= np.array(found["coverage_gap"])).all()
    alone = scores.evaluate_sets(sets[1], labels, nominal=0.7, bootstrap=20)
    for name in ("coverage", "size", "coverage_gap", "coverage_low", "size_high"):
        assert alone[name] == pytest.approx(found[name][1], abs=1e-6), name


@pytest.mark.slow
def test_intervals_of_members_are_scored_apart():
    found = scores.evaluate_intervals(LOWER, UPPER, TARGETS, bootstrap=20)
    alone = scores.evaluate_intervals(LOWER[1], UPPER[1], TARGETS, bootstrap=20)
    for name in ("coverage", "width", "interval_score", "cwc", "width_low"):
        assert alone[name] == pytest.approx(found[name][1], rel=1e-5), name
        assert len(found[name]) == M


@pytest.mark.slow
def test_one_member_has_no_spread_and_areas_stay_inside_their_range():
    found = scores.evaluate_spread(POINTS[:1], TARGETS, bootstrap=3)
    assert np.isnan(found["spread_skill"]) and np.isfinite(found["crps_samples"])
    is_ood = np.arange(6) == 0
    logits = np.random.default_rng(0).normal(size=(2, 6, 3)).astype(np.float32)
    found = scores.evaluate_ood(logits, is_ood, ["max_prob"], bootstrap=100)
    for name in ("auroc", "auprc", "fpr_at_tpr"):
        low, high = found[f"max_prob_{name}_low"], found[f"max_prob_{name}_high"]
        assert 0 <= low <= high <= 1, name
