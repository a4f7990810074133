"""Member operations on random pytrees: every round trip, to the last bit.

Trees nest dicts, lists, tuples, named tuples, dataclasses and None around leaves of
several dtypes, typed keys, scalars and arrays without elements.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensjax import Ensemble, make_mesh
from ensjax.members import (
    check_stacked,
    concatenate_members,
    num_members,
    pad_members,
    select_members,
    stack_members,
    trim_members,
    unstack_members,
)

SOME = settings(max_examples=8, deadline=None)
SHAPES = ((), (2,), (2, 3), (0,), (3, 0, 1))
DTYPES = ("float32", "bfloat16", "int32", "int8", "uint32", "bool", "key")


class Pair(NamedTuple):
    left: Any
    right: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: Any
    bias: Any
    name: str = dataclasses.field(default="dense", metadata={"static": True})


leaves = st.tuples(st.sampled_from(SHAPES), st.sampled_from(DTYPES))


def nested(children):
    return st.one_of(
        st.dictionaries(st.sampled_from("abcd"), children, max_size=3),
        st.lists(children, max_size=3),
        st.lists(children, max_size=3).map(tuple),
        st.tuples(children, children).map(lambda two: Pair(*two)),
        st.tuples(children, children).map(lambda two: Layer(*two)),
    )


# What a member is made of: every leaf a `Spec`, or nothing at all.
@dataclasses.dataclass(frozen=True)
class Spec:
    shape: tuple[int, ...]
    dtype: str


templates = st.recursive(
    st.one_of(st.none(), leaves.map(lambda leaf: Spec(*leaf))), nested, max_leaves=6
)
with_leaves = templates.filter(lambda tree: jax.tree.leaves(tree))


def array(spec, rng):
    size = spec.shape
    if spec.dtype == "key":
        return jax.random.split(jax.random.key(int(rng.integers(1000))), size)
    if spec.dtype == "bool":
        return jnp.asarray(rng.integers(0, 2, size).astype(bool))
    if spec.dtype in ("float32", "bfloat16"):
        x = rng.normal(size=size)
        x = np.where(rng.random(size) < 0.1, rng.choice([np.nan, np.inf, -0.0]), x)
        return jnp.asarray(x, spec.dtype)
    limits = np.iinfo(spec.dtype)
    x = rng.integers(limits.min, limits.max, size, endpoint=True, dtype=spec.dtype)
    return jnp.asarray(x)


def member(template, seed):
    """One member of a template; another seed gives other numbers."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda spec: array(spec, rng), template)


def members(template, count):
    return [member(template, seed) for seed in range(count)]


def bits(leaf):
    """What a leaf is to the last bit, NaN and minus zero included."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return str(leaf.dtype), leaf.shape, np.asarray(jax.random.key_data(leaf)).data
    return str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert bits(x) == bits(y)


@SOME
@given(with_leaves, st.integers(1, 4))
def test_unstacking_inverts_stacking(template, count):
    trees = members(template, count)
    stacked = stack_members(trees)
    check_stacked(stacked, count)
    assert num_members(stacked) == count
    for tree, back in zip(trees, unstack_members(stacked), strict=True):
        assert_same(tree, back)
    assert_same(stack_members(unstack_members(stacked)), stacked)


@SOME
@given(with_leaves, st.lists(st.integers(1, 3), min_size=1, max_size=3))
def test_concatenating_stacks_is_stacking_all_and_selecting_takes_them_apart(
    template, sizes
):
    trees = members(template, sum(sizes))
    ends = np.cumsum(sizes)
    parts = [
        stack_members(trees[end - size : end])
        for end, size in zip(ends, sizes, strict=True)
    ]
    whole = concatenate_members(parts)
    assert_same(whole, stack_members(trees))
    for end, size, part in zip(ends, sizes, parts, strict=True):
        assert_same(select_members(whole, slice(end - size, end)), part)


@SOME
@given(with_leaves, st.integers(1, 4), st.data())
def test_selecting_twice_is_selecting_once_and_a_permutation_has_an_inverse(
    template, count, data
):
    stacked = stack_members(members(template, count))
    rows = data.draw(st.lists(st.integers(-count, count - 1), min_size=1, max_size=5))
    again = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=5))
    twice = select_members(select_members(stacked, rows), again)
    assert_same(twice, select_members(stacked, [rows[i] for i in again]))
    order = data.draw(st.permutations(range(count)))
    back = select_members(select_members(stacked, order), np.argsort(order))
    assert_same(back, stacked)
    mask = np.isin(np.arange(count), np.asarray(rows) % count)
    assert_same(
        select_members(stacked, mask), select_members(stacked, np.flatnonzero(mask))
    )


@SOME
@given(templates, st.integers(1, 4), st.integers(0, 3))
def test_trimming_inverts_padding_with_copies_of_member_0(template, count, extra):
    stacked = stack_members(members(template, count))
    padded = pad_members(stacked, count + extra)
    assert_same(trim_members(padded, count), stacked)
    if jax.tree.leaves(template):
        first = [0] * extra
        want = select_members(stacked, [*range(count), *first])
        assert_same(padded, want)


@SOME
@given(templates.filter(lambda tree: not jax.tree.leaves(tree)), st.integers(1, 3))
def test_trees_without_arrays_stack_to_themselves_and_hold_no_members(template, count):
    stacked = stack_members([template] * count)
    assert jax.tree.structure(stacked) == jax.tree.structure(template)
    for operation in (num_members, unstack_members, lambda t: select_members(t, [0])):
        with pytest.raises(ValueError, match="at least one array"):
            operation(stacked)


@SOME
@given(with_leaves, with_leaves, st.booleans())
def test_trees_that_differ_never_stack_or_concatenate(one, other, swap):
    same = jax.tree.structure(one) == jax.tree.structure(other) and jax.tree.leaves(
        one
    ) == jax.tree.leaves(other)
    trees = [member(one, 0), member(other, 1)][:: -1 if swap else 1]
    if same:
        assert num_members(stack_members(trees)) == 2
        return
    with pytest.raises(ValueError):
        stack_members(trees)
    with pytest.raises(ValueError):
        concatenate_members([stack_members([tree]) for tree in trees])


@SOME
@given(with_leaves, st.integers(2, 4), st.data())
def test_a_leaf_with_another_number_of_rows_is_named(template, count, data):
    stacked = stack_members(members(template, count))
    flat, treedef = jax.tree.flatten(stacked)
    bad = data.draw(st.integers(0, len(flat) - 1))
    paths = [path for path, _ in jax.tree.leaves_with_path(stacked)]
    flat[bad] = flat[bad][: count - 1]
    broken = jax.tree.unflatten(treedef, flat)
    with pytest.raises(ValueError) as error:
        check_stacked(broken, count)
    assert (jax.tree_util.keystr(paths[bad]) or "The tree") in str(error.value)


def apply(params, x):
    del params
    return x


@functools.cache
def mesh_of(devices):
    return make_mesh(member=devices)


@pytest.mark.slow
@settings(max_examples=4, deadline=None)
@given(with_leaves, st.integers(1, 4), st.data())
def test_an_ensemble_selects_concatenates_and_moves_as_its_stack_does(
    template, count, data
):
    stacked = stack_members(members(template, count))
    ids = data.draw(
        st.lists(st.integers(0, 99), min_size=count, max_size=count, unique=True)
    )
    ensemble = Ensemble.from_apply(apply, stacked, member_ids=ids, mesh=mesh_of(2))
    assert len(ensemble) == count
    assert_same(ensemble.params, stacked)
    for i, tree in enumerate(unstack_members(stacked)):
        assert_same(ensemble[i], tree)
        assert_same(ensemble[i - count], tree)
    rows = data.draw(st.lists(st.integers(-count, count - 1), min_size=1, max_size=4))
    chosen = ensemble.select(rows)
    assert_same(chosen.params, select_members(stacked, rows))
    assert chosen.member_ids.tolist() == [ids[i] for i in rows]
    both = ensemble.concatenate(chosen.on_mesh(mesh_of(1)))
    assert_same(
        both.params, concatenate_members([stacked, select_members(stacked, rows)])
    )
    assert_same(both[:count].params, stacked)
    assert both.member_ids.tolist() == ids + [ids[i] for i in rows]
    assert_same(ensemble.on_mesh(mesh_of(3)).on_mesh(mesh_of(2)).params, stacked)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("devices", [1, 4])
def test_rows_that_move_between_devices_keep_every_bit(devices, dtype):
    """Moved as sums with zeros, -0.0 would become 0.0."""
    bits = {
        "float32": np.array([0x80000000, 0x7FC00000, 0xFFC00000, 1], np.uint32),
        "bfloat16": np.array([0x8000, 0x7FC0, 0xFFC0, 1], np.uint16),
    }[dtype]
    host = np.tile(bits, (8, 1)).view(jnp.dtype(dtype))
    sharding = jax.NamedSharding(mesh_of(devices), jax.P("member"))
    stacked = jax.device_put(host, sharding)

    def expect_same_bits(x):
        rows = np.asarray(x).reshape(-1, 4).view(bits.dtype)
        np.testing.assert_array_equal(rows, np.tile(bits, (len(rows), 1)))

    expect_same_bits(select_members(stacked, [3, 0, 5]))
    expect_same_bits(pad_members(stacked, 12))
    expect_same_bits(concatenate_members([stacked, stacked]))
    expect_same_bits(trim_members(stacked, 3))
    expect_same_bits(stack_members(unstack_members(stacked)))
    ensemble = Ensemble.from_apply(apply, stacked, mesh=mesh_of(devices))
    expect_same_bits(ensemble[6])
    expect_same_bits(ensemble.select([7, 1]).params)
    expect_same_bits(ensemble.concatenate(ensemble[2:3]).params)
    expect_same_bits(ensemble.on_mesh(mesh_of(3)).params)
