"""What every architecture promises: graphs, stacking, norms, dropout, dtype, remat."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ensjax.nn import CNN, MLP, ResNet, ViT, wide_resnet

# A small model of each kind and the shape of one example.
MODELS = {
    "mlp": (functools.partial(MLP, in_features=12, hidden=(8, 8)), (4, 3)),
    "cnn": (
        functools.partial(CNN, image_shape=(8, 8, 1), features=(4, 6), num_pools=1),
        (8, 8, 1),
    ),
    "resnet": (functools.partial(ResNet, depth=8, width=4), (8, 8, 3)),
    "wide_resnet": (functools.partial(wide_resnet, depth=10, width=1), (8, 8, 3)),
    "vit": (
        functools.partial(ViT, image_shape=(8, 8, 1), width=8, depth=2, num_heads=2),
        (8, 8, 1),
    ),
}
NORMED = ("mlp", "cnn", "resnet", "wide_resnet")
# ResNet and WideResNet run their blocks through the same functions.
WIDE = pytest.param("wide_resnet", marks=pytest.mark.slow)
SLOW = pytest.mark.slow
EACH = pytest.mark.parametrize("name", ["mlp", "cnn", "resnet", WIDE, "vit"])
KINDS = pytest.mark.parametrize(
    "name",
    ["mlp", *(pytest.param(n, marks=SLOW) for n in ("cnn", "wide_resnet", "vit"))],
)


def make(name, *, seed=0, dropout_seed=0, **options):
    build, _ = MODELS[name]
    return build(rngs=nnx.Rngs(params=seed, dropout=dropout_seed), **options)


def images(name, batch=4):
    return jax.random.normal(jax.random.key(7), (batch, *MODELS[name][1]))


def value_and_grads(graph, params, rest, x):
    """Loss, logits and new state in training, and the gradient, of one member."""

    def loss(params):
        model = nnx.merge(graph, params, rest, copy=True)
        logits = model(x)
        labels = jnp.arange(x.shape[0]) % logits.shape[-1]
        log_probs = jax.nn.log_softmax(logits)
        picked = jnp.take_along_axis(log_probs, labels[:, None], axis=1)
        new_rest = nnx.split(model, nnx.Param, ...)[2]
        return -jnp.mean(picked), (logits, nnx.state(new_rest, nnx.BatchStat))

    return jax.value_and_grad(loss, has_aux=True)(params)


def run(model, x):
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    return jax.jit(functools.partial(value_and_grads, graph))(params, rest, x)


def assert_close(actual, expected, tolerance):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        np.testing.assert_allclose(a, e, atol=tolerance * max(1, np.abs(e).max()))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["mlp", "cnn", pytest.param("resnet", marks=SLOW), WIDE, "vit"]
)
def test_equal_arguments_give_equal_graphs(name):
    options = dict(dropout=0.1, dtype=jnp.bfloat16, remat=True)
    if name in NORMED:
        options["norm"] = "batch"
    graphs = [nnx.split(make(name, seed=s, **options))[0] for s in (0, 1)]
    assert graphs[0] == graphs[1]
    assert hash(graphs[0]) == hash(graphs[1])


def _stacked_cases():
    slow = [("cnn", "batch"), ("cnn", "group"), ("vit", None), ("resnet", "batch")]
    slow += [("wide_resnet", "batch")]
    return [
        ("mlp", "batch"),
        *[pytest.param(*case, marks=SLOW) for case in slow],
    ]


@pytest.mark.parametrize("name, norm", _stacked_cases())
def test_stacked_members_equal_one_by_one(name, norm):
    options = {"norm": norm} if name in NORMED else {}
    x = images(name)

    def init(key):
        rngs = nnx.Rngs(params=key, dropout=jax.random.fold_in(key, 1))
        model = MODELS[name][0](rngs=rngs, dropout=0.2, **options)
        return nnx.split(model, nnx.Param, ...)[1:]

    keys = jax.random.split(jax.random.key(3), 3)
    params, rest = jax.jit(jax.vmap(init))(keys)
    graph = nnx.split(make(name, dropout=0.2, **options))[0]
    member = functools.partial(value_and_grads, graph)
    stacked = jax.jit(jax.vmap(member, in_axes=(0, 0, None)))(params, rest, x)
    alone = jax.jit(member)
    for i in range(3):
        one = alone(*jax.tree.map(lambda leaf, i=i: leaf[i], (params, rest)), x)
        row = jax.tree.map(lambda leaf, i=i: leaf[i], stacked)
        # Two programs that sum in different orders, over tens of layers' operations.
        assert_close(row, one, 2e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(stacked))


@functools.cache
def run_plain(name):
    return run(make(name), images(name))


@pytest.mark.slow
@KINDS
def test_logits_are_float32_and_bfloat16_stays_near(name):
    (_, (expected, _)), expected_grads = run_plain(name)
    (_, (logits, stats)), grads = run(make(name, dtype=jnp.bfloat16), images(name))
    assert logits.shape == (4, 10) and logits.dtype == jnp.float32
    leaves = jax.tree.leaves((grads, stats))
    assert all(leaf.dtype == jnp.float32 for leaf in leaves)
    # bfloat16 keeps 8 bits (0.4 %) per operation; some ten follow each other.
    assert_close(logits, expected, 4e-2)
    # Rounding flips ReLUs near zero, where the gradient jumps: compare directions.
    flat, expected_flat = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
        for tree in (grads, expected_grads)
    )
    norms = np.linalg.norm(flat) * np.linalg.norm(expected_flat)
    assert flat @ expected_flat > 0.95 * norms


@KINDS
def test_remat_changes_no_value_gradient_statistic_or_mask(name):
    x = images(name)
    options = {"norm": "batch"} if name == "mlp" else {}
    options["dropout"] = 0.3
    assert_close(
        run(make(name, remat=True, **options), x), run(make(name, **options), x), 1e-6
    )


@KINDS
def test_dropout_differs_by_key_and_is_identity_in_eval(name):
    x = images(name)
    # Without batch statistics, which every call in training would move.
    build = functools.partial(make, name)
    if name in NORMED:
        build = functools.partial(build, norm=None)
    first, second = (build(dropout=0.5, dropout_seed=s) for s in (1, 2))
    same, plain = build(dropout=0.5, dropout_seed=1), build()
    outputs = first(x)
    np.testing.assert_array_equal(outputs, same(x))
    assert not np.allclose(outputs, second(x))
    assert not np.allclose(outputs, first(x))  # the next call draws anew
    reseeded = build(dropout=0.5, dropout_seed=1)
    nnx.reseed(reseeded, dropout=jax.random.key(5))
    assert not np.allclose(outputs, reseeded(x))
    for model in (first, second, plain):
        model.eval()
    np.testing.assert_allclose(first(x), plain(x), atol=1e-6)
    np.testing.assert_array_equal(first(x), second(x))


@pytest.mark.parametrize("name", ["mlp", pytest.param("cnn", marks=SLOW), WIDE])
def test_batch_statistics_move_in_training_and_not_in_eval(name):
    x = images(name, batch=8)
    model = make(name, norm="batch")
    before = jax.tree.map(jnp.copy, nnx.state(model, nnx.BatchStat))
    model(x)
    after = jax.tree.map(jnp.copy, nnx.state(model, nnx.BatchStat))
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert not np.allclose(old, new)
    model.eval()
    outputs = model(x)
    for old, new in zip(
        jax.tree.leaves(after),
        jax.tree.leaves(nnx.state(model, nnx.BatchStat)),
        strict=True,
    ):
        np.testing.assert_array_equal(old, new)
    # In eval an example does not see its batch.
    np.testing.assert_allclose(model(x[:1]), outputs[:1], atol=1e-5)


@pytest.mark.parametrize(
    "name, norm",
    [("cnn", "group"), pytest.param("resnet", "layer", marks=SLOW), ("mlp", "layer")],
)
def test_group_and_layer_norm_do_not_mix_examples(name, norm):
    x = images(name)
    model = make(name, norm=norm)
    assert not jax.tree.leaves(nnx.state(model, nnx.BatchStat))
    np.testing.assert_allclose(model(x)[:1], model(x[:1]), atol=1e-5)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=SLOW) if "resnet" in n else n for n in NORMED]
)
def test_no_bias_stands_before_a_norm(name):
    def biases(model):
        return [
            path
            for path, module in nnx.iter_modules(model)
            if isinstance(module, nnx.Conv | nnx.Linear) and module.use_bias
        ]

    assert biases(make(name, norm="batch")) == [("head", "linear")]
    assert len(biases(make(name, norm=None))) > 1


@pytest.mark.parametrize(
    "form", ["mixed", *(pytest.param(f, marks=SLOW) for f in ("plain", "patches"))]
)
def test_conv_forms_agree(form):
    actual = run(make("cnn", conv_form=form), images("cnn"))
    assert_close(actual, run_plain("cnn"), 2e-5)


def test_unknown_names_and_impossible_sizes_say_what_is_possible():
    with pytest.raises(ValueError, match="'batch', 'group', 'layer'; got 'instance'"):
        make("cnn", norm="instance")
    with pytest.raises(ValueError, match="at least 0 and below 1; got 1.0"):
        make("mlp", dropout=1.0)
    with pytest.raises(ValueError, match="max, avg; got 'sum'"):
        make("cnn", pool="sum")
    with pytest.raises(ValueError, match="choose a smaller num_pools"):
        CNN(image_shape=(2, 8, 1), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="6n \\+ 2"):
        ResNet(depth=18, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="6n \\+ 4"):
        wide_resnet(depth=20, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="patches must tile"):
        ViT(image_shape=(9, 8, 1), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="token, mean; got 'max'"):
        make("vit", pooling="max")
    with pytest.raises(ValueError, match="got shape \\(8, 8, 1\\)"):
        make("vit")(images("vit")[0])
    with pytest.raises(ValueError, match="got \\(10, 8, 1\\)"):
        make("cnn")(jnp.ones((1, 10, 8, 1)))
    with pytest.raises(ValueError, match="12 entries"):
        make("mlp")(jnp.ones((2, 5)))
