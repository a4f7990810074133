"""Fisher information and input Gram matrices against loops; RegMean and its laws."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ensjax import Ensemble, make_mesh, nn
from ensjax.graphs import NnxGraph
from ensjax.members import member_key
from ensjax.weight_space import (
    average,
    fisher_information,
    input_grams,
    regmean,
    sampled_fisher_information,
)


def small_mesh(member, data):
    return make_mesh(member=member, data=data, devices=jax.devices()[: member * data])


def drawn_ensemble(make, members, mesh):
    """An ensemble whose weights are drawn by NumPy: nothing is compiled."""
    abstract = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    graphdef, params, rest = nnx.split(abstract, nnx.Param, ...)
    rng = np.random.default_rng(9)
    params, rest = jax.tree.map(
        lambda x: rng.normal(size=(members, *x.shape)).astype(x.dtype) / 3,
        (params, rest),
    )
    state = {"params": params, "rest": rest}
    return Ensemble(state, np.arange(members), NnxGraph(graphdef), mesh)


def softmax_model(params, x):
    return x @ params["w"] + params["b"][None]


def softmax_ensemble(members, mesh):
    rng = np.random.default_rng(0)
    params = {
        "w": rng.normal(size=(members, 3, 4)).astype(np.float32),
        "b": rng.normal(size=(members, 4)).astype(np.float32),
        "steps": np.arange(members),
    }
    ids = [7, 3, 5, 11][:members]
    return Ensemble.from_apply(softmax_model, params, member_ids=ids, mesh=mesh)


def probabilities(params, x):
    logits = np.asarray(x, np.float64) @ np.asarray(params["w"], np.float64)
    logits = logits + np.asarray(params["b"], np.float64)
    odds = np.exp(logits - logits.max())
    return odds / odds.sum()


def test_fisher_information_of_a_softmax_is_known():
    # d log p_c / d w_ij = x_i (1[c = j] - p_j): F_ij is the mean of x_i^2 p_j (1 - p_j)
    ensemble = softmax_ensemble(2, small_mesh(1, 2))
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 5, 3)).astype(np.float32)
    weights = np.array([[1.0, 0.0, 2.0, 1.0, 0.5], [3.0, 1.0, 0.0, 0.0, 1.0]])
    x[0, 1], x[1, 2:4] = np.nan, np.inf
    found = fisher_information(
        ensemble, x, weights=weights, own_rows=True, rows_at_once=2
    )
    for m in range(2):
        params = jax.tree.map(lambda a: np.asarray(a)[m], ensemble.params)  # noqa: B023
        expected = {"w": np.zeros((3, 4)), "b": np.zeros(4)}
        for row, weight in zip(x[m], weights[m]):
            if weight:
                p = probabilities(params, row)
                share = weight / weights[m].sum() * p * (1 - p)
                expected["b"] += share
                expected["w"] += np.outer(row.astype(np.float64) ** 2, share)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][m], value, rtol=2e-6, atol=1e-8)
        assert found["steps"][m] == 0


@pytest.mark.slow
def test_sampled_fisher_information_takes_labels_by_seed_member_and_row():
    ensemble = softmax_ensemble(2, small_mesh(2, 1))
    x = np.random.default_rng(2).normal(size=(5, 3)).astype(np.float32)
    found = sampled_fisher_information(ensemble, x, seed=4, num_draws=3, rows_at_once=2)
    draws = []
    for m, member_id in enumerate([7, 3]):
        params = jax.tree.map(lambda a: np.asarray(a)[m], ensemble.params)  # noqa: B023
        key = member_key(4, "sample", member_id)
        expected = np.zeros(4)
        for position, row in enumerate(x):
            p = probabilities(params, row)
            labels = jax.random.categorical(
                jax.random.fold_in(key, position), jnp.log(p), shape=(3,)
            )
            draws.append(tuple(labels.tolist()))
            for label in labels:
                expected += (np.eye(4)[label] - p) ** 2 / 15
        np.testing.assert_allclose(found["b"][m], expected, rtol=2e-6)
    assert len(set(draws)) > 3


@pytest.mark.slow
def test_sampled_fisher_information_is_right_on_average():
    ensemble = softmax_ensemble(2, small_mesh(2, 1))
    x = np.random.default_rng(2).normal(size=(4, 3)).astype(np.float32)
    exact = fisher_information(ensemble, x)
    drawn = sampled_fisher_information(ensemble, x, seed=0, num_draws=20_000)
    for name in ("w", "b"):
        # The square of an entry is at most 1 (times x^2): 0.5 / sqrt(20000) is a
        # standard error for each of four rows; five of them.
        scale = np.max(x**2) if name == "w" else 1.0
        error = 5 * scale * 0.5 / np.sqrt(4 * 20_000)
        np.testing.assert_allclose(drawn[name], exact[name], atol=error)


@pytest.mark.slow
@pytest.mark.parametrize("member, data", [(1, 1), (2, 2)])
def test_fisher_information_of_a_network_equals_a_loop_over_examples(member, data):
    def make(rngs):
        return nn.CNN(
            image_shape=(4, 4, 1), features=(3,), num_pools=1, norm="batch",
            num_outputs=3, rngs=rngs,
        )  # fmt: skip

    ensemble = Ensemble.init(make, num_members=2, mesh=small_mesh(member, data))
    x = np.random.default_rng(3).normal(size=(7, 4, 4, 1)).astype(np.float32)
    found = fisher_information(ensemble, x, rows_at_once=3)

    @jax.jit
    @functools.partial(jax.grad, argnums=0)
    def gradient(params, rest, row, label):
        model = nnx.merge(ensemble.graph.graphdef, params, rest, copy=True)
        model.eval()
        return jax.nn.log_softmax(model(row[None])[0])[label]

    for m in range(2):
        state = jax.tree.map(lambda a: np.asarray(a)[m], ensemble.state)  # noqa: B023
        total = jax.tree.map(np.zeros_like, state["params"])
        for row in x:
            p = jax.nn.softmax(np.asarray(ensemble(row[None].repeat(4, 0)))[m, 0])
            for label in range(3):
                grads = gradient(state["params"], state["rest"], row, label)
                total = jax.tree.map(lambda t, g: t + p[label] * g**2 / 7, total, grads)  # noqa: B023
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(total), strict=True):
            np.testing.assert_allclose(a[m], b, rtol=1e-4, atol=1e-7)


def same_patches(images, size):
    """Patches of "SAME" padding in the order of a flattened kernel, by loops."""
    count, height, width, channels = images.shape
    before = (size - 1) // 2
    padded = np.zeros((count, height + size - 1, width + size - 1, channels))
    padded[:, before : before + height, before : before + width] = images
    return np.stack(
        [
            padded[n, i : i + size, j : j + size].reshape(-1)
            for n in range(count)
            for i in range(height)
            for j in range(width)
        ]
    )


def with_one(vectors):
    return np.concatenate([vectors, np.ones((len(vectors), 1))], axis=1)


def test_input_grams_equal_those_of_patches_and_activations():
    def make(rngs):
        return nn.CNN(
            image_shape=(3, 4, 2), features=(3,), num_pools=0, num_outputs=2, rngs=rngs
        )

    ensemble = drawn_ensemble(make, 2, small_mesh(1, 2))
    x = np.random.default_rng(4).normal(size=(5, 3, 4, 2)).astype(np.float32)
    weights = np.array([1.0, 0.0, 2.0, 0.5, 1.0])
    spoiled = np.where(weights.reshape(-1, 1, 1, 1) > 0, x, np.nan)
    found = input_grams(ensemble, spoiled, weights=weights, rows_at_once=2)
    assert list(found) == ["blocks.0.conv.kernel", "head.linear.kernel"]
    patches = with_one(same_patches(x.astype(np.float64), 3)).reshape(5, 12, -1)
    expected = np.einsum("npi,npj,n->ij", patches, patches, weights) / 12 / 4.5
    for m in range(2):
        gram = found["blocks.0.conv.kernel"][m, 0]
        np.testing.assert_allclose(gram, expected, rtol=1e-5, atol=1e-6)
        params = jax.tree.map(lambda a: np.asarray(a)[m], ensemble.params)  # noqa: B023
        conv = params["blocks"][0]["conv"]
        kernel = np.asarray(jax.tree.leaves(conv["kernel"])[0], np.float64)
        bias = np.asarray(jax.tree.leaves(conv["bias"])[0], np.float64)
        hidden = np.maximum(patches[..., :-1] @ kernel.reshape(18, 3) + bias, 0)
        hidden = with_one(hidden.reshape(5, -1))
        gram = found["head.linear.kernel"][m, 0]
        np.testing.assert_allclose(
            gram,
            np.einsum("ni,nj,n->ij", hidden, hidden, weights) / 4.5,
            rtol=1e-5,
            atol=1e-6,
        )


class Odd(nnx.Module):
    """Convolutions of all kinds, of which the outputs are kept."""

    def __init__(self, rngs):
        options = dict(kernel_size=(2, 3), rngs=rngs)
        self.layers = nnx.List(
            [
                nnx.Conv(4, 6, strides=(2, 1), feature_group_count=2, **options),
                nnx.Conv(6, 4, padding="VALID", kernel_dilation=(1, 2), **options),
                nnx.Conv(4, 4, padding="CIRCULAR", feature_group_count=4, **options),
                nnx.Linear(4, 5, rngs=rngs),
            ]
        )
        self.unused = nnx.Linear(2, 2, rngs=rngs)

    def __call__(self, x):
        outputs = []
        for layer in self.layers:
            x = layer(x)
            outputs.append(x)
        return outputs


@pytest.mark.slow
def test_outputs_of_every_layer_have_the_moments_that_its_gram_implies():
    ensemble = drawn_ensemble(Odd, 2, small_mesh(1, 1))
    x = np.random.default_rng(5).normal(size=(6, 5, 7, 4)).astype(np.float32)
    grams = input_grams(ensemble, x, rows_at_once=4)
    outputs = ensemble(x)
    for number, y in enumerate(outputs):
        gram = grams[f"layers.{number}.kernel"]
        layer = ensemble.params["layers"][number]
        kernel, bias = (
            np.asarray(jax.tree.leaves(layer[name])[0]) for name in ("kernel", "bias")
        )
        groups = gram.shape[1]
        for m in range(2):
            vectors = np.asarray(y[m], np.float64).reshape(
                -1, groups, y.shape[-1] // groups
            )
            weights = kernel[m].reshape(-1, groups, y.shape[-1] // groups)
            for g in range(groups):
                maps = np.concatenate([weights[:, g], bias[m].reshape(groups, -1)[[g]]])
                implied = maps.T @ np.asarray(gram[m, g], np.float64) @ maps
                moments = vectors[:, g].T @ vectors[:, g] / len(vectors)
                np.testing.assert_allclose(implied, moments, rtol=1e-4, atol=1e-5)
    assert not np.asarray(grams["unused.kernel"]).any()
    merged = regmean(ensemble.params, grams)
    mean = average(ensemble.params)
    for a, b in zip(
        jax.tree.leaves(merged["unused"]), jax.tree.leaves(mean["unused"]), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.slow
def test_input_grams_come_out_of_remat():
    def make(rngs, remat=True):
        return nn.MLP(
            in_features=3, hidden=(4, 4), num_outputs=2, remat=remat, rngs=rngs
        )

    x = np.random.default_rng(6).normal(size=(8, 3)).astype(np.float32)
    mesh = small_mesh(1, 1)
    found = input_grams(drawn_ensemble(make, 2, mesh), x)
    plain = drawn_ensemble(functools.partial(make, remat=False), 2, mesh)
    jax.tree.map(np.testing.assert_array_equal, found, input_grams(plain, x))


class Twice(nnx.Module):
    """One linear layer that is called twice."""

    def __init__(self, rngs):
        self.layer = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x):
        return self.layer(self.layer(x))


@pytest.mark.slow
def test_a_layer_that_is_called_twice_has_the_mean_of_both():
    ensemble = drawn_ensemble(Twice, 2, small_mesh(1, 1))
    x = np.random.default_rng(6).normal(size=(8, 3))
    found = input_grams(ensemble, x.astype(np.float32))["layer.kernel"]
    leaves = {
        name: np.asarray(jax.tree.leaves(ensemble.params["layer"][name])[0])
        for name in ("kernel", "bias")
    }
    for m in range(2):
        second = x @ leaves["kernel"][m] + leaves["bias"][m]
        both = [with_one(v) for v in (x, second)]
        expected = sum(v.T @ v for v in both) / 16
        np.testing.assert_allclose(found[m, 0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_layer_in_a_compiled_loop_is_refused_and_may_be_left_out():
    def make(rngs):
        return nn.Recurrent(in_features=3, hidden=4, num_outputs=2, rngs=rngs)

    ensemble = Ensemble.init(make, num_members=2, mesh=small_mesh(1, 1))
    x = np.ones((4, 5, 3), np.float32)
    with pytest.raises(ValueError, match="inside a compiled loop"):
        input_grams(ensemble, x)
    assert list(input_grams(ensemble, x, layers="head")) == ["head.linear.kernel"]


def random_maps(seed=8):
    """Three members' layers: a linear one, a grouped convolution and a norm's scale."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    stacked = {
        "conv": {"bias": normal(3, 4), "kernel": normal(3, 2, 1, 3, 4)},
        "linear": {"bias": normal(3, 2), "kernel": normal(3, 5, 2)},
        "scale": normal(3, 6).astype(jnp.bfloat16),
    }
    grams = {}
    for name, groups, entries in (("conv", 2, 6), ("linear", 1, 5)):
        vectors = rng.normal(size=(3, groups, 9, entries)) + 0.5
        vectors[..., 1] = 0  # what is never there
        vectors = np.concatenate([vectors, np.ones((3, groups, 9, 1))], axis=-1)
        gram = np.einsum("mgni,mgnj->mgij", vectors, vectors) / 9
        grams[f"{name}.kernel"] = jnp.asarray(gram, jnp.float32)
    return stacked, grams


def regmean64(stacked, grams, alpha, weights, joint, ridge=1e-6):
    out = {}
    for name in ("conv", "linear"):
        kernel, bias = (
            np.asarray(stacked[name][k], np.float64) for k in ("kernel", "bias")
        )
        gram = np.asarray(grams[f"{name}.kernel"], np.float64)
        groups, size = gram.shape[1], kernel.shape[-1] // gram.shape[1]
        kernels = kernel.reshape(3, -1, groups, size)
        merged, biases = np.zeros(kernels.shape[1:]), np.zeros((groups, size))
        for g in range(groups):
            left, right = 0.0, 0.0
            for m in range(3):
                w = np.concatenate(
                    [kernels[m, :, g], bias[m].reshape(groups, 1, -1)[g]]
                )
                h = gram[m, g]
                if not joint:
                    w, h = w[:-1], h[:-1, :-1]
                h = alpha * h + (1 - alpha) * np.diag(np.diag(h))
                h = weights[m] * (h + ridge * np.eye(len(h)))
                left, right = left + h, right + h @ w
            solved = np.linalg.solve(left, right)
            merged[:, g] = solved[:-1] if joint else solved
            biases[g] = (
                solved[-1]
                if joint
                else np.average(bias, axis=0, weights=weights).reshape(groups, -1)[g]
            )
        out[name] = {
            "bias": biases.reshape(-1),
            "kernel": merged.reshape(kernel.shape[1:]),
        }
    return out


merge = jax.jit(
    regmean,
    static_argnames="joint_bias",
    compiler_options={"xla_backend_optimization_level": 0},
)


@pytest.mark.parametrize("joint", [True, False])
def test_regmean_solves_the_normal_equations(joint):
    stacked, grams = random_maps()
    weights = np.array([0.5, 1.0, 1.5], np.float32)
    for alpha in (0.0, 0.9, 1.0):
        found = merge(
            stacked, grams, alpha=np.float32(alpha), weights=weights, joint_bias=joint
        )
        expected = regmean64(
            stacked, grams, np.float64(np.float32(alpha)), weights, joint
        )
        for name, leaves in expected.items():
            for leaf, value in leaves.items():
                np.testing.assert_allclose(
                    found[name][leaf], value, rtol=1e-4, atol=1e-5
                )
        np.testing.assert_array_equal(
            found["scale"], average(stacked, weights=weights)["scale"]
        )
        assert found["scale"].dtype == jnp.bfloat16


def test_a_grid_of_regmean_solves_one_system_at_a_time_on_a_cpu():
    """Batched ones may wait for each other for ever (see `_solve_symmetric`)."""
    stacked, grams = random_maps()
    alphas = np.array([0.0, 0.5, 1.0], np.float32)
    program = jax.jit(
        jax.vmap(lambda alpha: regmean(stacked, grams, alpha=alpha)),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    compiled = program.lower(alphas).compile()
    calls = [x for x in compiled.as_text().splitlines() if "_sgetrf" in x]
    assert calls
    for line in calls:
        shapes = re.findall(r"f32\[([\d,]*)\]", line)
        assert shapes and all(len(shape.split(",")) == 2 for shape in shapes), line
    found = compiled(alphas)
    for place, alpha in enumerate(alphas):
        one = merge(stacked, grams, alpha=alpha, joint_bias=True)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(one), strict=True):
            a, b = (np.asarray(x, np.float32) for x in (a[place], b))
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_regmean_has_a_gradient():
    stacked, grams = random_maps()

    def total(alpha):
        merged = regmean(stacked, grams, alpha=alpha)
        return sum(
            jnp.sum(jnp.asarray(x, jnp.float32)) for x in jax.tree.leaves(merged)
        )

    found = jax.jit(jax.grad(total))(np.float32(0.5))
    ends = [float(total(np.float32(a))) for a in (0.49, 0.51)]
    assert float(found) == pytest.approx((ends[1] - ends[0]) / 0.02, rel=2e-2, abs=1e-3)


def test_regmean_of_equal_members_or_equal_grams_is_their_mean():
    stacked, grams = random_maps()
    weights = np.ones(3, np.float32)
    options = dict(alpha=np.float32(0.9), weights=weights, joint_bias=True)
    equal = jax.tree.map(lambda x: jnp.stack([x[0]] * 3), grams)
    one = jax.tree.map(lambda x: jnp.stack([x[1]] * 3), stacked)
    for found, mean in [
        (merge(stacked, equal, **options), average(stacked)),
        (merge(one, grams, **options), jax.tree.map(lambda x: x[0], one)),
    ]:
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(mean), strict=True):
            np.testing.assert_allclose(
                np.asarray(a, np.float32), np.asarray(b, np.float32), atol=2e-6
            )


@pytest.mark.parametrize(
    "call, kind, words",
    [
        (
            lambda e, x: fisher_information(e, jnp.stack([x] * 3, 1)),
            ValueError,
            r"\[batch, cl",
        ),
        (lambda e, x: fisher_information(e, x[:0]), ValueError, "at least one example"),
        (
            lambda e, x: fisher_information(e, x, own_rows=True),
            ValueError,
            "members, e",
        ),
        (
            lambda e, x: fisher_information(e, x, weights=[1.0]),
            ValueError,
            "one for each",
        ),
        (
            lambda e, x: fisher_information(e, x, weights=np.zeros(len(x))),
            ValueError,
            "above 0",
        ),
        (
            lambda e, x: fisher_information(e, x, rows_at_once=0),
            ValueError,
            "rows_at_on",
        ),
        (
            lambda e, x: sampled_fisher_information(e, x, seed=0, num_draws=0),
            ValueError,
            "num_draws",
        ),
        (lambda e, x: input_grams(e, x), TypeError, "nnx modules"),
    ],
)
def test_mistakes_are_named(call, kind, words):
    ensemble = Ensemble.from_apply(
        lambda w, x: x @ w, jnp.ones((2, 3, 3)), mesh=small_mesh(2, 1)
    )
    with pytest.raises(kind, match=words):
        call(ensemble, jnp.ones((4, 3)))
