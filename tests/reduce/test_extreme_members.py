"""Who is lowest, highest and closest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax import make_mesh, reduce

OBSERVED = np.array([0.2, -1.0, np.nan], np.float32)
IDS = np.arange(100, 124)


def members():
    x = np.round(np.random.default_rng(0).normal(size=(24, 3)), 1).astype(np.float32)
    x[3, 0] = np.nan
    x[:, 1] = np.where(np.arange(24) % 5 == 2, -1.5, x[:, 1].clip(-1.5))
    return x


def value_of(member_id, table):
    return table[member_id - 100], member_id


def expected(x, keep):
    """By NumPy; the first of those with equal values."""
    x = np.where(keep[:, None], x, np.nan)
    away = np.abs(x - OBSERVED)
    return {
        "lowest": (np.nanmin(x, 0), IDS[np.nanargmin(x, 0)]),
        "highest": (np.nanmax(x, 0), IDS[np.nanargmax(x, 0)]),
        "closest": (np.nanmin(away[:, :2], 0), IDS[np.nanargmin(away[:, :2], 0)]),
    }


@pytest.mark.parametrize("devices, block", [(1, 5), (8, 1)])
def test_streamed_in_any_order_they_are_those_of_all(devices, block):
    x, keep = members(), np.arange(24) != 7
    order = np.random.default_rng(1).permutation(24)
    state = {"who": reduce.init_extreme_members(jnp.zeros(3), OBSERVED)}
    found = reduce.fold_members(
        value_of,
        jnp.asarray(IDS[order]),
        state,
        block=block,
        shared=(jnp.asarray(x),),
        mask=jnp.asarray(keep[order]),
        mesh=make_mesh(member=devices),
    )["who"]
    found = reduce.finish_extreme_members(found)
    for name, (value, who) in expected(x, keep).items():
        of_all = getattr(found, name)
        np.testing.assert_array_equal(of_all.value[: len(value)], value)
        np.testing.assert_array_equal(of_all.member[: len(who)], who)
    assert np.isnan(found.closest.value[2]) and found.closest.member[2] == -1


def test_merging_is_folding_and_nobody_changes_nothing():
    x = jnp.asarray(members())
    empty = reduce.init_extreme_members(jnp.zeros(3))
    update = reduce.update_extreme_members
    parts = [update(empty, (x[i : i + 6], jnp.asarray(IDS[i : i + 6]))) for i in (0, 6)]
    whole = update(empty, (x[:12], jnp.asarray(IDS[:12])))
    for a, b in (parts, parts[::-1], (whole, empty), (empty, whole)):
        merged = reduce.merge_extreme_members(a, b)
        for one, other in zip(jax.tree.leaves(merged), jax.tree.leaves(whole)):
            np.testing.assert_array_equal(one, other)
    nobody = reduce.finish_extreme_members(empty)
    assert np.isnan(nobody.highest.value).all() and (nobody.highest.member == -1).all()


def test_what_does_not_fit():
    with pytest.raises(TypeError, match="must be floats"):
        reduce.init_extreme_members(jnp.zeros(3, jnp.int32))
    state = reduce.init_extreme_members(jnp.zeros(3))
    with pytest.raises(ValueError, match="ids must be"):
        reduce.update_extreme_members(state, (jnp.zeros((2, 3)), jnp.arange(3)))
