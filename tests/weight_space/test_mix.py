"""Mixtures of weights: against a NumPy loop, their laws, and on split stacks."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ensjax
from ensjax.weight_space import (
    alpha_path,
    leaf_names,
    mix,
    mix_members,
    pair_paths,
    simplex_draws,
    simplex_grid,
)


def stack(rng, members=3, dtype=np.float32):
    return {
        "body": {"w": rng.normal(size=(members, 4, 5)).astype(dtype)},
        "head": {"b": rng.normal(size=(members, 2)).astype(dtype)},
        "scale": rng.normal(size=members).astype(dtype),
        "count": np.arange(members, dtype=np.int32),
        "key": jax.random.split(jax.random.key(3), members),
        "on": np.array([True, False, True] * members)[:members],
    }


def bits(leaf):
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def by_hand(leaf, coefficients, keep):
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return np.stack([bits(leaf)[keep]] * len(coefficients))
    return np.stack(
        [
            sum(c * np.asarray(x, np.float64) for c, x in zip(row, leaf))
            for row in coefficients
        ]
    )


@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-6), ("bfloat16", 1e-2)])
def test_a_mixture_is_the_weighted_sum_of_the_members(dtype, tolerance):
    rng = np.random.default_rng(0)
    tree = stack(rng, dtype=jnp.dtype(dtype))
    rows, head = rng.normal(size=(2, 5, 3)).astype(np.float32)
    mixed = mix(tree, rows, per_leaf={"^head": head}, keep=2)
    for name, got, leaf in zip(
        leaf_names(tree), jax.tree.leaves(mixed), jax.tree.leaves(tree)
    ):
        assert got.dtype == leaf.dtype
        expected = by_hand(leaf, head if name == "head.b" else rows, keep=2)
        np.testing.assert_allclose(bits(got).astype(float), expected, atol=tolerance)


def test_sums_in_bfloat16_are_taken_in_float32():
    tree = {"w": jnp.ones((1000, 1), jnp.bfloat16)}
    mean = mix(tree, jnp.full((1, 1000), 1e-3))["w"]
    assert float(mean[0, 0]) == 1.0  # a running sum in bfloat16 stops at 0.25


def test_the_ends_of_a_path_are_the_members_to_the_bit():
    tree = stack(np.random.default_rng(1))
    path = mix(tree, alpha_path(3, num_members=3, ends=(2, 0)))
    for got, leaf in zip(jax.tree.leaves(path), jax.tree.leaves(tree)):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            np.testing.assert_array_equal(got[0], leaf[2])
            np.testing.assert_array_equal(got[2], leaf[0])


def test_equal_members_give_the_member_whatever_the_coefficients():
    tree = jax.tree.map(lambda x: x[np.zeros(3, int)], stack(np.random.default_rng(2)))
    rows = simplex_draws(jax.random.key(0), 4, 3)
    for got, leaf in zip(jax.tree.leaves(mix(tree, rows)), jax.tree.leaves(tree)):
        np.testing.assert_allclose(
            bits(got)[3].astype(float), bits(leaf)[0].astype(float), rtol=1e-6
        )


def test_a_member_of_weight_0_leaves_no_trace_and_others_spoil_their_mixtures():
    tree = {"w": jnp.array([[1.0, 2.0], [jnp.nan, jnp.inf], [5.0, 6.0]])}
    mixed = mix(tree, jnp.array([[0.5, 0.0, 0.5], [0.5, 0.5, 0.0]]))["w"]
    np.testing.assert_array_equal(mixed[0], [3.0, 4.0])
    assert np.isnan(mixed[1]).all()


def test_order_of_members_changes_nothing():
    tree = stack(np.random.default_rng(3))
    rows = simplex_draws(jax.random.key(1), 6, 3)
    other = mix({"w": tree["body"]["w"][::-1]}, rows[:, ::-1])["w"]
    np.testing.assert_allclose(mix(tree, rows)["body"]["w"], other, atol=1e-6)


def make_model(rngs):
    return ensjax.nn.CNN(
        image_shape=(8, 8, 1),
        features=(3, 4),
        num_pools=1,
        norm="batch",
        dropout=0.1,
        rngs=rngs,
    )


@pytest.mark.parametrize(
    "member, data",
    [*(pytest.param(*m, marks=pytest.mark.slow) for m in [(1, 1), (8, 1)]), (4, 2)],
)
def test_mixing_an_ensemble_is_mixing_its_state_on_any_mesh(member, data):
    mesh = ensjax.make_mesh(
        member=member, data=data, devices=jax.devices()[: member * data]
    )
    ensemble = ensjax.Ensemble.init(make_model, num_members=3, seed=0, mesh=mesh)
    rows = alpha_path(5, num_members=3, ends=(0, 2))
    per_leaf = {"head": np.eye(3)[[1] * 5]}
    mixed = mix_members(ensemble, rows, per_leaf=per_leaf, keep=1)
    assert mixed.member_ids.tolist() == [0, 1, 2, 3, 4]
    expected = mix(ensemble.state, rows, per_leaf=per_leaf, keep=1)
    for got, leaf in zip(jax.tree.leaves(mixed.state), jax.tree.leaves(expected)):
        np.testing.assert_allclose(
            bits(got).astype(float), bits(leaf).astype(float), atol=1e-7
        )


def test_mixing_costs_one_reduce_scatter_of_each_leaf_and_none_on_one_device():
    from ensjax.mapping import mesh_program
    from ensjax.weight_space.mix import _Mix, coefficients_of_leaves

    def collectives(mesh):
        tree = {"w": jnp.ones((8, 4)), "b": jnp.ones((8, 2))}
        matrices, places = coefficients_of_leaves(tree, np.ones((16, 8)), None)
        program = mesh_program(_Mix(16, places), mesh)
        text = program.lower(tree, matrices, jnp.int32(0)).compile().as_text()
        return re.findall(r" (all-\w+|reduce-scatter|collective-\w+)\(", text)

    alone = ensjax.make_mesh(member=1, devices=jax.devices()[:1])
    assert collectives(alone) == []
    found = collectives(ensjax.make_mesh(member=8))
    assert set(found) == {"reduce-scatter"} and len(found) <= 2


def test_grids_cover_the_simplex_once():
    grid = np.asarray(simplex_grid(3, 4)) * 4
    assert len(grid) == 15 == len({tuple(row) for row in grid.round().tolist()})
    np.testing.assert_allclose(grid.sum(axis=1), 4)
    np.testing.assert_array_equal(simplex_grid(1, 5), [[1.0]])
    pairs, rows = pair_paths(3, 3)
    assert pairs.tolist() == [[0, 1], [0, 2], [1, 2]]
    np.testing.assert_array_equal(rows[2], [[0, 1, 0], [0, 0.5, 0.5], [0, 0, 1]])
    draws = simplex_draws(jax.random.key(0), 4000, 4, concentration=0.5)
    # A Dirichlet(.5) share has mean 1/4 and variance (1/4)(3/4)/3.
    np.testing.assert_allclose(
        draws.mean(axis=0), 0.25, atol=4 * (1 / 16 / 4000) ** 0.5
    )
    np.testing.assert_allclose(draws.var(axis=0), 1 / 16, rtol=0.08)


def test_names_are_those_of_the_modules():
    ensemble = ensjax.Ensemble.init(make_model, num_members=1, seed=0)
    names = leaf_names(ensemble.state)
    assert "params.blocks.1.conv.kernel" in names
    assert "rest.blocks.0.norm.mean" in names
    assert leaf_names({"value": {"value": 0}}) == ["value.value"]
    assert leaf_names({"w": nnx.Param(jnp.ones(2))}) == ["w"]


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(coefficients=np.ones(3)), r"\[mixture, member\] with 3 members.*\(3,\)"),
        (dict(coefficients=np.ones((2, 4))), r"got shape \(2, 4\)"),
        (dict(per_leaf={"haed": np.ones((2, 3))}), "'haed' is found in the name of no"),
        (dict(per_leaf={"head": np.ones((1, 3))}), "holds 1 mixtures, coefficients 2"),
        (dict(per_leaf={"(": np.ones((2, 3))}), "no regular expression"),
        (dict(keep=3), "keep is a member, 0 to 2; got 3"),
    ],
)
def test_mistakes_are_named(change, words):
    tree = stack(np.random.default_rng(0))
    arguments = dict(coefficients=np.ones((2, 3))) | change
    with pytest.raises(ValueError, match=words):
        mix(tree, arguments.pop("coefficients"), **arguments)


@pytest.mark.parametrize("number", [np.int64(5), np.uint8(5), jnp.int32(5)])
def test_a_number_of_alphas_may_be_an_integer_of_an_array(number):
    np.testing.assert_array_equal(alpha_path(number), alpha_path(5))
    np.testing.assert_array_equal(pair_paths(3, number)[1], pair_paths(3, 5)[1])


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: alpha_path(1), "at least its two ends"),
        (lambda: alpha_path(3, ends=(0, 2)), "two of the members 0 to 1"),
        (lambda: pair_paths(1), "pairs need two members"),
        (lambda: simplex_grid(0, 3), "at least 1"),
        (lambda: simplex_grid(40, 40), "Use simplex_draws"),
        (lambda: simplex_draws(jax.random.key(0), 1, 2, concentration=0), "above 0"),
    ],
)
def test_coefficients_that_make_no_sense_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
