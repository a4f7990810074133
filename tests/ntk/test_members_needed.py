"""Members needed: against integrals, simulation and draws; rounding; growth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from ensjax import ntk
from ensjax.ntk import published, two_layer

SIGN = ntk.sign_thresholds()


def test_the_sign_rule_has_a_tolerance():
    mean = jnp.asarray([[5e-7, -0.1, 2e-6]])
    assert ntk.round_bits(mean, SIGN).tolist() == [[False, False, True]]
    assert ntk.round_bits(mean, ntk.sign_thresholds(0.0)).tolist() == [
        [True, False, True]
    ]
    with pytest.raises(ValueError, match="at least 0; got -1"):
        ntk.sign_thresholds(-1)


def test_the_midpoint_of_a_permutation_depends_on_k_and_ones_alone():
    k = 6
    inputs = ntk.cube_inputs(k)
    ones = inputs.sum(axis=1).astype(int)
    law = two_layer.ntk_law(k, ones)
    weights = np.where(inputs > 0, law.on_one[:, None], law.on_zero[:, None])
    task = ntk.permutation_task(ntk.draw_permutation(k, seed=0))
    found = ntk.midpoint_thresholds(weights, inputs, task.train_targets)
    expected = (law.on_one + law.on_zero) / 2
    inside = ones < k  # where all are ones there is no zero to be told from
    np.testing.assert_allclose(
        found[inside], np.repeat(expected[inside, None], k, axis=1), rtol=1e-12
    )
    # The gap is (f1 - f0) / 2, whatever k is.
    gap = ntk.gaps(weights @ task.train_targets, task.targets(inputs), found)
    np.testing.assert_allclose(
        gap[inside].min(axis=1), ((law.on_one - law.on_zero) / 2)[inside], rtol=1e-12
    )


def test_thresholds_are_of_bits():
    for wrong in (0.5, 2, -1):
        with pytest.raises(ValueError, match=f"got {wrong} in row 0, column 1"):
            ntk.midpoint_thresholds(np.ones((1, 2)), np.array([[1, wrong]]), np.eye(2))


def test_gaps_are_positive_where_rounding_is_right():
    rng = np.random.default_rng(0)
    mean, targets = rng.normal(size=(5, 4)), rng.integers(0, 2, (5, 4))
    limits = rng.normal(size=(5, 4))
    right = np.asarray(ntk.round_bits(mean, limits)) == targets
    np.testing.assert_array_equal(ntk.gaps(mean, targets, limits) > 0, right)
    with pytest.raises(ValueError, match=r"got \(5, 4\) and \(4, 4\)"):
        ntk.gaps(mean, targets[:4], limits)


def test_one_bit_needs_the_square_of_its_quantile():
    found = ntk.members_for_input(
        np.array([[0.1], [-0.2]]), np.array([4.0, 4.0]), np.array([[1], [0]]), 0.0,
        delta=0.05,
    )  # fmt: skip
    np.testing.assert_allclose(
        found, 4 / np.array([0.1, 0.2]) ** 2 * ndtri(0.95) ** 2, rtol=1e-10
    )


def test_several_bits_are_right_with_the_chance_asked_for():
    rng = np.random.default_rng(1)
    mean, variance = rng.normal(size=(6, 5)), rng.uniform(0.5, 2, (6, 5))
    targets = mean > 0
    number = ntk.members_for_input(mean, variance, targets, 0.0, delta=0.1)
    product = ndtr(np.sqrt(number[:, None] / variance) * np.abs(mean)).prod(axis=1)
    np.testing.assert_allclose(product, 0.9, rtol=1e-9)
    logs = ntk.log_probability(mean, variance, targets, 0.0, number)
    np.testing.assert_allclose(logs, np.log(0.9), rtol=1e-8)


def test_an_output_may_stand_for_several_alike():
    law = two_layer.ntk_law(7, 3)
    mean = np.array([[law.on_one] * 3 + [law.on_zero] * 4])
    variance, targets = np.atleast_1d(law.variance), np.array([[1] * 3 + [0] * 4])
    listed = ntk.members_for_input(mean, variance, targets, SIGN, delta=0.1)
    short = ntk.members_for_input(
        np.array([[law.on_one, law.on_zero, -1.0]]),
        variance,
        np.array([[1, 0, 1]]),
        SIGN,
        delta=0.1,
        counts=np.array([[3, 4, 0]]),
    )
    np.testing.assert_allclose(short, listed, rtol=1e-10)


def test_a_mean_on_the_wrong_side_is_never_enough():
    mean = np.array([[0.1, -0.1], [0.1, 0.1], [0.0, 0.3]])
    targets, variance = np.array([[1, 1], [1, 1], [0, 1]]), np.array([1.0, 1.0, 0.0])
    found = ntk.members_for_input(mean, variance, targets, SIGN, delta=0.1)
    assert found[0] == np.inf and 10 < found[1] < 1e3
    assert found[2] == 0  # a training row, which varies not at all
    assert ntk.union_bound(mean, variance, targets, SIGN, delta=0.1) == np.inf


def test_the_union_bound_is_above_what_any_covariance_needs():
    """Errors of identical rows coincide, those of independent rows nearly add up."""
    mean, targets, delta = np.full((20, 3), 0.1), np.ones((20, 3)), 0.02
    variance = np.ones(20)
    bound = ntk.union_bound(mean, variance, targets, 0.0, delta=delta)
    one = ntk.members_for_input(mean, variance, targets, 0.0, delta=delta)[0]
    independent = ntk.members_for_input(
        mean.reshape(1, -1), np.ones((1, 60)), targets.reshape(1, -1), 0.0, delta=delta
    )[0]
    assert one < independent < bound < 1.01 * independent
    # A row that stands for twenty is twenty rows.
    short = ntk.union_bound(
        mean[:1], variance[:1], targets[:1], 0.0, delta=delta, log_counts=np.log(20)
    )
    assert short == pytest.approx(bound, rel=1e-10)
    textbook = ntk.members_by_worst_bit(0.1, 1.0, 60, delta=delta)
    assert textbook == pytest.approx(bound, rel=1e-9)  # all bits are alike


def test_cubes_of_many_bits_have_a_union_bound():
    """By classes of inputs: equal to listing them, and there for k = 200."""
    from scipy.special import gammaln

    def by_classes(k):
        m = np.arange(2, k + 1)
        law = two_layer.ntk_law(k, m)
        mean = np.stack([law.on_one, law.on_zero], axis=1)
        inputs = gammaln(k + 1) - gammaln(m + 1) - gammaln(k - m + 1)
        with np.errstate(divide="ignore"):  # where all are ones there is no zero
            bits = np.log(np.stack([m, k - m], axis=1))
        return ntk.union_bound(
            mean,
            law.variance,
            np.broadcast_to([1, 0], mean.shape),
            SIGN,
            delta=0.1,
            log_counts=inputs[:, None] + bits,
        )

    k = 6
    inputs = ntk.cube_inputs(k)
    ones = inputs.sum(axis=1).astype(int)
    law = two_layer.ntk_law(k, ones)
    mean = np.where(inputs > 0, law.on_one[:, None], law.on_zero[:, None])
    kept = ones > 1
    listed = ntk.union_bound(
        mean[kept], law.variance[kept], inputs[kept], SIGN, delta=0.1
    )
    assert by_classes(k) == pytest.approx(listed, rel=1e-9)
    assert by_classes(200) > by_classes(100) > listed


def test_a_deviation_is_right_from_its_number_on():
    rng = np.random.default_rng(2)
    mean = rng.normal(size=(7, 3))
    targets = (mean > 0).astype(float)
    gap, sign = ntk.gaps(mean, targets, 0.0), 2 * targets - 1
    deviation = 5 * rng.normal(size=(7, 3))
    number = float(
        ntk.members_for_deviation(jnp.asarray(deviation), gap, jnp.asarray(sign))
    )

    def is_right(n):
        return (((mean + deviation / np.sqrt(n)) > 0) == targets).all()

    assert is_right(number * 1.001) and not is_right(number * 0.999)
    flipped = ntk.gaps(mean, 1 - targets, 0.0)
    assert ntk.members_for_deviation(deviation, flipped, -sign) == np.inf


def normal_deviation(draw_id, scale):
    key = jax.random.fold_in(jax.random.key(0), draw_id)
    return scale * jax.random.normal(key, (1, 2, 4))


def test_draws_give_the_chance_that_all_rows_are_right():
    """Of independent rows and outputs, where the answer is a product."""
    mean = np.array([[0.3, -0.3, 0.4, -0.5], [0.2, 0.2, 0.2, -0.2]])
    targets = mean > 0
    found = ntk.members_for_draws(
        normal_deviation, jnp.arange(4000), mean, targets, 0.0, shared=(1.5,)
    )
    assert found.shape == (4000, 1)
    for chance in (0.5, 0.9):
        number = np.quantile(found, chance)
        logs = ntk.log_probability(mean, np.full(2, 1.5**2), targets, 0.0, number)
        error = np.sqrt(chance * (1 - chance) / 4000)
        assert abs(np.exp(logs.sum()) - chance) < 4 * error
    few = ntk.members_for_draws(
        normal_deviation, jnp.array([7]), mean, targets, 0.0, shared=(1.5,)
    )
    assert few[0] == found[7]


def test_numbers_for_one_input_are_those_of_the_card():
    """s2 / f0^2 for two ones grows as 2.8 k and .76 k; midpoint as a logarithm."""
    for kind, ratio in (("ntk", 2.8), ("readout", 0.76)):
        law = two_layer.law(1000, 2, kind=kind)
        assert law.variance / law.on_zero**2 / 1000 == pytest.approx(ratio, abs=0.05)
    law = two_layer.ntk_law(np.array([10, 30, 1000]), 2)
    ratio = law.variance / ((law.on_one - law.on_zero) / 2) ** 2
    assert (ratio < 4).all()


def test_all_rows_from_mean_and_covariance():
    """Correlated rows, against the chance that both are right by simulation."""
    mean, targets = np.array([[0.3], [-0.2]]), np.array([[1], [0]])
    covariance = np.array([[1.0, 0.8], [0.8, 2.0]])
    found = ntk.members_for_all(mean, covariance, targets, 0.0, num_draws=4000)
    assert found.shape == (4000,)
    rng, number = np.random.default_rng(0), float(np.quantile(found, 0.5))
    draws = rng.multivariate_normal(mean[:, 0], covariance / number, 20_000)
    share = ((draws > 0) == [True, False]).all(axis=1).mean()
    assert abs(share - 0.5) < 4 * np.sqrt(0.25 / 4000 + 0.25 / 20_000)
    again = ntk.members_for_all(mean, covariance, targets, 0.0, num_draws=3, seed=1)
    assert not np.isin(again[again > 0], found).any()
    with pytest.raises(ValueError, match="not symmetric"):
        ntk.members_for_all(mean, np.triu(covariance), targets, 0.0, num_draws=3)
    with pytest.raises(ValueError, match="num_draws must be at least 1; got 0"):
        ntk.members_for_all(mean, covariance, targets, 0.0, num_draws=0)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_short_input_needs_as_many_members_as_a_long_one(dtype):
    """Without biases networks are homogeneous; NumPy draws both of equal length."""
    x = np.zeros((2, 6))
    x[0, :2], x[1, 1:3] = 1, 1
    needed = []
    for scale in (1.0, 1e-4):
        with jax.enable_x64(True):
            predictor = ntk.predictor(
                ntk.FullyConnected(), np.eye(6), x * [[1], [scale]]
            )
            mean = np.asarray(ntk.mean(predictor, np.eye(6)))
            covariance = np.asarray(ntk.covariance(predictor)).astype(dtype)
        found = ntk.members_for_all(
            mean, covariance, x > 0, ntk.sign_thresholds(0.0), num_draws=4000
        )
        needed.append(np.quantile(found, (0.5, 0.9)))
        if scale == 1:
            noise = np.random.default_rng(0).normal(size=(4000, 2, 6))
            away = np.linalg.cholesky(covariance) @ noise
            sign = np.where(x > 0, 1, -1)
            least = (np.maximum(-sign * away, 0) / (sign * mean)) ** 2
            expected = np.quantile(least.max(axis=(1, 2)), (0.5, 0.9))
    # Quantiles of 4,000 draws are off by 2 % and 3 %, each; without the row by half.
    np.testing.assert_allclose(needed, [expected, expected], rtol=0.12)


def test_numbers_that_are_none_are_named():
    mean, targets = np.array([[0.3], [-0.2]]), np.array([[1], [0]])
    wrong, one = np.array([[0.3], [np.nan]]), np.ones(2)
    calls = {
        "input": lambda m, t: ntk.members_for_input(m, one, t, 0.0, delta=0.1),
        "bound": lambda m, t: ntk.union_bound(m, one, t, 0.0, delta=0.1),
        "all": lambda m, t: ntk.members_for_all(m, np.eye(2), t, 0.0, num_draws=2),
        "log": lambda m, t: ntk.log_probability(m, one, t, 0.0, 3),
    }
    for call in calls.values():
        with pytest.raises(ValueError, match="mean must be finite; rows 1 of 2"):
            call(wrong, targets)
        for value in (0.3, -2, 7):
            message = f"targets must hold zeros and ones; got {value}.* in row 1"
            with pytest.raises(ValueError, match=message):
                call(mean, np.array([[1], [value]]))
    for number in (-3, 0, np.nan):
        with pytest.raises(ValueError, match="num_members must be positive and finite"):
            ntk.log_probability(mean, one, targets, 0.0, number)
    with pytest.raises(ValueError, match="variance must be finite; rows 0 of 2"):
        ntk.members_for_input(mean, one * [np.nan, 1], targets, 0.0, delta=0.1)
    with pytest.raises(ValueError, match="thresholds must be numbers; got NaN"):
        ntk.members_for_input(mean, one, targets, np.nan, delta=0.1)
    with pytest.raises(ValueError, match="a gap is NaN"):
        ntk.members_by_worst_bit([0.1, np.nan], 1.0, 5, delta=0.1)


def test_laws_are_not_fitted_to_numbers_that_are_not_finite():
    k = np.array([4.0, 6, 7, 8, 9, 10, 11, 12, 13, 14])
    numbers = np.append(3 * k[:-1] ** 2, np.inf)
    message = "finite; got inf at k = 14"
    with pytest.raises(ValueError, match=message):
        ntk.fit_power_law(k, numbers)
    with pytest.raises(ValueError, match=message):
        ntk.held_out_errors(k, numbers, fitted_up_to=10)
    draws = np.repeat(3 * k[:, None] ** 2, 20, axis=1)
    draws[-1, :3] = np.inf  # N50 is finite, and some resamples' are not
    for quantile in (0.5, 0.9):
        with pytest.raises(ValueError, match=message):
            ntk.bootstrap_power_law(k, draws, quantile=quantile, num_resamples=9)
    draws[-1] = 600
    draws[2, :9] = 0  # neither is half of the draws, but of some resamples
    with pytest.raises(ValueError, match="above 0 and finite; got 0 at k = 7"):
        ntk.bootstrap_power_law(k, draws, num_resamples=200)
    for errors in ({"k": np.inf, "k^2": np.inf}, {"k": np.nan, "k^2": 0.1}, {}):
        with pytest.raises(ValueError, match="errors of laws must be finite"):
            ntk.nearest_law(errors)


def test_the_textbook_bound_is_infinite_on_the_wrong_side_and_0_where_guessing_does():
    found = ntk.members_by_worst_bit(
        [0.1, -0.1, 0.0, 0.1], 1.0, [5, 5, 5, 1], delta=0.6
    )
    assert found[0] > 0 and found.tolist()[1:] == [np.inf, np.inf, 0.0]
    with pytest.raises(ValueError, match="num_events must be at least 1; got 0"):
        ntk.members_by_worst_bit(0.1, 1.0, 0, delta=0.1)


def test_what_does_not_vary_and_is_its_threshold_rounds_to_0():
    mean, none = np.zeros((2, 1)), np.zeros(2)
    logs = ntk.log_probability(mean, none, np.array([[0], [1]]), 0.0, 9)
    assert logs.tolist() == [0.0, -np.inf]


def test_impossible_chances_and_variances_are_refused():
    mean, one = np.ones((1, 1)), np.ones((1, 1))
    with pytest.raises(ValueError, match="between 0 and 1; got 0"):
        ntk.members_for_input(mean, np.ones(1), one, 0.0, delta=0)
    with pytest.raises(ValueError, match="between 0 and 1; got 1.5"):
        ntk.members_by_worst_bit(0.1, 1.0, 5, delta=1.5)
    with pytest.raises(ValueError, match="at least 0; got -0.1"):
        ntk.members_for_input(mean, np.array([-0.1]), one, 0.0, delta=0.1)
    with pytest.raises(ValueError, match="log_counts is -inf for every bit"):
        ntk.union_bound(mean, np.ones(1), one, 0.0, delta=0.1, log_counts=-np.inf)
    with pytest.raises(ValueError, match=r"of means \(1, 1\); got \(2,\)"):
        ntk.members_for_input(mean, np.ones(2), one, 0.0, delta=0.1)


def test_powers_are_found_with_their_interval():
    k = np.array([4, 8, 12, 16, 20])
    law = ntk.fit_power_law(k, 3 * k**1.5)
    assert law.slope == pytest.approx(1.5) and law.high - law.low < 1e-9
    np.testing.assert_allclose(law.predict([10]), 3 * 10**1.5)
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(200):
        noisy = ntk.fit_power_law(k, np.exp(rng.normal(0, 0.1, 5)) * k)
        inside.append(noisy.low < 1 < noisy.high)
    assert 0.9 < np.mean(inside) < 0.99  # 0.95 expected
    with pytest.raises(ValueError, match="at least 3 different k"):
        ntk.fit_power_law([2, 2, 3], [1, 1, 2])
    with pytest.raises(ValueError, match="must be above 0"):
        ntk.fit_power_law([2, 3, 4], [1, 0, 2])


def test_a_bootstrap_covers_the_slope_of_a_quantile():
    k = np.arange(4, 13)
    rng, inside = np.random.default_rng(0), 0
    for seed in range(60):
        draws = k[:, None] ** 1.2 * rng.exponential(size=(9, 80))
        law = ntk.bootstrap_power_law(k, draws, num_resamples=200, seed=seed)
        inside += law.low < 1.2 < law.high
    assert inside >= 50  # 57 expected
    assert law.high - law.low > 0.1
    same = np.repeat((k**2.0)[:, None], 5, axis=1)
    exact = ntk.bootstrap_power_law(k, same, num_resamples=50)
    assert exact.slope == pytest.approx(2) and exact.high == pytest.approx(2)
    with pytest.raises(ValueError, match="at least 2 for each k"):
        ntk.bootstrap_power_law(k, np.ones((9, 1)))


@pytest.mark.parametrize("law", ["k", "k log k", "k^2"])
def test_the_true_law_has_no_error_where_it_was_not_fitted(law):
    k = np.arange(4.0, 17.0)
    numbers = 7 * {"k": k, "k log k": k * np.log(k), "k^2": k**2}[law]
    errors = ntk.held_out_errors(k, numbers, fitted_up_to=10)
    assert errors[law] < 1e-12 and ntk.nearest_law(errors) == law
    assert sorted(errors.values())[1] > 0.1
    with pytest.raises(ValueError, match="to be tried on"):
        ntk.held_out_errors(k, numbers, fitted_up_to=16)


def test_the_published_bound_passes_through_what_was_read():
    np.testing.assert_allclose(published.bound([5, 30]), [5.7e3, 1.25e4])
    assert np.isnan(published.bound([4, 31])).all()
    found = ntk.fit_power_law(
        *zip(*[(k, n) for k, n in published.MEMBERS_FOR_90_PERCENT.items() if k >= 5])
    )
    assert found.slope == pytest.approx(1.03, abs=0.1)  # the card's fit of the table
