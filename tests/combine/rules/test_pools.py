"""Weights by entropy are those of their definition."""

import numpy as np

from ensjax import combine


def test_entropy_weights_equal_a_float64_loop():
    rng = np.random.default_rng(0)
    logits = (3 * rng.normal(size=(4, 7, 3))).astype(np.float32)
    logits[0, 0] = [0, -np.inf, -np.inf]  # sure: 0 log 0 is 0
    weights = np.array([1.0, 2.0, 0.5, 3.0], np.float32)
    mask = np.ones((4, 7), bool)
    mask[3], mask[1, 2:4] = False, False
    strength = 2.5
    expected = np.zeros((4, 7))
    for row in range(7):
        for member in range(4):
            if not mask[member, row]:
                continue
            probs = np.exp(logits[member, row].astype(float))
            probs /= probs.sum()
            entropy = -sum(p * np.log(p) for p in probs if p > 0)
            expected[member, row] = weights[member] * np.exp(-strength * entropy)
        expected[:, row] /= expected[:, row].sum()
    broken = np.where(mask[..., None], logits, np.nan)
    found = combine.entropy_weights(broken, weights, mask, strength=strength)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-7)
    # Without strength the weights are as they were.
    found = combine.entropy_weights(broken, weights, mask, strength=0.0)
    kept = weights[:, None] * mask
    np.testing.assert_allclose(found, kept / kept.sum(axis=0), rtol=1e-6)
    # A strength that leaves none but the surest member underflows nowhere.
    found = np.asarray(combine.entropy_weights(logits[:2], strength=1e4))
    np.testing.assert_allclose(found.sum(axis=0), 1, rtol=1e-6)
    assert found[0, 0] == 1
