"""The trained ensemble's mean and covariance, against NumPy and trained networks."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from ensjax import make_mesh, ntk
from ensjax.mapping import map_members

RNG = np.random.default_rng(1)
X_TRAIN, X_TEST = RNG.normal(size=(5, 3)), RNG.normal(size=(4, 3))
TARGETS = RNG.normal(size=(5, 2))
SPEC = ntk.FullyConnected(hidden_layers=2, weight_variance=1.5, bias_variance=0.1)


@pytest.fixture(scope="module")
def float64():
    """Solved once: the predictor, and its kernels as NumPy arrays."""
    with jax.enable_x64(True):
        predictor = ntk.predictor(SPEC, X_TRAIN, X_TEST)
        kernel = jax.jit(ntk.kernel, static_argnums=0)
        both = np.concatenate([X_TRAIN, X_TEST])
        kernels = [np.asarray(k) for k in kernel(SPEC, both, both)]
    return predictor, *kernels


def expected(kernels, learnt):
    """Mean and covariance by the formulas of Lee et al. 2019, equations 14 to 16."""
    nngp, tangent = kernels
    train, test = slice(0, 5), slice(5, None)
    w = tangent[test, train] @ learnt(tangent[train, train])
    shared = w @ nngp[train, test]
    spread = w @ nngp[train, train] @ w.T
    return w @ TARGETS, nngp[test, test] + spread - shared - shared.T


def flow(t):
    def learnt(k):
        return (np.eye(len(k)) - scipy.linalg.expm(-t * k)) @ np.linalg.inv(k)

    return learnt


def descent(steps, rate):
    def learnt(k):
        left = np.linalg.matrix_power(np.eye(len(k)) - rate * k, steps)
        return (np.eye(len(k)) - left) @ np.linalg.inv(k)

    return learnt


@pytest.mark.parametrize(
    "schedule, learnt",
    [
        ({}, np.linalg.inv),
        (dict(time=0.8), flow(0.8)),
        (dict(time=4.0, learning_rate=0.2), flow(0.8)),
        (dict(steps=0), descent(0, 1.0)),
        (dict(steps=7, learning_rate=0.2), descent(7, 0.2)),
        (dict(steps=8, learning_rate=0.35), descent(8, 0.35)),
    ],
)
def test_mean_and_covariance_are_those_of_numpy(float64, schedule, learnt):
    predictor, *kernels = float64
    with jax.enable_x64(True), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one rate is above critical
        mean = ntk.mean(predictor, TARGETS, **schedule)
        covariance = ntk.covariance(predictor, **schedule)
        variance = ntk.variance(predictor, **schedule)
    of_mean, of_covariance = expected(kernels, learnt)
    np.testing.assert_allclose(mean, of_mean, atol=1e-11)
    np.testing.assert_allclose(covariance, of_covariance, atol=1e-11)
    np.testing.assert_allclose(variance, np.diag(of_covariance), atol=1e-11)


def test_long_training_converges_and_none_is_the_prior(float64):
    predictor, nngp, _ = float64
    smallest = float(predictor.eigenvalues[0])
    with jax.enable_x64(True):
        at_once = ntk.mean(predictor, TARGETS)
        late = ntk.mean(predictor, TARGETS, time=40 / smallest)
        prior = ntk.covariance(predictor, time=0.0)
    np.testing.assert_allclose(late, at_once, atol=1e-10)
    np.testing.assert_array_equal(prior, nngp[5:, 5:])


def test_little_of_a_mode_is_learnt_with_all_its_digits():
    """1 - (1 - r l)^s for r l = 1e-6, in float32: a difference of ones would be off."""
    train = ntk.Kernels(*(jnp.diag(jnp.asarray([1e-6, 0.5])),) * 2)
    cross = ntk.Kernels(*(jnp.eye(2),) * 2)
    predictor = ntk.predictor_of_kernels(train, cross, jnp.eye(2))
    found = ntk.weights(predictor, steps=3)
    np.testing.assert_allclose(jnp.diagonal(found), [3 - 3e-6, 1.75], rtol=1e-6)
    found = ntk.weights(predictor, time=2.0)
    want = [2 - 2e-6, (1 - np.exp(-1)) / 0.5]
    np.testing.assert_allclose(jnp.diagonal(found), want, rtol=1e-6)


def test_rates():
    eigenvalues = np.array([0.5, 1.0, 2.0])
    critical = float(ntk.critical_learning_rate(eigenvalues))
    assert critical == pytest.approx(0.8)
    steps = ntk.steps_to(1e-3, eigenvalues)
    # Every mode's error is below 1e-3 of its first after so many steps, and not before.
    left = np.abs(1 - critical * eigenvalues)
    assert (left**steps).max() <= 1e-3 < (left ** (steps - 1)).max()
    assert ntk.steps_to(1e-3, eigenvalues, 0.1) > steps
    assert ntk.steps_to(0.5, np.array([2.0, 2.0])) == 1
    with pytest.raises(ValueError, match="below 2 / .largest eigenvalue. = 1"):
        ntk.steps_to(1e-3, eigenvalues, 1.0)
    with pytest.raises(ValueError, match="residual must be between 0 and 1; got 1"):
        ntk.steps_to(1.0, eigenvalues)
    with pytest.raises(ValueError, match="learning_rate must be positive; got 0"):
        ntk.steps_to(0.1, eigenvalues, 0.0)


def test_a_rate_above_critical_warns_with_the_critical_rate(float64):
    predictor, *_ = float64
    values = np.asarray(predictor.eigenvalues)
    critical, largest = 2 / (values[0] + values[-1]), 2 / values[-1]
    with jax.enable_x64(True):
        between = (critical + largest) / 2
        with pytest.warns(UserWarning, match=f"critical {critical:.6g}.*is slower"):
            ntk.mean(predictor, TARGETS, steps=3, learning_rate=between)
        with pytest.warns(UserWarning, match=f"diverges; it.*from {largest:.6g} on"):
            ntk.covariance(predictor, steps=3, learning_rate=2 * largest)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ntk.mean(predictor, TARGETS, steps=3, learning_rate=critical)
            ntk.mean(predictor, TARGETS, time=3.0, learning_rate=2 * largest)


def test_it_traces_with_time_and_steps_as_arguments(float64):
    predictor, *_ = float64
    with jax.enable_x64(True):
        means = jax.jit(jax.vmap(lambda t: ntk.mean(predictor, TARGETS, time=t)))(
            jnp.asarray([0.1, 0.8])
        )
        after = jax.jit(
            lambda s: ntk.mean(predictor, TARGETS, steps=s, learning_rate=0.35)
        )
        odd, even = after(7), after(8)
        np.testing.assert_allclose(
            means[1], ntk.mean(predictor, TARGETS, time=0.8), rtol=1e-12
        )
    kernels = float64[1:]
    np.testing.assert_allclose(odd, expected(kernels, descent(7, 0.35))[0], rtol=1e-9)
    np.testing.assert_allclose(even, expected(kernels, descent(8, 0.35))[0], rtol=1e-9)


WIDTH, RATE, STEPS = 256, 1.2, 6


def trained(key, x, y, x_test, parameterisation):
    """Outputs of a two-layer network of width 256 after some steps, `[row, output]`.

    Written apart from the library: plain gradient descent on half the squared errors.
    """
    first, second = jax.random.split(key)
    params = {
        "w": jax.random.normal(first, (x.shape[1], WIDTH)),
        "v": jax.random.normal(second, (WIDTH, y.shape[1])),
    }

    def apply(params, x):
        w = params["w"]
        if parameterisation == "readout":
            w = jax.lax.stop_gradient(w)
        return jax.nn.relu(x @ w / np.sqrt(x.shape[1])) @ params["v"] / np.sqrt(WIDTH)

    def step(params, _):
        grads = jax.grad(lambda p: jnp.sum((apply(p, x) - y) ** 2) / 2)(params)
        return jax.tree.map(lambda p, g: p - RATE * g, params, grads), None

    params, _ = jax.lax.scan(step, params, length=STEPS)
    return apply(params, x_test)


trained_ntk = functools.partial(trained, parameterisation="ntk")
trained_readout = functools.partial(trained, parameterisation="readout")


@pytest.mark.parametrize(
    "fn, name", [(trained_ntk, "ntk"), (trained_readout, "readout")]
)
def test_trained_networks_of_finite_width_follow_the_law(fn, name):
    """800 networks of width 256 after 6 steps of gradient descent on 3 basis vectors.

    Bounds are four standard errors and what width 256 may shift, about 3 / width of
    numbers near 1 in means; 0.5 / width in variances, which are near 0.1.
    """
    x, x_test = np.eye(3, dtype=np.float32), np.tril(np.ones((3, 3), np.float32))
    keys = jax.random.split(jax.random.key(2), 800)
    train = map_members(
        fn, kinds=("member", "shared", "shared", "shared"), mesh=make_mesh(member=8)
    )
    outputs = np.asarray(train(keys, x, x, x_test))
    predictor = ntk.predictor(ntk.FullyConnected(parameterisation=name), x, x_test)
    schedule = dict(steps=STEPS, learning_rate=RATE)
    mean, variance = (
        ntk.mean(predictor, x, **schedule),
        ntk.variance(predictor, **schedule),
    )
    error = 4 * np.sqrt(np.asarray(variance)[:, None] / 800) + 3 / WIDTH
    assert (np.abs(outputs.mean(0) - mean) < error).all()
    # The three outputs have one variance. A network of finite width is not quite
    # certain of training rows either: its kernel varies.
    found = outputs.var(0).mean(1)
    error = 4 * np.sqrt(2 / (3 * 800)) * np.asarray(variance) + 0.5 / WIDTH
    assert (np.abs(found - variance) < error).all()


def test_bad_input_is_named():
    zero = np.concatenate([np.eye(3), np.zeros((1, 3))])
    plain = ntk.FullyConnected()
    with pytest.raises(ValueError, match="Training row 3 is zero"):
        ntk.predictor(plain, zero, X_TEST)
    again = np.concatenate([X_TRAIN, X_TRAIN[1:2]])
    with pytest.raises(ValueError, match="rows 1 and 5 are equal .1 repeated in all"):
        ntk.predictor(SPEC, again, X_TEST)
    parallel = np.concatenate([np.eye(3), 2 * np.eye(3)])
    with pytest.raises(
        ValueError, match="singular in float32.* rows [012] and [345] are most alike"
    ):
        ntk.predictor(plain, parallel, X_TEST)
    with pytest.raises(ValueError, match="x_test must be finite; rows 0 of 1"):
        ntk.predictor(plain, np.eye(3), np.full((1, 3), np.inf))
    mup = ntk.FullyConnected(parameterisation="mup")
    with pytest.raises(ValueError, match="features move during training"):
        ntk.predictor(mup, np.eye(3), X_TEST)
    kernels = ntk.Kernels(np.eye(3), np.eye(3))
    with pytest.raises(ValueError, match=r"cross.nngp must be of shape \(2, 3\)"):
        ntk.predictor_of_kernels(
            kernels, ntk.Kernels(np.ones((3, 3)), np.ones((2, 3))), np.eye(2)
        )
    cross = ntk.Kernels(*(np.ones((2, 3)),) * 2)
    with pytest.raises(
        ValueError, match="train.ntk must be finite; rows 2 of 3 are not"
    ):
        ntk.predictor_of_kernels(
            ntk.Kernels(np.eye(3), np.diag([1, 2, np.nan])), cross, np.eye(2)
        )
    predictor = ntk.predictor_of_kernels(kernels, cross, np.eye(2))
    with pytest.raises(ValueError, match=r"with 3 rows; got \(2, 1\)"):
        ntk.mean(predictor, np.ones((2, 1)))
    with pytest.raises(ValueError, match="targets must be finite; rows 0, 1, 2 of 3"):
        ntk.mean(predictor, np.full((3, 1), np.nan))
    with pytest.raises(ValueError, match="learning_rate must be positive; got 0"):
        ntk.mean(predictor, np.ones((3, 1)), steps=1, learning_rate=0.0)
    with pytest.raises(ValueError, match="not both"):
        ntk.variance(predictor, steps=1, time=1.0)
    with pytest.raises(ValueError, match="time must be 0 or positive; got -1"):
        ntk.variance(predictor, time=-1.0)
    square = np.array([[2.0, 1.0], [0.5, 2.0]])
    cross = ntk.Kernels(np.ones((1, 2)), np.ones((1, 2)))
    for train, test, message in (
        (
            ntk.Kernels(np.eye(2), square),
            np.eye(1),
            "train.ntk must be symmetric",
        ),
        (ntk.Kernels(square, np.eye(2)), np.eye(1), "train.nngp must be symmetric"),
    ):
        with pytest.raises(ValueError, match=message):
            ntk.predictor_of_kernels(train, cross, test)


def test_the_order_of_eigenvalues_does_not_matter():
    values = np.array([0.5, 3.0, 1.0])
    assert float(ntk.critical_learning_rate(values)) == pytest.approx(2 / 3.5)
    assert ntk.steps_to(1e-3, values) == ntk.steps_to(1e-3, np.sort(values))


@pytest.mark.parametrize(
    "fn", [ntk.critical_learning_rate, functools.partial(ntk.steps_to, 0.1)]
)
def test_rates_need_the_eigenvalues_of_a_kernel(fn):
    with pytest.raises(ValueError, match=r"at least one; got shape \(0,\)"):
        fn([])
    with pytest.raises(
        ValueError, match=r"shape \(5, 5\). Those of a kernel matrix are"
    ):
        fn(ntk.kernel(ntk.FullyConnected(), np.eye(5)).ntk)
    with pytest.raises(ValueError, match="must be positive; got -1 to 2"):
        fn([2.0, -1.0])
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match="must be positive; got 1 to"):
            fn([value, 1.0])
    with pytest.raises(ValueError, match=r"got shape \(\)"):
        jax.jit(ntk.critical_learning_rate)(1.0)
    assert jax.jit(ntk.critical_learning_rate)(np.ones(2)) == 1


def test_a_row_of_zeros_is_learnt_where_the_activation_is_not_0_there():
    spec = ntk.FullyConnected(activation=ntk.dual(jax.nn.softplus))
    x = np.array([[0.0, 0.0], [1.0, 0.0]], np.float32)
    assert float(ntk.kernel(spec, x).nngp[0, 0]) == pytest.approx(np.log(2) ** 2)
    assert ntk.mean(ntk.predictor(spec, x, x), np.eye(2)).shape == (2, 2)
    with pytest.raises(ValueError, match="Training row 0 is zero"):
        ntk.predictor(ntk.FullyConnected(), x, x)


def test_a_critical_rate_needs_no_mode_above_zero():
    """A singular kernel has zeros, or by rounding less: its rate is defined."""
    assert ntk.critical_learning_rate([0.0, 1.0, 2.0]) == 1.0
    np.testing.assert_allclose(ntk.critical_learning_rate([-1e-9, 1.0, 2.0]), 1.0)
    for wrong in ([-1.0, 2.0], [0.0, 0.0], [np.nan, 1.0]):
        with pytest.raises(ValueError, match="eigenvalues must be"):
            ntk.critical_learning_rate(wrong)
    with pytest.raises(ValueError, match="never learnt"):
        ntk.steps_to(0.1, [0.0, 1.0])
