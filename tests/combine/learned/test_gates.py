"""The gate of each member for itself is the logistic function."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit

from ensjax import combine


def test_sigmoid_gates_open_one_by_one_and_close_under_a_penalty():
    scores = np.array([[-60.0, -1.5, 0.0], [0.3, 2.0, 60.0]], np.float32)
    found = combine.sigmoid_gate(scores)
    np.testing.assert_allclose(found, expit(scores.astype(float)), rtol=1e-6)
    # No member's weight depends on another's, and one that does not count has none.
    mask = np.array([True, False, True])
    found = combine.sigmoid_gate(np.where(mask, scores, np.nan), mask)
    np.testing.assert_allclose(found, expit(scores.astype(float)) * mask, rtol=1e-6)

    def loss(scores):
        # Member 0 alone says what the target, 1, is; weights cost 0.1 each.
        weights = combine.sigmoid_gate(scores)
        return (weights[0] - 1.0) ** 2 + 0.1 * jnp.sum(weights)

    start = jnp.zeros(3)
    slope = jax.grad(loss)(start)
    # s' = 1/4 at 0: (2 (1/2 - 1) + 0.1) / 4 opens it, 0.1 / 4 closes the others.
    np.testing.assert_allclose(slope, [-0.225, 0.025, 0.025], rtol=1e-5)
