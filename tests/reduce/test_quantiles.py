"""Quantiles of many members by a summary: its bound of rank holds in any order."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensjax.mesh import make_mesh
from ensjax.reduce import (
    finish_quantiles,
    init_quantiles,
    merge_quantiles,
    rank_error_bound,
    reduce_quantiles,
    sketch_size,
    update_quantiles,
)
from ensjax.reduce.sorted_runs import capacity, sorted_members

MANY = 100_000
PROBABILITIES = np.linspace(0, 1, 401)


def scalar_state(**sizes):
    return init_quantiles(jax.ShapeDtypeStruct((), jnp.float32), **sizes)


update = jax.jit(update_quantiles)
merge = jax.jit(merge_quantiles)
held = jax.jit(lambda state: sorted_members(state.members))
finish = jax.jit(finish_quantiles)


@functools.cache
def streams():
    """Orders and distributions that are hard for a summary: `[member, case]`."""
    rng = np.random.default_rng(0)
    i = np.arange(MANY)
    cases = {
        "random": rng.normal(size=MANY),
        "sorted": i,
        "reversed": i[::-1],
        "equal": np.ones(MANY),
        "heavy ties": rng.integers(0, 3, MANY),
        "heavy tails": rng.standard_cauchy(MANY),
        "heavier tails": np.exp(5 * rng.normal(size=MANY)),
        "from both ends": np.where(i % 2, i, -i),
        "saw": i % 1000,
        "one far value": np.where(i == 77, 1e9, 0.0),
        # Each buffer holds an odd number of small values: every merge has an error.
        "odd shares": np.where(i % sketch_size(MANY)[1] < 101, -1.0, 1.0) * (i + 1),
    }
    return {name: np.asarray(x, np.float32) for name, x in cases.items()}


def largest_rank_error(values, until, x):
    """Largest |members <= v by the summary - members <= v| / M over all values v."""
    x, values = np.sort(x), np.asarray(values)
    places = np.searchsorted(values, x, side="right") - 1
    by_summary = np.where(places >= 0, np.asarray(until)[places], 0)
    return np.abs(by_summary - np.searchsorted(x, x, side="right")).max() / len(x)


def quantile_errors(quantiles, probabilities, x):
    """How far, as a share of M, each quantile is from the ranks that it should have."""
    x = np.sort(x)
    wanted = np.asarray(probabilities) * (len(x) - 1)
    first = np.searchsorted(x, quantiles, side="left") - 1
    last = np.searchsorted(x, quantiles, side="right")
    return np.maximum(np.maximum(first - wanted, wanted - last), 0) / len(x)


@functools.cache
def streamed():
    x = np.stack(list(streams().values()), axis=1)
    like = jax.ShapeDtypeStruct(x.shape[1:], jnp.float32)

    @jax.jit
    def run(blocks):
        state = init_quantiles(like, max_members=MANY)
        fold = jax.lax.scan(lambda s, b: (update_quantiles(s, b), None), state, blocks)
        return fold[0]

    return run(x.reshape(-1, 1000, x.shape[1]))


@pytest.mark.parametrize("case", streams())
def test_the_rank_error_of_a_hundred_thousand_members_is_below_half_a_percent(case):
    state, number = streamed(), list(streams()).index(case)
    assert int(state.count) == MANY
    assert rank_error_bound(state.members) <= 0.005
    values, until = held(state)
    x = streams()[case]
    error = largest_rank_error(values[number], until[number], x)
    assert error <= rank_error_bound(state.members)
    quantiles = finish(state, PROBABILITIES)[:, number]
    assert quantile_errors(quantiles, PROBABILITIES, x).max() <= 0.005
    assert (np.diff(quantiles) >= 0).all()
    assert set(np.asarray(held(state)[0][number])) <= {*x.tolist(), np.inf}


@pytest.mark.parametrize("shape", ["balanced", "left", "right"])
def test_the_bound_holds_for_a_tree_of_merges(shape):
    """120 states of 1 to 1,600 members each, of values that ascend through the tree."""
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 1600, 120)
    x = np.sort(rng.standard_cauchy(sizes.sum())).astype(np.float32)
    parts = np.split(x, np.cumsum(sizes)[:-1])
    states = []
    for part in parts:
        rows = np.zeros(1600, np.float32)
        rows[: len(part)] = part
        empty = scalar_state(max_members=MANY)
        states.append(update(empty, rows, np.arange(1600) < len(part)))
    while len(states) > 1:
        if shape == "balanced":
            pairs = [states[i : i + 2] for i in range(0, len(states), 2)]
            states = [merge(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
        elif shape == "left":
            states[:2] = [merge(*states[:2])]
        else:
            states[-2:] = [merge(*states[-2:])]
    state = states[0]
    assert int(state.count) == len(x)
    values, until = held(state)
    assert int(until[-1]) == len(x)
    bound = rank_error_bound(state.members)
    assert largest_rank_error(values, until, x) <= bound <= 0.005


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_small_summary_keeps_its_bound_through_any_updates_and_merges(data):
    """Widths of 8: every carry of the binary addition happens within 200 members."""
    sizes = dict(max_members=200, rank_error=0.25)
    assert sketch_size(**sizes) == (5, 8)
    # Subnormal numbers compare as 0 in compiled programs on the CPU.
    floats = st.floats(-100, 100, width=32, allow_subnormal=False)
    number = st.integers(-3, 3) | floats
    block = st.lists(number, min_size=1, max_size=20)
    states, members = [], []
    for _ in range(data.draw(st.integers(1, 5))):
        state, values = scalar_state(**sizes), []
        for part in data.draw(st.lists(block, max_size=4)):
            if sum(map(len, members), len(values) + len(part)) > 200:
                break
            rows = np.zeros(20, np.float32)
            rows[: len(part)] = part
            state = update(state, rows, np.arange(20) < len(part))
            values += part
        states.append(state)
        members.append(values)
    while len(states) > 1:
        i = data.draw(st.integers(0, len(states) - 2))
        states[i : i + 2] = [merge(states[i], states[i + 1])]
        members[i : i + 2] = [members[i] + members[i + 1]]
    x = np.asarray(members[0], np.float32)
    assert int(states[0].count) == len(x)
    if not len(x):
        return
    values, until = held(states[0])
    error = largest_rank_error(values, until, x)
    assert error <= rank_error_bound(states[0].members) == 0.25
    if len(x) <= 8:
        np.testing.assert_array_equal(values[: len(x)], np.sort(x))


def test_all_members_are_held_and_exact_while_they_fit_the_buffer():
    state = scalar_state(max_members=10_000)
    levels, width = sketch_size(10_000)
    x = np.random.default_rng(2).normal(size=width).astype(np.float32)
    state = update(state, x)
    want = np.quantile(x.astype(np.float64), PROBABILITIES)
    # The position q (M - 1) is rounded to float32, and read between two neighbours.
    atol = width * 2**-23 * np.diff(np.sort(x)).max()
    np.testing.assert_allclose(finish(state, PROBABILITIES), want, rtol=1e-6, atol=atol)
    assert levels > 0


@pytest.mark.slow
def test_members_on_several_devices_keep_the_bound():
    rng = np.random.default_rng(3)
    x = np.sort(rng.normal(size=(4001, 2)).astype(np.float32), axis=0)
    mask = np.arange(4001) % 7 != 0
    state = reduce_quantiles(
        x, mask, max_members=20_000, rank_error=0.01, mesh=make_mesh(member=5)
    )
    assert int(state.count) == mask.sum()
    values, until = held(state)
    for column in range(2):
        error = largest_rank_error(values[column], until[column], x[mask, column])
        assert error <= rank_error_bound(state.members) <= 0.01


def test_more_members_than_the_state_is_for_are_not_a_number():
    state = scalar_state(max_members=200, rank_error=0.25)
    most = capacity(state.members)
    assert most == 8 * 2**5 >= 200
    x = np.arange(most, dtype=np.float32)
    state = update(state, x)
    error = np.abs(finish(state, PROBABILITIES) - PROBABILITIES * (most - 1)).max()
    assert error <= 0.25 * most + 1
    assert np.isnan(finish(update(state, x[:1]), PROBABILITIES)).all()
    assert np.isnan(finish(merge(state, state), PROBABILITIES)).all()
    held_all = scalar_state(max_members=5)
    assert np.isnan(finish(update(held_all, x[:6]), 0.5))


def test_the_state_has_the_size_that_is_written():
    """The figures of the docstrings, in bytes an element; they do not depend on M."""
    sizes = {1_000: 4_000, 10_000: 9_600, 100_000: 25_024, 1_000_000: 42_988}
    for members, bytes_held in sizes.items():
        state = jax.eval_shape(lambda m=members: scalar_state(max_members=m))
        leaves = jax.tree.leaves((state.members.pending, state.members.runs))
        assert sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) == bytes_held
        after = jax.eval_shape(update_quantiles, state, jnp.zeros(3))
        assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
        levels, width = sketch_size(members)
        assert width * 2**levels >= members
        assert max(levels - 1, 0) / (2 * width) <= 0.005
    assert sketch_size(10**6, 0.0) == (0, 10**6)


def test_infinite_members_and_probabilities_out_of_range():
    x = np.array([-np.inf, 1.0, 2.0, np.inf, np.inf], np.float32)
    state = update(scalar_state(max_members=5), x)
    got = finish(state, np.array([0.0, 0.25, 0.5, 0.9, 1.0, 1.5, -0.1]))
    np.testing.assert_array_equal(got, [-np.inf, 1, 2, np.inf, np.inf, np.nan, np.nan])
    assert finish(state, 0.25).shape == ()
    with pytest.raises(ValueError, match=r"\[probability\].*\(1, 1\)"):
        finish_quantiles(state, [[0.5]])


def test_sizes_that_cannot_be_are_named():
    with pytest.raises(ValueError, match="max_members must be from 1.*got 0"):
        sketch_size(0)
    with pytest.raises(ValueError, match="rank_error is a share.*got 1"):
        scalar_state(max_members=10, rank_error=1)
