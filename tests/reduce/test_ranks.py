"""Rank histograms: by hand, with ties, with observations left out, and calibrated."""

import jax
import numpy as np
import pytest

from ensjax import reduce
from ensjax.reduce import init_ranks

update_ranks = jax.jit(reduce.update_ranks)
finish_compiled = jax.jit(reduce.finish_ranks, static_argnames="num_members")

MEMBERS = np.array([[1, 1, 1, 1], [2, 1, 3, 5], [3, 1, 3, np.nan]], np.float32)
OBSERVED = np.array([2.5, 1.0, 3.0, 2.0], np.float32)


def test_ranks_by_hand():
    # 2.5 is above two members; 1.0 ties with all three; 3.0 is above one and ties with
    # two; the last has a member that is NaN and is left out.
    ranks = update_ranks(init_ranks(OBSERVED), MEMBERS)
    np.testing.assert_array_equal(ranks.below[:3], [2, 0, 1])
    np.testing.assert_array_equal(ranks.ties[:3], [0, 3, 2])
    histogram = finish_compiled(ranks, num_members=3)
    want = [1 / 4, 1 / 4 + 1 / 3, 1 + 1 / 4 + 1 / 3, 1 / 4 + 1 / 3]
    np.testing.assert_allclose(histogram, want, rtol=1e-6)


def test_ties_are_drawn_uniformly_with_a_key():
    """4,000 observations that tie with both members: thirds, within 5 deviations."""
    observed = np.zeros(4000, np.float32)
    ranks = update_ranks(init_ranks(observed), np.zeros((2, 4000), np.float32))
    histogram = finish_compiled(ranks, num_members=2, key=jax.random.key(0))
    assert float(histogram.sum()) == 4000
    deviation = np.sqrt(4000 * (1 / 3) * (2 / 3))
    assert np.abs(histogram - 4000 / 3).max() < 5 * deviation
    again = finish_compiled(ranks, num_members=2, key=jax.random.key(0))
    np.testing.assert_array_equal(histogram, again)
    np.testing.assert_allclose(
        finish_compiled(ranks, num_members=2), np.full(3, 4000 / 3), rtol=1e-5
    )


def test_observations_like_the_members_have_every_rank_equally_often():
    """9 members and the observation from one distribution, 5,000 times: chi-squared
    with 9 degrees of freedom is above 27.9 with probability 0.001."""
    x = np.random.default_rng(0).normal(size=(10, 5000)).astype(np.float32)
    ranks = update_ranks(init_ranks(x[0]), x[1:])
    histogram = np.asarray(finish_compiled(ranks, num_members=9))
    assert histogram.sum() == 5000
    assert ((histogram - 500) ** 2 / 500).sum() < 27.9
    ranks = update_ranks(init_ranks(x[0]), 3 * x[1:])
    wide = finish_compiled(ranks, num_members=9)
    assert wide[0] < 300 and wide[9] < 300  # too much spread: a dome


def test_an_observation_that_is_nan_is_left_out():
    observed = np.array([np.nan, 0.0], np.float32)
    ranks = update_ranks(init_ranks(observed), np.ones((3, 2), np.float32))
    np.testing.assert_array_equal(finish_compiled(ranks, num_members=3), [1, 0, 0, 0])


def test_another_number_of_members_raises_or_is_not_a_number_when_compiled():
    ranks = update_ranks(init_ranks(OBSERVED), MEMBERS)
    with pytest.raises(ValueError, match="num_members is 4, but 3 members"):
        reduce.finish_ranks(ranks, num_members=4)
    assert np.isnan(finish_compiled(ranks, num_members=4)).all()
