"""Permutation specs inferred from models: the groups, and that functions are kept."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax.graphs import Forward
from ensjax.weight_space.axes import Concat, Fixed, Group, Product
from ensjax.weight_space.inference import infer_permutations, infer_permutations_of
from ensjax.weight_space.permutations import (
    PermutationSpec,
    apply_permutations,
    check_permutations,
    inverse_permutations,
    random_permutations,
)

_FILE = pathlib.Path(__file__).with_name("alignment_models.py")
_SPEC = importlib.util.spec_from_file_location("alignment_models", _FILE)
models = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(models)

SLOW = pytest.mark.slow
IMAGES, VECTORS = (4, 8, 8, 1), (4, 8)


def with_options(make_model, **options):
    return lambda rngs: make_model(rngs, **options)


CASES = {
    "MLP": (with_options(models.mlp, norm="batch", remat=True), VECTORS, [8, 6]),
    "CNN": (models.cnn, IMAGES, [6, 8, 7]),
    "CNN, group norm": (
        with_options(models.cnn, features=(16, 8), norm="group", pool="avg"),
        IMAGES,
        [8, 2, 8, 7],
    ),
    "ResNet, batch norm": (
        with_options(models.resnet, norm="batch"),
        (4, 8, 8, 3),
        [4, 4, 8, 4, 16, 8],
    ),
    "ResNet, layer norm": (
        with_options(models.resnet, norm="layer"),
        (4, 8, 8, 3),
        [4, 4, 8, 4, 16, 8],
    ),
    "wide ResNet": (models.wide_resnet, (4, 8, 8, 3), [16, 16, 32, 32, 64, 64]),
    "ViT": (models.vit, IMAGES, [48, 12, 3, 4]),
    "LSTM": (models.lstm, (4, 6, 3), [5]),
}
QUICK = {"MLP", "CNN", "LSTM"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else SLOW) for n in CASES]
)
def test_random_permutations_of_inferred_groups_keep_the_function(name):
    make_model, shape, _ = CASES[name]
    ensemble = models.copies(models.ensemble_of(make_model, 1), 3)
    spec = infer_permutations(ensemble, jax.ShapeDtypeStruct(shape, jnp.float32))
    orders = models.random_orders(spec, 3, fixed=(0,))
    moved = models.permuted(ensemble, spec, orders)
    assert (models.largest_difference(moved, ensemble)[1:] > 0.1).all()

    x = jnp.asarray(np.random.default_rng(2).normal(size=shape), jnp.float32)
    forward = jax.jit(jax.vmap(Forward(ensemble.graph), in_axes=(0, None)))
    outputs = np.asarray(forward(moved.state, x))
    scale = max(1.0, np.abs(outputs).max())
    assert np.abs(outputs - outputs[:1]).max() / scale < 1e-5


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            n, marks=() if n in QUICK | {"ResNet, layer norm", "ViT"} else SLOW
        )
        for n in CASES
    ],
)
def test_all_interchangeable_units_are_found(name):
    make_model, shape, sizes = CASES[name]
    ensemble = models.ensemble_of(make_model, 1)
    spec = infer_permutations(ensemble, jax.ShapeDtypeStruct(shape, jnp.float32))
    assert sorted(spec.groups.values()) == sorted(sizes)


def test_layers_are_named_and_terms_say_what_lies_on_an_axis():
    ensemble = models.ensemble_of(models.cnn, 1)
    spec = infer_permutations(ensemble, jax.ShapeDtypeStruct(IMAGES, jnp.float32))
    first, second = Group("blocks.0.conv", 6), Group("blocks.1.conv", 8)
    dense = Group("dense.0.linear", 7)
    named = dict(spec.leaves)
    assert named["params.blocks.1.conv.kernel"] == (Fixed(3), Fixed(3), first, second)
    flat = Product((Fixed(4), second))
    assert named["params.dense.0.linear.kernel"] == (flat, dense)
    assert named["params.head.linear.bias"] == (Fixed(3),)
    assert "(4 blocks.1.conv), dense.0.linear" in str(spec)


def test_a_residual_stream_keeps_its_channels_in_front_of_the_new_ones():
    ensemble = models.ensemble_of(models.resnet, 1)
    x = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    named = dict(infer_permutations(ensemble, x).leaves)
    stem = Group("stem", 4)
    term = named["rest.blocks.1.norm2.mean"][0]
    assert isinstance(term, Concat) and term.parts[0] == stem and term.size == 8
    assert named["params.blocks.0.conv2.kernel"][-1] == stem


W = dict(a=(5, 6), b=(6, 3), table=(4, 6))


def bare(body):
    """The spec of `body(w, x)` for weights a, b and a table."""
    shapes = {k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in W.items()}
    x = jax.ShapeDtypeStruct((2, 5), jnp.float32)
    return infer_permutations_of(body, shapes, x)


def test_any_function_of_jax_has_a_spec():
    def body(w, x):
        index = jnp.argmax(x[:, :4], axis=-1)
        hidden = jnp.tanh(x @ w["a"]) + jnp.take(w["table"], index, axis=0)
        hidden = jax.lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, hidden)
        hidden = jax.lax.fori_loop(0, 3, lambda _, h: h / 2, hidden)
        return jax.nn.softmax(hidden * jnp.ones(6)) @ w["b"]

    with jax.numpy_rank_promotion("allow"):
        spec = bare(body)
    hidden = Group("a", 6)
    assert dict(spec.leaves) == {
        "a": (Fixed(5), hidden),
        "b": (hidden, Fixed(3)),
        "table": (Fixed(4), hidden),
    }


@pytest.mark.parametrize(
    "touch",
    [
        lambda h: jnp.cumsum(h, axis=1),
        lambda h: h * jnp.arange(6.0)[None],
        lambda h: jnp.fft.rfft(h).real[:, :1] + h,
        lambda h: h + jnp.argmax(h, axis=1)[:, None],
        lambda h: h.at[:, 2].set(0.0),
        lambda h: h[:, ::-1],
        lambda h: h + h.reshape(3, 4).T.reshape(2, 6),
    ],
    ids=["cumsum", "arange", "fft", "argmax", "scatter", "reverse", "shuffle"],
)
def test_what_depends_on_the_order_of_units_is_not_permuted(touch):
    spec = bare(lambda w, x: touch(x @ w["a"]) @ w["b"])
    assert not spec.groups


def test_a_part_that_is_cut_out_is_a_group_of_its_own():
    def body(w, x):
        hidden = x @ w["a"]
        return (hidden[:, :2] @ w["b"][:2]) + hidden[:, 2:] @ w["b"][2:]

    spec = bare(body)
    assert sorted(spec.groups.values()) == [2, 4]


def test_what_is_not_used_is_not_permuted():
    spec = bare(lambda w, x: x @ w["a"] @ w["b"])
    assert dict(spec.leaves)["table"] == (Fixed(4), Fixed(6))


def test_a_spec_is_checked_and_errors_name_the_leaf():
    hidden = Group("hidden", 6)
    spec = PermutationSpec.of({"a": (None, hidden), "b": (hidden, None)})
    tree = {"a": jnp.ones((2, 5, 6)), "b": jnp.ones((2, 6, 3))}
    spec.check(tree)
    with pytest.raises(ValueError, match="^c is not in the permutation spec"):
        spec.check(tree | {"c": jnp.ones((2, 1))})
    with pytest.raises(ValueError, match="^b is in the permutation spec but"):
        spec.check({"a": tree["a"]})
    with pytest.raises(ValueError, match=r"^b has shape \(4, 3\)"):
        spec.check(tree | {"b": jnp.ones((2, 4, 3))})
    with pytest.raises(ValueError, match="^b has group 'hidden' of 5 units"):
        PermutationSpec.of({"a": (hidden,), "b": (Group("hidden", 5),)})
    with pytest.raises(ValueError, match="'other' is no group"):
        apply_permutations(tree, spec, {"other": jnp.zeros((2, 6), jnp.int32)})
    with pytest.raises(ValueError, match=r"expected .* = \(2, 6\)"):
        apply_permutations(tree, spec, {"hidden": jnp.zeros((1, 6), jnp.int32)})


def test_a_wrong_spec_is_found_out():
    ensemble = models.ensemble_of(models.mlp, 2)
    x = jnp.ones((3, 8))
    spec = infer_permutations(ensemble, x)
    assert check_permutations(ensemble, spec, x) < 1e-5
    leaves = dict(spec.leaves)
    leaves["params.blocks.0.linear.bias"] = (None,)
    with pytest.raises(ValueError, match="a random permutation changes the outputs"):
        check_permutations(ensemble, PermutationSpec.of(leaves), x)


def test_permuting_on_a_device_equals_numpy():
    ensemble = models.ensemble_of(models.mlp, 2)
    spec = infer_permutations(ensemble, jax.ShapeDtypeStruct((3, 8), jnp.float32))
    orders = models.random_orders(spec, 2)
    expected = models.permuted(ensemble, spec, orders)
    moved = apply_permutations(ensemble, spec, orders)
    assert models.largest_difference(moved, expected).max() == 0
    hidden = Group("hidden", 6)
    spec = PermutationSpec.of({"a": (Product((Fixed(2), hidden)), None)})
    tree = {"a": jnp.arange(2.0 * 12 * 3).reshape(2, 12, 3)}
    order = np.array([[5, 3, 1, 0, 2, 4], [0, 1, 2, 3, 5, 4]], np.int32)
    moved = apply_permutations(tree, spec, {"hidden": order})["a"]
    for member in range(2):
        rows = np.asarray(tree["a"][member]).reshape(2, 6, 3)[:, order[member]]
        np.testing.assert_array_equal(moved[member], rows.reshape(12, 3))


def test_random_permutations_are_permutations_and_can_be_undone():
    spec = PermutationSpec.of({"a": (Group("hidden", 6),)})
    orders = random_permutations(spec, jax.random.key(0), 3)["hidden"]
    every = np.tile(np.arange(6), (3, 1))
    np.testing.assert_array_equal(np.sort(orders, axis=1), every)
    assert len({tuple(row) for row in np.asarray(orders).tolist()}) == 3
    back = inverse_permutations({"hidden": orders})["hidden"]
    undone = np.take_along_axis(np.asarray(orders), np.asarray(back), axis=1)
    np.testing.assert_array_equal(undone, every)
