"""The middle of the members' values where one of them is infinite."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from ensjax import combine

INF = np.inf
CASES = [
    # (rule, values, expected)
    (functools.partial(combine.trimmed_points, share=0.25), [1, 2, 3, INF], 2.5),
    (functools.partial(combine.trimmed_points, share=0.25), [-INF, 2, 3, INF], 2.5),
    # A fifth of five, of which cumulative sums in float32 leave a rest.
    (functools.partial(combine.trimmed_points, share=0.2), [1, 2, 3, 4, INF], 3.0),
    (functools.partial(combine.trimmed_points, share=0.1), [1, 2, 3, INF], INF),
    (functools.partial(combine.winsorized_points, share=0.25), [1, 2, 3, INF], 2.5),
    # Three are within reach: 6 + k s = 3 mu, with s = 1.4826 times the MAD of 1.
    (combine.huber_points, [1, 2, 3, INF], (6 + 1.345 * 1.4826) / 3),
    (combine.huber_points, [-INF, 1, 2, 3], (6 - 1.345 * 1.4826) / 3),
    (combine.median_points, [1, 2, 3, INF], 2.5),
]


@pytest.mark.parametrize("rule, values, expected", CASES)
def test_a_member_at_infinity_is_cut_off_or_pulls_as_the_rule_says(
    rule, values, expected
):
    column = jnp.asarray(values, jnp.float32)[:, None]
    np.testing.assert_allclose(rule(column), [expected], rtol=1e-6)
    np.testing.assert_allclose(rule(column[::-1]), [expected], rtol=1e-6)


@pytest.mark.parametrize(
    "rule",
    [combine.trimmed_points, combine.winsorized_points, combine.huber_points],
)
def test_infinities_on_both_sides_of_one_that_is_masked_leave_no_nan(rule):
    values = jnp.array([[INF], [INF], [INF], [1.0], [jnp.nan]])
    mask = jnp.array([True, True, True, False, False])
    assert float(rule(values, mask=mask)[0]) == INF
    assert np.isnan(rule(values, mask=jnp.array([True] * 4 + [True]))).all()
