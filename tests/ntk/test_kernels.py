"""Kernels by recursion: independent references, symmetries, limits and blocks."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax import make_mesh, ntk
from ensjax.mapping import map_members, mesh_program
from ensjax.ntk.kernel_blocks import _KernelBlocks
from ensjax.planning import read_collectives

kernel = jax.jit(ntk.kernel, static_argnums=0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 4))
DEEP = dict(hidden_layers=3, weight_variance=1.7, bias_variance=0.3)


def in_float64(spec, x, z=None):
    with jax.enable_x64(True):
        x = jnp.asarray(x, jnp.float64)
        return ntk.Kernels(*map(np.asarray, kernel(spec, x, x if z is None else z)))


def relu_moments(k11, k12, k22):
    cosine = np.clip(k12 / np.sqrt(k11 * k22), -1, 1)
    rest = np.pi - np.arccos(cosine)
    sine = np.sqrt(1 - cosine**2)
    product = np.sqrt(k11 * k22) * (sine + rest * cosine) / (2 * np.pi)
    return product, rest / (2 * np.pi)


def erf_moments(k11, k12, k22):
    scale = (1 + 2 * k11) * (1 + 2 * k22)
    product = 2 / np.pi * np.arcsin(2 * k12 / np.sqrt(scale))
    return product, 4 / np.pi / np.sqrt(scale - 4 * k12**2)


def reference(spec, x, rates=None):
    """The recursion of Lee et al. 2019, appendix E, with covariances, in NumPy.

    Args:
        rates: of each layer's weights and biases, `[layer, 2]`.
    """
    weight, bias = spec.weight_variance, spec.bias_variance
    moments = {"relu": relu_moments, "erf": erf_moments}[spec.activation]
    rates = np.ones((spec.hidden_layers + 1, 2)) if rates is None else rates
    gram = x @ x.T / x.shape[1]
    k = weight * gram + bias
    t = rates[0, 0] * weight * gram + rates[0, 1] * bias
    for of_weights, of_bias in rates[1:]:
        own = np.diag(k)
        product, slope = moments(own[:, None], k, own[None])
        k = weight * product + bias
        t = of_weights * weight * product + of_bias * bias + weight * slope * t
    return k, t


@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_recursion_is_that_of_numpy(activation):
    spec = ntk.FullyConnected(activation=activation, **DEEP)
    for found, expected in zip(in_float64(spec, X), reference(spec, X), strict=True):
        # The reference takes its diagonal's angle from an arccos near 1.
        np.testing.assert_allclose(found, expected, atol=2e-7)
        far = ~np.eye(len(X), dtype=bool)
        np.testing.assert_allclose(found[far], expected[far], rtol=1e-12)


def test_layers_have_the_rates_of_their_parameterisation():
    """Whose tangent kernels are sums over layers; counted in finite differences."""
    width, features = 64, X.shape[1]
    weight, bias = DEEP["weight_variance"], DEEP["bias_variance"]
    per_width = weight / (width * bias)
    far = ~np.eye(len(X), dtype=bool)
    layers = {
        "ntk": [[1, 1]] * 4,
        "readout": [[0, 0]] * 3 + [[1, 1]],
        "standard": [[features / width, per_width]] + [[1, per_width]] * 3,
        "mup": [[1, 1]] * 4,
    }
    for parameterisation, rates in layers.items():
        spec = ntk.FullyConnected(
            parameterisation=parameterisation, width=width, **DEEP
        )
        found = in_float64(spec, X)
        nngp, tangent = reference(spec, X, np.array(rates, float))
        if parameterisation == "mup":
            nngp = nngp / width
        np.testing.assert_allclose(found.ntk[far], tangent[far], rtol=1e-12)
        np.testing.assert_allclose(found.nngp[far], nngp[far], rtol=1e-12)


def test_standard_without_width_is_its_limit_and_readout_with_one_layer():
    limit, readout = (
        in_float64(ntk.FullyConnected(parameterisation=name), X)
        for name in ("standard", "readout")
    )
    np.testing.assert_allclose(limit.ntk, readout.ntk, rtol=1e-14)
    np.testing.assert_array_equal(readout.ntk, readout.nngp)
    wide = ntk.FullyConnected(parameterisation="standard", width=10**9)
    np.testing.assert_allclose(in_float64(wide, X).ntk, limit.ntk, rtol=1e-7)
    mup = in_float64(ntk.FullyConnected(parameterisation="mup"), X)
    assert not mup.nngp.any() and mup.ntk.all()


def test_any_activation_by_its_dual():
    relu = ntk.dual(jax.nn.relu, kinks=(0.0,))
    for ours, theirs in ((relu, "relu"), (ntk.dual(jax.lax.erf), "erf")):
        by_integral = in_float64(ntk.FullyConnected(activation=ours, **DEEP), X[:3])
        closed = in_float64(ntk.FullyConnected(activation=theirs, **DEEP), X[:3])
        for found, expected in zip(by_integral, closed, strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-8)


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-6), (np.float64, 1e-13)])
def test_nearly_parallel_inputs_keep_their_digits(dtype, tolerance):
    """T(x, z) for angles of 1e-8 to 0.1, with the angle known and not recovered."""
    theta = np.array([0, 1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 0.1])
    x = np.stack([np.ones(7), np.tan(theta)], axis=1).astype(dtype)
    theta = np.arctan(x[:, 1].astype(np.float64))
    x = np.float64(x) * 3.7
    scale = 3.7 * np.linalg.norm(x, axis=1) / (4 * np.pi)
    rest = np.pi - theta
    expected = scale * (np.sin(theta) + 2 * rest * np.cos(theta))
    with jax.enable_x64(dtype == np.float64):
        first = jnp.asarray([[3.7, 0.0]], dtype)
        found = kernel(ntk.FullyConnected(), first, jnp.asarray(x, dtype)).ntk[0]
        assert found.dtype == dtype
    # An arccos of the correlation is wrong by 1e-4 in float32 and 1e-8 in float64.
    np.testing.assert_allclose(found, expected, rtol=tolerance)


def test_the_diagonal_is_exact_and_rows_swap():
    spec = ntk.FullyConnected(**DEEP)
    x = jnp.asarray(X, jnp.float32)
    found = kernel(spec, x, x)
    own = jax.jit(ntk.kernel_diagonal, static_argnums=0)(spec, x)
    for matrix, diagonal in zip(found, own, strict=True):
        np.testing.assert_allclose(jnp.diagonal(matrix), diagonal, rtol=1e-6)
        np.testing.assert_allclose(matrix, matrix.T, rtol=1e-6)
    # One hidden layer, no bias: |x|^2 / 2k and |x|^2 / k, but for rounding of |x|^2.
    simple = kernel(ntk.FullyConnected(), x, x)
    square = (np.float64(x) ** 2).sum(1) / 4
    np.testing.assert_allclose(jnp.diagonal(simple.nngp), square / 2, rtol=3e-7)
    np.testing.assert_allclose(jnp.diagonal(simple.ntk), square, rtol=3e-7)


@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_kernels_have_no_negative_eigenvalue(activation):
    x = np.concatenate([X, X[:2] + 1e-6, 3 * X[:2], -X[:2]])
    spec = ntk.FullyConnected(activation=activation, **DEEP)
    for matrix in in_float64(spec, x):
        values = np.linalg.eigvalsh(matrix)
        assert values[0] > -1e-13 * values[-1]


def test_order_of_features_and_rotations_change_nothing():
    spec = ntk.FullyConnected(**DEEP)
    base = in_float64(spec, X)
    rotation = np.linalg.qr(RNG.normal(size=(4, 4)))[0]
    for moved in (X[:, [2, 0, 3, 1]], X @ rotation):
        for ours, theirs in zip(in_float64(spec, moved), base, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    order = RNG.permutation(len(X))
    shuffled = in_float64(spec, X[order])
    np.testing.assert_allclose(shuffled.ntk, base.ntk[order][:, order], rtol=1e-12)


def test_relu_without_bias_scales_with_its_inputs():
    spec = ntk.FullyConnected(hidden_layers=2, weight_variance=1.3)
    base, scaled = in_float64(spec, X), in_float64(spec, 1e3 * X, X * 1e-3)
    np.testing.assert_allclose(scaled.nngp, base.nngp, rtol=1e-12)
    np.testing.assert_allclose(scaled.ntk, base.ntk, rtol=1e-12)
    # Entries whose squares leave the range of float32 keep their direction.
    huge = ntk.kernels.input_angles(jnp.full((1, 2), 1e30), jnp.ones((1, 2)))
    np.testing.assert_allclose(huge, 0, atol=1e-7)


def test_a_row_of_zeros_has_the_kernel_of_the_limit():
    rows = np.concatenate([np.zeros((1, 4)), X])
    found = in_float64(ntk.FullyConnected(hidden_layers=2), rows)
    assert not found.nngp[0].any() and not found.ntk[0].any()
    biased = ntk.FullyConnected(**DEEP)
    found, near = in_float64(biased, rows), in_float64(biased, rows + 1e-9)
    np.testing.assert_allclose(found.ntk, near.ntk, rtol=1e-7)


def member_kernels(key, x, width):
    """Kernels of one network of finite width, from its features: `[row, row']` each.

    What `jax.jacobian` gives for f = w2 relu(W1 x / sqrt(k)) / sqrt(n).
    """
    first, second = jax.random.split(key)
    w = jax.random.normal(first, (width, x.shape[1]))
    v = jax.random.normal(second, (width,))
    u = w @ x.T / np.sqrt(x.shape[1])
    features, slopes = jax.nn.relu(u), v[:, None] * (u > 0)
    nngp = features.T @ features / width
    return nngp, nngp + slopes.T @ slopes / width * (x @ x.T) / x.shape[1]


def narrow(key, x):
    return member_kernels(key, x, 8)


def wide(key, x):
    return member_kernels(key, x, 128)


def test_monte_carlo_kernels_converge_as_one_over_root_members_times_width():
    """Kernels averaged over M members of width n: error C / sqrt(M n), one C.

    Root mean squares over 16 repetitions and 21 entries; the slope over a factor of 64
    in M n is then good to about 0.05, and the constants of both widths to 20 percent.
    """
    x = jnp.asarray(X, jnp.float32)
    exact = kernel(ntk.FullyConnected(), x, x)
    entries = np.triu_indices(len(X))
    errors = {}
    for fn, width in ((narrow, 8), (wide, 128)):
        keys = jax.random.split(jax.random.key(width), 16 * 64)
        mesh = make_mesh(member=8)
        made = map_members(
            fn, kinds=("member", "shared"), out=("member",) * 2, mesh=mesh
        )
        for name, values, true in zip(
            ("nngp", "ntk"), made(keys, x), exact, strict=True
        ):
            values = np.asarray(values)[(slice(None), *entries)].reshape(16, 64, -1)
            for members in (1, 8, 64):
                off = values[:, :members].mean(1) - np.asarray(true)[entries]
                errors[name, members, width] = np.sqrt((off**2).mean())
    for name in ("nngp", "ntk"):
        points = [(m * n, e) for (kind, m, n), e in errors.items() if kind == name]
        products, sizes = np.log(np.array(points)).T
        slope = np.polyfit(products, sizes, 1)[0]
        assert abs(slope + 0.5) < 0.06, (name, slope)
        constants = sizes + products / 2
        assert np.ptp(constants) < 0.5, (name, np.exp(constants))


WIDTH, MIXED = 128, dict(hidden_layers=2, weight_variance=1.7, bias_variance=0.3)


def tangent_kernels(key, x):
    """Of one network of finite width, by autodiff: "ntk", "readout", "standard"."""
    weight, bias = MIXED["weight_variance"], MIXED["bias_variance"]
    sizes, layers = (x.shape[1], WIDTH, WIDTH, 1), []
    for number in range(3):
        fan_in, fan_out = sizes[number : number + 2]
        first, second = jax.random.split(jax.random.fold_in(key, number))
        w = jax.random.normal(first, (fan_in, fan_out))
        layers.append((w, jax.random.normal(second, (fan_out,))))
    scales = [(np.sqrt(weight / n), np.sqrt(bias)) for n in sizes[:3]]

    def apply(layers, scales):
        h = x
        for number, ((w, b), (of_w, of_b)) in enumerate(
            zip(layers, scales, strict=True)
        ):
            h = (jax.nn.relu(h) if number else h) @ w * of_w + b[None] * of_b
        return h[:, 0]

    def kernel_of(jacobian):
        flat = [leaf.reshape(len(x), -1) for leaf in jax.tree.leaves(jacobian)]
        return sum(leaf @ leaf.T for leaf in flat)

    inside = [tuple(p * s for p, s in zip(*pair)) for pair in zip(layers, scales)]
    of_ntk = jax.jacrev(apply)(layers, scales)
    of_standard = jax.jacrev(apply)(inside, [(1.0, 1.0)] * 3)
    scale = weight / WIDTH
    return kernel_of(of_ntk), kernel_of(of_ntk[2]), scale * kernel_of(of_standard)


@pytest.mark.slow
def test_tangent_kernels_of_networks_are_those_of_the_recursion():
    """400 networks with two hidden layers of width 128, biases, by autodiff.

    Five standard errors, and a shift of 2 / width for the finite width.
    """
    x = jnp.asarray(X[:3], jnp.float32)
    keys = jax.random.split(jax.random.key(5), 400)
    made = map_members(
        tangent_kernels,
        kinds=("member", "shared"),
        out=("member",) * 3,
        mesh=make_mesh(member=8),
    )(keys, x)
    for name, values in zip(("ntk", "readout", "standard"), made, strict=True):
        spec = ntk.FullyConnected(parameterisation=name, width=WIDTH, **MIXED)
        exact, values = np.asarray(kernel(spec, x, x).ntk), np.asarray(values)
        error = 5 * values.std(0) / np.sqrt(400) + 2 / WIDTH * np.abs(exact)
        assert (np.abs(values.mean(0) - exact) < error).all(), name
        assert error.max() < 0.1 * exact.max()  # it could fail


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)])
def test_rows_are_split_over_all_devices_without_a_collective(sizes):
    spec = ntk.FullyConnected(**DEEP)
    x = np.float32(RNG.normal(size=(32, 5)))
    mesh = make_mesh(member=sizes[0], data=sizes[1], model=sizes[2])
    found = ntk.kernel_blocks(spec, x, x[:7], block_rows=2, mesh=mesh)
    for ours, theirs in zip(found, kernel(spec, x, x[:7]), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-6)
        assert ours.addressable_shards[0].data.shape == (4, 7)
    program = mesh_program(_KernelBlocks(spec, 2), mesh)
    text = program.lower(x, x[:7]).compile().as_text()
    assert [c for c in read_collectives(text, sizes) if c.axes] == []


def test_blocks_need_memory_for_a_block_and_rows_may_be_any_number():
    spec = ntk.FullyConnected()
    x = np.float32(X)
    mesh = make_mesh(member=1)
    found = ntk.kernel_blocks(spec, x, block_rows=4, mesh=mesh)
    np.testing.assert_allclose(found.ntk, kernel(spec, x, x).ntk, rtol=2e-6)
    program, bytes_used = mesh_program(_KernelBlocks(spec, 16), mesh), []
    for rows in (256, 1024):
        like = jax.ShapeDtypeStruct((rows, 5), jnp.float32)
        other = jax.ShapeDtypeStruct((64, 5), jnp.float32)
        compiled = program.lower(like, other).compile()
        bytes_used.append(compiled.memory_analysis().temp_size_in_bytes)
    assert bytes_used[0] == bytes_used[1]


def test_bad_input_is_named():
    spec = ntk.FullyConnected()
    with pytest.raises(ValueError, match=r"x must be finite; rows 1, 3 of 4"):
        ntk.kernel(spec, np.array([[1.0], [np.nan], [0], [np.inf]]))
    with pytest.raises(ValueError, match=r"z must be \[row, feature\].*\(3,\)"):
        ntk.kernel(spec, X, np.ones(3))
    with pytest.raises(ValueError, match="x has 4 features and z has 3"):
        ntk.kernel(spec, X, np.ones((2, 3)))
    with pytest.raises(ValueError, match="real numbers"):
        ntk.kernel(spec, X + 1j)
    with pytest.raises(
        ValueError, match="block_rows must be a positive integer; got 0"
    ):
        ntk.kernel_blocks(spec, X, block_rows=0)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(hidden_layers=0), "hidden_layers must be a positive integer; got 0"),
        (dict(activation="rleu"), "known: relu, erf, identity"),
        (dict(weight_variance=0.0), "weight_variance must be positive"),
        (dict(bias_variance=-1.0), "bias_variance must be 0 or positive"),
        (dict(parameterisation="ntk2"), "known: ntk, readout, standard, mup"),
        (dict(width=0), "width must be a positive integer or None; got 0"),
        (dict(width=3.5), "width must be a positive integer or None; got 3.5"),
        (dict(width=True), "width must be a positive integer or None; got True"),
        (dict(activation=["relu"]), r"Unknown activation \['relu'\]"),
        (dict(weight_variance="2"), "weight_variance must be a real number; got '2'"),
        (dict(bias_variance=None), "bias_variance must be a real number; got None"),
    ],
)
def test_bad_networks_are_named(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        ntk.FullyConnected(**options)


def test_half_types_are_widened():
    x = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float16)
    expected = ntk.kernel(ntk.FullyConnected(2), x.astype(np.float32))
    for half in (x, jnp.asarray(x)):
        found = ntk.kernel(ntk.FullyConnected(2), half)
        assert found.ntk.dtype == jnp.float32
        np.testing.assert_array_equal(found.ntk, expected.ntk)


def test_variances_that_the_nodes_cannot_follow_are_warned_of():
    """erf at variance 100: the slope is off by a tenth with 128 nodes."""
    x = 10 * np.sqrt(3) * np.eye(3)
    closed = in_float64(ntk.FullyConnected(activation="erf"), x)
    few = ntk.FullyConnected(activation=ntk.dual(jax.lax.erf))
    message = "variance 100 of pre-act.*nodes=512 are enough"
    with jax.enable_x64(True), pytest.warns(UserWarning, match=message):
        found = ntk.kernel(few, x)
    assert abs(np.diag(found.ntk) / np.diag(closed.ntk) - 1).max() > 0.05
    for call in (ntk.kernel_blocks, ntk.kernel_diagonal):
        with pytest.warns(UserWarning, match="dual of erf with nodes=128 is off by"):
            call(few, x)
    with pytest.warns(UserWarning, match="is off by"):
        ntk.predictor(few, x, x)
    with pytest.warns(UserWarning, match="is off by"):
        few.dual.moments(100.0, 0.0, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        many = ntk.FullyConnected(activation=ntk.dual(jax.lax.erf, nodes=512))
        np.testing.assert_allclose(
            ntk.kernel(many, x).ntk, closed.ntk, rtol=1e-4, atol=1e-5
        )
        leaky = ntk.dual(jax.nn.leaky_relu, kinks=(0.0,))
        ntk.kernel(ntk.FullyConnected(activation=leaky), x)  # right at any variance
        ntk.kernel(few, np.eye(3))
