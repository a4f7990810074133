"""What every reduction promises: order, blocks, masks, merges, dtypes and devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax import reduce
from ensjax.mesh import make_mesh

PROBABILITIES = np.array([0.0, 0.1, 0.5, 0.77, 1.0], np.float32)
OBSERVED = np.array([0.1, -0.4, 2.0], np.float32)
THRESHOLDS = np.array([-0.5, 0.0, 1.25], np.float32)
LIKE = jax.ShapeDtypeStruct((3,), jnp.float32)


def numbers(x):
    return np.asarray(x, np.float64)


def extremes(x):
    return x.min(0), x.max(0)


def exceedances(x):
    return (x[:, None] > THRESHOLDS[:, None]).mean(0)


def ranks(x):
    """The histogram written out: one bin, or equal shares of all bins of a tie."""
    bins = np.zeros(len(x) + 1)
    for member_values, y in zip(x.T, OBSERVED, strict=True):
        below, ties = (member_values < y).sum(), (member_values == y).sum()
        bins[below : below + ties + 1] += 1 / (ties + 1)
    return bins


def crps(x):
    """Every pair of members, written out."""
    error = np.abs(x - OBSERVED).mean(0)
    return error - np.abs(x[:, None] - x[None]).mean((0, 1)) / 2


# name: (empty state, finish(state, members), the same from all members in float64)
REDUCTIONS = {
    "moments": (
        lambda: reduce.init_moments(LIKE),
        lambda state, members: reduce.finish_moments(state),
        lambda x: (x.mean(0), x.var(0)),
    ),
    "extremes": (
        lambda: reduce.init_extremes(LIKE),
        lambda state, members: reduce.finish_extremes(state),
        extremes,
    ),
    "exceedances": (
        lambda: reduce.init_exceedances(LIKE, THRESHOLDS),
        lambda state, members: reduce.finish_exceedances(state),
        exceedances,
    ),
    "ranks": (
        lambda: reduce.init_ranks(OBSERVED),
        lambda state, members: reduce.finish_ranks(state, num_members=members),
        ranks,
    ),
    "quantiles": (
        lambda: reduce.init_quantiles(LIKE, max_members=40),
        lambda state, members: reduce.finish_quantiles(state, PROBABILITIES),
        lambda x: np.quantile(x, numbers(PROBABILITIES), axis=0),
    ),
    "crps": (
        lambda: reduce.init_crps(OBSERVED, max_members=40),
        lambda state, members: reduce.finish_crps(state),
        crps,
    ),
}
NAMES = list(REDUCTIONS)


@functools.cache
def compiled(verb, name):
    return jax.jit(getattr(reduce, f"{verb}_{name}"))


def draw(members, seed=0):
    return np.random.default_rng(seed).normal(size=(members, 3)).astype(np.float32)


def folded(name, parts, masks=None):
    state = REDUCTIONS[name][0]()
    for i, part in enumerate(parts):
        mask = np.ones(len(part), bool) if masks is None else masks[i]
        state = compiled("update", name)(state, part, mask)
    return state


@functools.cache
def finish(name, members):
    return jax.jit(lambda state: REDUCTIONS[name][1](state, members))


def finished(name, state, members):
    # Only the number of bins of a rank histogram is compiled in.
    program = finish(name, members if name == "ranks" else None)
    return jax.tree.leaves(program(state))


def expect(name, state, x):
    """The state is that of the members `x`, by the written-out reference."""
    expected = jax.tree.leaves(REDUCTIONS[name][2](numbers(x)))
    for got, want in zip(finished(name, state, len(x)), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", NAMES)
def test_blocks_in_any_order_give_what_all_members_give(name):
    x = draw(21)
    parts = np.split(x, [7, 14])
    expect(name, folded(name, [x]), x)
    expect(name, folded(name, parts), x)
    expect(name, folded(name, parts[::-1]), x)
    # Merged in any shape of tree, with an empty state among them.
    one, two, three = (folded(name, [part]) for part in parts)
    merge = compiled("merge", name)
    nothing = REDUCTIONS[name][0]()
    expect(name, merge(merge(one, two), merge(three, nothing)), x)
    expect(name, merge(three, merge(nothing, merge(two, one))), x)


@pytest.mark.parametrize("name", NAMES)
def test_one_member_alone(name):
    x = draw(1)
    expect(name, folded(name, [x]), x)


@pytest.mark.parametrize("name", NAMES)
def test_updates_without_members_change_nothing(name):
    x = draw(7)
    state = folded(name, [x])
    update = getattr(reduce, f"update_{name}")
    assert_same(finished(name, update(state, x[:0]), 7), finished(name, state, 7))
    masked = compiled("update", name)(state, x + np.nan, np.zeros(7, bool))
    assert_same(finished(name, masked, 7), finished(name, state, 7))


@pytest.mark.parametrize("name", NAMES)
def test_no_members_at_all_are_not_a_number(name):
    nothing = REDUCTIONS[name][0]()
    if name == "ranks":  # without members all observations have the one rank there is
        np.testing.assert_array_equal(finished(name, nothing, 0), [[3.0]])
        return
    for leaf in finished(name, nothing, 0):
        assert np.isnan(leaf).all()


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
@pytest.mark.parametrize("name", NAMES)
def test_masked_members_are_left_out_even_if_not_finite(name, bad):
    x, mask = draw(21), np.ones(21, bool)
    mask[[0, 5, 20]] = False
    kept = x[mask]
    x[~mask] = bad
    expect(name, folded(name, [x], [mask]), kept)
    parts, masks = np.split(x, [7, 14]), np.split(mask, [7, 14])
    expect(name, folded(name, parts, masks), kept)


@pytest.mark.parametrize("name", NAMES)
def test_a_member_that_is_nan_is_never_passed_over(name):
    x = draw(7)
    x[3, 1] = np.nan
    state = compiled("merge", name)(folded(name, [x]), folded(name, [draw(7, seed=1)]))
    if name == "ranks":  # the element is left out: two observations are counted
        np.testing.assert_allclose(finished(name, state, 14)[0].sum(), 2, rtol=1e-6)
        return
    for leaf in finished(name, state, 14):
        np.testing.assert_array_equal(np.isnan(leaf).reshape(-1, 3)[0], [0, 1, 0])


@pytest.mark.parametrize(
    "name, dtype",
    [
        *((name, jnp.bfloat16) for name in NAMES[:-2]),
        *((name, dtype) for name in ("extremes", "ranks") for dtype in (int, bool)),
        pytest.param("quantiles", jnp.bfloat16, marks=pytest.mark.slow),
        pytest.param("crps", jnp.bfloat16, marks=pytest.mark.slow),
        ("quantiles", jnp.int8),
    ],
)
def test_narrow_floats_integers_and_booleans(name, dtype):
    # bool: comparing and averaging it as 0 and 1; ties everywhere.
    x = jnp.asarray(3 * draw(14)).astype(dtype)
    state = reduced(name, x, None, make_mesh(member=1))
    want = np.asarray(x.astype(jnp.float32))
    got = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), finished(name, state, 14))
    expected = jax.tree.leaves(REDUCTIONS[name][2](numbers(want)))
    for leaf, reference in zip(got, expected, strict=True):
        np.testing.assert_allclose(leaf, reference, rtol=2e-6, atol=2e-6)


def reduced(name, x, mask, mesh):
    fn = getattr(reduce, f"reduce_{name}")
    data = {"ranks": (OBSERVED,), "crps": (OBSERVED,), "exceedances": (THRESHOLDS,)}
    return fn(x, *data.get(name, ()), mask, mesh=mesh)


@pytest.mark.parametrize(
    "name, member, data",
    [*((name, 8, 1) for name in NAMES), ("extremes", 3, 2), ("quantiles", 3, 2)],
)
def test_a_stack_split_over_devices(name, member, data):
    x, mask = draw(21), np.arange(21) % 5 != 1
    x[~mask] = np.nan
    mesh = make_mesh(member=member, data=data)
    expect(name, reduced(name, x, mask, mesh), x[mask])


@pytest.mark.parametrize("name", ["extremes", "quantiles"])
def test_devices_gather_no_stack(name):
    mesh = make_mesh(member=4)
    x = jax.ShapeDtypeStruct((16, 3), jnp.float32)
    lowered = jax.jit(lambda x: reduced(name, x, None, mesh)).lower(x)
    text = lowered.compile({"xla_backend_optimization_level": 0}).as_text()
    assert "all-reduce" in text
    assert "all-gather" not in text and "all-to-all" not in text


@pytest.mark.parametrize("name", NAMES[1:])
def test_shapes_that_do_not_fit_are_named(name):
    state = REDUCTIONS[name][0]()
    update = getattr(reduce, f"update_{name}")
    with pytest.raises(ValueError, match=r"\(7, 2\).*members of shape \(3,\)"):
        update(state, draw(7)[:, :2])
    with pytest.raises(ValueError, match=r"\(7,\); got \(6,\)"):
        update(state, draw(7), np.ones(6, bool))
    with pytest.raises(TypeError, match="mask must be booleans.*weights > 0"):
        update(state, draw(7), np.ones(7))
    with pytest.raises(ValueError, match=r"\['a'\] is not part of"):
        update(state, {"a": draw(7)})


def test_trees_keep_their_structure_and_name_their_leaves():
    like = {"t": LIKE, "u": (jax.ShapeDtypeStruct((), jnp.int32),)}
    x = {"t": draw(5), "u": (np.arange(5, dtype=np.int32),)}
    low, high = reduce.finish_extremes(
        reduce.update_extremes(reduce.init_extremes(like), x)
    )
    np.testing.assert_array_equal(low["t"], x["t"].min(0))
    assert (int(low["u"][0]), int(high["u"][0])) == (0, 4)
    assert high["u"][0].dtype == jnp.int32
    quantiles = jax.jit(reduce.finish_quantiles)(
        reduce.reduce_quantiles(x, mesh=make_mesh(member=1)), 0.5
    )
    np.testing.assert_allclose(quantiles["t"], np.median(x["t"], 0), rtol=1e-6)
    assert float(quantiles["u"][0]) == 2.0
    with pytest.raises(ValueError, match=r"\['u'\]\[0\] is missing"):
        reduce.update_extremes(reduce.init_extremes(like), {"t": draw(5)})
    with pytest.raises(TypeError, match=r"\['z'\].*complex64"):
        reduce.init_extremes({"z": np.ones(2, np.complex64)})
    with pytest.raises(ValueError, match="at least one array"):
        reduce.init_ranks({})
