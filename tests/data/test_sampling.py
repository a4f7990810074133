"""Plans of one member: each draw depends on its key and position, and is fair."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax.data import sampling

KEY = jax.random.key(7)


def test_each_epoch_is_a_permutation_that_can_be_made_alone():
    orders = sampling.epoch_orders(KEY, 13, 0, 5)
    assert orders.shape == (5, 13) and orders.dtype == jnp.int32
    np.testing.assert_array_equal(
        np.sort(orders, axis=1), np.tile(np.arange(13), (5, 1))
    )
    assert len({tuple(row) for row in np.asarray(orders)}) == 5
    np.testing.assert_array_equal(sampling.epoch_orders(KEY, 13, 3, 2), orders[3:])


def test_first_epoch_may_be_traced_and_members_may_be_mapped():
    keys = jax.vmap(lambda m: jax.random.fold_in(KEY, m))(jnp.arange(3))
    make = jax.jit(jax.vmap(lambda k, e: sampling.epoch_orders(k, 11, e, 2), (0, None)))
    stacked = make(keys, jnp.int32(4))
    for member in range(3):
        alone = sampling.epoch_orders(keys[member], 11, 4, 2)
        np.testing.assert_array_equal(stacked[member], alone)


def test_orders_are_uniform_over_the_positions_of_each_row():
    num_epochs = 4_000
    orders = np.asarray(sampling.epoch_orders(KEY, 4, 0, num_epochs))
    # Each row is at each position num_epochs / 4 times; 4 binomial standard errors.
    counts = np.stack([(orders == row).sum(axis=0) for row in range(4)])
    bound = 4 * np.sqrt(num_epochs * 0.25 * 0.75)
    assert np.abs(counts - num_epochs / 4).max() < bound


@pytest.mark.parametrize(
    "num_shards", [*(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2)), 4]
)
@pytest.mark.parametrize("step", [0, 1, 2, 5, 11])
def test_shards_concatenated_are_the_one_shard_plan(num_shards, step):
    whole = sampling.batch_positions(step, 8, 0, 1, 27)
    parts = [
        jax.jit(lambda s, i: sampling.batch_positions(s, 8, i, num_shards, 27))(step, i)
        for i in range(num_shards)
    ]
    assert all(int(epoch) == int(whole[0]) for epoch, _, _ in parts)
    for leaf in (1, 2):
        joined = np.concatenate([part[leaf] for part in parts])
        np.testing.assert_array_equal(joined, whole[leaf])
        assert all(part[leaf].dtype == jnp.int32 for part in parts)


@pytest.mark.parametrize("num_examples", [1, 2, 3, 4097, 65536, 100_003])
def test_an_order_is_a_permutation_at_any_size(num_examples):
    orders = np.asarray(sampling.epoch_orders(KEY, num_examples, 0, 2))
    assert orders.dtype == np.int32
    np.testing.assert_array_equal(
        np.sort(orders), np.broadcast_to(np.arange(num_examples), orders.shape)
    )


def test_neighbours_lie_in_either_order_equally_often():
    # 50 orders of 5,000 rows: ties of the first sorting round must leave no trace. The
    # standard deviation of the share is below 0.5 / sqrt(250,000) = 0.001.
    orders = np.asarray(sampling.epoch_orders(KEY, 5000, 0, 50))
    places = np.argsort(orders, axis=1)
    share = np.mean(places[:, :-1] < places[:, 1:])
    assert abs(share - 0.5) < 0.004


def test_an_epoch_visits_every_kept_position_once_and_drops_the_remainder():
    plans = [sampling.batch_positions(step, 4, 0, 1, 14) for step in range(6)]
    assert [int(epoch) for epoch, _, _ in plans] == [0, 0, 0, 1, 1, 1]
    for epoch in (0, 1):
        seen = np.concatenate([p for e, p, _ in plans if int(e) == epoch])
        np.testing.assert_array_equal(seen, np.arange(12))


def test_batches_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"at most the 10 examples.*got 16"):
        sampling.batch_positions(0, 16, 0, 1, 10)
    with pytest.raises(ValueError, match=r"num_shards=4.*got 10.*12"):
        sampling.batch_positions(0, 10, 0, 4, 20)


def test_example_keys_depend_on_the_position_alone():
    keys = sampling.example_keys(KEY, jnp.arange(6))
    later = sampling.example_keys(KEY, jnp.arange(3, 6))
    np.testing.assert_array_equal(
        jax.random.key_data(later), jax.random.key_data(keys[3:])
    )
    assert len({tuple(row) for row in np.asarray(jax.random.key_data(keys))}) == 6


def test_bootstrap_counts_count_the_bootstrap_rows():
    rows = np.asarray(sampling.bootstrap_rows(KEY, 50))
    counts = np.asarray(sampling.bootstrap_counts(KEY, 50))
    np.testing.assert_array_equal(counts, np.bincount(rows, minlength=50))
    assert counts.sum() == 50
    np.testing.assert_array_equal(sampling.out_of_bag(counts), counts == 0)


def test_a_share_of_one_over_e_is_out_of_bag():
    n, members = 1_000, 40
    keys = jax.vmap(lambda m: jax.random.fold_in(KEY, m))(jnp.arange(members))
    counts = jax.vmap(lambda k: sampling.bootstrap_counts(k, n))(keys)
    share = np.asarray(sampling.out_of_bag(counts)).mean()
    # The number left out has variance n (1/e - 2/e^2) approximately; 4 standard errors.
    bound = 4 * np.sqrt((np.exp(-1) - 2 * np.exp(-2)) / (n * members))
    assert abs(share - (1 - 1 / n) ** n) < bound


def _weighted(weights, num_draws, key=KEY, cumulative=None):
    if cumulative is None:
        cumulative = sampling.accumulate_weights(weights)
    positions = jnp.arange(num_draws, dtype=jnp.int32)
    rows = jax.jit(sampling.weighted_rows)(key, jnp.asarray(cumulative), positions)
    return np.asarray(rows)


def test_weighted_draws_have_the_weights_frequencies():
    weights = np.array([0.0, 1.0, 3.0, 0.0, 6.0, 0.0])
    num_draws = 20_000
    rows = _weighted(weights, num_draws)
    shares = weights / weights.sum()
    counts = np.bincount(rows, minlength=6)
    # Four standard errors of a binomial; exactly zero where the weight is.
    bound = 4 * np.sqrt(num_draws * shares * (1 - shares))
    assert (np.abs(counts - num_draws * shares) <= bound).all()


def test_a_weighted_draw_depends_on_its_position_alone():
    weights = np.arange(1.0, 40.0)
    cumulative = jnp.asarray(sampling.accumulate_weights(weights))
    whole = sampling.weighted_rows(KEY, cumulative, jnp.arange(12))
    part = sampling.weighted_rows(KEY, cumulative, jnp.arange(5, 12))
    np.testing.assert_array_equal(part, whole[5:])


@pytest.mark.parametrize("form", ["fixed point", "float32"])
def test_rows_of_weight_zero_are_never_drawn_at_1e5_rows(form):
    n = 100_000
    weights = np.random.default_rng(0).lognormal(0.0, 3.0, n).astype(np.float32)
    weights[::3] = 0.0
    weights[:100] = 0.0
    weights[-1_000:] = 0.0
    cumulative = None if form == "fixed point" else np.cumsum(weights)
    rows = _weighted(weights, 200_000, cumulative=cumulative)
    assert (weights[rows] > 0).all()


def test_the_largest_and_smallest_targets_fall_on_rows_with_weight(monkeypatch):
    weights = np.array([0.0, 1.0, 2.0, 0.0, 0.0])
    for bits, row in ((0, 1), (2**32 - 1, 2)):
        value = jnp.uint32(bits)
        monkeypatch.setattr(jax.random, "bits", lambda k, dtype, v=value: v)
        cumulative = jnp.asarray(sampling.accumulate_weights(weights))
        rows = sampling.weighted_rows(KEY, cumulative, jnp.arange(2))
        np.testing.assert_array_equal(rows, [row, row])
    for uniform, row in ((0.0, 1), (1.0, 2)):
        value = jnp.float32(uniform)
        monkeypatch.setattr(jax.random, "uniform", lambda k, dtype, v=value: v)
        cumulative = jnp.asarray(np.cumsum(weights), jnp.float32)
        rows = sampling.weighted_rows(KEY, cumulative, jnp.arange(2))
        np.testing.assert_array_equal(rows, [row, row])


def test_equal_weights_at_1e5_rows_are_drawn_evenly():
    n, num_draws = 100_000, 200_000
    rows = _weighted(np.ones(n), num_draws)
    # 100 groups of 1,000 rows: chi-square of 99 degrees of freedom, mean 99, sd 14.
    counts = np.bincount(rows // 1_000, minlength=100)
    expected = num_draws / 100
    assert ((counts - expected) ** 2 / expected).sum() < 99 + 4 * 14.1


def test_accumulated_weights_are_exact_monotone_and_checked():
    cumulative = sampling.accumulate_weights([1.0, 0.0, 1.0, 2.0])
    top = 2**32 - 1
    np.testing.assert_array_equal(
        cumulative, [round(top / 4), round(top / 4), 2**31, top]
    )
    stacked = sampling.accumulate_weights([[1.0, 1.0], [0.0, 1e308]])
    np.testing.assert_array_equal(stacked, [[2**31, top], [0, top]])
    with pytest.raises(ValueError, match=r"weights\[1\] is -2.0"):
        sampling.accumulate_weights([1.0, -2.0])
    with pytest.raises(ValueError, match=r"weights\[0\] is nan"):
        sampling.accumulate_weights([np.nan, 1.0])
    with pytest.raises(ValueError, match="all zero"):
        sampling.accumulate_weights([[0.0, 0.0], [1.0, 0.0]])
    with pytest.raises(ValueError, match=r"of one member.*\(2, 2\)"):
        sampling.weighted_rows(KEY, stacked, jnp.arange(2))
    with pytest.raises(TypeError, match="uint32.*got int32"):
        sampling.weighted_rows(KEY, jnp.arange(3, dtype=jnp.int32), jnp.arange(2))


def test_poisson_counts_have_mean_and_variance_one():
    n = 20_000
    counts = np.asarray(sampling.poisson_bootstrap_counts(KEY, n))
    assert counts.dtype == np.int32 and counts.min() >= 0
    # Var of the mean is 1/n, of the sample variance (mu4 - 1)/n = 3/n; 4 of each.
    assert abs(counts.mean() - 1) < 4 / np.sqrt(n)
    assert abs(counts.var() - 1) < 4 * np.sqrt(3 / n)


def test_bayesian_weights_are_a_scaled_flat_dirichlet():
    n = 20_000
    weights = np.asarray(sampling.bayesian_bootstrap_weights(KEY, n), np.float64)
    assert weights.min() > 0
    # float32 sums of 20,000 terms: 1e-5 is loose enough.
    np.testing.assert_allclose(weights.mean(), 1.0, atol=1e-5)
    # Exponential marginals: variance 1 (8/n its own variance), median log 2.
    assert abs(weights.var() - 1) < 4 * np.sqrt(8 / n)
    assert abs(np.median(weights) - np.log(2)) < 4 / np.sqrt(n)


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match="num_examples must be at least 1; got 0"):
        sampling.bootstrap_rows(KEY, 0)
    with pytest.raises(ValueError, match="num_epochs must be at least 1; got 0"):
        sampling.epoch_orders(KEY, 4, 0, 0)
