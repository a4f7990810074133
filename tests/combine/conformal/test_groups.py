"""Conformal quantiles by group are those of each group's rows alone."""

import math

import numpy as np
import pytest

from ensjax import combine


def test_quantiles_by_group_equal_a_loop_over_groups():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 9, 60).astype(np.float32)  # with ties
    groups = rng.integers(0, 4, 60)
    groups[groups == 3] = rng.choice([-1, 7])  # of no group: they do not count
    row_mask = rng.uniform(size=60) < 0.8
    few = np.flatnonzero((groups == 2) & row_mask)[3:]
    row_mask[few] = False  # three rows do not reach 1 - alpha
    alpha = 0.2
    expected = []
    for group in range(4):
        own = sorted(scores[(groups == group) & row_mask].tolist())
        rank = math.ceil((len(own) + 1) * (1 - alpha) - 1e-9)
        expected.append(own[rank - 1] if rank <= len(own) else math.inf)
    assert expected[2] == expected[3] == math.inf and expected[0] < math.inf
    found = combine.conformal_quantile_by_group(
        np.where(row_mask, scores, np.nan), groups, 4, alpha, row_mask=row_mask
    )
    np.testing.assert_array_equal(found, np.float32(expected))
    with pytest.raises(ValueError, match="groups"):
        combine.conformal_quantile_by_group(scores, groups[:5], 4, alpha)
