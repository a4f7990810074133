"""Weight and activation matching: planted permutations, objectives, solvers."""

import functools
import importlib.util
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax import Ensemble, make_mesh
from ensjax.mapping import mesh_program
from ensjax.mesh import place
from ensjax.planning import read_collectives
from ensjax.weight_space.activation_matching import match_activations
from ensjax.weight_space.assignment import assign_on_host
from ensjax.weight_space.axes import Group
from ensjax.weight_space.inference import infer_permutations
from ensjax.weight_space.joint_matching import _JointJob, match_weights_jointly
from ensjax.weight_space.matching import (
    _MatchJob,
    match_weights,
    matched_leaves,
)
from ensjax.weight_space.permutations import (
    PermutationSpec,
    apply_permutations,
    fixed_spec,
    identity_permutations,
    inverse_permutations,
)
from ensjax.weight_space.similarity import leaves_in

_FILE = pathlib.Path(__file__).with_name("alignment_models.py")
_SPEC = importlib.util.spec_from_file_location("alignment_models", _FILE)
models = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(models)

SLOW = pytest.mark.slow
SHAPES = {"mlp": (1, 8), "cnn": (1, 8, 8, 1), "resnet": (1, 8, 8, 3)}


def spec_of(ensemble, name):
    shape = jax.ShapeDtypeStruct(SHAPES[name], jnp.float32)
    return infer_permutations(ensemble, shape)


def planted(name, num_members, *, seed=0, **options):
    """Copies of one model with their units in random orders, member 0 as it is."""
    make_model = getattr(models, name)
    base = models.ensemble_of(lambda r: make_model(r, **options), 1, seed=seed)
    base = models.copies(base, num_members)
    spec = spec_of(base, name)
    orders = models.random_orders(spec, num_members, seed=seed, fixed=(0,))
    return base, spec, models.permuted(base, spec, orders), orders


def independent(num_members, seed=0):
    ensemble = models.ensemble_of(models.mlp, num_members, seed=seed)
    return ensemble, spec_of(ensemble, "mlp")


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_a_planted_permutation_is_found_exactly(name):
    base, spec, moved, orders = planted(name, 3)
    found = match_weights(moved, spec, solver="host")
    for group, inverse in inverse_permutations(orders).items():
        np.testing.assert_array_equal(found.permutations[group], inverse)
    again = models.permuted(moved, spec, found.permutations)
    assert models.largest_difference(again, base).max() == 0


def test_planted_permutations_of_residual_networks_are_found():
    base, spec, moved, _ = planted("resnet", 10, norm="layer")
    found = match_weights(moved, spec, solver="host")
    again = models.permuted(moved, spec, found.permutations)
    exact = models.largest_difference(again, base) == 0
    assert exact.sum() >= 8
    # Where it is not found, the product is at least no smaller than it was.
    assert (np.asarray(found.after) >= np.asarray(found.before)).all()


def product(target, member, h, k):
    """<target, permuted member> of the small trees, in float64."""
    (a1, a2, a3), (b1, b2, b3) = (
        [np.asarray(x, np.float64) for x in model] for model in (target, member)
    )
    h, k = list(h), list(k)
    return (a1 * b1[:, h]).sum() + (a2 * b2[h][:, k]).sum() + (a3 * b3[k]).sum()


HIDDEN = Group("h", 4), Group("k", 3)
SMALL = PermutationSpec.of(
    {"1": (None, HIDDEN[0]), "2": HIDDEN, "3": (HIDDEN[1], None)}
)


def small_trees(num_members, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"1": (5, 4), "2": (4, 3), "3": (3, 2)}
    return {
        name: jnp.asarray(rng.normal(size=(num_members, *shape)), jnp.float32)
        for name, shape in shapes.items()
    }


def test_no_other_permutation_of_one_group_would_be_better():
    tree = small_trees(12)
    found = match_weights(tree, SMALL, solver="host")
    of_h, of_k = (list(itertools.permutations(range(n))) for n in (4, 3))
    best = []
    for i in range(12):
        models_ = [[tree[name][m] for name in "123"] for m in (0, i)]
        h, k = (found.permutations[name][i] for name in "hk")
        reached = product(*models_, h, k)
        assert reached == pytest.approx(float(found.after[i]), abs=1e-4)
        assert reached >= max(product(*models_, p, k) for p in of_h) - 1e-4
        assert reached >= max(product(*models_, h, p) for p in of_k) - 1e-4
        every = max(product(*models_, p, q) for p in of_h for q in of_k)
        best.append(reached >= every - 1e-4)
    # A coordinate ascent finds the best of all only now and then.
    assert best[0] and 1 < sum(best) < 12


def test_what_is_reported_is_the_inner_product():
    tree = small_trees(3)
    found = match_weights(tree, SMALL, reference=-1, solver="host")
    moved = apply_permutations(tree, SMALL, found.permutations)
    for stack, reported in ((tree, found.before), (moved, found.after)):
        expected = sum(
            np.einsum("mij,ij->m", np.asarray(x, np.float64), np.asarray(tree[n][-1]))
            for n, x in stack.items()
        )
        np.testing.assert_allclose(reported, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("match", [match_weights, match_weights_jointly])
def test_no_sweep_makes_the_product_smaller(match):
    ensemble, spec = independent(5)
    after = [
        np.asarray(match(ensemble, spec, solver="host", max_sweeps=n).after)
        for n in range(5)
    ]
    if match is match_weights_jointly:
        after = [x.sum(keepdims=True) for x in after]
    steps = np.diff(after, axis=0)
    assert (steps >= -1e-5).all() and steps.max() > 0


@pytest.mark.parametrize("solver", ["host", pytest.param("device", marks=SLOW)])
def test_a_leaf_that_holds_a_group_twice_is_only_moved_for_the_better(solver):
    rng = np.random.default_rng(3)
    group = Group("state", 6)
    spec = PermutationSpec.of({"inner": (group, group), "out": (group, None)})
    tree = {
        "inner": jnp.asarray(rng.normal(size=(8, 6, 6)), jnp.float32),
        "out": jnp.asarray(rng.normal(size=(8, 6, 1)), jnp.float32),
    }
    found = match_weights(tree, spec, solver=solver)
    gains = np.asarray(found.after) - np.asarray(found.before)
    assert (gains >= 0).all() and gains.max() > 1


def test_the_solvers_agree():
    check_solvers_agree(match_weights)


@SLOW
def test_the_solvers_agree_jointly():
    check_solvers_agree(match_weights_jointly)


def check_solvers_agree(match):
    tree = small_trees(6)
    host, device = (match(tree, SMALL, solver=solver) for solver in ("host", "device"))
    np.testing.assert_allclose(host.before, device.before, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(host.after, device.after, rtol=1e-5)
    for name in ("h", "k"):
        np.testing.assert_array_equal(
            host.permutations[name], device.permutations[name]
        )


def test_joint_matching_makes_equal_members_equal():
    _, spec, moved, _ = planted("mlp", 4)
    found = match_weights_jointly(moved, spec, solver="host")
    again = models.permuted(moved, spec, found.permutations)
    for leaf in jax.tree.leaves(again.params):
        assert np.ptp(np.asarray(leaf), axis=0).max() == 0


def test_joint_matching_is_no_worse_than_matching_to_one():
    ensemble, spec = independent(6)
    start = match_weights(
        ensemble, spec, key=jax.random.fold_in(jax.random.key(0), 2), solver="host"
    )
    joint = match_weights_jointly(ensemble, spec, solver="host")

    def pairs(permutations):
        leaves = jax.tree.leaves(models.permuted(ensemble, spec, permutations).params)
        flat = np.concatenate(
            [np.asarray(x, np.float64).reshape(6, -1) for x in leaves], axis=1
        )
        return (flat @ flat.T).sum() - (flat**2).sum()

    assert pairs(joint.permutations) > pairs(start.permutations)
    moving = sum(np.asarray(joint.after)) * 5
    fixed = [  # leaves without groups are the same in both and not reported
        np.asarray(x, np.float64) for x in [ensemble.params["head"]["linear"]["bias"]]
    ]
    rest = sum(np.sum(x.sum(0) ** 2) - np.sum(x**2) for x in fixed)
    assert moving + rest == pytest.approx(pairs(joint.permutations), rel=1e-4)


def test_one_member_is_left_as_it_is():
    ensemble, spec = independent(1)
    for found in (
        match_weights(ensemble, spec, solver="host"),
        match_weights_jointly(ensemble, spec, solver="host"),
    ):
        for name, size in spec.groups.items():
            np.testing.assert_array_equal(found.permutations[name], [np.arange(size)])


def test_a_model_without_interchangeable_units_is_left_as_it_is():
    tree = {"1": jnp.ones((3, 2, 2))}
    spec = fixed_spec(tree)
    for match in (match_weights, match_weights_jointly):
        found = match(tree, spec)
        assert found.permutations == {} and found.sweeps == 0
        assert found.after.shape == (3,)


def test_members_are_matched_to_the_same_reference_in_any_order():
    tree = small_trees(5)
    order = np.array([3, 1, 4, 0, 2])
    found = match_weights(tree, SMALL, reference=0, solver="host")
    turned = jax.tree.map(lambda x: x[order], tree)
    again = match_weights(turned, SMALL, reference=3, solver="host")
    for name in ("h", "k"):
        np.testing.assert_array_equal(
            again.permutations[name], found.permutations[name][order]
        )


def test_a_member_that_is_not_finite_spoils_no_other():
    tree = small_trees(6)
    bad = jax.tree.map(lambda x: x.at[2].set(jnp.nan), tree)
    for solver in ("host", "device"):
        clean = match_weights(tree, SMALL, solver=solver).permutations
        found = match_weights(bad, SMALL, solver=solver).permutations
        for name, size in SMALL.groups.items():
            keep = np.array([0, 1, 3, 4, 5])
            np.testing.assert_array_equal(found[name][keep], clean[name][keep])
            np.testing.assert_array_equal(found[name][2], np.arange(size))


def test_joint_matching_leaves_out_a_member_that_is_not_finite():
    tree = small_trees(4)
    bad = jax.tree.map(lambda x: x.at[0].set(jnp.nan), tree)
    found = match_weights_jointly(bad, SMALL, solver="host")
    moved = apply_permutations(tree, SMALL, found.permutations)

    def pairs(stack):
        flat = np.concatenate([np.reshape(stack[n][1:], (3, -1)) for n in "123"], 1)
        return (np.sum(flat.sum(0) ** 2) - np.sum(flat**2)) / 3

    assert pairs(moved) > pairs(tree) + 1
    np.testing.assert_array_equal(found.permutations["h"][0], np.arange(4))
    assert np.isnan(found.after[0])
    assert np.sum(found.after[1:]) == pytest.approx(pairs(moved), rel=1e-5)


def test_many_pairs_are_matched_at_once():
    tree = small_trees(6)
    references = np.array([0, 0, 2, 2, 1, -1])
    found = match_weights(tree, SMALL, reference=references, solver="host")
    for member in range(6):
        alone = match_weights(
            tree, SMALL, reference=int(references[member]), solver="host"
        )
        for name in ("h", "k"):
            np.testing.assert_array_equal(
                found.permutations[name][member], alone.permutations[name][member]
            )
        assert found.after[member] == pytest.approx(float(alone.after[member]))
    for name, size in SMALL.groups.items():
        for own in (0, 2, 5):
            np.testing.assert_array_equal(
                found.permutations[name][own], np.arange(size)
            )


@SLOW
def test_the_solvers_agree_on_many_pairs():
    references = np.array([0, 0, 2, 2, 4, 4])
    check_solvers_agree(functools.partial(match_weights, reference=references))


def test_a_tolerance_ends_the_rounds_earlier_and_loses_no_more_than_it_says():
    ensemble, spec = independent(8)
    whole, short, one = (
        match_weights_jointly(ensemble, spec, solver="host", tolerance=tolerance)
        for tolerance in (0.0, 1e-2, 1e9)
    )
    assert one.sweeps == 1 and one.sweeps < short.sweeps < whole.sweeps
    totals = [float(found.after.sum()) for found in (one, short, whole)]
    assert totals[0] < totals[1] <= totals[2] + 1e-4
    assert totals[2] - totals[1] < 0.1 * totals[2]


def test_the_search_on_the_device_is_one_program_that_calls_nothing_on_the_host():
    tree, mesh = small_trees(6), make_mesh(member=1, devices=jax.devices()[:1])
    _, layout, _ = matched_leaves(tree, SMALL)
    leaves = leaves_in(layout, tree)
    orders, key = identity_permutations(SMALL, 6), jax.random.key(0)
    jobs = {
        _MatchJob(layout, 10): ([x[0] for x in leaves], leaves, orders, key),
        _JointJob(layout, 10, 1e-3): (leaves, orders, key),
    }
    for job, arguments in jobs.items():
        text = mesh_program(job, mesh).lower(*arguments).as_text().lower()
        assert "stablehlo.while" in text
        for word in ("callback", "infeed", "outfeed", "send", "recv"):
            assert word not in text


def test_an_assignment_is_the_best_of_all():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(3, 5, 5)).astype(np.float32)
    scores[1, 2, 3], scores[2, :, 0] = np.nan, np.inf
    found = assign_on_host(scores)
    finite = np.where(np.isfinite(scores), scores, 0.0)
    for own, columns in zip(finite, found):
        best = max(
            sum(own[row, column] for row, column in enumerate(order))
            for order in itertools.permutations(range(5))
        )
        assert own[np.arange(5), columns].sum() == pytest.approx(best, abs=1e-5)
        assert sorted(columns) == list(range(5))


def test_errors_name_what_is_wrong():
    tree = small_trees(2)
    with pytest.raises(ValueError, match=r"\[member\] = \(2,\) of them; got"):
        match_weights(tree, SMALL, reference=[0, 1, 0])
    with pytest.raises(ValueError, match="tolerance must be at least 0"):
        match_weights_jointly(tree, SMALL, tolerance=-1.0)
    with pytest.raises(ValueError, match="solver is one of auto, host, device"):
        match_weights(tree, SMALL, solver="scipy")
    with pytest.raises(ValueError, match="reference is one of 2 members; got 2"):
        match_weights(tree, SMALL, reference=2)
    with pytest.raises(ValueError, match="^4 is not in the permutation spec"):
        match_weights_jointly(tree | {"4": jnp.ones((2, 1))}, SMALL)


def test_activations_find_a_planted_permutation():
    base, spec, moved, _ = planted("mlp", 3)
    # A positive input and weights whose units all respond to something.
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 8)), jnp.float32)
    found = match_activations(moved, x)
    again = models.permuted(moved, spec, found.permutations)
    assert models.largest_difference(again, base).max() == 0
    np.testing.assert_allclose(found.after[1:], found.after[0], rtol=1e-5)
    assert (np.asarray(found.before[1:]) < 0.7 * float(found.after[0])).all()
    # Each to a reference of its own: the last member to the one before.
    pairs = match_activations(moved, x, reference=[0, 0, 1])
    again = models.permuted(moved, spec, pairs.permutations)
    assert models.largest_difference(again, base)[1] == 0
    last, target = (
        models.permuted(own, spec, o).select(np.array([i]))
        for own, o, i in ((moved, pairs.permutations, 2), (moved, {}, 1))
    )
    assert models.largest_difference(last, target).max() == 0


def seen_rows(seen):
    """A bare function as a model, which notes how many rows it is traced with."""

    def apply(params, x):
        seen.add(x.shape[0])
        return jax.nn.relu(x @ params["in"] + params["bias"][None]) @ params["out"]

    return apply


@pytest.mark.parametrize("reference", [0, [0, 0, 1]])
def test_activations_in_parts_are_those_of_all_rows(reference):
    rng = np.random.default_rng(0)
    shapes = {"in": (3, 4, 6), "bias": (3, 6), "out": (3, 6, 2)}
    params = {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    params["in"][:, :, 5], params["bias"][:, 5] = 0.0, -1.0  # a unit that never varies
    # Far from 0 and drifting, so that parts have other means than the whole.
    x = rng.normal(size=(23, 4)).astype(np.float32) + np.arange(23)[:, None] / 4
    seen = set()
    ensemble = Ensemble.from_apply(seen_rows(seen), params)
    parts = match_activations(
        ensemble, x.astype(np.float32), reference=reference, batch_size=7
    )
    assert seen == {6, 5}  # as few parts as can be: 6, 6, 6 and 5
    whole = match_activations(
        ensemble, jnp.asarray(x, jnp.float32), reference=reference
    )
    assert 23 in seen
    for found, expected in zip(jax.tree.leaves(parts), jax.tree.leaves(whole)):
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)
    expected = np.maximum(x @ params["in"][1] + params["bias"][1], 0)
    target = np.maximum(x @ params["in"][0] + params["bias"][0], 0)
    with np.errstate(invalid="ignore"):
        pairs = [np.corrcoef(a, b)[0, 1] for a, b in zip(expected.T, target.T)]
    np.testing.assert_allclose(parts.before[1], np.nansum(pairs) / 6, rtol=1e-5)


def test_rows_that_are_none_are_refused():
    _, _, moved, _ = planted("mlp", 2)
    x = jnp.ones((4, 8))
    with pytest.raises(ValueError, match="batch_size at least 1; got .* and 0"):
        match_activations(moved, x, batch_size=0)
    with pytest.raises(ValueError, match="at least one row"):
        match_activations(moved, x[:0])


@SLOW
@pytest.mark.parametrize("solver", ["host", "device"])
def test_a_stack_on_eight_devices_is_matched_alike(solver):
    tree, spec = independent(5)
    several = tree.on_mesh(make_mesh(member=8))
    for match in (match_weights, match_weights_jointly):
        one, eight = (match(e, spec, solver=solver) for e in (tree, several))
        np.testing.assert_allclose(one.after, eight.after, rtol=1e-5)
        for name in spec.groups:
            np.testing.assert_array_equal(
                one.permutations[name], eight.permutations[name]
            )
        aligned = apply_permutations(several, spec, eight.permutations)
        expected = models.permuted(tree, spec, one.permutations)
        assert models.largest_difference(aligned, expected).max() == 0


@SLOW
def test_matching_on_several_devices_joins_no_members():
    mesh = make_mesh(member=8)
    ensemble, spec = independent(8)
    tree, layout, _ = matched_leaves(ensemble, spec)
    leaves = leaves_in(layout, tree)
    arguments = (
        [x[0] for x in leaves],
        leaves,
        identity_permutations(spec, 8),
        jax.random.key(0),
    )
    kinds = (jax.P(), jax.P("member"), jax.P("member"), jax.P())
    placed = [place(x, mesh, kind) for x, kind in zip(arguments, kinds)]
    program = mesh_program(_MatchJob(layout, 10), mesh).lower(*placed).compile()
    found = [c for c in read_collectives(program.as_text(), (8, 1, 1)) if c.axes]
    assert found == []


@SLOW
def test_activations_of_a_residual_network_find_a_planted_permutation():
    base, spec, moved, _ = planted("resnet", 2, norm="layer")
    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 8, 8, 3)), jnp.float32)
    for solver in ("host", "device"):
        found = match_activations(moved, x, solver=solver)
        again = models.permuted(moved, spec, found.permutations)
        assert models.largest_difference(again, base).max() == 0
