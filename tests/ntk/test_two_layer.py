"""Closed forms of permutation learning, against kernel algebra and the card."""

import warnings

import jax
import numpy as np
import pytest
import scipy.linalg

from ensjax import ntk
from ensjax.ntk import two_layer

KINDS = ["ntk", "readout"]


def kernels(x, z, kind):
    """K and T of the card, as written there, in float64 NumPy."""
    k = x.shape[1]
    lengths = np.sqrt((x**2).sum(1))[:, None] * np.sqrt((z**2).sum(1))[None]
    theta = np.arccos(np.clip(x @ z.T / lengths, -1, 1))
    rest = np.pi - theta
    nngp = lengths * (np.sin(theta) + rest * np.cos(theta)) / (2 * np.pi * k)
    return nngp, nngp + x @ z.T * rest / (2 * np.pi * k) if kind == "ntk" else nngp


def solve(k, kind, learnt):
    """Weights, means and covariance for inputs of 1 ... k ones, by kernel algebra.

    Args:
        learnt: `learnt(T) -> [train, train]`, what is learnt times the inverse of T.
    """
    x, train = np.tril(np.ones((k, k))), np.eye(k)
    nngp, tangent = kernels(train, train, kind)
    cross, cross_tangent = kernels(x, train, kind)
    w = cross_tangent @ learnt(tangent)
    covariance = kernels(x, x, kind)[0] + w @ nngp @ w.T - w @ cross.T - cross @ w.T
    return x, w, covariance


SCHEDULES = {
    "converged": ({}, np.linalg.inv),
    "flow": (
        dict(time=7.0, learning_rate=2.0),
        lambda t: (np.eye(len(t)) - scipy.linalg.expm(-14 * t)) @ np.linalg.inv(t),
    ),
    "descent": (
        dict(steps=5, learning_rate=0.9),
        lambda t: (
            (np.eye(len(t)) - np.linalg.matrix_power(np.eye(len(t)) - 0.9 * t, 5))
            @ np.linalg.inv(t)
        ),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 5, 10, 30])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_closed_form_is_kernel_algebra_for_every_number_of_ones(k, kind, schedule):
    """Replication A of the card: below 1e-8 in float64."""
    options, learnt = SCHEDULES[schedule]
    x, w, covariance = solve(k, kind, learnt)
    m = np.arange(1, k + 1)
    law = two_layer.law(k, m, kind=kind, **options)
    assert law.on_one.dtype == np.float64 and law.on_one.shape == (k,)
    expected = np.where(x > 0, law.on_one[:, None], law.on_zero[:, None])
    assert np.abs(w - expected).max() < 1e-12
    assert np.abs(np.diag(covariance) - law.variance).max() < 1e-12
    both = np.minimum(m[:, None], m[None])
    found = two_layer.covariance(k, m[:, None], m[None], both, kind=kind, **options)
    # theta near 0 from an arccos, in the reference, has half of the digits
    assert np.abs(found - covariance).max() < 1e-9


@pytest.mark.parametrize("k, kind", [(5, "ntk"), (10, "readout"), (30, "ntk")])
def test_closed_form_is_the_predictor(k, kind):
    spec = ntk.FullyConnected(parameterisation=kind)
    m = np.arange(1, k + 1)
    law = two_layer.law(k, m, kind=kind)
    x = np.tril(np.ones((k, k)))
    expected = np.where(x > 0, law.on_one[:, None], law.on_zero[:, None])
    with jax.enable_x64(True):
        predictor = ntk.predictor(spec, np.eye(k), x)
        assert np.abs(ntk.mean(predictor, np.eye(k)) - expected).max() < 1e-12
        assert np.abs(ntk.variance(predictor) - law.variance).max() < 1e-12
        eigenvalues = np.asarray(predictor.eigenvalues)
        np.testing.assert_allclose(
            eigenvalues[[0, -1]], two_layer.spectrum(k, kind=kind), rtol=1e-12
        )
    if k < 30:
        return
    # float32: about 50 roundings of numbers near 1, and still a thousandth of f0.
    predictor = ntk.predictor(spec, np.eye(k, dtype=np.float32), np.float32(x))
    assert np.abs(ntk.mean(predictor, np.eye(k)) - expected).max() < 6e-6
    assert np.abs(ntk.variance(predictor) - law.variance).max() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_training_inputs_are_learned_and_certain(kind):
    law = two_layer.law([2, 7, 1000], 1, kind=kind)
    np.testing.assert_allclose(law.on_one, 1, atol=1e-12)
    np.testing.assert_allclose(law.on_zero, 0, atol=1e-12)
    np.testing.assert_allclose(law.variance, 0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_signs_are_right_and_the_gap_does_not_depend_on_k(kind):
    k, m = np.meshgrid(np.arange(2, 100), np.arange(2, 100), indexing="ij")
    law = two_layer.law(k[m <= k], m[m <= k], kind=kind)
    assert (law.on_zero < 0).all() and (law.on_one > 0).all()
    gaps = two_layer.law([10, 100, 10_000], 2, kind=kind)
    np.testing.assert_allclose(np.ptp(gaps.on_one - gaps.on_zero), 0, atol=1e-13)


# The paper's stored predictions lie near the readout law; these are the laws of the
# card, m = 2: f1, f0 and variance.
PUBLISHED = {
    ("ntk", 5): (0.793, -0.021, 0.0265),
    ("ntk", 10): (0.800, -0.0139, 0.0130),
    ("ntk", 14): (0.8025, -0.0110, 0.0093),
    ("readout", 5): (0.851, -0.056, 0.0258),
    ("readout", 10): (0.874, -0.0329, 0.0126),
    ("readout", 14): (0.8821, -0.0247, 0.0089),
}


@pytest.mark.parametrize("kind, k", PUBLISHED)
def test_the_numbers_of_the_card(kind, k):
    law = {"ntk": ntk.ntk_law, "readout": ntk.readout_law}[kind](k, 2)
    found = (law.on_one, law.on_zero, law.variance)
    np.testing.assert_allclose(found, PUBLISHED[kind, k], atol=6e-4)


@pytest.mark.parametrize(
    "kind, zero, variance, ratio",
    [
        ("ntk", -0.213, 0.127, 2.8),
        ("readout", -0.399, 0.121, 0.76),
    ],
)
def test_limits(kind, zero, variance, ratio):
    limits = two_layer.limits(kind)
    assert abs(limits.zero_of_two - zero) < 1e-3
    assert abs(limits.variance_of_two - variance) < 1e-3
    assert abs(limits.ratio_of_two / ratio - 1) < 0.01
    k = 10**6
    two = two_layer.law(k, 2, kind=kind)
    np.testing.assert_allclose(k * two.on_zero, limits.zero_of_two, rtol=1e-4)
    np.testing.assert_allclose(k * two.variance, limits.variance_of_two, rtol=1e-4)
    # What is left falls as pi / sqrt(k) here.
    ones = two_layer.law(10**8, 10**8, kind=kind)
    np.testing.assert_allclose(1e4 * ones.on_one, limits.one_of_all, rtol=4e-4)
    np.testing.assert_allclose(ones.variance, limits.variance_of_all, rtol=4e-4)


def test_steps_of_the_pilot():
    eigenvalues = np.array(two_layer.spectrum(8, kind="ntk"))
    critical = float(ntk.critical_learning_rate(eigenvalues))
    assert ntk.steps_to(1e-5, eigenvalues, 0.9 * critical) == 17
    eigenvalues = np.array(two_layer.spectrum(8, kind="readout"))
    critical = float(ntk.critical_learning_rate(eigenvalues))
    assert ntk.steps_to(1e-5, eigenvalues, 0.9 * critical) == 31


def test_what_is_no_input_is_refused():
    with pytest.raises(ValueError, match="from 1 to num_bits"):
        ntk.ntk_law(5, 6)
    with pytest.raises(ValueError, match="the input 0 has no direction"):
        ntk.ntk_law(5, 0)
    with pytest.raises(ValueError, match="whole numbers"):
        ntk.ntk_law(5.5, 2)
    with pytest.raises(ValueError, match="num_bits must be at least 1"):
        ntk.ntk_law(0, 0)
    with pytest.raises(ValueError, match="known: ntk, readout"):
        two_layer.law(5, 2, kind="standard")
    with pytest.raises(ValueError, match="share 3"):
        two_layer.covariance(5, 2, 3, 3, kind="ntk")
    with pytest.raises(ValueError, match="not both"):
        two_layer.law(5, 2, kind="ntk", time=1.0, steps=1)
    with pytest.raises(ValueError, match="learning_rate must be positive; got -1"):
        two_layer.law(5, 2, kind="ntk", time=1.0, learning_rate=-1.0)
    with pytest.warns(UserWarning, match="above the critical .*diverges from"):
        two_layer.law(5, 2, kind="ntk", steps=3, learning_rate=100.0)
    with pytest.raises(ValueError, match="steps must be whole numbers; got 2.5"):
        two_layer.law(5, 2, kind="ntk", steps=2.5)
    with pytest.raises(ValueError, match="overlap must be whole numbers; got 0.5"):
        two_layer.covariance(5, 2, 2, 0.5, kind="ntk")


def test_every_k_has_a_critical_rate_of_its_own():
    sizes, rates = np.array([1, 4, 16]), []
    for k in sizes:
        ends = np.array(two_layer.spectrum(k, kind="ntk"))[1 if k == 1 else 0 :]
        rates.append(float(ntk.critical_learning_rate(ends)))
    assert rates[0] < rates[1] < rates[2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        two_layer.law(sizes, 1, kind="ntk", steps=3, learning_rate=0.99 * rates[0])
        # Each below its own, the last above that of the others.
        two_layer.law(
            sizes, 1, kind="ntk", steps=3, learning_rate=0.99 * np.array(rates)
        )
    rate = 1.01 * rates[1]
    message = rf"critical {rates[0]:.6g} for k = 1 \(2 of 3 are above theirs\)"
    with pytest.warns(UserWarning, match=message):
        two_layer.law(sizes, 1, kind="ntk", steps=3, learning_rate=rate)
