"""Duals: closed forms against integrals, and pairs that are nearly the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ensjax import ntk
from ensjax.ntk.duals import DualMoments

ANGLES = np.array([0, 1e-9, 1e-4, 0.1, 1.0, np.pi / 2, 2.5, np.pi - 1e-5, np.pi])
VARIANCES = np.array([0.0, 0.3, 1.0, 2.5])


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def on_grid(dual):
    """The moments for all pairs of variances and angles, `[u, v, angle]`."""
    u, v, angle = np.meshgrid(VARIANCES, VARIANCES, ANGLES, indexing="ij")
    found = jax.jit(dual.forward)(jnp.asarray(u), jnp.asarray(v), jnp.asarray(angle))
    return DualMoments(*map(np.asarray, found))


@pytest.fixture(scope="module")
def of_relu():
    with jax.enable_x64(True):
        return on_grid(ntk.relu)


def arc_cosine(u, v, angle):
    """Cho and Saul 2009, equation 6, halved for E over a Gaussian; the second slope."""
    rest = np.pi - angle
    product = np.sqrt(u * v) * (np.sin(angle) + rest * np.cos(angle)) / (2 * np.pi)
    return product, rest / (2 * np.pi)


def test_relu_is_the_arc_cosine_form(of_relu):
    u, v, angle = np.meshgrid(VARIANCES, VARIANCES, ANGLES, indexing="ij")
    product, slope = arc_cosine(u, v, angle)
    np.testing.assert_allclose(of_relu.product, product, atol=1e-15)
    np.testing.assert_allclose(of_relu.slope, slope, atol=1e-15)
    # Equal Gaussians: half of the variance and a half, to the last bit.
    np.testing.assert_array_equal(of_relu.product[2, 2, 0], 0.5)
    np.testing.assert_array_equal(of_relu.slope[..., 0], 0.5)


def test_the_integral_with_a_named_kink_is_the_arc_cosine_form(of_relu):
    found = on_grid(ntk.dual(jax.nn.relu, kinks=(0.0,)))
    np.testing.assert_allclose(found.product, of_relu.product, atol=1e-12)
    some = (slice(1, None), slice(1, None))  # the slope at variance 0 is a convention
    np.testing.assert_allclose(found.slope[some], of_relu.slope[some], atol=1e-12)
    np.testing.assert_allclose(found.angle[some], of_relu.angle[some], atol=1e-12)


def test_a_kink_that_is_not_named_costs_the_digits_that_the_docstring_says(of_relu):
    found = on_grid(ntk.dual(jax.nn.relu, rule="hermite"))
    error = np.abs(found.slope - of_relu.slope)[1:, 1:].max()
    assert 1e-3 < error < 5e-2


@pytest.mark.parametrize("rule", ["trapezoid", "hermite"])
def test_the_integral_is_the_erf_form(rule):
    found, expected = on_grid(ntk.dual(jax.lax.erf, rule=rule)), on_grid(ntk.erf)
    # Gauss-Hermite does not follow erf at variance 2.5; Williams 1997, equation 11.
    some = slice(None) if rule == "trapezoid" else slice(3)
    for ours, theirs in zip(found[:2], expected[:2], strict=True):
        assert np.abs(ours - theirs)[some, some].max() < 1e-8
    u, v, angle = np.meshgrid(VARIANCES, VARIANCES, ANGLES, indexing="ij")
    sine = 2 * np.sqrt(u * v) * np.cos(angle) / np.sqrt((1 + 2 * u) * (1 + 2 * v))
    np.testing.assert_allclose(expected.product, 2 / np.pi * np.arcsin(sine), atol=3e-8)
    apart = np.abs(ANGLES - np.pi / 2) < 1.5  # where the arcsin keeps its digits
    np.testing.assert_allclose(
        expected.product[..., apart],
        2 / np.pi * np.arcsin(sine)[..., apart],
        atol=1e-14,
    )


def test_kinks_away_from_zero():
    """The slope of hard tanh is the chance that both Gaussians are in (-1, 1)."""
    hard = ntk.dual(jax.nn.hard_tanh, kinks=(-1.0, 1.0))
    found = hard.moments(1.0, 0.6, 1.7)
    normal = scipy.stats.multivariate_normal(cov=[[1.0, 0.6], [0.6, 1.7]])
    inside = normal.cdf([1, 1], lower_limit=[-1, -1], rng=0)
    assert abs(found.slope - inside) < 1e-7  # what the reference is good for
    # d E[phi phi] / d covariance is the slope (Price 1958).
    step = 1e-4
    more, less = (hard.moments(1.0, 0.6 + s, 1.7).product for s in (step, -step))
    assert abs((more - less) / (2 * step) - found.slope) < 1e-7


def test_leaky_relu_is_a_mixture_of_the_identity_and_relu(of_relu):
    found = on_grid(ntk.dual(jax.nn.leaky_relu, kinks=(0.0,)))
    linear, slope = on_grid(ntk.identity), 0.01
    # phi = slope x + (1 - slope) relu(x), and E[x relu(y)] = E[x y] / 2.
    product = (slope**2 + slope * (1 - slope)) * linear.product
    product += (1 - slope) ** 2 * of_relu.product
    np.testing.assert_allclose(found.product, product, atol=1e-12)


@pytest.mark.parametrize("dual", [ntk.relu, ntk.dual(jax.nn.relu, kinks=(0.0,))])
def test_the_next_angle_keeps_its_digits(dual):
    """1 - cos of the next angle is t^2 / 2 - t^3 / (3 pi) + O(t^5) for a small t."""
    small = np.array([1e-7, 1e-5, 1e-3])
    ones = jnp.ones(3)
    angle = np.asarray(dual.forward(ones, ones, jnp.asarray(small)).angle)
    expected = small * np.sqrt(1 - 2 * small / (3 * np.pi))
    np.testing.assert_allclose(angle, expected, rtol=1e-6)


def test_moments_from_a_covariance():
    found = ntk.relu.moments(4.0, 1.0, 1.0)
    product, slope = arc_cosine(4.0, 1.0, np.arccos(0.5))
    np.testing.assert_allclose([found.product, found.slope], [product, slope])
    assert ntk.relu.moments(0.0, 0.0, 1.0).product == 0


def test_what_is_no_activation_is_refused():
    with pytest.raises(ValueError, match="got k11 1, k12 2, k22 1"):
        ntk.relu.moments([1.0, 1.0], [0.5, 2.0], 1.0)
    with pytest.raises(TypeError, match="elementwise"):
        ntk.dual(lambda x: x.sum())
    with pytest.raises(ValueError, match="not finite between -4 and 4"):
        ntk.dual(jnp.log)
    with pytest.raises(ValueError, match="kinks must be finite"):
        ntk.dual(jax.nn.relu, kinks=(np.nan,))
    with pytest.raises(ValueError, match="trapezoid, hermite"):
        ntk.dual(jnp.tanh, rule="simpson")
    with pytest.raises(ValueError, match="at least 4; got 2"):
        ntk.dual(jnp.tanh, nodes=2)
