"""Infinite members, empty states, shapes and sizes that do not fit."""

import jax.numpy as jnp
import numpy as np
import pytest

from ensjax.mesh import make_mesh
from ensjax.reduce import (
    finish_moments,
    fold_members,
    init_moments,
    init_quantiles,
    merge_moments,
    merge_quantiles,
    update_moments,
)

LIKE = jnp.zeros(())


def _itself(value):
    return value


@pytest.mark.parametrize("block", [1, 2, 5])
def test_an_infinite_member_makes_the_mean_infinite_in_every_block(block):
    values = jnp.array([1.0, jnp.inf, 2, 3, 4])
    found = fold_members(
        _itself,
        values,
        {"m": init_moments(LIKE)},
        block=block,
        mesh=make_mesh(member=1),
    )
    mean, variance = finish_moments(found["m"])
    assert np.isposinf(mean) and np.isnan(variance)


def test_what_is_empty_changes_nothing():
    empty = init_moments(LIKE)
    full = update_moments(empty, jnp.array([jnp.inf, 1.0]))
    for merged in (merge_moments(full, empty), merge_moments(empty, full)):
        assert np.isposinf(merged.mean) and merged.count == 2
    both = merge_moments(update_moments(empty, jnp.array([-jnp.inf])), full)
    assert np.isnan(both.mean)


def test_summaries_of_other_sizes_and_blocks_that_are_none_are_refused():
    few, many = (init_quantiles(LIKE, max_members=m) for m in (100, 10_000_000))
    with pytest.raises(ValueError, match="same number of members"):
        merge_quantiles(few, many)
    for block in (True, 0, 1.5):
        with pytest.raises(ValueError, match="block"):
            fold_members(_itself, jnp.ones(4), {"m": init_moments(LIKE)}, block=block)


def test_members_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="the state is of members"):
        update_moments(init_moments(LIKE), jnp.zeros((3, 2)))
    with pytest.raises(ValueError, match="the state is of members"):
        update_moments(init_moments(jnp.zeros(2)), jnp.zeros(3))
