"""The empirical tangent kernel: known values, blocks, members, meshes, mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import ensjax
from ensjax import ntk
from ensjax.ntk import strips
from ensjax.ntk.empirical import kernel_program
from ensjax.ntk.multiplications import multiplications
from ensjax.planning import read_collectives

WAYS = strips.METHODS[1:]  # without "auto"
ONE = ensjax.make_mesh(member=1, devices=jax.devices()[:1])


def make_mlp(rngs):
    return ensjax.nn.MLP(in_features=5, hidden=(7,), num_outputs=2, rngs=rngs)


def make_cnn(rngs):
    return ensjax.nn.CNN(
        image_shape=(6, 6, 1),
        features=(3,),
        num_pools=1,
        num_outputs=3,
        norm="batch",
        rngs=rngs,
    )


@pytest.fixture(scope="module")
def members():
    return ensjax.Ensemble.init(make_mlp, num_members=4, seed=0, mesh=ONE)


ROWS = np.random.default_rng(0).normal(size=(23, 5)).astype(np.float32)
OTHERS = np.random.default_rng(1).normal(size=(10, 5)).astype(np.float32)


def by_jacobian(member, x, z):
    """One module's full kernel by `jax.jacobian`, contracted in float64."""
    graphdef, params, rest = nnx.split(member, nnx.Param, ...)

    def forward(params, x):
        return nnx.merge(graphdef, params, rest, copy=True)(x)

    def rows(x):
        leaves = jax.tree.leaves(jax.jacobian(forward)(params, x))
        parts = [np.asarray(j, np.float64).reshape(*j.shape[:2], -1) for j in leaves]
        return np.concatenate(parts, axis=-1)

    return np.einsum("aop,bqp->aboq", rows(x), rows(z))


def check_close(found, expected, tolerance=1e-6):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def test_a_linear_function_has_the_kernel_of_its_inputs():
    params = {
        "w": jnp.zeros((2, 5, 3)),
        "b": jnp.ones((2, 3)),
    }
    linear = ensjax.Ensemble.from_apply(
        lambda p, x: x @ p["w"] + p["b"][None], params, mesh=ONE
    )
    expected = np.broadcast_to(ROWS @ ROWS.T + 1, (2, 23, 23))
    check_close(ntk.empirical_ntk(linear, ROWS), expected)
    check_close(ntk.empirical_ntk(linear, ROWS, params="^w$"), expected - 1)
    full = np.einsum("ab,oq->aboq", ROWS @ ROWS.T + 1, np.eye(3))
    for method in WAYS:
        found = ntk.empirical_ntk(linear, ROWS, outputs="full", method=method)
        check_close(found, np.broadcast_to(full, (2, *full.shape)))


@pytest.mark.slow
def test_both_methods_equal_the_jacobians_of_each_member_in_evaluation_mode():
    ensemble = ensjax.Ensemble.init(make_cnn, num_members=2, seed=0, mesh=ONE)
    rng = np.random.default_rng(2)
    # Running statistics that training mode would not use.
    rest = jax.tree.map(
        lambda x: (
            x + rng.uniform(0.1, 1, x.shape).astype(x.dtype)
            if jnp.issubdtype(x.dtype, jnp.floating)
            else x
        ),
        ensemble.state["rest"],
    )
    state = {"params": ensemble.params, "rest": rest}
    ensemble = ensjax.Ensemble(state, ensemble.member_ids, ensemble.graph, ONE)
    x = rng.normal(size=(7, 6, 6, 1)).astype(np.float32)
    full = np.stack([by_jacobian(member, x, x) for member in ensemble])
    trace = np.einsum("mabpp->mab", full) / 3
    options = dict(block_rows=4)
    found = ntk.empirical_ntk(ensemble, x, outputs="full", **options)
    check_close(found, full)
    options["method"] = "vector_products"
    check_close(ntk.empirical_ntk(ensemble, x, **options), trace)


def test_blocks_change_nothing_whether_or_not_they_divide(members):
    whole = ntk.empirical_ntk(members, ROWS, block_rows=23)
    wide = ntk.empirical_ntk(members, ROWS, OTHERS, block_rows=23)
    np.testing.assert_array_equal(whole, np.swapaxes(whole, 1, 2))
    for size in (1, 8):  # with 1, several strips of columns
        found = ntk.empirical_ntk(members, ROWS, block_rows=size)
        check_close(found, whole)
        np.testing.assert_array_equal(found, np.swapaxes(found, 1, 2))
    check_close(ntk.empirical_ntk(members, ROWS, OTHERS, block_rows=3), wide)
    options = dict(outputs="full", method="vector_products", block_rows=5)
    full = np.asarray(ntk.empirical_ntk(members, ROWS, **options))
    check_close(np.einsum("mabpp->mab", full) / 2, whole)
    np.testing.assert_array_equal(full, np.transpose(full, (0, 2, 1, 4, 3)))


def test_all_members_at_once_equal_each_alone(members):
    expected = np.stack(
        [np.einsum("abpp->ab", by_jacobian(m, ROWS, ROWS)) / 2 for m in members]
    )
    found = {
        block: ntk.empirical_ntk(members, ROWS, block=block, block_rows=8)
        for block in (None, 1)
    }
    for kernels in found.values():
        check_close(kernels, expected)
    alone = ntk.empirical_ntk(members[2:3], ROWS, block=1, block_rows=8)
    np.testing.assert_array_equal(alone, found[1][2:3])


@pytest.mark.parametrize("member, data", [(4, 2), (1, 8)])
def test_meshes_give_the_same_kernels_and_send_nothing(members, member, data):
    spread = members.on_mesh(ensjax.make_mesh(member=member, data=data))
    expected = ntk.empirical_ntk(members, ROWS, block_rows=8)
    program, args = kernel_program(spread, ROWS[:16], ROWS, block_rows=3)
    compiled = program.lower(*args).compile()
    assert read_collectives(compiled.as_text(), (member, data, 1)) == ()
    check_close(compiled(*args), expected[:, :16])
    if data == 2:  # 23 rows do not divide
        check_close(ntk.empirical_ntk(spread, ROWS, block_rows=3), expected)


@pytest.mark.parametrize("method", WAYS)
def test_memory_beyond_the_result_does_not_depend_on_rows(members, method):
    used = []
    for rows in (500, 2_000):
        x = np.zeros((rows, 5), np.float32)
        options = dict(method=method, block_rows=8, block=1)
        program, args = kernel_program(members, x, **options)
        sizes = program.lower(*args).compile().memory_analysis()
        assert sizes.output_size_in_bytes == 4 * 4 * rows**2
        used.append(sizes.temp_size_in_bytes)
    assert used[0] == used[1] < 4 * 500**2


def test_other_weights_compile_nothing(members):
    other = ensjax.Ensemble.init(make_mlp, num_members=4, seed=5, mesh=ONE)
    program, _ = kernel_program(members, ROWS, block_rows=8)
    again, _ = kernel_program(other, ROWS + 1, block_rows=8)
    assert program is again
    for ensemble in (members, other, members):
        ntk.empirical_ntk(ensemble, ROWS, block_rows=8)
    assert program.cache_size() == 1


def test_kernels_of_layers_add_up(members):
    parts = [
        ntk.empirical_ntk(members, ROWS, params=pattern, block_rows=8)
        for pattern in ("^head", "^(?!head)")
    ]
    whole = ntk.empirical_ntk(members, ROWS, block_rows=8)
    check_close(parts[0] + parts[1], whole)
    assert np.abs(parts[0]).max() > 0 and np.abs(parts[1]).max() > 0


def test_a_member_that_is_not_finite_leaves_the_others_alone(members):
    bad = jax.tree.map(lambda x: x.at[1].set(jnp.nan), members.params)
    state = {"params": bad, "rest": members.state["rest"]}
    spoiled = ensjax.Ensemble(state, members.member_ids, members.graph, ONE)
    found = ntk.empirical_ntk(spoiled, ROWS, block=1, block_rows=8)
    expected = ntk.empirical_ntk(members, ROWS, block=1, block_rows=8)
    assert np.isnan(found[1]).all()
    for member in (0, 2, 3):
        np.testing.assert_array_equal(found[member], expected[member])


def test_linen_members_equal_the_same_bare_function():
    model = linen.Dense(3)
    params = jax.vmap(model.init, in_axes=(0, None))(
        jax.random.split(jax.random.key(0), 2), jnp.ones((1, 5))
    )
    ensemble = ensjax.Ensemble.from_apply(model.apply, params, mesh=ONE)
    expected = np.broadcast_to(ROWS @ ROWS.T + 1, (2, 23, 23))
    check_close(ntk.empirical_ntk(ensemble, ROWS), expected)
    kernel = ntk.empirical_ntk(ensemble, ROWS, params=r"params\.kernel")
    check_close(kernel, expected - 1)


def two_layers(width, num_members, key=0):
    """Networks whose kernel at infinite width is known, outputs `[row]`."""
    keys = jax.random.split(jax.random.key(key), 2)
    params = {
        "first": jax.random.normal(keys[0], (num_members, 5, width)),
        "last": jax.random.normal(keys[1], (num_members, width)),
    }

    def apply(p, x):
        hidden = jax.nn.relu(x @ p["first"] / np.sqrt(5))
        return hidden @ p["last"] / np.sqrt(width)

    return ensjax.Ensemble.from_apply(apply, params, mesh=ONE)


@pytest.mark.slow
def test_wide_networks_agree_with_the_closed_form():
    x = ROWS[:6]
    closed = np.asarray(ntk.kernel(ntk.FullyConnected(), x).ntk)
    spreads = []
    for width in (256, 4_096):
        kernels = np.asarray(ntk.empirical_ntk(two_layers(width, 64), x))
        spread = kernels.std(axis=0, ddof=1)
        # Without biases in the mean: 4 standard errors for 36 entries.
        assert (np.abs(kernels.mean(axis=0) - closed) < 4 * spread / 8).all()
        spreads.append(np.sqrt(np.mean(spread**2)))
    # As 1 / sqrt(width); the ratio of two spreads of 64 members has 13 % of error.
    assert 4 * 0.7 < spreads[0] / spreads[1] < 4 * 1.4


def test_products_with_vectors_are_those_of_the_kernel(members):
    vectors = np.random.default_rng(3).normal(size=(4, 10, 2)).astype(np.float32)
    kernel = ntk.empirical_ntk(members, ROWS, OTHERS, outputs="full", block_rows=8)
    expected = np.einsum("mabop,mbp->mao", np.asarray(kernel, np.float64), vectors)
    spread = members.on_mesh(ensjax.make_mesh(member=4, data=2))
    found = ntk.ntk_vector_product(spread, ROWS, OTHERS, vectors, block_rows=4)
    check_close(found, expected)
    with pytest.raises(ValueError, match=r"vectors must be .* \(4, 10, 2\)"):
        ntk.ntk_vector_product(members, ROWS, OTHERS, vectors[:2])
    for rows in (2.5, True, 0):
        with pytest.raises(ValueError, match="block_rows must be"):
            ntk.ntk_vector_product(members, ROWS, OTHERS, vectors, block_rows=rows)


def test_trees_of_inputs_and_scalar_outputs():
    def apply(p, x):
        return p["w"] * x["a"] * x["b"]

    ensemble = ensjax.Ensemble.from_apply(apply, {"w": jnp.ones(3)}, mesh=ONE)
    a, b = ROWS[:, 0], ROWS[:, 1]
    found = ntk.empirical_ntk(ensemble, {"a": a, "b": b}, block_rows=4)
    check_close(found, np.broadcast_to(np.outer(a * b, a * b), (3, 23, 23)))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(x=ROWS[:0]), "x must be arrays .* at least one"),
        (dict(x={"a": ROWS, "b": ROWS[:3]}), "same number of rows"),
        (dict(z=OTHERS[:, :3]), r"z has rows of shape \(3,\), but those of x"),
        (dict(z={"a": OTHERS}), "z must have the structure of x"),
        (dict(outputs="diagonal"), "outputs is one of 'trace', 'full'"),
        (dict(method="finite"), "method is one of 'auto', 'jacobian'"),
        (dict(params="conv"), "'conv' is found in the name of no parameter; there are"),
        (dict(params="("), "is no regular expression"),
        (dict(block_rows=0), "block_rows must be at least 1"),
        (dict(block_rows=2.5), "block_rows must be a positive integer"),
        (dict(block=0), "block must be at least 1"),
    ],
)
def test_mistakes_are_told_before_any_work(members, options, message):
    with pytest.raises(ValueError, match=message):
        ntk.empirical_ntk(members, **{"x": ROWS, **options})


def test_leaves_and_outputs_that_have_no_tangents_are_named(members):
    params = {"codes": jnp.ones((2, 3), jnp.int32), "w": jnp.ones((2, 3))}
    ensemble = ensjax.Ensemble.from_apply(
        lambda p, x: x @ (p["w"] * p["codes"])[:, None], params, mesh=ONE
    )
    with pytest.raises(TypeError, match=r"codes is int32.*params=r'\^\(\?!codes\$\)'"):
        ntk.empirical_ntk(ensemble, ROWS[:, :3])
    found = ntk.empirical_ntk(ensemble, ROWS[:, :3], params=r"^(?!codes$)")
    assert found.shape == (2, 23, 23)

    for apply, message in (
        (lambda p, x: (x, x), "one real array"),
        (lambda p, x: jnp.argmax(x * p["w"][None], 1), "one real array"),
        (lambda p, x: jnp.sum(x * p["w"][None], 0), "one real array"),
    ):
        wrong = ensjax.Ensemble.from_apply(apply, {"w": jnp.ones((2, 3))}, mesh=ONE)
        with pytest.raises(ValueError, match=message):
            ntk.empirical_ntk(wrong, ROWS[:, :3])
    with pytest.raises(TypeError, match="Ensemble.from_apply"):
        ntk.empirical_ntk(members.params, ROWS)


def test_members_at_once_are_those_whose_jacobians_fit(members, monkeypatch):
    """Where "auto" would run all members: an accelerator."""
    tangents = strips.make_tangents(members, "")
    made = strips.make_strips(members, tangents, jnp.ones((6, 5)), "jacobian", False, 2)
    assert strips.members_at_once(members, made, "auto").block == "auto"  # a CPU
    monkeypatch.setattr(strips, "platform", lambda mesh: "gpu")
    assert strips.members_at_once(members, made, "auto").block is None
    assert strips.members_at_once(members, made, 2).block == 2
    monkeypatch.setattr(strips, "_JACOBIAN_BYTES", 1)
    assert strips.members_at_once(members, made, "auto").block == 1


def make_attention(rngs):
    return ensjax.nn.ViT(
        image_shape=(6, 6, 1),
        patch_size=(2, 2),
        width=8,
        depth=1,
        num_heads=2,
        mlp_width=8,
        num_outputs=2,
        rngs=rngs,
    )


@pytest.mark.parametrize(
    "make, row, method",
    [
        (make_mlp, (5,), "vector_products"),
        (make_cnn, (6, 6, 1), "jacobian"),
        (make_attention, (6, 6, 1), "jacobian"),
    ],
)
def test_auto_takes_products_where_a_weight_is_used_once(make, row, method):
    ensemble = ensjax.Ensemble.init(make, num_members=2, seed=0, mesh=ONE)
    x = jax.ShapeDtypeStruct((8, *row), jnp.float32)
    tangents = strips.make_tangents(ensemble, "")
    found = strips.make_strips(ensemble, tangents, x, "auto", False, None)
    assert found.method == method


def test_multiplications_of_products_loops_and_branches():
    def fn(w, x):
        def body(x, _):
            return x @ w, None

        x, _ = jax.lax.scan(body, x, length=3)
        return jax.lax.cond(x.sum() > 0, lambda x: x @ w @ w, lambda x: x @ w, x)

    w, x = np.ones((4, 4), np.float32), np.ones((2, 4), np.float32)
    assert multiplications(fn, w, x) == (3 + 2) * 2 * 4 * 4
    kernel, image = np.ones((3, 3, 2, 5), np.float32), np.ones((1, 8, 8, 2), np.float32)
    found = multiplications(
        lambda k, x: jax.lax.conv_general_dilated(
            x, k, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        kernel,
        image,
    )
    assert found == 4 * 4 * 5 * 3 * 3 * 2
