"""The member axis: stacking and its inverses, errors that name the leaf, and keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensjax.members import (
    PURPOSES,
    check_stacked,
    concatenate_members,
    member_key,
    member_keys,
    member_rows,
    num_members,
    pad_members,
    select_members,
    stack_members,
    trim_members,
    unstack_members,
)

FEW = settings(max_examples=5, deadline=None)


def tree_of(shapes, offset, dtype=np.float32):
    """A pytree with leaves of these shapes; offset tells members apart."""
    leaves = [
        np.arange(np.prod(shape, dtype=int), dtype=dtype).reshape(shape)
        + offset
        + 7 * i
        for i, shape in enumerate(shapes)
    ]
    return {"first": leaves[0], "rest": (list(leaves[1:]), None, {"empty": ()})}


shapes = st.lists(
    st.lists(st.integers(1, 3), max_size=3).map(tuple), min_size=1, max_size=4
)


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@FEW
@given(shapes, st.integers(1, 5))
def test_unstacking_inverts_stacking(shapes, members):
    trees = [tree_of(shapes, 100 * i) for i in range(members)]
    stacked = stack_members(trees)
    check_stacked(stacked, members)
    assert num_members(stacked) == members
    for tree, back in zip(trees, unstack_members(stacked), strict=True):
        assert_equal(tree, back)


@FEW
@given(shapes, st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_concatenating_parts_equals_stacking_all(shapes, sizes):
    trees = [tree_of(shapes, 100 * i) for i in range(sum(sizes))]
    parts, start = [], 0
    for size in sizes:
        parts.append(stack_members(trees[start : start + size]))
        start += size
    assert_equal(concatenate_members(parts), stack_members(trees))


@FEW
@given(shapes, st.integers(1, 5), st.data())
def test_selecting_equals_stacking_the_chosen(shapes, members, data):
    trees = [tree_of(shapes, 100 * i) for i in range(members)]
    index = st.integers(-members, members - 1)
    rows = data.draw(st.lists(index, min_size=1, max_size=6))
    assert_equal(
        select_members(stack_members(trees), rows),
        stack_members([trees[i] for i in rows]),
    )


@FEW
@given(shapes, st.integers(1, 5), st.integers(0, 4))
def test_trimming_inverts_padding_and_pads_are_member_0(shapes, members, extra):
    stacked = stack_members([tree_of(shapes, 100 * i) for i in range(members)])
    padded = pad_members(stacked, members + extra)
    check_stacked(padded, members + extra)
    assert_equal(trim_members(padded, members), stacked)
    for row in range(members, members + extra):
        assert_equal(unstack_members(padded)[row], unstack_members(stacked)[0])


def test_selection_by_mask_slice_and_integers_agree():
    stacked = stack_members([tree_of([(2,)], 10 * i) for i in range(5)])
    mask = np.array([False, True, True, False, False])
    assert_equal(select_members(stacked, mask), select_members(stacked, slice(1, 3)))
    assert_equal(select_members(stacked, mask), select_members(stacked, [1, -3]))
    assert_equal(
        select_members(stacked, mask), select_members(stacked, jnp.array([1, 2]))
    )
    np.testing.assert_array_equal(member_rows(slice(None, None, -2), 5), [4, 2, 0])


def test_keys_stack_select_pad_and_concatenate():
    keys = jax.random.split(jax.random.key(0), 3)
    stacked = stack_members([{"key": k} for k in keys])
    assert_equal_keys(stacked["key"], keys)
    assert_equal_keys(select_members(stacked, [2, 0])["key"], keys[np.array([2, 0])])
    assert_equal_keys(pad_members(stacked, 4)["key"][3], keys[0])
    assert concatenate_members([stacked, stacked])["key"].shape == (6,)


def assert_equal_keys(a, b):
    np.testing.assert_array_equal(jax.random.key_data(a), jax.random.key_data(b))


def test_dtypes_survive():
    for dtype in (jnp.bfloat16, jnp.int8, jnp.bool_):
        stacked = stack_members([jnp.ones(2, dtype), jnp.zeros(2, dtype)])
        assert stacked.dtype == dtype
        assert pad_members(stacked, 3).dtype == dtype


def good():
    return {"dense": {"kernel": np.ones((2, 3), np.float32)}, "bias": np.ones(3)}


def test_a_shape_that_differs_is_named():
    bad = good()
    bad["dense"]["kernel"] = np.ones((2, 4), np.float32)
    with pytest.raises(
        ValueError, match=r"\['dense'\]\['kernel'\].*\[2, 3\].*\[2, 4\]"
    ):
        stack_members([good(), bad])


def test_a_dtype_that_differs_is_named():
    bad = good()
    bad["dense"]["kernel"] = bad["dense"]["kernel"].astype(np.int32)
    with pytest.raises(ValueError, match=r"\['dense'\]\['kernel'\].*float32.*int32"):
        stack_members([good(), bad])


@pytest.mark.parametrize("swap", [False, True])
def test_a_leaf_that_one_tree_lacks_is_named(swap):
    bad = good()
    del bad["bias"]
    trees = [bad, good()] if swap else [good(), bad]
    with pytest.raises(ValueError, match=r"\['bias'\] is in tree \d but not"):
        stack_members(trees)


def test_concatenate_names_the_leaf_and_ignores_the_number_of_members():
    a = stack_members([good(), good()])
    b = stack_members([good()])
    assert num_members(concatenate_members([a, b])) == 3
    b["dense"]["kernel"] = np.ones((1, 2, 9), np.float32)
    with pytest.raises(ValueError, match=r"\['dense'\]\['kernel'\]"):
        concatenate_members([a, b])


def test_trees_that_differ_in_structure_alone_do_not_stack():
    with pytest.raises(ValueError, match="structure"):
        stack_members([{"a": (np.ones(2),)}, {"a": [np.ones(2)]}])
    with pytest.raises(ValueError, match="structure"):
        stack_members([{"a": np.ones(2), "b": None}, {"a": np.ones(2), "b": ()}])


def test_python_numbers_stack():
    stacked = stack_members([{"rate": 0.1}, {"rate": 0.2}])
    np.testing.assert_allclose(stacked["rate"], [0.1, 0.2], rtol=1e-6)


def test_lists_of_numbers_select_and_pad_as_arrays_do():
    np.testing.assert_array_equal(select_members(np.arange(4), [3, 0]), [3, 0])
    with pytest.raises(ValueError, match="scalar"):
        select_members({"rate": 0.1}, [0])


def test_unequal_rows_are_named():
    with pytest.raises(ValueError, match=r"\['b'\].*\(3,\).*2 members"):
        num_members({"a": np.ones((2, 1)), "b": np.ones(3)})
    with pytest.raises(ValueError, match=r"\['b'\]"):
        check_stacked({"a": np.ones((2, 1)), "b": np.ones(())}, 2)
    with pytest.raises(ValueError, match=r"\['a'\] is a scalar"):
        num_members({"a": np.float32(1)})
    with pytest.raises(ValueError, match="at least one array"):
        num_members({"a": None})


def test_empty_lists_of_trees_raise():
    with pytest.raises(ValueError, match="at least one tree"):
        stack_members([])
    with pytest.raises(ValueError, match="at least one tree"):
        concatenate_members([])


@pytest.mark.parametrize(
    "indices, error, words",
    [
        ([3], IndexError, "0 to 2"),
        ([-4], IndexError, "0 to 2"),
        ([], ValueError, "no member"),
        (slice(2, 2), ValueError, "no member"),
        (np.zeros(3, bool), ValueError, "no member"),
        (np.ones(2, bool), ValueError, r"\(3,\)"),
        ([0.5], TypeError, "integers"),
        ([[0, 1]], ValueError, r"\[selected\]"),
    ],
)
def test_a_selection_that_cannot_be_says_what_can(indices, error, words):
    with pytest.raises(error, match=words):
        select_members(np.ones((3, 2)), indices)


def test_padding_below_the_number_of_members_raises():
    with pytest.raises(ValueError, match="3 members do not fit in 2"):
        pad_members(np.ones((3, 1)), 2)
    assert pad_members({}, 4) == {}


def test_a_key_depends_on_seed_purpose_and_id_alone():
    def data(*args):
        return tuple(np.asarray(jax.random.key_data(member_key(*args))).tolist())

    assert data(0, "init", 3) == data(0, "init", 3)
    keys = {
        data(seed, purpose, i)
        for seed in (0, 1)
        for purpose in PURPOSES
        for i in (0, 1, 2**31 - 1)
    }
    assert len(keys) == 2 * len(PURPOSES) * 3


def test_a_key_is_the_same_traced_mapped_and_alone():
    ids = np.array([5, 0, 9], np.int32)
    alone = [jax.random.key_data(member_key(3, "order", int(i))) for i in ids]
    mapped = jax.jit(lambda seed, i: member_keys(seed, "order", i))(3, ids)
    np.testing.assert_array_equal(jax.random.key_data(mapped), np.stack(alone))
    np.testing.assert_array_equal(
        jax.random.key_data(member_keys(3, "order", ids)), np.stack(alone)
    )


def test_growing_an_ensemble_keeps_the_keys_of_its_members():
    few = jax.random.key_data(member_keys(0, "init", np.arange(4)))
    many = jax.random.key_data(member_keys(0, "init", np.arange(400)))
    np.testing.assert_array_equal(few, many[:4])


def test_purposes_are_numbered_apart():
    assert len(set(PURPOSES.values())) == len(PURPOSES)


def test_keys_are_threefry_whatever_the_default_is():
    with jax.default_prng_impl("rbg"):
        key = member_key(0, "init", 0)
    assert_equal_keys(key, member_key(0, "init", 0))


def test_an_unknown_purpose_raises_with_the_known_ones():
    with pytest.raises(ValueError, match="'lunch'.*init"):
        member_key(0, "lunch", 0)


def test_no_key_is_used_twice():
    with jax.debug_key_reuse(True):
        keys = jax.jit(lambda: member_keys(0, "noise", jnp.arange(3)))()
        jax.jit(jax.vmap(lambda k: jax.random.normal(k, (2,))))(keys)
