"""Merging methods of an `Ensemble`: the tree's numbers, and a model that works."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ensjax
from ensjax import weight_space
from ensjax.weight_space import (
    METHODS,
    RunningAverage,
    average,
    dare,
    mix,
    nearswap,
    recompute_statistics,
    slerp,
    sweep,
    task_arithmetic,
    ties,
    uniform_soup,
)
from ensjax.weight_space.leaves import statistics_among

KEY = jax.random.key(1, impl="threefry2x32")
# The others run where there is time: each is compiled twice.
QUICK = {"average", "dare", "fisher", "nearswap"}


def apply(params, x):
    return jnp.tanh(x @ params["dense"]["kernel"] + params["dense"]["bias"][None])


def stack(members, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"kernel": (members, 3, 2), "bias": (members, 2)}
    made = {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    return {"dense": made}


def mesh_of(member, data=1, first=0):
    devices = jax.devices()[first : first + member * data]
    return ensjax.make_mesh(member=member, data=data, devices=devices)


@functools.cache
def convolutional():
    """Three members with batch norm whose statistics differ, and their base."""

    def make_model(rngs):
        return ensjax.nn.CNN(
            image_shape=(6, 6, 1), features=(2,), num_pools=1, norm="batch", rngs=rngs
        )

    made = ensjax.Ensemble.init(make_model, num_members=4, seed=0, mesh=mesh_of(2))
    rng = np.random.default_rng(0)
    x = 0.3 * rng.normal(size=(12, 6, 6, 1)).astype(np.float32)
    # Of the base the variance is 1, of the members less.
    return made[:3], made[3:], recompute_statistics(made[:3], x), x


def variances(ensemble):
    norm = ensemble.state["rest"]["blocks"][0]["norm"]
    return np.asarray(norm["var"][...])


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in METHODS],
)
def test_every_method_gives_an_ensemble_of_one_with_the_trees_weights(name):
    method = METHODS[name]
    members = method.num_members or 4
    params, base = stack(members), jax.tree.map(lambda x: x[0], stack(1, seed=1))
    vectors = np.random.default_rng(2).normal(size=(members, 1, 9, 4))
    gram = np.einsum("mgni,mgnj->mgij", vectors, vectors).astype(np.float32)
    statistics = {
        "fisher": (jax.tree.map(np.square, params),),
        "grams": ({"dense.kernel": gram},),
        "": (),
    }[method.statistics]
    arguments = ([base] if method.base else []) + ([KEY] if method.needs_key else [])
    knobs = {"density": 0.4, "t": 0.3}
    knobs = {k: v for k, v in knobs.items() if k in method.knobs_without_default}
    ensemble = ensjax.Ensemble.from_apply(apply, params, mesh=mesh_of(2))
    merged = method.merge(ensemble, *arguments, *statistics, **knobs)
    # Half the time to compile.
    quick = {"xla_backend_optimization_level": 0}
    expected = jax.jit(
        lambda stacked: method.merge(stacked, *arguments, *statistics, **knobs),
        compiler_options=quick,
    )(params)
    assert isinstance(merged, ensjax.Ensemble) and len(merged) == 1
    assert merged.mesh == ensemble.mesh and merged.member_ids.tolist() == [0]
    for got, leaf in zip(jax.tree.leaves(merged[0]), jax.tree.leaves(expected)):
        np.testing.assert_allclose(got, leaf, rtol=1e-6, atol=1e-6)
    x = np.ones((2, 3), np.float32)
    np.testing.assert_allclose(merged(x)[0], apply(expected, x), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_merge_of_an_ensemble_is_what_everything_else_takes():
    members, base, fresh, x = convolutional()
    merged = task_arithmetic(members, base[0], lam=0.3)
    assert len(merged) == 1 and merged[0](x).shape == (12, 10)
    found = sweep(merged, np.eye(1), {"all": (x, np.zeros(12, int))}, statistics=x)
    logits = ensjax.predict(recompute_statistics(merged, x), x, batch_size=12)
    nll = -np.asarray(jax.nn.log_softmax(logits))[:, :, 0].mean(axis=1)
    np.testing.assert_allclose(found.values["weights"]["all"]["nll"], nll, rtol=1e-5)
    assert len(merged.concatenate(fresh)) == 4


@pytest.mark.parametrize("devices", [(1, 1), (8, 1), (2, 2)])
def test_any_mesh_gives_the_same(devices):
    members, base, *_ = convolutional()
    expected = task_arithmetic(members, base, lam=0.3)
    merged = task_arithmetic(members.on_mesh(mesh_of(*devices)), base, lam=0.3)
    assert merged.mesh == mesh_of(*devices)
    pairs = zip(jax.tree.leaves(merged.state), jax.tree.leaves(expected.state))
    for got, leaf in pairs:
        np.testing.assert_allclose(got, leaf, atol=1e-6)


def test_a_base_is_a_module_an_ensemble_of_one_or_a_tree():
    members, base, *_ = convolutional()
    first = jax.tree.map(lambda x: x[0], base.state)
    forms = (
        base,
        base.on_mesh(mesh_of(2, first=5)),  # other devices than the members'
        base[0],
        first,
        first["params"],
    )
    merged = [task_arithmetic(members, form, lam=0.3).params for form in forms]
    for other in merged[1:]:
        jax.tree.map(np.testing.assert_array_equal, merged[0], other)
    expected = task_arithmetic(members.params, first["params"], lam=0.3)
    for got, leaf in zip(jax.tree.leaves(merged[0]), jax.tree.leaves(expected)):
        np.testing.assert_allclose(got[0], leaf, atol=1e-6)


@pytest.mark.parametrize("weights", [None, [1.0, 3.0, 0.0], [-1.0, 2.0, 1.0]])
def test_statistics_are_the_members_mean_whatever_the_method(weights):
    """As sums of differences they could be negative, and the outputs NaN."""
    _, base, members, x = convolutional()
    before = variances(members)
    assert (variances(base) + (before - variances(base)).sum(axis=0) < 0).any()
    shares = np.maximum([1.0] * 3 if weights is None else weights, 0)
    expected = shares / shares.sum() @ before
    merged = task_arithmetic(members, base, lam=1.0, weights=weights)
    np.testing.assert_allclose(variances(merged)[0], expected, rtol=1e-6)
    assert np.isfinite(merged(x)).all()
    first = jax.tree.map(lambda x: x[0], base.state)
    tree = task_arithmetic(members.state, first, lam=1.0, weights=weights)
    for got, leaf in zip(jax.tree.leaves(tree), jax.tree.leaves(merged.state)):
        np.testing.assert_allclose(got, leaf[0], atol=1e-6)


def test_the_variables_of_a_linen_module_keep_statistics_apart():
    def variables(params, x):
        own, statistics = params["params"], params["batch_stats"]
        x = (x - statistics["mean"][None]) / jnp.sqrt(statistics["var"][None])
        return x @ own["kernel"]

    stacked = {
        "params": {"kernel": np.array([[[1.0]], [[2.0]]], np.float32)},
        "batch_stats": {
            "mean": np.array([[1.0], [2.0]], np.float32),
            "var": np.array([[0.2], [0.4]], np.float32),
        },
    }
    base = {
        "params": {"kernel": np.zeros((1, 1), np.float32)},
        "batch_stats": {"mean": np.zeros(1), "var": np.ones(1)},
    }
    tree = task_arithmetic(stacked, base, lam=1.0)
    ensemble = ensjax.Ensemble.from_apply(variables, stacked, mesh=mesh_of(1))
    (merged,) = task_arithmetic(ensemble, base, lam=1.0)
    for found in (tree, merged):
        np.testing.assert_allclose(found["params"]["kernel"], [[3.0]])
        np.testing.assert_allclose(found["batch_stats"]["mean"], [1.5])
        np.testing.assert_allclose(found["batch_stats"]["var"], [0.3])


def test_at_an_end_the_statistics_are_that_members():
    _, _, members, x = convolutional()
    pair = members[:2]
    rest = jax.tree.map(lambda v: v.at[1].set(jnp.nan), pair.state["rest"])
    broken = dataclasses.replace(pair, state={**pair.state, "rest": rest})
    for merged in (slerp(broken, t=0.0), nearswap(broken, t=0.0)):
        for got, leaf in zip(
            jax.tree.leaves(merged.state["rest"]), jax.tree.leaves(pair.state["rest"])
        ):
            np.testing.assert_array_equal(got[0], leaf[0])
    np.testing.assert_allclose(slerp(pair, t=1.0)(x)[0], pair(x)[1], atol=1e-5)


def test_draws_follow_the_ids_of_the_ensemble():
    params, base = stack(3), jax.tree.map(lambda x: x[0], stack(1, seed=1))
    ensemble = ensjax.Ensemble.from_apply(apply, params, member_ids=[4, 2, 9])
    options = dict(drop=0.5, lam=0.4)
    expected = dare(params, base, KEY, member_ids=np.array([4, 2, 9]), **options)
    got = dare(ensemble, base, KEY, **options)[0]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, expected
    )


def test_other_knobs_compile_nothing(compilations):
    params, base = stack(3), jax.tree.map(lambda x: x[0], stack(1, seed=1))
    ensemble = ensjax.Ensemble.from_apply(apply, params, mesh=mesh_of(1))
    task_arithmetic(ensemble, base, lam=0.1, weights=[1.0, 2.0, 1.0])
    del compilations[:]
    for lam in (0.2, np.float64(0.3)):
        task_arithmetic(ensemble, base, lam=lam, weights=[1.0, 1.0, lam])
    assert compilations == []


def test_a_weighted_mean_is_the_uniform_soup_and_the_running_average():
    members, *_ = convolutional()
    weights = [1.0, 2.0, 0.0]
    running = RunningAverage.of(members[[0]], 1.0).add(members[[1]], 2.0)
    expected = uniform_soup(members, weights=weights).model
    for merged in (average(members, weights=weights), running.mean(members[[0]])):
        for got, leaf in zip(
            jax.tree.leaves(merged.state), jax.tree.leaves(expected.state)
        ):
            np.testing.assert_allclose(got, leaf, atol=1e-6)


@pytest.mark.parametrize(
    "merge, error, words",
    [
        (lambda e, b: ties(e, e), ValueError, r"one model; this ensemble holds 3"),
        (
            lambda e, b: ties(e.params, b),
            TypeError,
            "base is of type Ensemble, the stack a",
        ),
        (lambda e, b: ties(e), TypeError, "missing 1 required positional"),
        (lambda e, b: ties(e, b, density=1.5), ValueError, "density must lie from 0"),
        (lambda e, b: ties(e, b, lam=[1.0, 2.0]), ValueError, "lam must be a number"),
        (
            lambda e, b: average(e, weights=[1, 2]),
            ValueError,
            "weights must be .member",
        ),
        (lambda e, b: slerp(e), ValueError, "between two members; got 3"),
        (lambda e, b: ties(e, {"w": 1.0}), ValueError, "w is in the base but not"),
        (lambda e, b: mix(e, np.eye(3)), TypeError, "there is mix_members"),
    ],
)
def test_mistakes_are_named_before_anything_is_compiled(
    merge, error, words, compilations
):
    members, base, *_ = convolutional()
    del compilations[:]
    with pytest.raises(error, match=words):
        merge(members, base)
    assert not [name for name in compilations if "merge_members" in name]


def test_a_module_that_is_called_rest_is_no_statistic():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(2, 3, rngs=rngs)
            self.rest = nnx.Linear(3, 2, rngs=rngs)

        def __call__(self, x):
            return self.rest(self.first(x))

    ensemble = ensjax.Ensemble.init(Net, num_members=3)
    base = ensemble[[0]]
    merged = weight_space.task_arithmetic(ensemble, base, lam=2.0)
    for name in ("first", "rest"):
        own = np.asarray(ensemble.params[name]["kernel"][...])
        expected = own[0] + 2 * (own - own[0]).sum(axis=0)
        found = merged.params[name]["kernel"][...][0]
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "params."])
def test_collections_are_statistics_beside_params_alone(prefix):
    names = [prefix + name for name in ("rest.bn.mean", "batch_stats.bn.var", "a.w")]
    assert not statistics_among(names)
    found = statistics_among([*names, prefix + "params.bn.scale", "x.running_var"])
    assert found == {*names[:2], "x.running_var"}
