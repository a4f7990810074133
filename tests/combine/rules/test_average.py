"""Means of probabilities and of logits: known values and the properties of a pool."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp

from ensjax import combine
from ensjax.predictions import Predictions

RULES = pytest.mark.parametrize(
    "rule", [combine.mean_probs, combine.mean_logits], ids=lambda f: f.__name__
)
MEMBERS, ROWS, CLASSES = 5, 12, 3


def case(scale=2.0, seed=0):
    rng = np.random.default_rng(seed)
    return scale * rng.normal(size=(MEMBERS, ROWS, CLASSES))


def test_mean_probs_equals_the_float64_mixture():
    logits, weights = case(), np.arange(1.0, 6.0)
    log_probs = log_softmax(logits, axis=-1)
    share = (weights / weights.sum())[:, None, None]
    np.testing.assert_allclose(
        combine.mean_probs(logits, weights),
        logsumexp(log_probs, axis=0, b=share),
        atol=2e-6,
    )


def test_mean_logits_is_the_softmax_of_the_mean_and_the_geometric_mean():
    logits, weights = case(), np.arange(1.0, 6.0)
    mean = np.average(logits, axis=0, weights=weights)
    actual = combine.mean_logits(logits, weights)
    np.testing.assert_allclose(actual, log_softmax(mean, axis=-1), atol=2e-6)
    probs = np.exp(log_softmax(logits, axis=-1))
    geometric = np.prod(probs ** (weights / weights.sum())[:, None, None], axis=0)
    geometric /= geometric.sum(-1, keepdims=True)
    np.testing.assert_allclose(np.exp(actual), geometric, atol=1e-6)


def test_by_hand():
    logits = jnp.log(jnp.array([[[0.9, 0.1]], [[0.5, 0.5]]]))
    np.testing.assert_allclose(np.exp(combine.mean_probs(logits)), [[0.7, 0.3]], 1e-6)
    # sqrt(.45) : sqrt(.05) = 3 : 1
    np.testing.assert_allclose(
        np.exp(combine.mean_logits(logits)), [[0.75, 0.25]], rtol=1e-6
    )


@RULES
def test_one_member_is_itself_bit_for_bit(rule):
    logits = jnp.asarray(case()[:1])
    expected = jax.nn.log_softmax(logits[0], axis=-1)
    # mean_logits normalises once more, which may move the last bit.
    atol = 0 if rule is combine.mean_probs else 5e-7
    np.testing.assert_allclose(rule(logits), expected, rtol=0, atol=atol)


@RULES
def test_order_and_duplicates_of_all_members_change_nothing(rule):
    logits = case()
    np.testing.assert_allclose(rule(logits[::-1]), rule(logits), atol=1e-6)
    doubled = np.concatenate([logits, logits])
    np.testing.assert_allclose(rule(doubled), rule(logits), atol=1e-6)


@RULES
def test_identical_members_change_nothing(rule):
    logits = np.repeat(case()[:1], 7, axis=0)
    expected = jax.nn.log_softmax(jnp.asarray(logits[0]), axis=-1)
    np.testing.assert_allclose(rule(logits), expected, atol=2e-6)


@RULES
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_masked_member_is_a_removed_member_even_if_broken(rule, bad):
    logits, weights = case(), np.arange(1.0, 6.0)
    mask = np.array([True, False, True, True, False])
    broken = np.where(mask[:, None, None], logits, bad)
    expected = rule(logits[mask], weights[mask])
    np.testing.assert_allclose(rule(broken, weights, mask), expected, atol=1e-6)
    np.testing.assert_allclose(rule(broken, weights * mask), expected, atol=1e-6)
    said = Predictions.from_logits(broken, weights=weights, mask=mask)
    np.testing.assert_allclose(rule(said), expected, atol=1e-6)


@RULES
def test_masked_member_stays_removed_when_it_is_the_only_sure_one(rule):
    logits = np.array([[[0.0, -2e4]], [[-2e4, 0.0]]])
    actual = rule(logits, None, np.array([False, True]))
    np.testing.assert_allclose(actual, [[-2e4, 0.0]])


@RULES
def test_broken_member_that_counts_shows(rule):
    logits = case()
    logits[2, 4] = np.nan
    out = np.asarray(rule(logits))
    assert np.isnan(out[4]).all() and np.isfinite(np.delete(out, 4, axis=0)).all()


@RULES
def test_no_member_left_and_negative_weights_are_nan(rule):
    assert np.isnan(rule(case(), None, np.zeros(MEMBERS, bool))).all()
    assert np.isnan(rule(case(), np.array([1.0, -1.0, 1, 1, 1]))).all()


@RULES
def test_finite_and_normalised_at_logits_of_ten_thousand(rule):
    logits = 1e4 * np.sign(case())
    out = rule(logits)
    assert np.isfinite(out).all()
    np.testing.assert_allclose(np.exp(out).sum(-1), 1.0, atol=1e-5)


@RULES
def test_bfloat16_members_are_combined_in_float32(rule):
    logits = jnp.asarray(case(), jnp.bfloat16)
    out = rule(logits)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, rule(logits.astype(jnp.float32)), atol=1e-6)


@RULES
def test_vmap_over_seeds_equals_each_seed_alone(rule):
    logits = np.stack([case(seed=s) for s in range(3)])
    together = jax.jit(jax.vmap(rule))(logits)
    for i in range(3):
        np.testing.assert_allclose(together[i], rule(logits[i]), atol=1e-6)


@RULES
def test_shapes_without_a_member_axis_and_integers_are_refused(rule):
    with pytest.raises(ValueError, match="member, batch, class"):
        rule(jnp.zeros((3, 2)))
    with pytest.raises(TypeError, match="floating"):
        rule(jnp.zeros((3, 2, 2), int))
    with pytest.raises(ValueError, match="weights must be"):
        rule(jnp.zeros((3, 2, 2)), jnp.ones(2))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.01, 100.0))
def test_the_pool_lies_between_its_members(seed, scale):
    logits = case(scale, seed)
    members = np.exp(log_softmax(logits, axis=-1))
    pooled = np.exp(combine.mean_probs(logits))
    assert (pooled <= members.max(0) + 1e-6).all()
    assert (pooled >= members.min(0) - 1e-6).all()
